"""A training as one follows it: time left, what its curves mean, its interruptions in words."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import OuterRef, Subquery
from django.utils import timezone

from datasets.models import Preparation
from xrayplatform.jobs import Job
from xrayplatform.system import queue_is_alive, resources

from . import estimates
from .configurations import Configuration
from .hints import Hint, hints
from .ml.architectures import ARCHITECTURES
from .ml.stages import FINE_TUNING, HEAD, TRAINING_ENDS, head_epochs
from .models import EpochMetric, SpeedTest, TrainingQueue, TrainingRun

SCRATCH = "scratch"
# Phases in which no epoch is left, also when the training stopped early.
AFTER_TRAINING = ("evaluating", "saving")
# Measurements that are looked through for one of the same kind.
LOOKED_AT = 20


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
    """The newest measurement of the same kind; else of the nearest kind, scaled; None when nothing was measured."""
    found = [*_from_tests(architecture, fine_tuning), *_from_runs(architecture, fine_tuning)]

    def distance(item: Measurement) -> tuple[bool, bool, float]:
        other_image, other_batch = item.image_size != image_size, item.batch_size != batch_size
        return other_image, other_batch, -item.at.timestamp()

    best = min(found, key=distance, default=None)
    return best and best.for_sizes(image_size, batch_size)


def _from_tests(architecture: str, fine_tuning: bool) -> Iterable[Measurement]:
    tests = SpeedTest.objects.filter(
        state=Job.State.SUCCEEDED, architecture=architecture, fine_tuning=fine_tuning, step_seconds__gt=0
    )
    for test in tests[:LOOKED_AT]:
        at = test.finished_at or test.created_at
        yield Measurement(test.image_size, test.batch_size, test.speed, at, f"measured on {_date(at)}")


def _from_runs(architecture: str, fine_tuning: bool) -> Iterable[Measurement]:
    """Of trainings of every team: how fast a network trains is nobody's secret."""
    newest = EpochMetric.objects.filter(run=OuterRef("pk")).order_by("-epoch")
    runs = (
        TrainingRun.objects.filter(architecture=architecture, images_per_second__gt=0, batch_size__gt=0)
        .annotate(last_stage=Subquery(newest.values("stage")[:1]))
        .select_related("preparation")
    )
    of_kind = runs.exclude(initial_weights=SCRATCH) if fine_tuning else runs.filter(initial_weights=SCRATCH)
    # While only the head learns, images go through the backbone once; that speed says nothing about the rest.
    for run in [run for run in of_kind[:LOOKED_AT] if run.last_stage != HEAD]:
        step = run.batch_size / run.images_per_second
        at = run.finished_at or run.progress_at or run.created_at
        speed = estimates.Speed(step, step * estimates.FORWARD_SHARE, _start_seconds(architecture))
        yield Measurement(run.preparation.image_size, run.batch_size, speed, at, f"seen in a training of {_date(at)}")


def _start_seconds(architecture: str) -> float:
    test = SpeedTest.objects.filter(architecture=architecture, start_seconds__gt=0).first()
    return test.start_seconds if test else estimates.START_SECONDS


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
    return plan(run.preparation, run.architecture, configuration, pretrained=run.initial_weights != SCRATCH)


def seconds_left(run: TrainingRun) -> float | None:
    """Until the run ends if it does not stop early; None when nothing tells."""
    wanted = plan_of(run)
    rows = list(run.metrics.values_list("stage", "seconds"))
    tuned = [seconds for stage, seconds in rows if stage != HEAD and seconds is not None]
    expected = _expected(run, wanted) if len(tuned) < 2 or not run.images_per_second else None
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


def _expected(run: TrainingRun, wanted: estimates.Plan) -> estimates.Duration | None:
    found = measured(run.architecture, wanted.image_size, wanted.batch_size, fine_tuning=run.initial_weights != SCRATCH)
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
    queue = TrainingQueue.current()
    if queue.paused:
        reason = f": {queue.reason}" if queue.reason else "."
        return f"The training queue is paused{reason} The run starts when somebody opens the queue again."
    if not queue_is_alive(run.cluster):
        return NO_WORKER
    return ""


NO_WORKER = (
    "No training worker gives a sign of life, so nothing can start. The run waits and is not lost: it starts by itself "
    "when an administrator has started the worker (make run starts everything, manage.py run_queue train only the "
    "training worker). System Status shows it."
)


def live_view(run: TrainingRun) -> dict[str, Any]:
    """What the page of a run shows and renews."""
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
