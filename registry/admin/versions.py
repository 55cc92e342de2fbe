"""Model versions: found by what they are, shown with all that happened to them, and decided about."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..filters import ModelVersionFilter
from ..models import (
    Activation,
    ActivationError,
    Evaluation,
    IntegrityCheck,
    ModelVersion,
    StateChange,
    ThresholdSet,
    VersionNote,
    VersionTag,
)
from ..service_forms import ActivateForm
from ..service_views import service_of
from .decisions import APPROVE, ARCHIVE, DELETE, REOPEN, DecidingAdmin, decide, is_decided
from .records import CREATED_BY, OF_CONDITION, ReadOnlyInline, as_json

MOST_TAGS = 50
# A browser waits while the files are read; the nightly verification reads all.
MOST_VERIFIED = 20
MOST_BYTES_VERIFIED = 2 * 1024**3


class TagFilter(admin.SimpleListFilter):
    """The tags that are used most; others are found by the search."""

    title = parameter_name = "tag"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        counted = VersionTag.objects.visible_to(request.user).order_by().values("name").annotate(count=Count("pk"))
        return sorted((row["name"], row["name"]) for row in counted.order_by("-count", "name")[:MOST_TAGS])

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        tagged = VersionTag.objects.filter(name=self.value())
        return queryset.filter(pk__in=tagged.values("version")) if self.value() else queryset


class ServiceFilter(admin.SimpleListFilter):
    title, parameter_name = "in service", "service"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Yes"), ("no", "No")]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        return queryset.filter(is_active=self.value() == "yes") if self.value() else queryset


class FilesFilter(admin.SimpleListFilter):
    title, parameter_name = "files", "files"
    meaning = {
        "whole": Q(integrity__reason=""),
        "damaged": Q(integrity__isnull=False) & ~Q(integrity__reason=""),
        "unknown": Q(integrity__isnull=True),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("whole", "Whole"), ("damaged", "Damaged"), ("unknown", "Nobody has looked yet")]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        return queryset.filter(self.meaning[self.value()]) if self.value() in self.meaning else queryset


class OriginFilter(admin.SimpleListFilter):
    title = parameter_name = "origin"
    meaning = {"trained": Q(origin__startswith="trained here"), "imported": Q(origin__startswith="imported from")}

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("trained", "Trained here"), ("imported", "Imported"), ("other", "Other")]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if self.value() == "other":
            return queryset.exclude(self.meaning["trained"] | self.meaning["imported"])
        return queryset.filter(self.meaning[self.value()]) if self.value() in self.meaning else queryset


class ActivationInline(ReadOnlyInline):
    model = Activation
    fk_name = "to_version"
    fields = ["at", "from_version", "threshold_set", "by", "reason"]
    related = ("from_version__condition", "threshold_set__version__condition", "by")


class StateChangeInline(ReadOnlyInline):
    model = StateChange
    fields = ["at", "from_state", "to_state", "by", "reason"]
    related = ("by",)


class ThresholdSetInline(ReadOnlyInline):
    model = ThresholdSet
    fields = ["number", "threshold", "criterion", "reason", "created_by", "created_at"]
    related = ("created_by",)
    show_change_link = True


class EvaluationInline(ReadOnlyInline):
    model = Evaluation
    fields = ["kind", "dataset_name", "images_count", "patients_count", "created_by", "created_at"]
    related = ("created_by",)
    show_change_link = True

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        return super().get_queryset(request).defer("report")


class VersionNoteInline(ReadOnlyInline):
    model = VersionNote
    fields = ["at", "by", "text"]
    related = ("by",)


class VersionTagInline(ReadOnlyInline):
    model = VersionTag
    fields = ["name", "by", "at"]
    related = ("by",)


class IntegrityInline(ReadOnlyInline):
    model = IntegrityCheck
    fields = ["checked_at", "reason", "message", "since"]


class ActivateNowForm(ActivateForm):
    """A later time is planned on the version's own page."""

    at = None


@admin.register(ModelVersion)
class ModelVersionAdmin(DecidingAdmin):
    team_path = "condition__team"
    list_display = [
        "condition",
        "number",
        "architecture",
        "accuracy",
        "auc",
        "state",
        "in_service",
        "whole",
        "created_by",
        "created_at",
    ]
    list_display_links = ["condition", "number"]
    list_filter = [
        "state",
        OF_CONDITION,
        "architecture",
        TagFilter,
        ServiceFilter,
        FilesFilter,
        "synthetic",
        OriginFilter,
        CREATED_BY,
    ]
    list_select_related = ["condition", "created_by", "integrity"]
    list_per_page = 50
    date_hierarchy = "created_at"
    # Shows the field; how is said by `get_search_results`.
    search_fields = ["condition__name"]
    search_help_text = "Condition, architecture, dataset, tag, note, number such as v3, or the beginning of a digest."
    actions = ["activate", "approve", "archive", "reopen", "verify", "export", "delete_versions"]
    inlines = [
        ActivationInline,
        StateChangeInline,
        IntegrityInline,
        EvaluationInline,
        ThresholdSetInline,
        VersionTagInline,
        VersionNoteInline,
    ]
    shown_metrics, shown_validation_metrics = as_json("metrics"), as_json("validation_metrics")
    shown_classes, shown_preprocessing = as_json("classes"), as_json("preprocessing")
    shown_configuration, shown_history = as_json("configuration"), as_json("history")
    shown_environment = as_json("environment")
    readonly_fields = [
        "in_service",
        "whole",
        "lineage",
        "shown_metrics",
        "shown_validation_metrics",
        "shown_classes",
        "shown_preprocessing",
        "shown_configuration",
        "shown_history",
        "shown_environment",
    ]
    fieldsets = [
        (None, {"fields": ["condition", "number", "state", "in_service", "whole", "created_by", "created_at"]}),
        ("Where it comes from", {"fields": ["origin", "initial_weights", "lineage", "synthetic"]}),
        ("Figures on its own test part", {"fields": ["accuracy", "auc", "shown_metrics", "shown_validation_metrics"]}),
        (
            "What it answers",
            {
                "fields": [
                    "architecture",
                    "image_size",
                    "shown_classes",
                    "positive_class",
                    "threshold",
                    "temperature",
                    "shown_preprocessing",
                ]
            },
        ),
        ("Data", {"fields": ["dataset_name", "dataset_digest", "split_digest"]}),
        ("Files", {"fields": ["sha256", "size"]}),
        (
            "Training",
            {"classes": ["collapse"], "fields": ["shown_configuration", "shown_environment", "shown_history"]},
        ),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        """Without the figures of all epochs, the longest of a version, which lists do not show."""
        return super().get_queryset(request).with_activity().defer("history")

    def get_search_results(self, request: HttpRequest, queryset: QuerySet, search_term: str) -> tuple[QuerySet, bool]:
        """As on the page Model Management."""
        if not search_term:
            return queryset, False
        found = ModelVersionFilter({"q": search_term}, queryset, request=request)
        if not found.is_valid():
            messages.error(request, " ".join(found.form.errors.get("q", [])))
            return queryset.none(), False
        return found.qs, False

    def view_on_site(self, version: ModelVersion) -> str:
        return version.get_absolute_url()

    @admin.display(description="in service", boolean=True, ordering="is_active")
    def in_service(self, version: ModelVersion) -> bool:
        return version.is_active

    @admin.display(description="files whole", boolean=True, ordering="integrity__reason")
    def whole(self, version: ModelVersion) -> bool | None:
        """None where nobody has looked yet."""
        check = getattr(version, "integrity", None)
        return None if check is None else not check.is_damaged

    @admin.display(description="lineage")
    def lineage(self, version: ModelVersion) -> SafeString:
        """By a link: the page knows which of its ancestors the user may see."""
        return format_html('<a href="{}">From dataset to predictions</a>', _page("lineage", version.pk))

    def has_activate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("registry.activate_modelversion")

    def has_change_state_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("registry.change_state_modelversion")

    def has_export_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("registry.export_modelversion")

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("registry.delete_modelversion")

    @admin.action(description="Activate one version", permissions=["activate"])
    def activate(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        version = self.only_one(request, queryset)
        if version is None:
            return None
        shown = service_of(version, request.user)
        form = ActivateNowForm(version, shown["deployment"], request.POST if is_decided(request) else None)
        if form.is_valid():
            _activate(request, version, form.cleaned_data)
            return None
        stays = shown["deployment"] and shown["deployment"].active == version and "threshold_set" not in form.fields
        damaged = shown["integrity"] and shown["integrity"].is_damaged
        shown |= {"version": version, "form": form, "may_decide": not (shown["obstacle"] or damaged or stays)}
        return self.ask(request, "activate", f"Activate {version}?", shown)

    @admin.action(description="Approve", permissions=["change_state"])
    def approve(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return decide(self, request, queryset, APPROVE)

    @admin.action(description="Archive", permissions=["change_state"])
    def archive(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return decide(self, request, queryset, ARCHIVE)

    @admin.action(description="Reopen as candidates", permissions=["change_state"])
    def reopen(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return decide(self, request, queryset, REOPEN)

    @admin.action(description="Delete archived versions", permissions=["remove"])
    def delete_versions(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return decide(self, request, queryset, DELETE)

    @admin.action(description="Verify the files", permissions=["activate"])
    def verify(self, request: HttpRequest, queryset: QuerySet) -> None:
        versions = self.several(request, queryset, MOST_VERIFIED)
        if sum(version.size for version in versions) > MOST_BYTES_VERIFIED:
            messages.error(
                request,
                f"Their files have more than {MOST_BYTES_VERIFIED / 1024**3:.0f} GB, too much to wait for. Choose "
                "fewer, or run on the server: manage.py verify_models. Each night all are verified.",
            )
            return
        for version in versions:
            check = version.verify(by=request.user)
            messages.add_message(request, messages.ERROR if check.is_damaged else messages.SUCCESS, check.verdict)

    @admin.action(description="Export (several: the whole condition)", permissions=["export"])
    def export(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        """By the addresses of the pages, which write the audit entry and say what is in the way."""
        chosen = list(queryset.values_list("pk", "condition__slug"))
        slugs = {slug for _, slug in chosen}
        if len(slugs) != 1:
            messages.error(request, "Choose versions of one condition: each is exported as a file of its own.")
            return None
        if len(chosen) > 1:
            return redirect("registry:condition-export", slug=slugs.pop())
        return redirect("registry:version-export", pk=chosen[0][0])


def _activate(request: HttpRequest, version: ModelVersion, given: dict[str, Any]) -> None:
    try:
        version.activate(
            by=request.user,
            reason=given["reason"],
            threshold_set=given.get("threshold_set"),
            seen_epoch=given["epoch"],
        )
    except ActivationError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{version} is in service for {version.condition}. No restart is needed.")


def _page(name: str, pk: int) -> str:
    return reverse(f"registry:version-{name}", args=[pk])
