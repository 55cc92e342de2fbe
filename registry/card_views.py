"""The model card of a version: a page for the screen and for paper, and files to take along."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from xrayplatform import audit
from xrayplatform.access import allow

from . import cards, model_card
from .models import ModelVersion

# What `?as=` takes: how the card is written, the type of the answer and the end of the file's name.
FILES = {
    "markdown": (model_card.to_markdown, "text/markdown; charset=utf-8", "md"),
    "json": (model_card.to_json, "application/json", "json"),
}


@allow("registry.view_modelversion")
@require_GET
def version_card(request: HttpRequest, pk: int) -> HttpResponse:
    versions = ModelVersion.objects.visible_to(request.user)
    version = get_object_or_404(versions.select_related("condition", "created_by", "parent__condition"), pk=pk)
    card = cards.card_of(version)
    form = request.GET.get("as")
    if form in FILES:
        write, kind, end = FILES[form]
        audit.record("version.card", version, actor=request.user, after={"format": form})
        name = f"model-card-{version.condition.slug}-{version.number}.{end}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return HttpResponse(write(card), content_type=kind, headers=headers)
    return render(request, "registry/version_card.html", {"version": version, "card": card})
