"""Pages: X-ray Analysis."""

from http import HTTPStatus

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from datasets.imaging import ImageError
from registry.models import Deployment
from xrayplatform.access import allow
from xrayplatform.conditions import Condition
from xrayplatform.http import HtmxHttpRequest

from .analysing import GateRefused
from .engine import EngineError
from .forms import AnalysisForm
from .looking_views import KEPT_NOWHERE
from .models import Analysis, NoActiveModel, Prediction
from .result_page import checks_of, page_of
from .turns import Busy


@allow("inference.add_prediction")
@require_http_methods(["GET", "POST"])
def prediction_create(request: HtmxHttpRequest) -> HttpResponse:
    deployments = _in_service(request)
    form = AnalysisForm(
        request.POST or None,
        request.FILES or None,
        user=request.user,
        initial={"condition": request.GET.get("condition") or next(iter(deployments), "")},
    )
    # Who comes from a result goes on with the next file.
    form.fields["image"].widget.attrs["autofocus"] = "condition" in request.GET
    context = {"form": form, "deployments": deployments, "kept_days": settings.KEEP_RADIOGRAPHS_DAYS}
    status = HTTPStatus.OK
    if request.method == "POST":
        status = _answer(request, form, context)
    if "analysis" in context:
        return _answered(request, context["analysis"])
    template = "inference/_analysis.html" if request.htmx else "inference/prediction_create.html"
    response = render(request, template, context, status=status)
    if "retry_after" in context:
        response["Retry-After"] = context["retry_after"]
    return response


def _answered(request: HtmxHttpRequest, analysis: Analysis) -> HttpResponse:
    """The page of the prediction, in place of this one; a browser without scripts is sent there."""
    prediction = analysis.prediction
    if not request.htmx:
        if analysis.notice:
            messages.warning(request, analysis.notice)
        return redirect(prediction)
    response = render(request, "inference/_prediction.html", page_of(request, prediction, analysis))
    response["HX-Push-Url"] = prediction.get_absolute_url()
    response["HX-Retarget"], response["HX-Reswap"] = "#page", "innerHTML show:window:top"
    response["Cache-Control"] = KEPT_NOWHERE
    return response


def _answer(request: HttpRequest, form: AnalysisForm, context: dict) -> HTTPStatus:
    """Put the analysis, or the reason why there is none, into the context."""
    if not form.is_valid():
        return HTTPStatus.BAD_REQUEST
    image = form.cleaned_data["image"]
    try:
        context["analysis"] = Prediction.objects.analyse(form.cleaned_data["condition"], image.read(), by=request.user)
    except (ImageError, GateRefused) as error:
        form.add_error("image", str(error))
        if isinstance(error, GateRefused):
            context["checks"] = checks_of(verdict.to_json() for verdict in error.verdicts)
        return HTTPStatus.BAD_REQUEST
    except NoActiveModel as error:
        form.add_error("condition", str(error))
        return HTTPStatus.CONFLICT
    except EngineError as error:
        form.add_error(None, str(error))
        if isinstance(error, Busy):
            context["retry_after"] = error.retry_after
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.OK


def _in_service(request: HttpRequest) -> dict[str, Deployment]:
    visible = Condition.objects.visible_to(request.user)
    deployments = Deployment.objects.select_related("condition", "active__condition").filter(
        active__isnull=False, condition__in=visible
    )
    return {deployment.condition.slug: deployment for deployment in deployments}
