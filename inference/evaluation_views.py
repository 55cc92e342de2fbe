"""Pages: choose images to measure a version on, and follow the evaluation."""

from http import HTTPStatus

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from registry.models import ModelVersion
from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest, row_number
from xrayplatform.jobs import JobError

from . import offers
from .models import EvaluationRun

EARLIER = 10
CHOOSE = "Choose the images to measure on."


@allow("inference.add_evaluationrun")
@require_http_methods(["GET", "POST"])
def evaluation_run_create(request: HttpRequest) -> HttpResponse:
    """What a version can be measured on, with what each choice means; without a version, the versions."""
    versions = ModelVersion.objects.visible_to(request.user).select_related("condition__team")
    named = request.POST.get("version") or request.GET.get("version", "")
    if not named:
        status = HTTPStatus.BAD_REQUEST if request.method == "POST" else HTTPStatus.OK
        context = {"versions": versions.order_by("-pk")}
        return render(request, "inference/evaluation_run_create.html", context, status=status)
    version = get_object_or_404(versions, pk=row_number(named) or 0)
    offered = offers.offers_of(version, request.user)
    status = HTTPStatus.OK
    if request.method == "POST":
        run = _start(request, version, offered)
        if run is not None:
            return redirect(run)
        status = HTTPStatus.CONFLICT
    runs = EvaluationRun.objects.visible_to(request.user).filter(version=version)
    context = {
        "version": version,
        "usable": [one for one in offered if one.is_usable],
        "unusable": [one for one in offered if not one.is_usable],
        "runs": runs.select_related(
            "dataset", "preparation__dataset", "evaluation", "created_by", "version__condition"
        )[:EARLIER],
    }
    return render(request, "inference/evaluation_run_create.html", context, status=status)


def _start(request: HttpRequest, version: ModelVersion, offered: list[offers.Offered]) -> EvaluationRun | None:
    """Enqueue what was chosen; None when that cannot be, with a message that says why."""
    offer = offers.chosen(request.POST.get("choice", ""), offered)
    if offer is None:
        messages.warning(request, CHOOSE)
        return None
    try:
        with transaction.atomic():
            run = EvaluationRun.create(
                version, offer.dataset, request.user, preparation=offer.preparation, part=offer.part
            )
            run.enqueue()
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
        return None
    return run


@allow("inference.view_evaluationrun")
@require_GET
def evaluation_run_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """How far an evaluation is, or what became of it; to htmx the fragment alone."""
    run = _visible_run(request, pk)
    template = "inference/_evaluation_run.html" if request.htmx else "inference/evaluation_run_detail.html"
    return render(request, template, {"run": run, "version": run.version})


@allow("inference.add_evaluationrun")
@require_POST
def evaluation_run_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    run = _visible_run(request, pk)
    if not run.request_cancel(request.user):
        messages.info(request, "This evaluation had ended already.")
    return redirect(run)


def _visible_run(request: HttpRequest, pk: int) -> EvaluationRun:
    runs = EvaluationRun.objects.visible_to(request.user).select_related(
        "version__condition", "dataset", "preparation__dataset", "evaluation", "created_by"
    )
    return get_object_or_404(runs, pk=pk)
