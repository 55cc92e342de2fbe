"""Figures of a week that went beyond what their condition allows: written down once, and told to its model managers.

A share or a time is told when its 95 % interval lies beyond its limit. A drift is told
when the stability index lies beyond its limit and the chance of so large an index without any drift, corrected for the
number of figures that are looked at (Holm), is below DECISIVE_P. See `drift` for what that means.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone

from registry import announcing
from registry.operating_points import Rate
from registry.paired import holm
from xrayplatform import audit
from xrayplatform.conditions import Condition

from .drift import DECISIVE_P, FEW_FOR_SHARES
from .models import MonitoringAlert, Prediction, ServingPolicy, Unanswered
from .monitoring import Drift, Figures, begins, figures, monday

# The closed week before, in which verdicts still come in, and the running one.
WATCHED_WEEKS: Final = 2
# Of the answers, this share may take longer than the limit of the 95th percentile.
SLOW_SHARE: Final = 0.05


@dataclass(frozen=True)
class Finding:
    """A figure beyond its limit. text: what happened, and what to do, in full sentences."""

    measure: str
    value: float
    limit: float
    text: str


def watch_all() -> int:
    """Look at every condition that was in use of late; returns how many alerts are new."""
    since = begins(monday(timezone.localdate()) - timedelta(weeks=WATCHED_WEEKS - 1))
    answered = Prediction.objects.filter(version__condition=models.OuterRef("pk"), created_at__gte=since)
    unanswered = Unanswered.objects.nobody_answered().filter(condition=models.OuterRef("pk"), created_at__gte=since)
    used = Condition.objects.filter(models.Exists(answered) | models.Exists(unanswered))
    return sum(len(watch(condition)) for condition in used.order_by("pk"))


def watch(condition: Condition) -> list[MonitoringAlert]:
    """The new alerts of the closed week before and of the running one, up to last midnight.

    Looked at several times a day, it tells the same: figures of the running week change once a day. What is new of one
    version in one week is one message to each person and one call to other systems.
    """
    policy = ServingPolicy.objects.of(condition)
    found = figures(condition, weeks=WATCHED_WEEKS, until=begins(timezone.localdate()))
    wanted = [(week, findings(week, policy)) for week in found if week.shown]
    if not any(told for _, told in wanted):
        return []
    with transaction.atomic():
        # Of two workers at once the second sees the rows of the first.
        Condition.objects.select_for_update().get(pk=condition.pk)
        return [alert for week, told in wanted for alert in _alerts(condition, week, told)]


def findings(week: Figures, policy: ServingPolicy) -> list[Finding]:
    """What is beyond the limits of the policy in one week of one version."""
    return [*_use(week, policy), *_agreement(week, policy), *_drifts(week, policy.max_psi)]


def _use(week: Figures, policy: ServingPolicy) -> Iterator[Finding]:
    if _is_above(week.refused, policy.max_refusal_share, week.requests):
        limit = policy.max_refusal_share
        yield Finding(
            "refusals",
            week.refused.value or 0.0,
            limit,
            f"The input gate refused {_percent(week.refused.value)} of {week.requests} requests; {_percent(limit)} are "
            "allowed. See which check refused, and look at what was sent.",
        )
    if _is_above(week.errors, policy.max_error_share, week.requests):
        limit = policy.max_error_share
        yield Finding(
            "errors",
            week.errors.value or 0.0,
            limit,
            f"{_percent(week.errors.value)} of {week.requests} requests failed on our side; {_percent(limit)} are "
            "allowed. System Status and the log of the server say more.",
        )
    if week.p95 is not None and _is_above(week.slow, SLOW_SHARE, week.answers):
        yield Finding(
            "latency",
            week.p95,
            policy.max_latency_ms,
            f"The 95th percentile of the time to an answer was {week.p95:.0f} ms; {policy.max_latency_ms:.0f} ms are "
            "allowed. See System Status for memory and processors.",
        )


def _agreement(week: Figures, policy: ServingPolicy) -> Iterator[Finding]:
    agreement, limit = week.readers.agreement, policy.min_agreement
    few = week.readers.judged < FEW_FOR_SHARES
    if few or agreement.value is None or agreement.high is None or agreement.high >= limit:
        return
    yield Finding(
        "agreement",
        agreement.value,
        limit,
        f"Readers agreed with {_percent(agreement.value)} of {week.readers.judged} answers that they judged; "
        f"{_percent(limit)} are expected. Look at what they corrected before you rely on this version.",
    )


def _drifts(week: Figures, limit: float) -> Iterator[Finding]:
    known = [one for one in week.drift if one.comparison.stability is not None]
    corrected = holm([one.comparison.stability.p for one in known if one.comparison.stability is not None])
    for one, p in zip(known, corrected, strict=True):
        value = one.comparison.stability.value if one.comparison.stability else 0.0
        if p is not None and p < DECISIVE_P and value > limit:
            yield _drift(one, value, limit)


def _drift(one: Drift, value: float, limit: float) -> Finding:
    return Finding(
        one.key,
        value,
        limit,
        f"{one.label} differs from validation: a stability index (PSI) of {value:.2f} over {one.comparison.count} "
        f"images, beyond {limit:g} and beyond chance.",
    )


def _is_above(rate: Rate, limit: float, count: int) -> bool:
    return count >= FEW_FOR_SHARES and rate.low is not None and rate.low > limit


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0.0):.1f} %"


def _alerts(condition: Condition, week: Figures, told: list[Finding]) -> list[MonitoringAlert]:
    """The rows that are new, told to people and systems."""
    about = f"{week.version or condition}, week from {week.week:%Y-%m-%d}"
    new = [alert for finding in told if (alert := _alert(condition, week, finding)) is not None]
    if new:
        more = f" And {len(new) - 1} more beyond their limits." if len(new) > 1 else ""
        announcing.tell_alert(
            condition,
            week.version,
            f"{about}: {new[0].text}{more}",
            f"{reverse('inference:monitoring')}?condition={condition.slug}",
            week=week.week.isoformat(),
            measures=[alert.measure for alert in new],
        )
    return new


def _alert(condition: Condition, week: Figures, finding: Finding) -> MonitoringAlert | None:
    """The new row; None when it was told before."""
    # An alert without a version is no duplicate to the database.
    alert, is_new = MonitoringAlert.objects.get_or_create(
        condition=condition,
        version=week.version,
        week=week.week,
        measure=finding.measure,
        defaults={"value": finding.value, "limit": finding.limit, "text": finding.text[:500]},
    )
    if not is_new:
        return None
    after: dict[str, Any] = {"measure": finding.measure, "value": round(finding.value, 4), "limit": finding.limit}
    audit.record("monitoringalert.create", alert, after=after)
    return alert
