"""Records about versions, all of them read-only, and what their lists and pages have in common."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.forms import BaseInlineFormSet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from xrayplatform.admin import ReadOnlyAdmin
from xrayplatform.templatetags.platform_tags import pretty_json

from ..models import (
    DeletedVersion,
    Evaluation,
    IntegrityCheck,
    StateChange,
    ThresholdSet,
    VerificationRun,
    VersionNote,
    VersionTag,
)

# Only what occurs in the rows that the user may see is offered, so that no filter tells what other teams have.
OF_CONDITION = ("condition", admin.RelatedOnlyFieldListFilter)
OF_VERSION = ("version__condition", admin.RelatedOnlyFieldListFilter)
BY = ("by", admin.RelatedOnlyFieldListFilter)
CREATED_BY = ("created_by", admin.RelatedOnlyFieldListFilter)
MOST_ROWS = 20


def as_json(name: str) -> Callable[[Any, Any], SafeString]:
    """A read-only field that shows a JSON field line by line."""

    @admin.display(description=name.replace("_", " "))
    def shown(self: Any, record: Any) -> SafeString:
        return format_html("<pre>{}</pre>", pretty_json(getattr(record, name)))

    return shown


class FirstRows(BaseInlineFormSet):
    """As many rows as a page can hold, in the order of the model, which is newest first wherever there is a date."""

    def get_queryset(self) -> QuerySet:
        if not hasattr(self, "_queryset"):
            rows = super().get_queryset()[:MOST_ROWS]
            for row in rows:
                # Their names tell of the object that is shown, which would be read again for each.
                setattr(row, self.fk.name, self.instance)
            self._queryset = rows
        return self._queryset


class ReadOnlyInline(admin.TabularInline):
    """The rows of another table below an object. `related`: what is read along with them."""

    formset = FirstRows
    related: tuple[str, ...] = ()
    extra = 0
    can_delete = False

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        return super().get_queryset(request).select_related(*self.related)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields or ()

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(StateChange)
class StateChangeAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["at", "version", "from_state", "to_state", "by", "reason"]
    list_filter = ["to_state", OF_VERSION, BY]
    list_select_related = ["version__condition", "by"]
    search_fields = ["reason", "version__condition__name"]
    date_hierarchy = "at"


@admin.register(VersionTag)
class VersionTagAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["name", "version", "by", "at"]
    list_filter = [OF_VERSION, BY]
    list_select_related = ["version__condition", "by"]
    search_fields = ["name"]
    date_hierarchy = "at"


@admin.register(VersionNote)
class VersionNoteAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["at", "version", "by", "text"]
    list_filter = [OF_VERSION, BY]
    list_select_related = ["version__condition", "by"]
    search_fields = ["text"]
    date_hierarchy = "at"


@admin.register(DeletedVersion)
class DeletedVersionAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["at", "condition", "number", "architecture", "size", "by", "reason"]
    list_filter = [OF_CONDITION, BY]
    list_select_related = ["condition", "by"]
    search_fields = ["sha256", "reason", "condition__name"]
    date_hierarchy = "at"


@admin.register(IntegrityCheck)
class IntegrityCheckAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["version", "reason", "message", "since", "checked_at"]
    list_filter = ["reason", OF_VERSION]
    list_select_related = ["version__condition"]
    date_hierarchy = "checked_at"


@admin.register(VerificationRun)
class VerificationRunAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "state", "versions_count", "damaged_count", "message"]
    list_filter = ["state"]
    date_hierarchy = "created_at"


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
    list_filter = ["kind", OF_VERSION, CREATED_BY]
    search_fields = ["dataset_name", "images_digest"]
    list_select_related = ["version__condition", "created_by"]
    date_hierarchy = "created_at"
    # The whole report, with all its curves, is on the page.
    exclude = ["report"]
    shown_metrics = as_json("metrics")
    readonly_fields = ["shown_metrics"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        # A report with all its curves is large; the list shows none of it.
        return super().get_queryset(request).defer("report")

    def view_on_site(self, evaluation: Evaluation) -> str:
        return evaluation.get_absolute_url()


@admin.register(ThresholdSet)
class ThresholdSetAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["version", "number", "threshold", "criterion", "reason", "created_by", "created_at"]
    list_filter = ["criterion", OF_VERSION, CREATED_BY]
    list_select_related = ["version__condition", "created_by"]
    date_hierarchy = "created_at"
    exclude = ["validation", "test"]
    shown_validation, shown_test = as_json("validation"), as_json("test")
    readonly_fields = ["shown_validation", "shown_test"]
