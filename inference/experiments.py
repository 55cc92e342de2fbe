"""Which version answers a request of a condition with a running experiment, and when an experiment stops by itself."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from django.db import DatabaseError
from django.db.models import QuerySet

from registry.models import Deployment, ModelVersion
from xrayplatform.conditions import Condition

from .assignment import is_challenger
from .models import Experiment, Prediction, Unanswered

logger = logging.getLogger(__name__)

# A guard rail looks at so many of the newest requests: a challenger that breaks after thousands of good answers is
# stopped as soon as one that was broken from the start.
NEWEST = 200
CHAMPION, CHALLENGER = Prediction.Variant.CHAMPION, Prediction.Variant.CHALLENGER


@dataclass(frozen=True)
class Routed:
    """A request within an experiment. answers: the challenger answers this subject."""

    experiment: Experiment
    challenger: ModelVersion
    answers: bool


def running(condition: Condition, deployment: Deployment) -> Experiment | None:
    """The running experiment of the condition; None without any.

    deployment: as it was read for this request. A query each time, also where there is none: what was stopped a moment
    ago must not answer. An experiment that an activation has outdated is ended here and now.
    """
    # Neither joined nor ordered: for most requests there is none, and Django spends milliseconds on such a query.
    experiment = next(iter(Experiment.objects.running().filter(condition=condition).order_by()), None)
    if experiment is None:
        return None
    experiment.condition = experiment.challenger.condition = condition
    if experiment.epoch != deployment.epoch:
        Experiment.objects.filter(pk=experiment.pk).end_outdated()
        return None
    return experiment


def route(experiment: Experiment | None, subject: str) -> Routed | None:
    """Whether the challenger answers this subject; None without an experiment."""
    if experiment is None:
        return None
    answers = experiment.kind == Experiment.Kind.AB and is_challenger(experiment.salt, subject, experiment.share)
    return Routed(experiment, experiment.challenger, answers)


@dataclass(frozen=True)
class Rails:
    """What the guard rails of an experiment look at: of the newest requests to the challenger, and of the champion's.

    error_rate, latency_ratio: None while there are too few requests to tell.
    """

    requests: int
    failures: int
    error_rate: float | None
    challenger_ms: float | None
    champion_ms: float | None
    latency_ratio: float | None


def rails(experiment: Experiment) -> Rails:
    """Three queries, each of at most NEWEST rows."""
    answers = _newest(answers_of(experiment, CHALLENGER).values_list("created_at", "latency_ms"))
    failed = _newest(failures_of(experiment).values_list("created_at", "kind"))
    others = [
        milliseconds
        for _, milliseconds in _newest(answers_of(experiment, CHAMPION).values_list("created_at", "latency_ms"))
    ]
    requests = sorted([*((at, True) for at, _ in failed), *((at, False) for at, _ in answers)], key=_time)[-NEWEST:]
    failures = sum(was_failure for _, was_failure in requests)
    own = [milliseconds for _, milliseconds in answers]
    enough = min(len(own), len(others)) >= experiment.min_requests
    challenger_ms, champion_ms = _median(own), _median(others)
    return Rails(
        requests=len(requests),
        failures=failures,
        error_rate=failures / len(requests) if len(requests) >= experiment.min_requests else None,
        challenger_ms=challenger_ms,
        champion_ms=champion_ms,
        latency_ratio=challenger_ms / champion_ms if enough and challenger_ms and champion_ms else None,
    )


def guard(experiment: Experiment) -> bool:
    """Stop the experiment when its challenger fails too often or is too slow; whether it did. Never costs an answer."""
    try:
        reason = _why_to_stop(experiment, rails(experiment))
        return bool(reason) and experiment.stop_by_itself(reason)
    except DatabaseError:
        logger.exception("The guard rails of experiment %s could not be looked at", experiment.pk)
        return False


def answers_of(experiment: Experiment, variant: str) -> QuerySet:
    """The answers of one side. The champion's are of the version the experiment began with: an older one may have
    stepped in where that could not be loaded."""
    version = experiment.champion_id if variant == CHAMPION else experiment.challenger_id
    return experiment.predictions.filter(variant=variant, version=version).order_by()


def failures_of(experiment: Experiment) -> QuerySet:
    """Requests that the challenger failed; nobody was left without an answer."""
    return experiment.unanswered.filter(variant=CHALLENGER, kind=Unanswered.Kind.FAILED).order_by()


def dropped_of(experiment: Experiment) -> QuerySet:
    """Answers of a shadow that were left out because the platform had other work, which is no failure."""
    return experiment.unanswered.filter(variant=CHALLENGER, kind=Unanswered.Kind.BUSY).order_by()


def _newest(rows: QuerySet) -> list[tuple]:
    return list(rows.order_by("-created_at")[:NEWEST])


def _time(request: tuple[datetime, bool]) -> datetime:
    return request[0]


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None


def _why_to_stop(experiment: Experiment, seen: Rails) -> str:
    if seen.error_rate is not None and seen.error_rate > experiment.max_error_rate:
        return (
            f"{experiment.challenger} failed {seen.failures} of the newest {seen.requests} requests, more than the "
            f"{100 * experiment.max_error_rate:g} % that were allowed. The champion answered them."
        )
    if seen.latency_ratio is not None and seen.latency_ratio > experiment.max_latency_ratio:
        return (
            f"{experiment.challenger} takes {seen.challenger_ms:.0f} ms and {experiment.champion} "
            f"{seen.champion_ms:.0f} ms (medians of the newest requests), more than the "
            f"{experiment.max_latency_ratio:g} times as long that were allowed."
        )
    return ""
