from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from xrayplatform.admin import AuditedAdmin, ReadOnlyAdmin

from . import exporting, signing
from .models import (
    Activation,
    Deployment,
    Evaluation,
    Event,
    IntegrityCheck,
    ModelVersion,
    PackageImport,
    ScheduledActivation,
    ThresholdSet,
    TrustedOrigin,
    VerificationRun,
    Webhook,
    WebhookDelivery,
)


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["id", "condition", "number", "architecture", "accuracy", "auc", "state", "created_by", "created_at"]
    list_filter = ["state", "architecture", "condition", "synthetic"]
    search_fields = ["condition__name", "architecture", "sha256", "dataset_name"]
    list_select_related = ["condition", "created_by"]


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["condition", "active", "previous", "epoch"]
    list_select_related = ["condition", "active__condition", "previous__condition"]


@admin.register(Activation)
class ActivationAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["at", "condition", "from_version", "to_version", "by", "reason"]
    list_filter = ["condition"]
    list_select_related = ["condition", "from_version__condition", "to_version__condition", "by"]


@admin.register(ScheduledActivation)
class ScheduledActivationAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["at", "version", "state", "by", "reason", "message"]
    list_filter = ["state", "version__condition"]
    list_select_related = ["version__condition", "by"]


@admin.register(IntegrityCheck)
class IntegrityCheckAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["version", "reason", "message", "since", "checked_at"]
    list_filter = ["reason", "version__condition"]
    list_select_related = ["version__condition"]


@admin.register(VerificationRun)
class VerificationRunAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "state", "versions_count", "damaged_count", "message"]
    list_filter = ["state"]


@admin.register(Evaluation)
class EvaluationAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = [
        "id",
        "version",
        "kind",
        "dataset_name",
        "images_count",
        "patients_count",
        "created_by",
        "created_at",
    ]
    list_filter = ["kind", "version__condition"]
    search_fields = ["dataset_name", "images_digest"]
    list_select_related = ["version__condition", "created_by"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        # A report with all its curves is large; the list shows none of it.
        return super().get_queryset(request).defer("report")


@admin.register(ThresholdSet)
class ThresholdSetAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["version", "number", "threshold", "criterion", "reason", "created_by", "created_at"]
    list_filter = ["criterion", "version__condition"]
    list_select_related = ["version__condition", "created_by"]


@admin.register(TrustedOrigin)
class TrustedOriginAdmin(AuditedAdmin):
    """Nobody deletes one, so that it stays known whose packages were taken; one that is not active counts no more."""

    list_display = ["name", "key_id", "active", "created_at"]
    list_filter = ["active"]
    search_fields = ["name", "public_key", "key_id"]
    fields = ["name", "public_key", "key_id", "active"]
    readonly_fields = ["key_id"]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """A key is never exchanged under a name: the audit log would tell of two sites as of one."""
        return ["key_id", "public_key"] if obj else ["key_id"]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        shown = {"site_name": exporting.site_name()}
        try:
            shown["public_key"] = exporting.site_key().public_key
        except signing.SigningError as error:
            shown["key_problem"] = str(error)
        return super().changelist_view(request, {**(extra_context or {}), **shown})


@admin.register(PackageImport)
class PackageImportAdmin(ReadOnlyAdmin):
    list_display = ["id", "package", "condition", "version", "state", "reason", "accepted", "created_by", "created_at"]
    list_filter = ["state", "accepted", "reason"]
    search_fields = ["package__sha256", "package__key_id"]
    list_select_related = ["package", "condition", "version__condition", "created_by"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        return super().get_queryset(request) & PackageImport.objects.visible_to(request.user)


class WebhookForm(forms.ModelForm):
    events = forms.MultipleChoiceField(choices=Event, widget=forms.CheckboxSelectMultiple)
    secret = forms.CharField(
        max_length=200,
        min_length=16,
        required=False,
        widget=forms.PasswordInput,
        help_text="At least 16 characters; it is not shown again. Leave it empty to keep the one there is.",
    )

    class Meta:
        model = Webhook
        fields = ["name", "url", "secret", "events", "active"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A field that was left empty is no change of the secret, for the audit log either.
        self.initial.pop("secret", None)

    def clean_secret(self) -> str:
        secret: str = self.cleaned_data["secret"] or self.instance.secret
        if not secret:
            raise forms.ValidationError("Give a secret, so that the receiver can verify who calls.")
        return secret


@admin.register(Webhook)
class WebhookAdmin(AuditedAdmin):
    """The list of addresses that the platform calls; none besides.

    One that was ever called is not deleted: what was sent where is history. It is made inactive.
    """

    form = WebhookForm
    list_display = ["name", "url", "events", "active"]
    list_filter = ["active"]
    search_fields = ["name", "url"]
    actions = ["send_test", "make_inactive"]
    readonly_fields = ["history"]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Who may only look would be shown the secret as plain text."""
        may_write = obj is None or self.has_change_permission(request, obj)
        fields = [name for name in WebhookForm.Meta.fields if may_write or name != "secret"]
        return fields if obj is None else [*fields, "history"]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Without the deletion of several at once, which cannot say which of them has a history."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request, obj) and not (obj and obj.deliveries.exists())

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        webhook = self.get_object(request, object_id)
        if webhook is not None and webhook.deliveries.exists() and super().has_delete_permission(request, webhook):
            messages.error(request, f"{webhook} was not deleted. {self.history(webhook)}")
            return redirect("admin:registry_webhook_change", webhook.pk)
        return super().delete_view(request, object_id, extra_context)

    @admin.display(description="calls")
    def history(self, webhook: Webhook) -> str:
        count = webhook.deliveries.count()
        if not count:
            return "It was never called, so that it can be deleted."
        return (
            f"It was called {count} time{'' if count == 1 else 's'}. These calls are history, so that it cannot be "
            "deleted; make it inactive, and it is not called any more."
        )

    @admin.action(description="Send a test call", permissions=["change"])
    def send_test(self, request: HttpRequest, queryset: QuerySet) -> None:
        for webhook in queryset:
            webhook.test(by=request.user)
        messages.info(request, "The calls are under way; see Webhook deliveries for what came of them.")

    @admin.action(description="Make inactive", permissions=["change"])
    def make_inactive(self, request: HttpRequest, queryset: QuerySet) -> None:
        with transaction.atomic():
            for webhook in queryset.filter(active=True):
                webhook.active = False
                webhook.save(update_fields=["active"])
                self.log_change(request, webhook, "Made inactive.")
        messages.info(request, "Inactive addresses are not called; what waited for its turn is given up.")


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "event", "webhook", "state", "tries", "next_at"]
    list_filter = ["state", "event", "webhook"]
    list_select_related = ["webhook"]
