"""What is in service, what was, and what is planned; the way back takes the same way as on the page of a version."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from xrayplatform.admin import ReadOnlyAdmin

from ..models import Activation, ActivationError, Deployment, ScheduledActivation
from ..service_forms import RollbackForm
from ..service_views import service_of
from .decisions import DecidingAdmin, is_decided
from .records import BY, MOST_ROWS, OF_CONDITION, OF_VERSION


@admin.register(Deployment)
class DeploymentAdmin(DecidingAdmin):
    team_path = "condition__team"
    list_display = ["condition", "active", "previous", "threshold_set", "epoch"]
    list_filter = [OF_CONDITION]
    list_select_related = [
        "condition",
        "active__condition",
        "previous__condition",
        "threshold_set__version__condition",
    ]
    search_fields = ["condition__name", "condition__slug"]
    ordering = ["condition__name"]
    actions = ["roll_back"]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """With the history of the condition, which refers to the condition and not to this row."""
        rows = Activation.objects.filter(condition=context["original"].condition_id)
        related = ("from_version__condition", "to_version__condition", "threshold_set", "by")
        context["activations"], context["most"] = rows.select_related(*related)[:MOST_ROWS], MOST_ROWS
        return super().render_change_form(request, context, *args, **kwargs)

    def has_activate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("registry.activate_modelversion")

    @admin.action(description="Roll back to what was in service before", permissions=["activate"])
    def roll_back(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        deployment = self.only_one(request, queryset)
        if deployment is None:
            return None
        if deployment.active is None:
            messages.error(request, f"Nothing is in service for {deployment.condition}; there is no way back.")
            return None
        form = RollbackForm(deployment, request.POST if is_decided(request) else None)
        if form.is_valid():
            self._roll_back(request, deployment, form.cleaned_data)
            return None
        shown = {**service_of(deployment.active, request.user), "version": deployment.active, "form": form}
        shown["may_decide"] = shown["before"] and not shown["rollback_obstacle"]
        return self.ask(request, "roll_back", f"Roll back {deployment.condition}?", shown)

    def _roll_back(self, request: HttpRequest, deployment: Deployment, given: dict[str, Any]) -> None:
        version = deployment.active
        try:
            version.roll_back(by=request.user, reason=given["reason"], seen_epoch=given["epoch"])
        except ActivationError as error:
            messages.error(request, str(error))
        else:
            messages.success(request, f"{version} is out of service; what was in service before answers again.")


@admin.register(Activation)
class ActivationAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["at", "condition", "from_version", "to_version", "threshold_set", "by", "reason"]
    list_filter = [OF_CONDITION, BY]
    list_select_related = [
        "condition",
        "from_version__condition",
        "to_version__condition",
        "threshold_set__version__condition",
        "by",
    ]
    search_fields = ["reason", "condition__name"]
    date_hierarchy = "at"


@admin.register(ScheduledActivation)
class ScheduledActivationAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["at", "version", "state", "by", "reason", "message"]
    list_filter = ["state", OF_VERSION, BY]
    list_select_related = ["version__condition", "by"]
    search_fields = ["reason", "message"]
    date_hierarchy = "at"
