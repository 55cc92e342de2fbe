"""Pages: Model Management, one version, and putting it in service."""

from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest

from . import drops
from .filters import ModelVersionFilter
from .forms import ActivateForm
from .models import Activation, ActivationError, Deployment, Evaluation, ModelVersion

MOST_EVALUATIONS = 50


@allow("registry.view_modelversion")
@require_GET
def version_list(request: HtmxHttpRequest) -> HttpResponse:
    visible = ModelVersion.objects.visible_to(request.user).select_related("condition", "created_by").with_activity()
    versions = ModelVersionFilter(request.GET, visible, request=request)
    context = {
        "filter": versions,
        "page": Paginator(versions.qs, 25).get_page(request.GET.get("page")),
    }
    template = "registry/_version_table.html" if request.htmx else "registry/version_list.html"
    return render(request, template, context)


@allow("registry.view_modelversion")
@require_GET
def version_detail(request: HttpRequest, pk: int) -> HttpResponse:
    version = _version(request, pk)
    deployment = _deployment(version)
    context = {
        "version": version,
        "deployment": deployment,
        "activations": Activation.objects.filter(condition=version.condition).select_related(
            "to_version__condition", "from_version__condition", "threshold_set", "by"
        )[:10],
        "form": ActivateForm(version, deployment),
        **_evaluations(version),
    }
    return render(request, "registry/version_detail.html", context)


@allow("registry.activate_modelversion")
@require_POST
def version_activate(request: HttpRequest, pk: int) -> HttpResponse:
    version = _version(request, pk)
    form = ActivateForm(version, _deployment(version), request.POST)
    if not form.is_valid():
        messages.error(request, " ".join(error for errors in form.errors.values() for error in errors))
        return redirect(version)
    try:
        version.activate(
            by=request.user,
            reason=form.cleaned_data["reason"],
            threshold_set=form.cleaned_data.get("threshold_set"),
        )
    except ActivationError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{version} is in service for {version.condition}. No restart is needed.")
    return redirect(version)


def _deployment(version: ModelVersion) -> Deployment | None:
    deployments = Deployment.objects.select_related("active__condition", "threshold_set")
    return deployments.filter(condition=version.condition).first()


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
