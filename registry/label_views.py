"""Pages: tagging a version and writing notes about it."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST

from xrayplatform.access import allow

from .models import LabelError, ModelVersion
from .models.label import LONGEST_NOTE, LONGEST_TAG

LABEL = "registry.label_modelversion"


def labels_of(version: ModelVersion) -> dict[str, Any]:
    """What the page of a version shows about its tags and notes."""
    return {
        "tags": version.tags.all(),
        "notes": version.notes.select_related("by"),
        "longest_tag": LONGEST_TAG,
        "longest_note": LONGEST_NOTE,
    }


@allow(LABEL)
@require_POST
def version_tag(request: HttpRequest, pk: int) -> HttpResponse:
    name = request.POST.get("name", "")
    return _label(request, pk, lambda version: f"{version} is tagged “{version.tag(name, by=request.user)}”.")


@allow(LABEL)
@require_POST
def version_untag(request: HttpRequest, pk: int) -> HttpResponse:
    def untag(version: ModelVersion) -> str:
        name = request.POST.get("name", "")
        version.untag(name, by=request.user)
        return f"The tag “{name}” of {version} was removed."

    return _label(request, pk, untag)


@allow(LABEL)
@require_POST
def version_note(request: HttpRequest, pk: int) -> HttpResponse:
    def write(version: ModelVersion) -> str:
        version.add_note(request.POST.get("text", ""), by=request.user)
        return f"Your note about {version} is kept."

    return _label(request, pk, write)


def _label(request: HttpRequest, pk: int, label: Callable[[ModelVersion], str]) -> HttpResponse:
    """label: does it, and says what was done."""
    version = get_object_or_404(ModelVersion.objects.visible_to(request.user).select_related("condition"), pk=pk)
    try:
        messages.success(request, label(version))
    except LabelError as error:
        messages.error(request, str(error))
    return redirect(version)
