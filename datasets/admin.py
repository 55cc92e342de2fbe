from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from xrayplatform.admin import AuditedAdmin, ReadOnlyAdmin

from .models import Dataset, DatasetImage, Decision, FileProblem, Finding, Preparation, PreparedImage, Scan, Upload


@admin.register(Dataset)
class DatasetAdmin(AuditedAdmin):
    """What the scan found is read-only; the condition may be chosen here."""

    team_path = "condition__team"
    list_display = ["name", "condition", "layout_label", "images_count", "unreadable_count", "state", "scanned_at"]
    list_filter = ["state", "layout", "synthetic"]
    search_fields = ["name"]
    list_select_related = ["condition"]
    readonly_fields = [field.name for field in Dataset._meta.concrete_fields if field.name not in ("id", "condition")]

    def has_add_permission(self, request: object) -> bool:
        return False

    def has_delete_permission(self, request: object, obj: object = None) -> bool:
        return False


@admin.register(DatasetImage)
class DatasetImageAdmin(ReadOnlyAdmin):
    team_path = "dataset__condition__team"
    list_display = ["path", "dataset", "class_name", "source_split", "width", "height", "format", "cluster"]
    list_filter = ["format", "dataset"]
    search_fields = ["path", "digest"]
    list_select_related = ["dataset"]
    exclude = ["fingerprint"]


@admin.register(FileProblem)
class FileProblemAdmin(ReadOnlyAdmin):
    team_path = "dataset__condition__team"
    list_display = ["path", "dataset", "code", "reason"]
    list_filter = ["code", "dataset"]
    search_fields = ["path"]
    list_select_related = ["dataset"]


@admin.register(Finding)
class FindingAdmin(ReadOnlyAdmin):
    team_path = "dataset__condition__team"
    list_display = ["image", "dataset", "code", "value", "detail"]
    list_filter = ["code", "dataset"]
    search_fields = ["image__path"]
    list_select_related = ["dataset", "image"]


@admin.register(Decision)
class DecisionAdmin(ReadOnlyAdmin):
    """Made on the pages, over the API and by command, where each is in the audit log."""

    team_path = "dataset__condition__team"
    list_display = ["path", "dataset", "code", "action", "reason", "decided_by", "decided_at"]
    list_filter = ["action", "code", "dataset"]
    search_fields = ["path"]
    list_select_related = ["dataset", "decided_by"]


@admin.register(Scan)
class ScanAdmin(ReadOnlyAdmin):
    list_display = ["id", "state", "images", "created_by", "created_at", "finished_at", "error"]
    list_filter = ["state"]


@admin.register(Preparation)
class PreparationAdmin(ReadOnlyAdmin):
    team_path = "dataset__condition__team"
    list_display = ["id", "dataset", "state", "group_key", "shared_patients", "excluded", "created_by", "created_at"]
    list_filter = ["state", "dataset"]
    list_select_related = ["dataset", "created_by"]


@admin.register(PreparedImage)
class PreparedImageAdmin(ReadOnlyAdmin):
    team_path = "preparation__dataset__condition__team"
    list_display = ["preparation", "row", "path", "class_name", "split", "group"]
    list_filter = ["split", "preparation"]
    search_fields = ["path", "digest"]
    list_select_related = ["preparation__dataset"]


@admin.register(Upload)
class UploadAdmin(ReadOnlyAdmin):
    list_display = ["id", "name", "state", "accepted", "refused", "created_by", "created_at"]
    list_filter = ["state"]
    list_select_related = ["created_by"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        """By the rule of the pages: an upload into a new folder has no dataset yet that could tell its team."""
        return super().get_queryset(request).visible_to(request.user)
