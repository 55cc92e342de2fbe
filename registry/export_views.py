"""Page: a version as a file to take along."""

from django.contrib import messages
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET

from xrayplatform.access import allow

from . import exporting
from .models import ModelVersion


@allow("registry.export_modelversion")
@require_GET
def version_export(request: HttpRequest, pk: int) -> HttpResponse | HttpResponseBase:
    """Streams a finished file; `?as=` names one of the forms, without it the signed package."""
    versions = ModelVersion.objects.visible_to(request.user)
    version = get_object_or_404(versions.select_related("condition", "created_by", "parent__condition"), pk=pk)
    form = request.GET.get("as", "package")
    if form not in exporting.FORMS:
        raise Http404
    try:
        file = exporting.take_along(version, form, by=request.user)
    except exporting.REFUSALS as error:
        messages.error(request, f"{version} was not exported: {error}")
        return redirect(version)
    return FileResponse(file, as_attachment=True, filename=exporting.FORMS[form].file_name(version))
