"""Pages: the images behind an evaluation's figures, where the model saw what it said, and labels called wrong."""

from datetime import timedelta
from typing import Any

import numpy as np
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotModified
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.utils.cache import get_conditional_response
from django.views.decorators.http import require_GET, require_POST

from datasets.models import Dataset
from datasets.views.images import back, flag_or_withdraw
from registry.models import Evaluation, EvaluationUnusable
from xrayplatform import audit
from xrayplatform.access import allow

from .looking import Inside, NoMap, Seen, draw_map, map_name

IMAGES_ON_A_PAGE = 24
# One entry in the audit log stands for the maps that a user fetches within this time.
ONE_ENTRY_FOR = timedelta(minutes=5)
# Paths of images may name patients: no cache holds what shows them, neither the browser's nor a proxy's.
KEPT_NOWHERE = "private, no-store"


def visible_evaluation(user: Any, pk: int) -> Evaluation:
    evaluations = Evaluation.objects.visible_to(user).select_related("version__condition")
    return get_object_or_404(evaluations, pk=pk)


@allow("registry.view_evaluation", "datasets.view_datasetimage")
@require_GET
def evaluation_images(request: HttpRequest, pk: int) -> HttpResponse:
    """The images of one cell of the confusion matrix, or all errors; the most confident errors first."""
    evaluation = visible_evaluation(request.user, pk)
    inside = Inside(evaluation, request.user)
    chosen = {name: _class(request, inside, name) for name in ("true", "predicted")}
    context: dict[str, Any] = {"evaluation": evaluation, "version": evaluation.version, "chosen": chosen}
    try:
        page = Paginator(inside.positions(**chosen).tolist(), IMAGES_ON_A_PAGE).get_page(request.GET.get("page"))
        context |= {"page": page, "seen": inside.seen(np.asarray(page.object_list, np.int64))}
        context |= {"source": inside.source, "can_be_shown": _can_be_shown(inside.source.dataset)}
    except EvaluationUnusable as error:
        context["unusable"] = str(error)
    context["has_files"] = evaluation.version.folder.is_dir()
    context["is_cell"] = bool(chosen["true"] and chosen["predicted"])
    number = context["page"].number if "page" in context else None
    audit.record("evaluation.view_images", evaluation, actor=request.user, after={**chosen, "page": number})
    response = render(request, "inference/evaluation_images.html", context)
    response["Cache-Control"] = KEPT_NOWHERE
    return response


def _class(request: HttpRequest, inside: Inside, name: str) -> str:
    """A class that the address names, or "" for any. Raises Http404 for what is none of the version's."""
    given = request.GET.get(name, "")
    if given and given not in inside.classes:
        raise Http404
    return given


def _can_be_shown(dataset: Dataset | None) -> bool:
    return dataset is not None and dataset.state == Dataset.State.PRESENT


@allow("registry.view_evaluation", "datasets.view_datasetimage")
@require_GET
def evaluation_map(request: HttpRequest, pk: int, position: int) -> HttpResponse:
    """What the model saw, with what speaks for a class laid over it (PNG); without a class, for what it said."""
    evaluation = visible_evaluation(request.user, pk)
    inside = Inside(evaluation, request.user)
    seen = visible_image_of(inside, position)
    name = _class(request, inside, "class") or seen.predicted
    class_index = list(inside.classes).index(name)
    _record_maps(request, evaluation)
    etag = map_name(evaluation, seen.digest, class_index)
    response = get_conditional_response(request, etag=etag)
    if not isinstance(response, HttpResponseNotModified):
        try:
            picture = draw_map(evaluation.version, seen.image, class_index)
        except NoMap as error:
            return HttpResponse(str(error), status=404, content_type="text/plain")
        response = HttpResponse(picture, content_type="image/png")
    # Only in the reader's own browser, and asked for again each time: rights may have changed since.
    response["ETag"], response["Cache-Control"] = etag, "private, no-cache"
    return response


def visible_image_of(inside: Inside, position: int) -> Seen:
    """The evaluated image at a position. Raises Http404 where there is none that the user may see."""
    try:
        seen = inside.one(position)
    except (IndexError, EvaluationUnusable) as error:
        raise Http404 from error
    if seen.image is None:
        raise Http404
    return seen


def _record_maps(request: HttpRequest, evaluation: Evaluation) -> None:
    """Maps may be fetched without the page around them, but not without an entry."""
    recent = audit.AuditEntry.objects.filter(
        actor=request.user,
        action="evaluation.view_images",
        object_type=evaluation._meta.model_name,
        object_id=str(evaluation.pk),
        at__gte=timezone.now() - ONE_ENTRY_FOR,
    )
    if not recent.exists():
        audit.record("evaluation.view_images", evaluation, actor=request.user, after={"maps": True})


@allow("registry.view_evaluation", "datasets.flag_datasetimage")
@require_POST
def evaluation_flag(request: HttpRequest, pk: int, position: int) -> HttpResponse:
    """Say that the label of an image is wrong, or take that back; what the version read goes with it."""
    evaluation = visible_evaluation(request.user, pk)
    seen = visible_image_of(Inside(evaluation, request.user), position)
    flag_or_withdraw(request, seen.image, seen=f"{evaluation.version} {seen.in_words}")
    return back(request, seen.image)
