"""The dashboard's view of the models in service, figures with their intervals, and confusion matrices as tables."""

from typing import Any
from urllib.parse import urlencode

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from registry.comparing import METRICS
from registry.models import Deployment, IntegrityCheck, VerificationRun
from registry.models.integrity import MOUNT_IT, NOT_THERE, models_are_missing
from registry.report_tables import FIGURES
from xrayplatform.conditions import Condition
from xrayplatform.templatetags.platform_tags import MISSING, figure, percent

register = template.Library()


@register.inclusion_tag("registry/_panel.html", takes_context=True)
def models_panel(context: template.Context) -> dict[str, Any]:
    conditions = Condition.objects.visible_to(context["request"].user)
    return {"conditions": conditions.select_related("deployment__active__condition")}


@register.filter
def metric_name(name: str) -> str:
    """What a figure is called in tables; a name that another site's version made up stays as it is."""
    return METRICS.get(name, name)


@register.simple_tag(takes_context=True)
def any_in_service(context: template.Context) -> bool:
    conditions = Condition.objects.visible_to(context["request"].user)
    return Deployment.objects.filter(condition__in=conditions, active__isnull=False).exists()


@register.inclusion_tag("registry/_integrity_panel.html", takes_context=True)
def models_integrity(context: template.Context) -> dict[str, Any]:
    """Whether the files are there at all, the versions that are damaged, and the last look at all of them."""
    checks = IntegrityCheck.objects.visible_to(context["request"].user)
    missing = f"{NOT_THERE} {MOUNT_IT}" if models_are_missing() else ""
    return {"damaged": checks.damaged(), "run": VerificationRun.objects.first(), "missing": missing}


@register.simple_tag
def with_interval(shown: dict[str, Any], key: str) -> SafeString:
    """A figure of a report over its 95 % interval. key: which figure it is, and so whether it is shown in percent."""
    if shown["value"] is None:
        return format_html('<span class="muted">{}</span>', MISSING)
    return format_html(
        '{}<br><small class="muted nowrap">{}</small>',
        percent(shown["value"]) if FIGURES[key].is_share else figure(shown["value"]),
        _ends(shown, FIGURES[key].is_share),
    )


def _ends(shown: dict[str, Any], is_share: bool) -> str:
    if is_share:
        return f"{100 * shown['low']:.1f} to {percent(shown['high'])}"
    return f"{figure(shown['low'])} to {figure(shown['high'])}"


@register.simple_tag
def difference(shown: dict[str, Any] | None) -> SafeString:
    """The difference of a figure between two versions over its 95 % interval; a plus where the second is ahead."""
    if not shown or shown["difference"] is None:
        return format_html('<span class="muted">{}</span>', MISSING)
    if shown["low"] is None:
        return format_html("{}", signed(shown["difference"]))
    ends = f"{signed(shown['low'])} to {signed(shown['high'])}"
    return format_html('{}<br><small class="muted nowrap">{}</small>', signed(shown["difference"]), ends)


def signed(value: float) -> str:
    """Three decimals with a sign, the minus as it is set in text."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}").replace("+0.000", "0.000")


@register.filter
def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


@register.filter
def rare_percent(share: float) -> str:
    """In percent with six significant digits and no zeros at the end: for shares that may be far below 0.1 %."""
    return f"{100 * share:.6g}\u00a0%"


@register.inclusion_tag("registry/_interval_bar.html")
def interval_bar(shown: dict[str, Any]) -> dict[str, Any]:
    """A figure between 0 and 1 as a dot on its interval, in a box of 100 by 10."""
    places = {name: round(100 * shown[name], 2) for name in ("value", "low", "high") if shown[name] is not None}
    return {"places": places}


@register.filter
def column(row: dict[str, Any], key: str) -> Any:
    """An entry of a row by a key that is itself a variable."""
    return row[key]


@register.inclusion_tag("registry/_confusion_matrix.html")
def confusion_matrix(metrics: dict[str, Any], link: str = "") -> dict[str, Any]:
    """Rows are the true class. A cell's shade is the decile of its share of the row, so that classes compare.

    link: the address of a page that takes `true` and `predicted` and shows the images of a cell; "" for none.
    """
    classes, counts = metrics.get("classes") or [], metrics.get("confusion_matrix") or []
    rows = [_row(name, classes, cells, link) for name, cells in zip(classes, counts, strict=False)]
    return {"classes": classes, "rows": rows, "link": link}


def _row(name: str, classes: list[str], counts: list[int], link: str) -> dict[str, Any]:
    total = sum(counts)
    shares = [count / total if total else 0.0 for count in counts]
    cells = [
        {
            "count": count,
            "share": share,
            "decile": round(10 * share),
            "correct": called == name,
            "called": called,
            "link": f"{link}?{urlencode({'true': name, 'predicted': called})}" if link and count else "",
        }
        for called, count, share in zip(classes, counts, shares, strict=True)
    ]
    return {"name": name, "total": total, "cells": cells}
