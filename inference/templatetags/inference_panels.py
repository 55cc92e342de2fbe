"""The dashboard's view of the predictions, and System Status's of what serves them."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from django import template
from django.db.models import F, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from inference.models import Prediction
from inference.serving_status import status

register = template.Library()

SHOWN = 5
# Answers behind a median time.
TIMED = 100


@register.inclusion_tag("inference/_panel.html", takes_context=True)
def predictions_panel(context: template.Context) -> dict[str, Any]:
    predictions = Prediction.objects.visible_to(context["request"].user)
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "today": predictions.filter(created_at__gte=midnight).count(),
        "latest": predictions.select_related("version__condition")[:SHOWN],
    }


@register.inclusion_tag("inference/_serving_status.html", takes_context=True)
def serving_status(context: template.Context) -> dict[str, Any]:
    """Which processes answer with which version, who waits, and what is kept."""
    return {"status": status(context["request"].user)}


@register.simple_tag(takes_context=True)
def any_predicted(context: template.Context) -> bool:
    return Prediction.objects.visible_to(context["request"].user).exists()


@register.simple_tag
def median_latencies(versions: Iterable[Any]) -> dict[int, float]:
    """Milliseconds of the last answers of each version, from the file to the stored answer; of those that answered."""
    newest = Window(RowNumber(), partition_by=F("version"), order_by=F("created_at").desc())
    shown = Prediction.objects.shown().filter(version__in=list(versions))
    rows = shown.annotate(place=newest).filter(place__lte=TIMED)
    times: dict[int, list[float]] = {}
    for version, latency in rows.order_by().values_list("version", "latency_ms"):
        times.setdefault(version, []).append(latency)
    return {version: median(found) for version, found in times.items()}
