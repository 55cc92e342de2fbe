"""Pages: one prediction with its radiograph and maps, and what readers say about it."""

from http import HTTPStatus
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from xrayplatform import audit
from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest

from . import viewing
from .forms import VerdictForm
from .looking_views import KEPT_NOWHERE, ONE_ENTRY_FOR
from .models import Prediction, Verdict, VerdictError
from .radiographs import NotKept
from .result_page import page_of, verdicts_of, window_of

SEEN = ("prediction.view", "prediction.create")


def visible_prediction(user: Any, pk: Any) -> Prediction:
    """Raises Http404 for that of another team, and for the answer of a shadow."""
    predictions = Prediction.objects.visible_to(user).select_related("version__condition", "created_by", "batch")
    return get_object_or_404(predictions, pk=pk)


@allow("inference.view_prediction")
@require_GET
def prediction_detail(request: HttpRequest, pk: str) -> HttpResponse:
    prediction = visible_prediction(request.user, pk)
    with transaction.atomic():
        audit.record("prediction.view", prediction, actor=request.user)
    response = render(request, "inference/prediction_detail.html", page_of(request, prediction))
    response["Cache-Control"] = KEPT_NOWHERE
    return response


@allow("inference.view_prediction")
@require_GET
def prediction_image(request: HttpRequest, pk: str) -> HttpResponse:
    """The radiograph as a PNG, windowed as the address asks (`center`, `width`, `invert`); `full`: in its own size."""
    prediction = visible_prediction(request.user, pk)
    try:
        window = window_of(request)
    except ValueError:
        text = "`center` and `width` are numbers in per cent: -100 to 200, and 0.1 to 400."
        return HttpResponse(text, status=HTTPStatus.BAD_REQUEST, content_type="text/plain")
    record_pictures(request, prediction)
    try:
        return _png(viewing.picture(prediction, window, full=bool(request.GET.get("full"))))
    except NotKept as error:
        return _no_picture(error)


@allow("inference.view_prediction")
@require_GET
def prediction_map(request: HttpRequest, pk: str) -> HttpResponse:
    """What speaks for `class` as a transparent PNG that covers the radiograph; `of=input`: the network's input."""
    prediction = visible_prediction(request.user, pk)
    name = request.GET.get("class", prediction.decision)
    if name not in prediction.version.classes:
        raise Http404
    draw = viewing.map_of_input if request.GET.get("of") == "input" else viewing.map_of
    record_pictures(request, prediction)
    try:
        return _png(draw(prediction, prediction.version.classes.index(name)))
    except (viewing.NoMap, NotKept) as error:
        return _no_picture(error)


def _png(picture: bytes) -> HttpResponse:
    return HttpResponse(picture, content_type="image/png", headers={"Cache-Control": KEPT_NOWHERE})


def _no_picture(error: Exception) -> HttpResponse:
    return HttpResponse(str(error), status=HTTPStatus.NOT_FOUND, content_type="text/plain; charset=utf-8")


def record_pictures(request: HttpRequest, prediction: Prediction) -> None:
    """Pictures may be fetched without the page around them, but not without an entry; with it, one entry is enough."""
    recent = audit.AuditEntry.objects.filter(
        action__in=SEEN,
        actor=request.user,
        object_type=prediction._meta.model_name,
        object_id=str(prediction.pk),
        at__gte=timezone.now() - ONE_ENTRY_FOR,
    )
    if not recent.exists():
        audit.record("prediction.view", prediction, actor=request.user, after={"pictures": True})


@allow("inference.view_prediction", "inference.add_verdict")
@require_POST
def verdict_create(request: HtmxHttpRequest, pk: str) -> HttpResponse:
    """Store what the reader says about the answer."""
    prediction = visible_prediction(request.user, pk)
    form = VerdictForm(request.POST, prediction=prediction)
    if form.is_valid():
        said = form.cleaned_data
        try:
            agrees = said["verdict"] == "agree"
            # Both buttons belong to forms of their own; a label beside "agree" is left over from the other.
            label = "" if agrees else said["label"]
            Verdict.objects.give(prediction, request.user, agrees, label, said["comment"])
        except VerdictError as error:
            form.add_error(None, str(error))
    if form.errors:
        return _refused(request, prediction, form)
    if request.htmx:
        context = {"prediction": prediction, "was_stored": True} | verdicts_of(request, prediction)
        return render(request, "inference/_verdicts.html", context)
    messages.success(request, "Your verdict is stored.")
    return redirect(f"{prediction.get_absolute_url()}#verdicts")


def _refused(request: HtmxHttpRequest, prediction: Prediction, form: VerdictForm) -> HttpResponse:
    context = verdicts_of(request, prediction) if request.htmx else page_of(request, prediction)
    context |= {"prediction": prediction, "verdict_form": form}
    template = "inference/_verdicts.html" if request.htmx else "inference/prediction_detail.html"
    return render(request, template, context, status=HTTPStatus.BAD_REQUEST)
