"""Admin of the DICOM network: routes and destinations to edit, received images and deliveries to look after."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import ForeignKey, ManyToManyField, QuerySet
from django.http import HttpRequest

from xrayplatform.admin import AuditedAdmin, ReadOnlyAdmin
from xrayplatform.conditions import Condition

from . import deliveries, receiving
from .models import DicomDelivery, DicomDestination, DicomRoute, ReceivedObject


@admin.register(DicomRoute)
class DicomRouteAdmin(AuditedAdmin):
    """Tried from the lowest position on; the first that fits counts."""

    team_path = "condition__team"
    list_display = ["position", "modality", "body_part", "calling_ae", "condition", "active"]
    list_display_links = ["position", "condition"]
    list_filter = ["active", "modality"]
    search_fields = ["body_part", "calling_ae"]
    list_select_related = ["condition"]

    def formfield_for_foreignkey(self, db_field: ForeignKey, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "condition":
            kwargs["queryset"] = Condition.objects.visible_to(request.user)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


class DicomDestinationForm(forms.ModelForm):
    authorization = forms.CharField(
        max_length=1000,
        required=False,
        widget=forms.PasswordInput,
        help_text="For STOW-RS: what the archive wants to be sent as Authorization, such as Bearer and a token. It is "
        "not shown again; leave it empty to keep what there is.",
    )

    class Meta:
        model = DicomDestination
        fields = [
            "name", "kind", "host", "port", "ae_title", "url", "authorization", "report", "capture", "conditions",
            "active",
        ]  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A field that was left empty is no change of the secret, for the audit log either.
        self.initial.pop("authorization", None)

    def clean_authorization(self) -> str:
        return str(self.cleaned_data["authorization"] or self.instance.authorization)


@admin.register(DicomDestination)
class DicomDestinationAdmin(AuditedAdmin):
    """Where results go. Of the conditions an administrator sees and changes those of the own teams alone."""

    form = DicomDestinationForm
    list_display = ["name", "kind", "ae_title", "host", "port", "url", "report", "capture", "active"]
    list_filter = ["active", "kind"]
    search_fields = ["name", "ae_title", "host", "url"]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Who may only look would be shown the secret as plain text, and conditions of other teams."""
        may_write = obj is None or self.has_change_permission(request, obj)
        hidden = () if may_write else ("authorization", "conditions")
        return [name for name in DicomDestinationForm.Meta.fields if name not in hidden]

    def formfield_for_manytomany(self, db_field: ManyToManyField, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "conditions":
            kwargs["queryset"] = Condition.objects.visible_to(request.user)
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        visible = Condition.objects.visible_to(request.user)
        others = list(form.instance.conditions.exclude(pk__in=visible.values("pk")))
        super().save_related(request, form, formsets, change)
        # The form does not know those of other teams, and would have taken them out.
        form.instance.conditions.add(*others)


@admin.register(ReceivedObject)
class ReceivedObjectAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["received_at", "source", "modality", "body_part", "condition", "state", "tries", "message"]
    list_filter = ["state", "modality", ("condition", admin.RelatedOnlyFieldListFilter)]
    search_fields = ["sop_uid", "study_uid", "source"]
    list_select_related = ["condition"]
    date_hierarchy = "received_at"

    def has_route_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("inference.change_dicomroute")

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """One for each condition, so that what no route takes is answered all the same."""
        actions = super().get_actions(request)
        if not self.has_route_permission(request):
            return actions
        wanted: list[tuple[str, str, Condition | None]] = [
            ("analyse_by_routes", "Analyse: find the condition by the routes again", None)
        ]
        for condition in Condition.objects.visible_to(request.user):
            wanted.append((f"analyse_for_{condition.slug}", f"Analyse for {condition}", condition))
        return actions | {name: (_analysis(condition), name, text) for name, text, condition in wanted}


def _analysis(condition: Condition | None) -> Callable[..., None]:
    return partial(_analyse, condition=condition)


def _analyse(
    model_admin: ReceivedObjectAdmin, request: HttpRequest, queryset: QuerySet, *, condition: Condition | None
) -> None:
    begun = sum(receiving.analyse_again(received, condition, request.user) for received in queryset)
    if begun:
        messages.info(request, f"Handed to the queue: {begun}.")
    if begun < len(queryset):
        text = "have an answer, wait for one, or their file is not kept any more: send those again from the device."
        messages.warning(request, f"Left as they are: {len(queryset) - begun}, which {text}")


@admin.register(DicomDelivery)
class DicomDeliveryAdmin(ReadOnlyAdmin):
    team_path = "received__condition__team"
    list_display = ["created_at", "what", "destination", "received", "state", "tries", "next_at", "message"]
    list_filter = ["state", "what", "destination"]
    list_select_related = ["destination", "received"]
    actions = ["send_again"]

    def has_send_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("inference.change_dicomdestination")

    @admin.action(description="Send again", permissions=["send"])
    def send_again(self, request: HttpRequest, queryset: QuerySet) -> None:
        rows = list(queryset.select_related("received", "destination"))
        begun = sum(deliveries.send_again(delivery, request.user) for delivery in rows)
        if begun:
            messages.info(request, f"Under way: {begun}.")
        if begun < len(rows):
            text = "whose image is not kept any more: send it again from the device."
            messages.warning(request, f"Not sent: {len(rows) - begun}, {text}")
