"""Page: the operating points of a version, chosen on validation and reported on test."""

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from xrayplatform.access import allow
from xrayplatform.templatetags.platform_tags import MISSING, percent

from .forms import OperatingPointForm, SaveOperatingPointForm
from .models import Deployment, ModelVersion, ThresholdSet
from .models.threshold_set import ThresholdError
from .operating_points import COST, SENSITIVITY, SPECIFICITY, YOUDEN
from .weighing import BY_HAND, Weighing, Wish

MOST_SETS = 50
CRITERIA = [ThresholdSet.Criterion(name) for name in (YOUDEN, SENSITIVITY, SPECIFICITY, COST)]
ASKED = ("criterion", "target", "prevalence", "threshold")


@allow("registry.view_thresholdset")
@require_http_methods(["GET", "POST"])
def threshold_edit(request: HttpRequest, pk: int) -> HttpResponse:
    version = get_object_or_404(ModelVersion.objects.visible_to(request.user).select_related("condition"), pk=pk)
    saving = request.method == "POST"
    if saving and not request.user.has_perm("registry.add_thresholdset"):
        raise PermissionDenied
    try:
        weighing = Weighing.of(version)
        thresholds = weighing.thresholds()
    except ThresholdError as error:
        return _page(request, version, {"impossible": str(error)}, 409 if saving else 200)
    form = _form(request)
    if saving and form.is_valid():
        try:
            point = weighing.save(form.wish, reason=form.cleaned_data["reason"], by=request.user)
        except ThresholdError as error:
            form.add_error(None, str(error))
        else:
            messages.success(
                request,
                f"Threshold set {point.number} of {version} is saved. Nothing in service has changed: a model manager "
                "puts it in service on the page of the version.",
            )
            return redirect("registry:threshold-edit", version.pk)
    context = _weighed(weighing, thresholds, form)
    return _page(request, version, context, 400 if context["problems"] else 200)


def _form(request: HttpRequest) -> OperatingPointForm:
    """Unbound where nothing was asked for yet: the page then begins with the threshold of the training."""
    if request.method == "POST":
        return SaveOperatingPointForm(request.POST)
    return OperatingPointForm(request.GET if any(request.GET.get(name) for name in ASKED) else None)


def _weighed(weighing: Weighing, thresholds: list[float], form: OperatingPointForm) -> dict[str, Any]:
    """What the page shows of what was asked for; of the training's threshold where that cannot be met."""
    trained = Wish(BY_HAND, threshold=weighing.trained)
    wish = form.wish if form.is_bound and not set(form.errors) - {"reason", "__all__"} else trained
    problems = [_problem(form, name, error) for name, errors in form.errors.items() for error in errors]
    try:
        chosen = weighing.threshold(wish)
    except ThresholdError as error:
        problems = list(dict.fromkeys([*problems, str(error)]))
        chosen = weighing.threshold(trained)
    prevalence = weighing.share_of_positives if wish.prevalence is None else wish.prevalence
    figures = weighing.figures(chosen, prevalence)
    return {
        "problems": problems,
        "wish": wish,
        "typed": {name: form.data.get(name, "") for name in ("target", "reason")},
        "criteria": [(criterion.value, criterion.label) for criterion in CRITERIA],
        "chosen": chosen,
        "prevalence": prevalence,
        "percent": {
            "prevalence": _prevalence_in_percent(wish, prevalence),
            "share_of_positives": 100 * weighing.share_of_positives,
        },
        "figures": figures,
        "rows": _rows(figures),
        "trained": weighing.figures(weighing.trained),
        "counts": {name: len(part.scores) for name, part in weighing.parts.items()},
        "slider": _slider(weighing, thresholds, chosen),
    }


def _prevalence_in_percent(wish: Wish, prevalence: float) -> float:
    """As it was typed, and exact where the threshold depends on it; it may be far below one in a thousand.

    The share of positives, where nobody asked for another one, is rounded.
    """
    exact = wish.prevalence is not None or wish.criterion == COST
    return float(f"{100 * prevalence:.{12 if exact else 3}g}")


def _problem(form: OperatingPointForm, name: str, error: str) -> str:
    return error if name == "__all__" else f"{form.fields[name].label or name.capitalize()}: {error}"


def _rows(figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of a threshold, in the words that the slider's script writes too."""
    texts = {part: _texts(figure) for part, figure in figures.items()}
    return [
        {"key": key, "label": label, "cells": [(part, text[key]) for part, text in texts.items()]}
        for key, label in _LABELS.items()
    ]


_LABELS = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "hits": "Found (true positive)",
    "missed": "Missed (false negative)",
    "alarms": "False alarms (false positive)",
    "cleared": "Rightly cleared (true negative)",
}


def _texts(figure: dict[str, Any]) -> dict[str, str]:
    predictive = figure["predictive_values"] or {"positive": None, "negative": None}
    return {
        "sensitivity": _rate(figure["sensitivity"]),
        "specificity": _rate(figure["specificity"]),
        "ppv": percent(predictive["positive"]),
        "npv": percent(predictive["negative"]),
        "hits": str(figure["hits"]),
        "missed": str(figure["positives"] - figure["hits"]),
        "alarms": str(figure["alarms"]),
        "cleared": str(figure["negatives"] - figure["alarms"]),
    }


def _rate(rate: dict[str, float | None]) -> str:
    if rate["value"] is None:
        return MISSING
    return f"{percent(rate['value'])} ({percent(rate['low'])} to {percent(rate['high'])})"


def _slider(weighing: Weighing, thresholds: list[float], chosen: float) -> dict[str, Any]:
    """Every position of the slider with its figures, small enough to stand in the page."""
    positions = sorted({*thresholds, chosen})
    return {
        "thresholds": positions,
        "position": positions.index(chosen),
        "parts": {
            name: [_compact(part.at(value).to_json()) for value in positions] for name, part in weighing.parts.items()
        },
    }


def _compact(figures: dict[str, Any]) -> dict[str, Any]:
    counts = {name: figures[name] for name in ("positives", "negatives", "hits", "alarms")}
    return counts | {name: list(figures[name].values()) for name in ("sensitivity", "specificity")}


def _page(request: HttpRequest, version: ModelVersion, context: dict[str, Any], status: int) -> HttpResponse:
    deployment = Deployment.objects.filter(condition=version.condition).first()
    context = {
        "version": version,
        "sets": ThresholdSet.objects.filter(version=version).select_related("created_by")[:MOST_SETS],
        "deployment": deployment,
        "in_service": deployment is not None and deployment.active_id == version.pk,
        **context,
    }
    return render(request, "registry/threshold_edit.html", context, status=status)
