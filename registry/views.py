"""Pages: Model Management, one version, and putting it in service."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest

from .filters import ModelVersionFilter
from .forms import ActivateForm
from .models import Activation, ActivationError, Deployment, ModelVersion


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
    context = {
        "version": version,
        "deployment": Deployment.objects.select_related("active__condition")
        .filter(condition=version.condition)
        .first(),
        "activations": Activation.objects.filter(condition=version.condition).select_related(
            "to_version__condition", "from_version__condition", "by"
        )[:10],
        "form": ActivateForm(),
    }
    return render(request, "registry/version_detail.html", context)


@allow("registry.activate_modelversion")
@require_POST
def version_activate(request: HttpRequest, pk: int) -> HttpResponse:
    version = _version(request, pk)
    form = ActivateForm(request.POST)
    if not form.is_valid():
        messages.error(request, "The reason is too long; 500 characters at most.")
        return redirect(version)
    try:
        version.activate(by=request.user, reason=form.cleaned_data["reason"])
    except ActivationError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{version} is in service for {version.condition}. No restart is needed.")
    return redirect(version)


def _version(request: HttpRequest, pk: int) -> ModelVersion:
    versions = ModelVersion.objects.visible_to(request.user).select_related("condition", "created_by")
    return get_object_or_404(versions, pk=pk)
