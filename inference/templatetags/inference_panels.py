"""The dashboard's view of the predictions."""

from typing import Any

from django import template
from django.utils import timezone

from inference.models import Prediction

register = template.Library()

SHOWN = 5


@register.inclusion_tag("inference/_panel.html", takes_context=True)
def predictions_panel(context: template.Context) -> dict[str, Any]:
    predictions = Prediction.objects.visible_to(context["request"].user)
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "today": predictions.filter(created_at__gte=midnight).count(),
        "latest": predictions.select_related("version__condition")[:SHOWN],
    }


@register.simple_tag(takes_context=True)
def any_predicted(context: template.Context) -> bool:
    return Prediction.objects.visible_to(context["request"].user).exists()
