"""Pages: how versions do in use by week, alerts, and datasets made of what readers corrected."""

from collections import defaultdict
from http import HTTPStatus
from itertools import pairwise
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from registry.models import Deployment, ModelVersion
from xrayplatform.access import allow
from xrayplatform.conditions import Condition
from xrayplatform.http import row_number
from xrayplatform.jobs import JobError

from . import corrections
from .models import MonitoringAlert, Prediction, ServingPolicy, ServingReference
from .monitoring import WEEKS, Drift, Figures, check_label, figures, this_week
from .monitoring_charts import charts_of

ALERTS = 50
SHADOW = "-shadow"


@allow("inference.view_monitoringalert", "inference.view_prediction")
@require_GET
def monitoring(request: HttpRequest) -> HttpResponse:
    """The last weeks of one version of a condition; the version in service unless another one is chosen."""
    conditions = Condition.objects.visible_to(request.user).order_by("name")
    condition = _condition(request, conditions)
    context: dict[str, Any] = {"conditions": conditions, "condition": condition}
    if condition is not None:
        context |= _in_use(request, condition)
    return render(request, "inference/monitoring.html", context)


def _condition(request: HttpRequest, conditions: QuerySet) -> Condition | None:
    """The one that is named; else one that answered of late, else any."""
    slug = request.GET.get("condition", "")
    if slug:
        return get_object_or_404(conditions, slug=slug)
    latest = Prediction.objects.visible_to(request.user).select_related("version__condition").first()
    return latest.version.condition if latest else conditions.first()


def _in_use(request: HttpRequest, condition: Condition) -> dict[str, Any]:
    every = figures(condition, weeks=WEEKS)
    chosen = _chosen(request, condition, every)
    weeks = [week for week in every if _value(week) == chosen]
    measures = {one.key: one.label for week in weeks for one in week.drift}
    wanted = request.GET.get("measure", "")
    measure = wanted if wanted in measures else next(iter(measures), "")
    policy = ServingPolicy.objects.of(condition)
    version = weeks[0].version if weeks else None
    return {
        "weeks": weeks,
        "versions": {_value(week): _label(week) for week in every},
        "version": version,
        "chosen": chosen,
        "measures": measures,
        "measure": measure,
        "policy": policy,
        "latest": weeks[0] if weeks else None,
        "is_running": bool(weeks) and weeks[0].week == this_week(),
        "rows": [_row(week, measure) for week in weeks],
        "histogram": _histogram(weeks, measure),
        "charts": charts_of(weeks, measure, policy),
        "reference": ServingReference.objects.filter(version=version).first() if version else None,
        **_alerts(request, condition),
    }


def _value(week: Figures) -> str:
    number = str(week.version.number) if week.version else "none"
    return number if week.shown else f"{number}{SHADOW}"


def _label(week: Figures) -> str:
    name = f"v{week.version.number}" if week.version else "Nothing in service"
    return name if week.shown else f"{name} as a shadow"


def _chosen(request: HttpRequest, condition: Condition, every: list[Figures]) -> str:
    values = [_value(week) for week in every]
    wanted = request.GET.get("version", "")
    if wanted and wanted in values:
        return wanted
    deployment = Deployment.objects.select_related("active").filter(condition=condition).first()
    active = str(deployment.active.number) if deployment and deployment.active else ""
    shown = [value for value in values if not value.endswith(SHADOW)]
    return active if active in values else next(iter([*shown, *values]), "")


def _row(week: Figures, measure: str) -> dict[str, Any]:
    return {
        "figures": week,
        "drift": week.drift_of(measure),
        "refusals": {check_label(code): count for code, count in week.refusals.items()},
        "warnings": {check_label(code): count for code, count in week.warnings.items()},
        "channels": {Prediction.Channel(name).label: count for name, count in week.channels.items()},
    }


def _histogram(weeks: list[Figures], measure: str) -> dict[str, Any] | None:
    """The newest week whose images can be compared: the share in each bin, of the week and of validation."""
    for week in weeks:
        one = week.drift_of(measure)
        stability = one.comparison.stability if one else None
        if one is not None and stability is not None:
            rows = zip(_bins(one), stability.shares, stability.expected, strict=True)
            return {"week": week.week, "drift": one, "rows": list(rows)}
    return None


def _bins(one: Drift) -> list[str]:
    """The bins between the deciles of validation, in words."""
    edges = [f"{edge:.4g}" for edge in one.comparison.stability.edges] if one.comparison.stability else []
    inner = [f"over {low} to {high}" for low, high in pairwise(edges)]
    return [f"up to {edges[0]}", *inner, f"over {edges[-1]}"] if edges else ["all"]


def _alerts(request: HttpRequest, condition: Condition) -> dict[str, Any]:
    """Unseen alerts by version and week, since one cause moves many figures; and the seen ones."""
    alerts = MonitoringAlert.objects.visible_to(request.user).filter(condition=condition)
    alerts = alerts.select_related("condition", "version__condition", "seen_by")
    unseen: dict[tuple[Any, Any], list[MonitoringAlert]] = defaultdict(list)
    for alert in alerts.filter(seen_at__isnull=True).order_by("-week", "-version", "pk")[:ALERTS]:
        unseen[alert.version, alert.week].append(alert)
    return {"unseen": list(unseen.values()), "seen": alerts.filter(seen_at__isnull=False)[:ALERTS]}


@allow("inference.change_monitoringalert")
@require_POST
def alert_acknowledge(request: HttpRequest, pk: int) -> HttpResponse:
    """Somebody looked at an alert, with `all` at every one of its version and week, and says what came of it."""
    visible = MonitoringAlert.objects.visible_to(request.user).select_related("condition")
    alert = get_object_or_404(visible, pk=pk)
    comment = request.POST.get("comment", "").strip()
    # PostgreSQL stores no NUL.
    if not comment or "\0" in comment:
        messages.error(request, "Say in the comment what was found or done; the alert stays open.")
    elif not alert.acknowledge(comment, by=request.user):
        messages.info(request, "Somebody has acknowledged this alert before you; their comment stays.")
    elif request.POST.get("all"):
        beside = visible.filter(condition=alert.condition, version=alert.version_id, week=alert.week)
        for other in beside.filter(seen_at__isnull=True):
            other.acknowledge(comment, by=request.user)
    return redirect(f"{reverse('inference:monitoring')}?condition={alert.condition.slug}")


@allow("datasets.upload_dataset", "inference.view_verdict")
@require_http_methods(["GET", "POST"])
def correction_create(request: HttpRequest) -> HttpResponse:
    """What a dataset made of readers' verdicts would hold; a POST makes it."""
    conditions = Condition.objects.visible_to(request.user).order_by("name")
    given = request.POST if request.method == "POST" else request.GET
    slug = given.get("condition", "").replace("\0", "")
    condition = get_object_or_404(conditions, slug=slug) if slug else None
    if condition is None:
        status = HTTPStatus.BAD_REQUEST if request.method == "POST" else HTTPStatus.OK
        return render(request, "inference/correction_create.html", {"conditions": conditions}, status=status)
    context: dict[str, Any] = {"condition": condition, "conditions": conditions, "note": corrections.BIAS}
    status = HTTPStatus.OK
    try:
        version = _base(given.get("version", ""), condition)
        if request.method == "POST":
            made = corrections.make(condition, version, by=request.user)
            messages.success(request, made.text)
            return redirect(f"{reverse('inference:correction-create')}?condition={condition.slug}")
        context |= {"version": version, "plan": corrections.plan(condition, version)}
        context["closed"] = corrections.why_closed(None)
    except JobError as error:
        status = HTTPStatus.CONFLICT if request.method == "POST" else HTTPStatus.OK
        context["problem"] = f"{error} {error.hint}".strip()
    context["made"] = corrections.made_before(condition).prefetch_related("preparations")
    context["versions"] = ModelVersion.objects.filter(condition=condition).order_by("-number")
    return render(request, "inference/correction_create.html", context, status=status)


def _base(number: str, condition: Condition) -> ModelVersion:
    if not number:
        return corrections.base_of(condition)
    versions = ModelVersion.objects.select_related("condition").filter(condition=condition)
    version = versions.filter(number=row_number(number)).first()
    if version is None:
        raise Http404
    return version
