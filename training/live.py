"""A training as one follows it: time left, what its curves mean, its interruptions in words."""

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median
from typing import Any

from django.db.models import OuterRef, Subquery, Sum, prefetch_related_objects
from django.utils import timezone

from datasets.models import Preparation
from xrayplatform.jobs import Job
from xrayplatform.system import queue_is_alive, resources
from xrayplatform.teams import Team

from . import estimates
from .configurations import Configuration
from .hints import Hint, hints
from .ml.architectures import ARCHITECTURES
from .ml.initial import SCRATCH
from .ml.stages import FINE_TUNING, HEAD, TRAINING_ENDS, head_epochs
from .models import EpochMetric, SpeedTest, TrainingQueue, TrainingRun

# Phases in which no epoch is left, also when the training stopped early.
AFTER_TRAINING = ("evaluating", "saving")
# Measurements that are looked through for one of the same kind.
LOOKED_AT = 20
SEEN = "seen in a training of"


@dataclass(frozen=True)
class Measurement:
    """How fast this platform trained an architecture at one image and batch size, and when that was seen."""

    image_size: int
    batch_size: int
    speed: estimates.Speed
    at: datetime
    source: str
    exact: bool = True

    def for_sizes(self, image_size: int, batch_size: int) -> "Measurement":
        """What it lets expect of other sizes: the work grows with the pixels of a batch."""
        if (self.image_size, self.batch_size) == (image_size, batch_size):
            return self
        factor = image_size**2 * batch_size / (self.image_size**2 * self.batch_size)
        source = f"{self.source} with {self.image_size} pixels and batches of {self.batch_size}"
        return Measurement(image_size, batch_size, self.speed.scaled(factor), self.at, source, exact=False)


def measured(architecture: str, image_size: int, batch_size: int, *, fine_tuning: bool) -> Measurement | None:
    """The newest measurement of the same kind; else of the nearest kind, scaled; None when nothing was measured.

    What was measured while a training shared the machine is not exact, and used only where there is nothing better.
    """
    tests, runs = _tests(architecture, fine_tuning), _runs(architecture, fine_tuning)
    found = [*map(_of_test, tests), *map(_of_run, runs)]

    def distance(item: Measurement) -> tuple[bool, bool, bool, float]:
        other_image, other_batch = item.image_size != image_size, item.batch_size != batch_size
        return other_image, other_batch, not item.exact, -item.at.timestamp()

    best = min(found, key=distance, default=None)
    if best is None:
        return None
    starts = [start for run in runs if (start := _start_of(run)) is not None]
    if starts:
        best = replace(best, speed=replace(best.speed, start=median(starts)))
    elif best.source.startswith(SEEN) and tests:
        best = replace(best, speed=replace(best.speed, start=tests[0].speed.start))
    return best.for_sizes(image_size, batch_size)


def _tests(architecture: str, fine_tuning: bool) -> list[SpeedTest]:
    tests = SpeedTest.objects.with_disturbance().filter(
        state=Job.State.SUCCEEDED, architecture=architecture, fine_tuning=fine_tuning, step_seconds__gt=0
    )
    return list(tests[:LOOKED_AT])


def _of_test(test: SpeedTest) -> Measurement:
    at = test.finished_at or test.created_at
    source = f"measured on {_date(at)}" + (" while a training was running" if test.disturbed else "")
    return Measurement(test.image_size, test.batch_size, test.speed, at, source, exact=not test.disturbed)


def _runs(architecture: str, fine_tuning: bool) -> list[TrainingRun]:
    """Of every team: how fast a network trains is nobody's secret."""
    metrics = EpochMetric.objects.filter(run=OuterRef("pk"))
    runs = (
        TrainingRun.objects.filter(architecture=architecture, images_per_second__gt=0, batch_size__gt=0)
        .annotate(
            last_stage=Subquery(metrics.order_by("-epoch").values("stage")[:1]),
            first_seconds=Subquery(metrics.exclude(stage=HEAD).order_by("epoch").values("seconds")[:1]),
            epochs_seconds=Sum("metrics__seconds"),
        )
        .select_related("preparation")
    )
    of_kind = runs.exclude(initial_weights=SCRATCH) if fine_tuning else runs.filter(initial_weights=SCRATCH)
    # While only the head learns, images go through the backbone once; that speed says nothing about the rest.
    return [run for run in of_kind[:LOOKED_AT] if run.last_stage != HEAD]


def _of_run(run: Any) -> Measurement:
    at = run.finished_at or run.progress_at or run.created_at
    return Measurement(run.preparation.image_size, run.batch_size, _speed_of(run), at, f"{SEEN} {_date(at)}")


def _speed_of(run: Any) -> estimates.Speed:
    step = run.batch_size / run.images_per_second
    return estimates.Speed(step, step * estimates.FORWARD_SHARE, estimates.START_SECONDS)


def _start_of(run: Any) -> float | None:
    """Seconds that a finished training took beside its epochs and its evaluation: mostly to start and to compile.

    None when it was interrupted, for then nobody knows.
    """
    if run.state != Job.State.SUCCEEDED or run.interruptions or not (run.seconds and run.epochs_seconds):
        return None
    usual = estimates.duration(plan_of(run), _speed_of(run))
    # The graph is compiled within the first epoch.
    compiling = max((run.first_seconds or usual.epoch) - usual.epoch, 0.0)
    return max(run.seconds - run.epochs_seconds - usual.evaluation, 0.0) + compiling


def _date(at: datetime) -> str:
    return f"{timezone.localtime(at):%Y-%m-%d}"


def plan(
    preparation: Preparation, architecture: str, configuration: Configuration, *, pretrained: bool
) -> estimates.Plan:
    """The training in numbers, with what the configuration leaves to the architecture filled in."""
    entry = ARCHITECTURES[architecture]
    return estimates.Plan(
        architecture=architecture,
        image_size=preparation.image_size,
        batch_size=configuration.batch_size or entry.batch_size,
        minimum_steps=configuration.minimum_steps or entry.minimum_steps,
        epochs=configuration.epochs,
        head_epochs=head_epochs(configuration) if pretrained else 0,
        train=preparation.split_total("train"),
        validation=preparation.split_total("validation"),
        test=preparation.split_total("test"),
    )


def plan_of(run: TrainingRun) -> estimates.Plan:
    configuration = Configuration.from_json(run.configuration)
    if run.batch_size:
        configuration = configuration.with_options(batch_size=run.batch_size)
    return plan(run.preparation, run.architecture, configuration, pretrained=run.starts_from_weights)


def seconds_left(run: TrainingRun, speed_of: Callable[..., Measurement | None] = measured) -> float | None:
    """Until the run ends if it does not stop early; None when nothing tells. speed_of: `measured`, or its memory."""
    wanted = plan_of(run)
    # Not `values_list`: where many runs are looked at, their epochs were read together.
    rows = [(row.stage, row.seconds) for row in run.metrics.all()]
    tuned = [seconds for stage, seconds in rows if stage != HEAD and seconds is not None]
    expected = expected_of(run, wanted, speed_of) if len(tuned) < 2 or not run.images_per_second else None
    if run.images_per_second and rows and rows[-1][0] != HEAD:
        everything = wanted.train + wanted.validation + wanted.test
        evaluation = estimates.FORWARD_SHARE * everything / run.images_per_second
    else:
        evaluation = expected.evaluation if expected else 0.0
    if run.phase in AFTER_TRAINING:
        return evaluation * min((1 - run.progress) / (1 - TRAINING_ENDS), 1)
    # Epochs of the head cost next to nothing beside those that are still to come.
    done = estimates.epochs_done(run.progress, run.epochs, run.epoch, wanted.head_epochs)
    done = max(done, wanted.head_epochs)
    return estimates.seconds_left(
        tuned, done, run.epochs, expected_epoch=expected.epoch if expected else None, evaluation=evaluation
    )


def expected_of(
    run: TrainingRun, wanted: estimates.Plan, speed_of: Callable[..., Measurement | None]
) -> estimates.Duration | None:
    """How long the run, which is `wanted` in numbers, takes by what was measured; None where nothing was."""
    found = speed_of(run.architecture, wanted.image_size, wanted.batch_size, fine_tuning=run.starts_from_weights)
    return estimates.duration(wanted, found.speed) if found else None


def hints_of(run: TrainingRun, rows: Iterable[EpochMetric] | None = None) -> list[Hint]:
    """What the epochs of the run mean. rows: its metrics, when they were read already."""
    names = ("epoch", "stage", *EpochMetric.QUANTITIES)
    history = [{name: getattr(row, name) for name in names} for row in (run.metrics.all() if rows is None else rows)]
    counts = run.preparation.counts.get("validation", {})
    images = sum(counts.values())
    return hints(
        history,
        classes=len(run.preparation.classes),
        epochs=run.epochs,
        succeeded=run.state == Job.State.SUCCEEDED,
        shares=[count / images for count in counts.values()] if images else [],
        test_auc=run.version.auc if run.version else None,
    )


def remarks_of(run: TrainingRun) -> list[str]:
    """What else happened to the run, in words: a smaller batch size, interruptions."""
    asked = Configuration.from_json(run.configuration).batch_size or ARCHITECTURES[run.architecture].batch_size
    remarks = [_interruption(item, run) for item in run.interruptions]
    if run.batch_size and run.batch_size < asked:
        remarks.append(
            f"The memory did not suffice for batches of {asked} images; the training goes on with batches of "
            f"{run.batch_size}. Nothing need be done."
        )
    return remarks


def _interruption(item: dict[str, Any], run: TrainingRun) -> str:
    at = timezone.localtime(datetime.fromisoformat(item["at"]))
    outcome = f" {item['outcome']}" if item.get("outcome") else ""
    if not item.get("counted"):
        return f"{at:%Y-%m-%d %H:%M}: {item['reason']}{outcome}"
    attempt = f"That was attempt {item['attempt']} of {run.max_attempts}."
    return f"Interrupted {at:%Y-%m-%d %H:%M}: {item['reason']} {attempt}{outcome}"


def obstacle_of(run: TrainingRun) -> str:
    """Why a waiting run does not start, when it does not merely wait its turn; "" otherwise."""
    if run.state != Job.State.QUEUED or run.held:
        return ""
    paused = TrainingQueue.current().pause_words
    if paused:
        return f"{paused} The run starts when somebody opens the queue again."
    if not queue_is_alive(run.cluster):
        return NO_WORKER
    team = run.preparation.dataset.condition.team
    return limit_words(team, running_by_team()[team.pk]) if team else ""


NO_WORKER = (
    "No training worker gives a sign of life, so nothing can start. What waits is not lost: it starts by itself when "
    "an administrator has started the worker (make run starts everything, manage.py run_queue train only the training "
    "worker). System Status shows it."
)


def running_by_team() -> "Counter[int | None]":
    """How many trainings of each team run, by the team's key."""
    running = TrainingRun.objects.filter(state=Job.State.RUNNING)
    return Counter(running.values_list(TrainingRun.objects.all().team_path, flat=True))


def limit_words(team: Team | None, running: int, *, shown: bool = True) -> str:
    """Why the limit of the team lets nothing more start while so many of its trainings run; "" when it does not.

    shown: whether the reader may know which team it is.
    """
    if team is None or team.training_limit is None or running < team.training_limit:
        return ""
    if team.training_limit == 0:
        return f"{team if shown else 'Its team'} may not train at present; an administrator sets the limit."
    if not shown:
        return "Its team trains as many at once as it may."
    return f"{team} trains {team.training_limit} at once, as many as it may. It starts when one of them has ended."


def live_view(run: TrainingRun) -> dict[str, Any]:
    """What the page of a run shows and renews."""
    # Once for the table, the hints and the time that is left.
    prefetch_related_objects([run], "metrics")
    rows = list(run.metrics.all())
    judged = [row for row in rows if row.val_loss is not None]
    head = plan_of(run).head_epochs
    learning = run.state == Job.State.RUNNING and run.phase == "training"
    # Epochs of the head take seconds; a bar for each would only flicker.
    share = estimates.epochs_done(run.progress, run.epochs, run.epoch, head) - run.epoch
    return {
        "run": run,
        "metrics": rows,
        "best": min(judged, key=lambda row: row.val_loss, default=None),
        "stage": (HEAD if run.epoch < head else FINE_TUNING) if head else "",
        "within_epoch": share if learning and run.epoch >= head else None,
        "hints": hints_of(run, rows),
        "remarks": remarks_of(run),
        "obstacle": obstacle_of(run),
        "resources": resources(),
        "elsewhere": run.host if run.host != socket.gethostname() else "",
        "log": run.log_tail(),
    }
