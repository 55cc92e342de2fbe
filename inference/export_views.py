"""Pages: a prediction as a file for other systems."""

from collections.abc import Callable

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods

from xrayplatform.access import allow

from . import exporting
from .export_api import as_response
from .models import Prediction


@allow("inference.view_prediction")
@require_GET
def prediction_fhir(request: HttpRequest, pk: str) -> HttpResponse:
    prediction = _prediction(request, pk)
    url = request.build_absolute_uri(prediction.get_absolute_url())
    return as_response(exporting.take_fhir(prediction, by=request.user, url=url))


@allow("inference.view_prediction")
@require_http_methods(["GET", "POST"])
def prediction_report(request: HttpRequest, pk: str) -> HttpResponse:
    return _dicom(request, pk, exporting.take_report)


@allow("inference.view_prediction")
@require_http_methods(["GET", "POST"])
def prediction_capture(request: HttpRequest, pk: str) -> HttpResponse:
    return _dicom(request, pk, exporting.take_capture)


def _dicom(request: HttpRequest, pk: str, take: Callable[..., exporting.File]) -> HttpResponse:
    """The file, of the image that is kept or that is sent along; back to the result, saying why, without."""
    prediction, given = _prediction(request, pk), None
    if request.method == "POST":
        image = request.FILES.get("image")
        if image is None:
            messages.error(request, "Choose the DICOM file that was analysed.")
            return redirect(prediction)
        given = image.read()
    try:
        return as_response(take(prediction, by=request.user, given=given))
    except exporting.REFUSALS as error:
        messages.error(request, str(error))
        return redirect(prediction)


def _prediction(request: HttpRequest, pk: str) -> Prediction:
    rows = Prediction.objects.visible_to(request.user).select_related("version__condition", "received")
    return get_object_or_404(rows, pk=pk)
