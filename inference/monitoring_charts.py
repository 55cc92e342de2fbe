"""What the charts of Monitoring are drawn from; the tables beside them say the same."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any

from .drift import Stability
from .models import ServingPolicy
from .monitoring import Figures

Value = float | int | None


def charts_of(weeks: Sequence[Figures], measure: str, policy: ServingPolicy) -> dict[str, Any]:
    """Lines over the weeks of one version, from the oldest on; a week without requests is a gap."""
    if not weeks:
        return {}
    by_week = {week.week: week for week in weeks}
    mondays = _mondays(min(by_week), max(by_week))

    def line(value: Callable[[Figures], Value]) -> list[Value]:
        return [value(by_week[day]) if day in by_week else None for day in mondays]

    def psi(value: Callable[[Stability], float]) -> list[Value]:
        return line(lambda week: _psi(week, measure, value))

    return {
        "weeks": [day.isoformat() for day in mondays],
        "answers": line(lambda week: week.answers),
        "refused": line(lambda week: week.unanswered.get("refused", 0)),
        "errors": line(lambda week: round(week.requests * (week.errors.value or 0))),
        "p50": line(lambda week: week.p50),
        "p95": line(lambda week: week.p95),
        "psi": psi(lambda found: found.value),
        "psi_low": psi(lambda found: found.low),
        "psi_high": psi(lambda found: found.high),
        "agreement": line(lambda week: week.readers.agreement.value),
        "agreement_low": line(lambda week: week.readers.agreement.low),
        "agreement_high": line(lambda week: week.readers.agreement.high),
        "limits": {
            "latency": policy.max_latency_ms,
            "psi": policy.max_psi,
            "agreement": policy.min_agreement,
        },
        "shares": _shares(weeks, measure),
    }


def _mondays(first: date, last: date) -> list[date]:
    return [first + timedelta(weeks=number) for number in range((last - first).days // 7 + 1)]


def _psi(week: Figures, measure: str, value: Callable[[Stability], float]) -> Value:
    one = week.drift_of(measure)
    return value(one.comparison.stability) if one and one.comparison.stability else None


def _shares(weeks: Sequence[Figures], measure: str) -> dict[str, Any]:
    """Of the newest week that can be compared: shares in each bin, in order of the bins."""
    for week in weeks:
        one = week.drift_of(measure)
        if one and one.comparison.stability:
            found = one.comparison.stability
            return {"edges": found.edges, "week": found.shares, "expected": found.expected}
    return {}
