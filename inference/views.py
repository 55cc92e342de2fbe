"""Pages: X-ray Analysis, one prediction, and the history."""

import base64
from http import HTTPStatus
from typing import Any

from django.core.paginator import Paginator
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET, require_http_methods

from datasets.imaging import ImageError
from registry.lineage import activation_at, origin_of
from registry.models import Deployment, ModelVersion
from xrayplatform import audit
from xrayplatform.access import allow
from xrayplatform.conditions import Condition
from xrayplatform.http import HtmxHttpRequest, row_number

from .engine import EngineError
from .forms import AnalysisForm
from .models import NoActiveModel, Prediction


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
    context = {"form": form, "deployments": deployments}
    status = HTTPStatus.OK
    if request.method == "POST":
        status = _answer(request, form, context)
    template = "inference/_analysis.html" if request.htmx else "inference/prediction_create.html"
    response = render(request, template, context, status=status)
    if "analysis" in context:
        response["HX-Push-Url"] = context["analysis"].prediction.get_absolute_url()
    return response


def _answer(request: HttpRequest, form: AnalysisForm, context: dict) -> HTTPStatus:
    """Put the analysis, or the reason why there is none, into the context."""
    if not form.is_valid():
        return HTTPStatus.BAD_REQUEST
    image = form.cleaned_data["image"]
    try:
        analysis = Prediction.objects.analyse(form.cleaned_data["condition"], image.read(), by=request.user)
    except ImageError as error:
        form.add_error("image", str(error))
        return HTTPStatus.BAD_REQUEST
    except NoActiveModel as error:
        form.add_error("condition", str(error))
        return HTTPStatus.CONFLICT
    except EngineError as error:
        form.add_error(None, str(error))
        return HTTPStatus.SERVICE_UNAVAILABLE
    context["analysis"] = analysis
    context["preview"] = "data:image/png;base64," + base64.b64encode(analysis.preview).decode()
    return HTTPStatus.OK


def _in_service(request: HttpRequest) -> dict[str, Deployment]:
    visible = Condition.objects.visible_to(request.user)
    deployments = Deployment.objects.select_related("condition", "active__condition").filter(
        active__isnull=False, condition__in=visible
    )
    return {deployment.condition.slug: deployment for deployment in deployments}


@allow("inference.view_prediction")
@require_GET
def prediction_detail(request: HttpRequest, pk: str) -> HttpResponse:
    predictions = Prediction.objects.visible_to(request.user)
    prediction = get_object_or_404(
        predictions.select_related("version__condition", "version__created_by", "created_by"), pk=pk
    )
    with transaction.atomic():
        audit.record("prediction.view", prediction, actor=request.user)
    context = {"prediction": prediction, **_way_back(prediction, request.user)}
    return render(request, "inference/prediction_detail.html", context)


def _way_back(prediction: Prediction, user: Any) -> dict[str, Any]:
    """From the answer to the images that its version learned from."""
    if not user.has_perm("registry.view_modelversion"):
        return {}
    activation = activation_at(prediction.version, prediction.created_at, user)
    return {"lineage": origin_of(prediction.version, user), "activation": activation}


@allow("inference.view_prediction")
@require_GET
def prediction_list(request: HttpRequest) -> HttpResponse:
    """The answers of all versions, or with `?version=` those of one."""
    predictions = Prediction.objects.visible_to(request.user).select_related("version__condition", "created_by")
    version = None
    if request.GET.get("version"):
        versions = ModelVersion.objects.visible_to(request.user).select_related("condition")
        version = get_object_or_404(versions, pk=row_number(request.GET["version"]))
        predictions = predictions.filter(version=version)
    page = Paginator(predictions, 50).get_page(request.GET.get("page"))
    with transaction.atomic():
        of = {"version": str(version)} if version else {}
        audit.record("prediction.list", actor=request.user, after={"page": page.number, **of})
    return render(request, "inference/prediction_list.html", {"page": page, "version": version})
