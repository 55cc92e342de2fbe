"""The dashboard's view of the training runs."""

from typing import Any

from django import template

from training.configurations import PRESETS
from training.models import TrainingRun, TrainingRunQuerySet

register = template.Library()

SHOWN = 5


def _runs(context: template.Context) -> TrainingRunQuerySet:
    return TrainingRun.objects.visible_to(context["request"].user).select_related(
        "preparation__dataset", "version__condition"
    )


@register.inclusion_tag("training/_panel.html", takes_context=True)
def training_panel(context: template.Context) -> dict[str, Any]:
    runs = _runs(context)
    return {
        "active": runs.filter(state__in=TrainingRun.ACTIVE),
        "ended": runs.exclude(state__in=TrainingRun.ACTIVE)[:SHOWN],
    }


@register.simple_tag(takes_context=True)
def any_trained(context: template.Context) -> bool:
    return _runs(context).filter(state=TrainingRun.State.SUCCEEDED).exists()


@register.filter
def preset_label(preset: str) -> str:
    return PRESETS[preset].label if preset in PRESETS else preset
