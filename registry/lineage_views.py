"""The lineage of a version: a page from the datasets it learned from to the answers it gave."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from xrayplatform.access import allow

from .lineage import lineage_of
from .models import ModelVersion


@allow("registry.view_modelversion")
@require_GET
def version_lineage(request: HttpRequest, pk: int) -> HttpResponse:
    versions = ModelVersion.objects.visible_to(request.user).select_related("condition", "created_by")
    version = get_object_or_404(versions, pk=pk)
    context = {"version": version, "lineage": lineage_of(version, request.user)}
    return render(request, "registry/version_lineage.html", context)
