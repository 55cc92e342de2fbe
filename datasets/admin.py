from django.contrib import admin

from xrayplatform.admin import AuditedAdmin, ReadOnlyAdmin

from .models import Dataset, DatasetImage, Preparation, PreparedImage, Scan


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
    list_display = ["path", "dataset", "class_name", "source_split", "width", "height", "format", "excluded"]
    list_filter = ["format", "excluded", "dataset"]
    search_fields = ["path", "digest"]
    list_select_related = ["dataset"]


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
