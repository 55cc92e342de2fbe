"""The addresses that the platform calls, and the calls that were made."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from xrayplatform.admin import AuditedAdmin, ReadOnlyAdmin

from ..models import Event, Webhook, WebhookDelivery


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
    date_hierarchy = "created_at"
