"""How a condition's versions do in use, by week: load, refusals, drift against validation, and what readers say.

One pass over the rows of all weeks; nothing is asked of the database row by row. Weeks are ISO weeks, from Monday to
Sunday in the site's time zone. The answers of shadows, which nobody acted on, are counted apart.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
from django.db import models
from django.db.models.functions import Cast
from django.utils import timezone
from numpy.typing import NDArray

from datasets import quality
from registry.models import Activation, ModelVersion
from registry.operating_points import Rate, wilson
from xrayplatform.conditions import Condition

from . import gate
from .drift import Comparison, compare
from .measures import LABELS, Distribution, Distributions
from .models import Prediction, ServingPolicy, ServingReference, Unanswered, Verdict

WEEKS: Final = 12
MOST_WEEKS: Final = 53
# An unreadable file is its sender's; these the platform has to answer for.
ERRORS: Final = (Unanswered.Kind.FAILED, Unanswered.Kind.BUSY, Unanswered.Kind.NO_MODEL)
CHUNK: Final = 5000
# Answers of a week and version whose contents are read, to be compared with validation and for percentiles of time:
# more would hardly make the figures any surer, and the page wait. Which ones is left to their keys, which are random.
MOST_COMPARED: Final = 1000
_NOTICED: Final = ("warn", "fail")


class Group(NamedTuple):
    """What figures are made of: one week of one version. version: None for requests when nothing was in service."""

    week: date
    version: int | None
    shown: bool = True


@dataclass(frozen=True)
class Decision:
    """How often a class was called, and how often on validation (None where that is not known)."""

    name: str
    count: int
    share: Rate
    expected: float | None


@dataclass(frozen=True)
class Drift:
    """One number of a week against validation. key: at most 60 characters. values: of the week, each image once."""

    key: str
    label: str
    comparison: Comparison
    reference: Distribution | None
    values: NDArray[np.float64] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "label": self.label, **self.comparison.to_json()}


@dataclass(frozen=True)
class Readers:
    """What the newest verdict of each answer says. judged: answers with one, of how many.

    agreement: share of the answers that are the reader's label, the accuracy against readers. sensitivity,
    specificity: of the positive class of two. by_class: share of each label's images that were called so.
    """

    judged: int
    of: int
    agreement: Rate
    sensitivity: Rate | None
    specificity: Rate | None
    by_class: dict[str, Rate]


@dataclass(frozen=True)
class Figures:
    """One week of one version. shown: false for what it answered as a shadow. p50, p95: milliseconds, of a sample.

    slow: share of the answers that took longer than the policy allows. unanswered: requests without an answer by kind.
    refusals, warnings: by check of the input gate.
    """

    week: date
    version: ModelVersion | None
    shown: bool
    answers: int
    channels: dict[str, int]
    p50: float | None
    p95: float | None
    slow: Rate
    unanswered: dict[str, int]
    refusals: dict[str, int]
    warnings: dict[str, int]
    decisions: list[Decision]
    drift: list[Drift]
    readers: Readers

    @property
    def requests(self) -> int:
        return self.answers + sum(self.unanswered.values())

    @property
    def refused(self) -> Rate:
        return wilson(self.unanswered.get(Unanswered.Kind.REFUSED, 0), self.requests)

    @property
    def errors(self) -> Rate:
        return wilson(sum(self.unanswered.get(kind, 0) for kind in ERRORS), self.requests)

    def drift_of(self, key: str) -> Drift | None:
        return next((one for one in self.drift if one.key == key), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "week": self.week.isoformat(),
            "version": self.version.number if self.version else None,
            "shown": self.shown,
            "requests": self.requests,
            "answers": self.answers,
            "channels": self.channels,
            "latency_ms": {"p50": self.p50, "p95": self.p95, "slow": asdict(self.slow)},
            "unanswered": self.unanswered,
            "refused": asdict(self.refused),
            "errors": asdict(self.errors),
            "refusals": self.refusals,
            "warnings": self.warnings,
            "decisions": [asdict(one) for one in self.decisions],
            "drift": [one.to_json() for one in self.drift],
            "readers": asdict(self.readers),
        }


def monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def begins(day: date) -> datetime:
    """The midnight with which a day begins at the site."""
    return timezone.make_aware(datetime.combine(day, time.min))


def this_week() -> date:
    return monday(timezone.localdate())


def figures(
    condition: Condition, *, weeks: int = WEEKS, last: date | None = None, until: datetime | None = None
) -> list[Figures]:
    """The figures of each version in each week that has any, the newest week first.

    last: the Monday of the last week; the running one without. until: what came later does not count.
    """
    newest = last or this_week()
    mondays = [newest - timedelta(weeks=back) for back in reversed(range(weeks))]
    end = begins(newest + timedelta(weeks=1))
    span = _Span(mondays, min(end, until) if until else end)
    limit = ServingPolicy.objects.of(condition).max_latency_ms
    found = _Found(condition, span, limit)
    versions = ModelVersion.objects.select_related("condition").defer("history").in_bulk(found.versions())
    usual = _Usual(versions)
    groups = sorted(found.groups(), key=lambda group: (-group.week.toordinal(), -(group.version or 0), not group.shown))
    return [_figures(found, group, versions.get(group.version or 0), usual) for group in groups]


class _Span:
    """The weeks that are looked at, and which of them a time lies in."""

    def __init__(self, mondays: Sequence[date], end: datetime) -> None:
        self.mondays = mondays
        self._starts = [begins(day).timestamp() for day in mondays]
        self.start, self.end = begins(mondays[0]), end

    def week(self, at: datetime) -> date:
        return self.mondays[bisect_right(self._starts, at.timestamp()) - 1]

    def place(self, field: str) -> models.Case:
        """In SQL: which of the weeks the time in a column lies in, from 0 on."""
        ends = [begins(day) for day in self.mondays[1:]]
        earlier = [models.When(**{f"{field}__lt": end}, then=place) for place, end in enumerate(ends)]
        return models.Case(*earlier, default=len(ends), output_field=models.IntegerField())

    def bounds(self, week: date) -> tuple[datetime, datetime]:
        return begins(week), min(begins(week + timedelta(weeks=1)), self.end)

    def of(self, field: str) -> dict[str, datetime]:
        return {f"{field}__gte": self.start, f"{field}__lt": self.end}


@dataclass
class _Answers:
    """The answers of a group. slow: how many took longer than allowed. latencies: of at most MOST_COMPARED of them.

    probabilities, measures: of the same, each image once.
    """

    channels: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    slow: int = 0
    latencies: list[float] = field(default_factory=list)
    probabilities: list[dict[str, float]] = field(default_factory=list)
    measures: list[dict[str, float]] = field(default_factory=list)
    threshold: float | None = None

    @property
    def count(self) -> int:
        return self.channels.total()


class _Found:
    """All rows of the span, sorted into groups."""

    def __init__(self, condition: Condition, span: _Span, limit: float) -> None:
        self.answers: dict[Group, _Answers] = defaultdict(_Answers)
        self.unanswered: dict[Group, Counter[str]] = defaultdict(Counter)
        self.refusals: dict[Group, Counter[str]] = defaultdict(Counter)
        self.warnings: dict[Group, Counter[str]] = defaultdict(Counter)
        self.verdicts: dict[Group, dict[Any, tuple[str, str]]] = defaultdict(dict)
        self._read_answers(condition, span, limit)
        self._read_unanswered(condition, span)
        self._read_warnings(condition, span)
        self._read_verdicts(condition, span)

    def groups(self) -> set[Group]:
        return set(self.answers) | set(self.unanswered)

    def versions(self) -> set[int]:
        return {group.version for group in self.groups() if group.version is not None}

    def _read_answers(self, condition: Condition, span: _Span, limit: float) -> None:
        rows = _predictions(condition, span).annotate(week=span.place("created_at"))
        kinds = rows.values_list("week", "version_id", "shown", "channel", "decision")
        slow = models.Count("pk", filter=models.Q(latency_ms__gt=limit))
        for place, version, shown, channel, decision, number, too_slow in kinds.annotate(models.Count("pk"), slow=slow):
            answers = self.answers[Group(span.mondays[place], version, shown)]
            answers.channels[channel] += number
            answers.decisions[decision] += number
            answers.slow += too_slow
        for group, answers in self.answers.items():
            self._read_contents(group, answers, span)

    def _read_contents(self, group: Group, answers: _Answers, span: _Span) -> None:
        """What was measured of the images, and said: the largest columns by far, of a sample where there are many."""
        start, end = span.bounds(group.week)
        rows = Prediction.objects.filter(version=group.version, shown=group.shown, created_at__gte=start)
        rows = rows.filter(created_at__lt=end, pk__lte=_sampling(answers.count)).order_by()
        digests: set[str] = set()
        for latency, digest, threshold, probabilities, measures in rows.values_list(
            "latency_ms", "image_digest", "threshold", "probabilities", "measures"
        ).iterator(CHUNK):
            answers.latencies.append(latency)
            answers.threshold = threshold
            if digest not in digests:
                digests.add(digest)
                answers.probabilities.append(probabilities)
                answers.measures.append(measures)

    def _read_unanswered(self, condition: Condition, span: _Span) -> None:
        in_service = _InService(condition)
        rows = Unanswered.objects.nobody_answered().filter(condition=condition, **span.of("created_at")).order_by()
        for at, version, kind, code in rows.values_list("created_at", "version_id", "kind", "code").iterator(CHUNK):
            group = Group(span.week(at), version or in_service.at(at))
            self.unanswered[group][kind] += 1
            if kind == Unanswered.Kind.REFUSED:
                self.refusals[group][code] += 1

    def _read_warnings(self, condition: Condition, span: _Span) -> None:
        """Of the few answers that have any: the verdicts of all would be most of what there is to read."""
        told = models.Q()
        for outcome in _NOTICED:
            told |= models.Q(said__contains=f'"outcome": "{outcome}"')
        rows = _predictions(condition, span).annotate(said=Cast("gate", models.TextField())).filter(told)
        for at, version, shown, verdicts in rows.values_list("created_at", "version_id", "shown", "gate").iterator(
            CHUNK
        ):
            noticed = {one["check"] for one in verdicts if one["outcome"] in _NOTICED}
            self.warnings[Group(span.week(at), version, shown)].update(noticed)

    def _read_verdicts(self, condition: Condition, span: _Span) -> None:
        rows = Verdict.objects.filter(
            prediction__version__condition=condition, prediction__shown=True, **span.of("prediction__created_at")
        ).order_by("pk")
        for at, version, prediction, decision, label in rows.values_list(
            "prediction__created_at", "prediction__version_id", "prediction_id", "prediction__decision", "label"
        ).iterator(CHUNK):
            # The newest is read last.
            self.verdicts[Group(span.week(at), version)][prediction] = (label, decision)


def _sampling(count: int) -> UUID:
    """The key up to which, of so many random ones, about MOST_COMPARED lie; all of them where there are fewer."""
    return UUID(int=(2**128 - 1) * min(MOST_COMPARED, count) // count)


def _predictions(condition: Condition, span: _Span) -> models.QuerySet:
    return Prediction.objects.filter(version__condition=condition, **span.of("created_at")).order_by()


class _InService:
    """Which version was in service when; a request without an answer does not always name one."""

    def __init__(self, condition: Condition) -> None:
        history = Activation.objects.filter(condition=condition).order_by("pk").values_list("at", "to_version_id")
        self._history = list(history)
        self._times = [at for at, _ in self._history]

    def at(self, when: datetime) -> int | None:
        place = bisect_right(self._times, when)
        return self._history[place - 1][1] if place else None


class _Usual:
    """What was usual on each version's validation part, where that is known."""

    def __init__(self, versions: Iterable[int]) -> None:
        rows = ServingReference.objects.filter(version__in=list(versions)).exclude(distributions={})
        self._known = {pk: Distributions.from_json(content) for pk, content in rows.values_list(*_REFERENCE)}

    def of(self, version: ModelVersion | None) -> Distributions | None:
        return None if version is None else self._known.get(version.pk)


_REFERENCE: Final = ("version_id", "distributions")


def _figures(found: _Found, group: Group, version: ModelVersion | None, usual: _Usual) -> Figures:
    answers = found.answers.get(group, _Answers())
    latencies = np.asarray(answers.latencies, np.float64)
    known = usual.of(version)
    return Figures(
        week=group.week,
        version=version,
        shown=group.shown,
        answers=answers.count,
        channels=dict(answers.channels.most_common()),
        p50=_percentile(latencies, 50),
        p95=_percentile(latencies, 95),
        slow=wilson(answers.slow, answers.count),
        unanswered=dict(found.unanswered.get(group, Counter()).most_common()),
        refusals=dict(found.refusals.get(group, Counter()).most_common()),
        warnings=dict(found.warnings.get(group, Counter()).most_common()),
        decisions=_decisions(answers, version, known),
        drift=_drift(answers, version, known),
        readers=_readers(list(found.verdicts.get(group, {}).values()), answers.count, version),
    )


def _percentile(values: NDArray[np.float64], share: int) -> float | None:
    return round(float(np.percentile(values, share)), 2) if len(values) else None


def _decisions(answers: _Answers, version: ModelVersion | None, known: Distributions | None) -> list[Decision]:
    if version is None:
        return []
    total = answers.decisions.total()
    expected = _expected(version, known, answers.threshold)
    return [
        Decision(name, answers.decisions[name], wilson(answers.decisions[name], total), expected.get(name))
        for name in version.classes
    ]


def _expected(version: ModelVersion, known: Distributions | None, threshold: float | None) -> dict[str, float]:
    """The share of each of two classes on validation at the threshold in use; of several classes it is not known."""
    positive = version.positive_class
    distribution = known.probabilities.get(positive) if known and positive and len(version.classes) == 2 else None
    if distribution is None or not distribution.values:
        return {}
    cut = 0.5 if threshold is None else threshold
    share = float((np.asarray(distribution.values) >= cut).mean())
    return {name: share if name == positive else 1 - share for name in version.classes}


def _drift(answers: _Answers, version: ModelVersion | None, known: Distributions | None) -> list[Drift]:
    """Probabilities first: the positive class of two, or every class; then what was measured of the images."""
    if version is None or not answers.measures:
        return []
    found = []
    for index, name in enumerate(version.classes):
        if name == version.positive_class or len(version.classes) > 2 or not version.positive_class:
            column = _column(answers.probabilities, name)
            usual = known.probabilities.get(name) if known else None
            found.append(_compared(f"probability-{index}", f"Probability of {name}", column, usual))
    for name in [*LABELS, "unlikeness"]:
        column = _column(answers.measures, name)
        if np.isfinite(column).any():
            usual = known.measures.get(name) if known else None
            found.append(_compared(name, LABELS.get(name) or quality.LABELS[name], column, usual))
    return found


def _column(rows: list[dict[str, float]], name: str) -> NDArray[np.float64]:
    return np.array([row.get(name, math.nan) for row in rows], np.float64)


def _compared(key: str, label: str, column: NDArray[np.float64], usual: Distribution | None) -> Drift:
    values = column[np.isfinite(column)]
    return Drift(key, label, compare(usual, values), usual, values)


def _readers(pairs: list[tuple[str, str]], answers: int, version: ModelVersion | None) -> Readers:
    """pairs: the reader's label and what was answered."""
    called_right = Counter(label for label, decision in pairs if label == decision)
    labels = Counter(label for label, _ in pairs)
    by_class = {name: wilson(called_right[name], labels[name]) for name in (version.classes if version else [])}
    positive = version.positive_class if version and len(version.classes) == 2 else ""
    other = next((name for name in by_class if name != positive), "")
    return Readers(
        judged=len(pairs),
        of=answers,
        agreement=wilson(called_right.total(), len(pairs)),
        sensitivity=by_class[positive] if positive else None,
        specificity=by_class[other] if positive else None,
        by_class=by_class,
    )


def check_label(code: str) -> str:
    """What the input gate calls a check."""
    return gate.CHECKS.get(code, code or "another reason")
