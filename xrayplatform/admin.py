"""Django admin for administrators. What must not be edited is read-only; every change is in the audit log."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db import DataError
from django.db.models import QuerySet
from django.http import HttpRequest
from django_q.models import Failure, OrmQ, Schedule, Success
from knox.models import AuthToken

from . import audit
from .conditions import Condition
from .system import WorkerSign
from .teams import Team, visible

admin.site.site_header = admin.site.site_title = "X-ray platform administration"
admin.site.index_title = "Users, teams and records"

# A task's function is any importable path: whoever can edit these tables can run code.
for model in (Failure, OrmQ, Schedule, Success):
    admin.site.unregister(model)


class CarefulChangeList(ChangeList):
    """Django answers most addresses that make no sense in words; here also a number or a year that cannot be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except (OverflowError, ValueError, DataError) as error:
            raise IncorrectLookupParameters(error) from error


class ScopedAdmin(admin.ModelAdmin):
    """Shows the rows that the user's teams may see; `team_path` leads to the team, "" where rows have none."""

    team_path = ""

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return CarefulChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        rows = super().get_queryset(request)
        return visible(rows, self.team_path, request.user) if self.team_path else rows


class ReadOnlyAdmin(ScopedAdmin):
    """Shows rows, changes nothing."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class AuditedAdmin(ScopedAdmin):
    """Writes an audit entry with every change; Django's admin saves inside a transaction."""

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        audit.record(f"{obj._meta.model_name}.add", obj, actor=request.user)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        audit.record(f"{obj._meta.model_name}.change", obj, actor=request.user, after={"changed": message})
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        for obj in queryset:
            audit.record(f"{obj._meta.model_name}.delete", obj, actor=request.user)
        return super().log_deletions(request, queryset)


@admin.register(audit.AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display = ["seq", "at", "actor_name", "role", "channel", "action", "object_label", "outcome"]
    list_filter = ["outcome", "channel", "action"]
    search_fields = ["actor_name", "action", "object_label", "request_id"]
    date_hierarchy = "at"


@admin.register(Team)
class TeamAdmin(AuditedAdmin):
    list_display = ["name", "training_limit"]
    search_fields = ["name"]
    filter_horizontal = ["members"]

    def save_model(self, request: HttpRequest, obj: Team, form: Any, change: bool) -> None:
        """How much a team may train is for many others the reason why they wait: both values are kept."""
        super().save_model(request, obj, form, change)
        if "training_limit" in form.changed_data:
            before = {"training_limit": form.initial.get("training_limit")}
            after = {"training_limit": obj.training_limit}
            audit.record("team.training_limit", obj, actor=request.user, before=before, after=after)


@admin.register(Condition)
class ConditionAdmin(AuditedAdmin):
    team_path = "team"
    list_display = ["name", "slug", "body_part", "team"]
    list_filter = ["body_part", "team"]
    search_fields = ["name", "slug"]
    # Folders of model files are named by the slug, and programs address conditions by it.
    readonly_fields = ["slug", "created_at"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(WorkerSign)
class WorkerSignAdmin(ReadOnlyAdmin):
    list_display = ["cluster", "at", "host"]


admin.site.unregister([User, Group, AuthToken])


@admin.register(User)
class PlatformUserAdmin(AuditedAdmin, UserAdmin):
    """Administrators manage people and roles; only a superuser makes superusers or grants single permissions."""

    list_display = ["username", "email", "is_active", "is_staff", "last_login"]
    reserved = ("is_superuser", "user_permissions")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if request.user.is_superuser else fields + self.reserved

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if obj is not None and obj.is_superuser and not request.user.is_superuser:
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Their actions stay in the audit log; people who leave are made inactive.
        return False


@admin.register(Group)
class RoleAdmin(ReadOnlyAdmin, GroupAdmin):
    """Roles are defined in `xrayplatform.teams.ROLES`, so that everybody knows what each may do."""


@admin.register(AuthToken)
class TokenAdmin(AuditedAdmin):
    list_display = ["token_key", "user", "created", "expiry"]
    list_filter = ["user"]
    fields = readonly_fields = ["token_key", "user", "created", "expiry"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False
