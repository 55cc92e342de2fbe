"""Pages: Model Management and one version."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.paging import KeyPaginator

from . import drops, exporting, sorting
from .filters import VersionPageFilter
from .label_views import labels_of
from .models import Evaluation, ModelVersion, PackageImport
from .service_views import service_of
from .state_views import state_of

MOST_EVALUATIONS = 50
VERSIONS_A_PAGE = 25


@allow("registry.view_modelversion")
@require_GET
def version_list(request: HtmxHttpRequest) -> HttpResponse:
    versions = VersionPageFilter(request.GET, ModelVersion.objects.visible_to(request.user).for_list(), request=request)
    # Under a filter that cannot be used, no list at all: the whole one would be taken for the filtered one.
    found, count, hidden = ModelVersion.objects.none(), 0, 0
    if versions.is_valid():
        found, (count, hidden) = versions.listed(), versions.counts()
    context = {
        "filter": versions,
        "page": KeyPaginator(found, VERSIONS_A_PAGE, count=count).get_page(request.GET.get("page")),
        "heads": sorting.heads(versions.order),
        "order": sorting.in_words(versions.order),
        "hidden_count": hidden,
    }
    template = "registry/_version_table.html" if request.htmx else "registry/version_list.html"
    return render(request, template, context)


@allow("registry.view_modelversion")
@require_GET
def version_detail(request: HttpRequest, pk: int) -> HttpResponse:
    version = _version(request, pk)
    context = {
        "version": version,
        **service_of(version, request.user),
        **state_of(version, request.user),
        **labels_of(version),
        "export_forms": exporting.FORMS,
        "imported": PackageImport.objects.filter(version=version).select_related("package").first(),
        **_evaluations(version),
    }
    return render(request, "registry/version_detail.html", context)


def _evaluations(version: ModelVersion) -> dict[str, Any]:
    """The evaluations of a version with the drop of the external ones; `internal`: the newest on its own test part."""
    evaluations = list(version.evaluations.with_figures().select_related("created_by")[:MOST_EVALUATIONS])
    internal = next((row for row in evaluations if row.kind == Evaluation.Kind.TEST), None)
    for evaluation in evaluations:
        compared = internal is not None and evaluation.kind == Evaluation.Kind.EXTERNAL
        evaluation.drops = drops.sentences(internal.figures, evaluation.figures) if compared else []
    return {
        "evaluations": evaluations,
        "internal": internal,
    }


def _version(request: HttpRequest, pk: int) -> ModelVersion:
    versions = ModelVersion.objects.visible_to(request.user).select_related("condition", "created_by")
    return get_object_or_404(versions, pk=pk)
