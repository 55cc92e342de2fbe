"""Pages: start the export of a whole condition, follow it, and take its file."""

from django.contrib import messages
from django.http import FileResponse, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from xrayplatform.access import allow
from xrayplatform.conditions import Condition
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError

from .models import ConditionExport, ModelVersion

EARLIER = 10


@allow("registry.export_modelversion")
@require_http_methods(["GET", "POST"])
def condition_export(request: HttpRequest, slug: str) -> HttpResponse:
    """What the export of a condition holds, and the earlier ones; a POST starts one, or shows the one under way."""
    condition = get_object_or_404(Condition.objects.visible_to(request.user), slug=slug)
    if request.method == "POST":
        try:
            return redirect(ConditionExport.start(condition, request.user))
        except JobError as error:
            messages.error(request, f"{condition} was not exported: {error} {error.hint}")
            return redirect("registry:condition-export", slug=slug)
    exports = ConditionExport.objects.visible_to(request.user).filter(condition=condition)
    context = {
        "condition": condition,
        "count": ModelVersion.objects.filter(condition=condition).count(),
        "exports": exports.select_related("created_by")[:EARLIER],
    }
    return render(request, "registry/condition_export.html", context)


@allow("registry.export_modelversion")
@require_GET
def export_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """How far an export is, or its file; to htmx the fragment alone."""
    template = "registry/_export.html" if request.htmx else "registry/export_detail.html"
    return render(request, template, {"job": _visible_export(request, pk)})


@allow("registry.export_modelversion")
@require_POST
def export_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    job = _visible_export(request, pk)
    if not job.request_cancel(request.user):
        messages.info(request, "This export had ended already.")
    return redirect(job)


@allow("registry.export_modelversion")
@require_GET
def export_download(request: HttpRequest, pk: int) -> HttpResponse | HttpResponseBase:
    job = _visible_export(request, pk)
    try:
        file = job.take_along(request.user)
    except JobError as error:
        messages.error(request, f"{error} {error.hint}")
        return redirect(job)
    return FileResponse(file, as_attachment=True, filename=job.file_name)


def _visible_export(request: HttpRequest, pk: int) -> ConditionExport:
    exports = ConditionExport.objects.visible_to(request.user)
    return get_object_or_404(exports.select_related("condition", "created_by"), pk=pk)
