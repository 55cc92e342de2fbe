"""The dashboard's view of the models in service, and confusion matrices as tables."""

from typing import Any

from django import template

from registry.models import Deployment
from xrayplatform.conditions import Condition

register = template.Library()


@register.inclusion_tag("registry/_panel.html", takes_context=True)
def models_panel(context: template.Context) -> dict[str, Any]:
    conditions = Condition.objects.visible_to(context["request"].user)
    return {"conditions": conditions.select_related("deployment__active__condition")}


@register.simple_tag(takes_context=True)
def any_in_service(context: template.Context) -> bool:
    conditions = Condition.objects.visible_to(context["request"].user)
    return Deployment.objects.filter(condition__in=conditions, active__isnull=False).exists()


@register.inclusion_tag("registry/_confusion_matrix.html")
def confusion_matrix(metrics: dict[str, Any]) -> dict[str, Any]:
    """Rows are the true class. A cell's shade is the decile of its share of the row, so that classes compare."""
    classes, counts = metrics.get("classes") or [], metrics.get("confusion_matrix") or []
    rows = [_row(name, index, cells) for index, (name, cells) in enumerate(zip(classes, counts, strict=False))]
    return {"classes": classes, "rows": rows}


def _row(name: str, index: int, counts: list[int]) -> dict[str, Any]:
    total = sum(counts)
    shares = [count / total if total else 0.0 for count in counts]
    cells = [
        {"count": count, "share": share, "decile": round(10 * share), "correct": column == index}
        for column, (count, share) in enumerate(zip(counts, shares, strict=True))
    ]
    return {"name": name, "total": total, "cells": cells}
