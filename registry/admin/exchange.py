"""The exchange with other sites: whose packages are trusted, what was imported, and which conditions were exported."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from xrayplatform.admin import AuditedAdmin, ReadOnlyAdmin

from .. import exporting, signing
from ..models import ConditionExport, PackageImport, TrustedOrigin
from .records import CREATED_BY, OF_CONDITION, as_json


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
    list_filter = ["state", "accepted", "reason", OF_CONDITION]
    search_fields = ["package__sha256", "package__key_id"]
    list_select_related = ["package", "condition", "version__condition", "created_by"]
    date_hierarchy = "created_at"
    exclude = ["documents"]
    shown_documents = as_json("documents")
    readonly_fields = ["shown_documents"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        return super().get_queryset(request) & PackageImport.objects.visible_to(request.user)


@admin.register(ConditionExport)
class ConditionExportAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["id", "condition", "state", "versions_count", "size", "expires_at", "created_by", "created_at"]
    list_filter = ["state", OF_CONDITION, CREATED_BY]
    list_select_related = ["condition", "created_by"]
    search_fields = ["condition__name", "condition__slug"]
    date_hierarchy = "created_at"
    exclude = ["left_out"]
    shown_left_out = as_json("left_out")
    readonly_fields = ["shown_left_out"]
