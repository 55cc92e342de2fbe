"""Pages: try a version beside the one in service, watch what it does, and end it."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from registry.models import ActivationError, Deployment, ModelVersion
from registry.outlook import outlook
from xrayplatform.access import allow
from xrayplatform.conditions import Condition
from xrayplatform.http import HtmxHttpRequest, row_number

from .experiment_forms import EndForm, ExperimentForm
from .experiment_results import report_of, state_of
from .models import Experiment

ON_A_PAGE = 25


@allow("inference.view_experiment")
@require_GET
def experiment_list(request: HttpRequest) -> HttpResponse:
    """Those of one condition, or of all; and where a new one can begin."""
    conditions = Condition.objects.visible_to(request.user).order_by("name")
    slug = request.GET.get("condition", "")
    chosen = get_object_or_404(conditions, slug=slug) if slug else None
    experiments = Experiment.objects.visible_to(request.user).with_names()
    if chosen is not None:
        experiments = experiments.filter(condition=chosen)
    context = {
        "page": Paginator(experiments, ON_A_PAGE).get_page(request.GET.get("page")),
        "condition": chosen,
        "conditions": conditions,
        "in_service": _deployments(request).select_related("condition"),
    }
    return render(request, "inference/experiment_list.html", context)


@allow("inference.add_experiment")
@require_http_methods(["GET", "POST"])
def experiment_create(request: HttpRequest) -> HttpResponse:
    """For the condition that is named, or that of a version; without either, the conditions to choose from."""
    deployment, version = _wanted(request)
    if deployment is None:
        context = {"in_service": _deployments(request).select_related("condition"), "version": version}
        status = HTTPStatus.BAD_REQUEST if request.method == "POST" else HTTPStatus.OK
        return render(request, "inference/experiment_create.html", context, status=status)
    challengers = _challengers(request, deployment)
    initial = {"challenger": version.pk if version else None}
    form = ExperimentForm(deployment, challengers, request.POST or None, initial=initial)
    status = HTTPStatus.OK
    if request.method == "POST":
        experiment = _start(request, deployment.condition, form)
        if experiment is not None:
            return redirect(experiment)
        status = HTTPStatus.CONFLICT if form.is_valid() else HTTPStatus.BAD_REQUEST
    running = Experiment.objects.running().with_names().filter(condition=deployment.condition).first()
    context = {"form": form, "deployment": deployment, "challengers": challengers, "running": running}
    return render(request, "inference/experiment_create.html", context, status=status)


@allow("inference.view_experiment")
@require_GET
def experiment_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """What it has shown so far; to htmx, which asks while it runs, how much it has done, without the statistics."""
    experiment = _experiment(request, pk)
    context = {"experiment": experiment, "state": state_of(experiment)}
    if request.htmx:
        return render(request, "inference/_experiment_state.html", context)
    report = report_of(experiment)
    context |= {"report": report, "stop_form": EndForm(prefix="stop")}
    if experiment.is_shadow:
        context["rows"] = list(zip(report["classes"], report["table"], strict=True))
    if experiment.is_running and request.user.has_perm("registry.activate_modelversion"):
        context |= {
            "promote_form": EndForm(prefix="promote"),
            "outlook": outlook(experiment.champion, experiment.challenger),
        }
    return render(request, "inference/experiment_detail.html", context)


@allow("inference.change_experiment")
@require_POST
def experiment_stop(request: HttpRequest, pk: int) -> HttpResponse:
    experiment = _experiment(request, pk)
    return _end(request, experiment, "stop", experiment.stop, "The experiment is stopped; the champion answers.")


@allow("inference.change_experiment", "registry.activate_modelversion")
@require_POST
def experiment_promote(request: HttpRequest, pk: int) -> HttpResponse:
    experiment = _experiment(request, pk)
    done = f"{experiment.challenger} is in service for {experiment.condition}, and the experiment has ended."
    return _end(request, experiment, "promote", experiment.promote, done)


def _end(
    request: HttpRequest, experiment: Experiment, prefix: str, action: Callable[..., Any], done: str
) -> HttpResponse:
    form = EndForm(request.POST, prefix=prefix)
    if not form.is_valid():
        messages.error(request, form.problems)
        return redirect(experiment)
    try:
        action(by=request.user, reason=form.cleaned_data["reason"])
    except ActivationError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, done)
    return redirect(experiment)


def _start(request: HttpRequest, condition: Condition, form: ExperimentForm) -> Experiment | None:
    """None when it cannot begin, with a message that says why."""
    if not form.is_valid():
        return None
    try:
        return Experiment.objects.start(condition, form.cleaned_data["challenger"], by=request.user, **form.wish())
    except ActivationError as error:
        messages.error(request, str(error))
        return None


def _wanted(request: HttpRequest) -> tuple[Deployment | None, ModelVersion | None]:
    """The deployment to try something beside, and the version that was named as the challenger."""
    named = request.GET.get("version", "")
    version = None
    if named:
        versions = ModelVersion.objects.visible_to(request.user).select_related("condition")
        version = get_object_or_404(versions, pk=row_number(named) or 0)
    slug = version.condition.slug if version else request.GET.get("condition", "")
    if not slug:
        return None, None
    condition = get_object_or_404(Condition.objects.visible_to(request.user), slug=slug)
    return _deployments(request).filter(condition=condition).first(), version


def _deployments(request: HttpRequest) -> QuerySet:
    rows = Deployment.objects.visible_to(request.user).filter(active__isnull=False)
    return rows.select_related("condition", "active__condition", "threshold_set").order_by("condition__name")


def _challengers(request: HttpRequest, deployment: Deployment) -> QuerySet:
    versions = ModelVersion.objects.to_start_from(request.user).filter(condition=deployment.condition)
    return versions.exclude(pk=deployment.active_id)


def _experiment(request: HttpRequest, pk: int) -> Experiment:
    return get_object_or_404(Experiment.objects.visible_to(request.user).with_names(), pk=pk)
