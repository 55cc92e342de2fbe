"""The dashboard's view of the training runs."""

from typing import Any

from django import template

from training.configurations import OPTIONS, PRESETS
from training.hints import SIGNS, WHAT_TO_DO
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
    active = list(runs.filter(state=TrainingRun.State.RUNNING))
    # A search can put sixty into the queue.
    waiting = runs.filter(state=TrainingRun.State.QUEUED).order_by("held", "-priority", "pk")
    shown = [*active, *waiting[:SHOWN]]
    return {
        "active": shown,
        "more": len(active) + waiting.count() - len(shown),
        "ended": runs.exclude(state__in=TrainingRun.ACTIVE)[:SHOWN],
    }


@register.simple_tag(takes_context=True)
def any_trained(context: template.Context) -> bool:
    return _runs(context).filter(state=TrainingRun.State.SUCCEEDED).exists()


@register.filter
def preset_label(preset: str) -> str:
    return PRESETS[preset].label if preset in PRESETS else preset


@register.filter
def option_label(key: str, fallback: str) -> str:
    """What pages call an option of a configuration; the fallback for what is none."""
    return OPTIONS[key].label if key in OPTIONS else fallback


@register.simple_tag
def option_words(key: str, value: Any, fallback: str) -> str:
    """The value of an option in words; the fallback for what is no option, or was none when it was stored."""
    return OPTIONS[key].words(value) if key in OPTIONS and (value is not None or OPTIONS[key].empty) else fallback


@register.simple_tag
def troubles() -> list[tuple[str, str]]:
    """What one sees in the curves of a training, and what to do."""
    return [(sign, WHAT_TO_DO[code]) for code, sign in SIGNS.items()]


@register.filter
def roughly(seconds: float) -> str:
    """An estimate, no more precise than it is: 100 is "2 min", 6000 is "1 h 40 min"."""
    minutes = max(round(seconds / 60), 1)
    if minutes < 60:
        return f"{minutes} min"
    # Five minutes more or less, and beyond some hours the hours alone.
    hours, rest = divmod(5 * round(minutes / 5), 60)
    return f"{hours} h {rest} min" if rest and hours < 10 else f"{hours} h"
