"""The training queue as one sees it: what runs, what waits in which order, why, and how long it may take."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from statistics import mean
from typing import Any

from django.db.models import Prefetch
from django.utils import timezone

from datasets.models import Preparation
from xrayplatform.jobs import Job
from xrayplatform.system import queue_is_alive

from . import estimates, live
from .models import EpochMetric, TrainingQueue, TrainingRun
from .searching import Candidate, Plan


@dataclass(frozen=True)
class Entry:
    """A run in the queue. run: None when it belongs to another team; its priority and place are shown all the same.

    place: 1 for the run that starts next; None for one that runs, or that waits for its search, for the limit of its
    team or for its next attempt. why: it waits. seconds: that it will still take; starts_in: seconds until it starts,
    with one worker. None where not known. rank: its priority as a number.
    """

    run: TrainingRun | None
    priority: str
    place: int | None
    why: str
    seconds: float | None
    starts_in: float | None
    rank: int = TrainingRun.Priority.NORMAL

    def to_json(self) -> dict[str, Any]:
        known = {"priority": self.priority, "place": self.place, "why": self.why}
        known |= {
            "seconds": self.seconds and round(self.seconds),
            "starts_in": self.starts_in and round(self.starts_in),
        }
        run = self.run
        if run is None:
            return {"run": None, "other_team": True, **known}
        return {
            "run": run.pk,
            "other_team": False,
            "dataset": run.preparation.dataset.name,
            "architecture": run.architecture,
            "search": run.search_id,
            "started_by": run.created_by.get_username() if run.created_by else None,
            "epoch": run.epoch,
            "epochs": run.epochs,
            **known,
        }


@dataclass(frozen=True)
class Overview:
    """The whole queue. held: runs that wait for the others of their search and not for a worker."""

    queue: TrainingQueue
    worker_alive: bool
    running: list[Entry]
    waiting: list[Entry]
    held: list[Entry]

    @property
    def is_empty(self) -> bool:
        return not (self.running or self.waiting or self.held)

    @property
    def problem(self) -> str:
        """Why nothing starts at all, with what to do; "" when there is no such reason."""
        return "" if self.worker_alive else live.NO_WORKER

    def ahead_of_new(self) -> list[Entry]:
        """What a training that were asked for now would wait for: it overtakes runs of low priority, and blocked ones
        overtake nobody."""
        waiting = [entry for entry in self.waiting if entry.place and entry.rank >= TrainingRun.Priority.NORMAL]
        return [*self.running, *waiting]

    def to_json(self) -> dict[str, Any]:
        queue = self.queue
        return {
            "paused": queue.paused,
            "reason": queue.reason,
            "changed_by": queue.changed_by.get_username() if queue.changed_by else None,
            "worker_alive": self.worker_alive,
            "problem": self.problem,
            "running": [entry.to_json() for entry in self.running],
            "waiting": [entry.to_json() for entry in self.waiting],
            "held": [entry.to_json() for entry in self.held],
        }


def overview(user: Any) -> Overview:
    """The queue for `user`, who sees runs of other teams without names; None is the command line, which sees all."""
    runs = list(_active_runs())
    visible = set(TrainingRun.objects.seen_by(user).filter(state__in=Job.ACTIVE).values_list("pk", flat=True))
    queue = TrainingQueue.current()
    alive = queue_is_alive(TrainingRun.cluster)
    seconds = remaining_seconds(runs)
    running = [run for run in runs if run.state == Job.State.RUNNING]
    of_team = Counter(_team(run) for run in running)
    ahead: list[float | None] = [seconds[run.pk] for run in running]

    def entry(run: TrainingRun, place: int | None = None, why: str = "", starts_in: float | None = None) -> Entry:
        shown = run if run.pk in visible else None
        return Entry(shown, run.get_priority_display(), place, why, seconds[run.pk], starts_in, run.priority)

    waiting, place = [], 1
    for run in (run for run in runs if run.state == Job.State.QUEUED and not run.held):
        limit = live.limit_words(_team(run), of_team[_team(run)], shown=run.pk in visible)
        blocked = limit or _pause_words(run, shown=run.pk in visible)
        why = _why(place, queue, alive, blocked)
        if blocked:
            # Others go first meanwhile.
            waiting.append(entry(run, None, why))
            continue
        known = alive and not queue.paused and None not in ahead
        waiting.append(entry(run, place, why, sum(ahead) if known else None))
        ahead.append(seconds[run.pk])
        place += 1
    held = [run for run in runs if run.state == Job.State.QUEUED and run.held]
    return Overview(
        queue,
        alive,
        [entry(run) for run in running],
        waiting,
        [entry(run, why=_held_words(run, shown=run.pk in visible)) for run in held],
    )


def _active_runs() -> Iterable[TrainingRun]:
    """Waiting and running runs of everybody, the waiting ones in the order in which they start."""
    runs = TrainingRun.objects.filter(state__in=Job.ACTIVE).order_by("-priority", "pk")
    return runs.select_related("preparation__dataset__condition__team", "search", "created_by").prefetch_related(
        Prefetch("metrics", EpochMetric.objects.filter(run__state=Job.State.RUNNING))
    )


def _team(run: TrainingRun) -> Any:
    return run.preparation.dataset.condition.team


def _pause_words(run: TrainingRun, *, shown: bool) -> str:
    """Why a run is tried again only later; "" when it may start."""
    if run.not_before is None or run.not_before <= timezone.now():
        return ""
    at = f"Tried again at {timezone.localtime(run.not_before):%H:%M}"
    return f"{at}: {run.message}" if shown and run.message else f"{at}."


def _why(place: int, queue: TrainingQueue, alive: bool, blocked: str) -> str:
    if queue.paused:
        return "The queue is paused."
    if blocked:
        return blocked
    if not alive:
        return "No training worker gives a sign of life."
    return "Next, as soon as a worker is free." if place == 1 else f"Its turn comes after {other_runs(place - 1)}."


def _held_words(run: TrainingRun, *, shown: bool) -> str:
    name = f"the other runs of search {run.search_id}" if shown else "the other runs of its search"
    return f"Waits after {run.epoch} epochs until {name} have come as far; then the best go on."


def other_runs(count: int) -> str:
    return "one other run" if count == 1 else f"{count} other runs"


# -- How long


def remaining_seconds(runs: Iterable[TrainingRun]) -> dict[int, float | None]:
    """Seconds of training left in each run, until it ends or is compared; None where nothing tells."""
    # Many runs of a queue are of the same kind.
    speed_of = cache(live.measured)
    return {run.pk: _remaining(run, speed_of) for run in runs}


def _remaining(run: TrainingRun, speed_of: Callable[..., live.Measurement | None]) -> float | None:
    if run.state == Job.State.QUEUED and run.held:
        # Whether it goes on at all is not known.
        return None
    if run.state == Job.State.RUNNING and run.epoch_limit is None:
        return live.seconds_left(run, speed_of)
    wanted = live.plan_of(run)
    whole = live.expected_of(run, wanted, speed_of)
    if whole is None:
        return None
    if run.epoch == 0 and run.epoch_limit is None:
        return whole.total
    left = max((run.epoch_limit or run.epochs) - max(run.epoch, wanted.head_epochs), 0)
    return whole.start + left * whole.epoch + (0.0 if run.epoch_limit else whole.evaluation)


def plan_seconds(wanted: Plan, preparation: Preparation) -> float | None:
    """Seconds that a search takes on one worker, early stopping left aside; None where nothing tells."""
    speed_of = cache(live.measured)
    durations = [
        _duration(item, preparation, speed_of, pretrained=item.architecture in wanted.pretrained)
        for item in wanted.candidates
    ]
    known = [duration for duration in durations if duration is not None]
    if len(known) < len(durations):
        return None
    if wanted.rungs is None:
        return sum(duration.total for duration in known)
    # Nobody knows which runs go on: each is taken for an average one.
    epoch, start, evaluation = (
        mean(getattr(duration, name) for duration in known) for name in ("epoch", "start", "evaluation")
    )
    # While only the heads learn an epoch costs next to nothing.
    epochs = max(wanted.epochs - sum(wanted.head_epochs), 0)
    return epochs * epoch + sum(wanted.starts) * start + wanted.starts[-1] * evaluation


def _duration(
    item: Candidate,
    preparation: Preparation,
    speed_of: Callable[..., live.Measurement | None],
    *,
    pretrained: bool,
) -> estimates.Duration | None:
    numbers = live.plan(preparation, item.architecture, item.configuration, pretrained=pretrained)
    found = speed_of(item.architecture, numbers.image_size, numbers.batch_size, fine_tuning=pretrained)
    return found and estimates.duration(numbers, found.speed)
