"""Numbers in the form the pages show them, and the left navigation."""

import json
from typing import Any

from django import template
from django.urls import resolve, reverse

from xrayplatform.notifications import Notification

register = template.Library()

MISSING = "not available"
MINUTE, HOUR, DAY = 60, 3600, 86400
# Pages of an app that the navigation names besides the app.
OWN_LINKS = {"registry:version-compare", "inference:monitoring", "inference:correction-create"}


@register.filter
def percent(value: float | None) -> str:
    """A fraction of 1 with one decimal: 0.934 is 93.4 %."""
    return MISSING if value in (None, "") else f"{100 * float(value):.1f}\u00a0%"


@register.filter
def figure(value: float | None) -> str:
    """An AUC, a loss or a kappa with three decimals."""
    return MISSING if value in (None, "") else f"{float(value):.3f}"


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds in the two units that matter: 95 is "1 min 35 s"."""
    if seconds in (None, ""):
        return MISSING
    left = round(float(seconds))
    if left < MINUTE:
        return f"{left} s"
    if left < HOUR:
        return f"{left // MINUTE} min {left % MINUTE} s"
    if left < DAY:
        return f"{left // HOUR} h {left % HOUR // MINUTE} min"
    return f"{left // DAY} d {left % DAY // HOUR} h"


@register.filter
def millions(value: int) -> str:
    return f"{value / 1e6:.1f}\u00a0M"


@register.filter
def minus(whole: int, part: int) -> int:
    return whole - part


@register.filter
def lookup(mapping: dict[Any, Any], key: Any) -> Any:
    """The value of a key that is itself a variable; None when absent."""
    return mapping.get(key)


@register.filter
def pretty_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@register.inclusion_tag("_nav_link.html", takes_context=True)
def nav_link(context: template.Context, view_name: str, label: str, icon: str, count: int = 0) -> dict[str, Any]:
    """A link of the left navigation; it is current on every page of its app, the platform's pages each for itself."""
    url = reverse(view_name)
    match, target = context["request"].resolver_match, resolve(url)
    exact = bool(match) and match.view_name == view_name
    same_app = bool(match) and match.namespace == target.namespace != "xrayplatform"
    same_app = same_app and not OWN_LINKS & {view_name, match.view_name}
    current = "page" if exact else "true" if same_app else ""
    return {"url": url, "label": label, "icon": icon, "count": count, "current": current}


@register.simple_tag(takes_context=True)
def unread_notifications(context: template.Context) -> int:
    """How many messages the user has not read; counted once a page, however often it is shown."""
    request = context["request"]
    if not hasattr(request, "unread_notifications"):
        request.unread_notifications = Notification.objects.of(request.user).unread().count()
    return request.unread_notifications


@register.simple_tag
def step_states(*done: bool) -> list[str]:
    """For steps that follow each other: done, the next to do, or later."""
    first = next((index for index, finished in enumerate(done) if not finished), len(done))
    return ["done" if finished else "next" if index == first else "later" for index, finished in enumerate(done)]
