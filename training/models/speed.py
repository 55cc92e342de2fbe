"""How fast this machine trains an architecture: a few timed steps, so that a run's duration is known before it."""

from typing import Any

from django.db import models, transaction
from django.db.models.functions import Coalesce, Now

from xrayplatform import audit
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.system import Resources, memory_limit, resources

from .. import estimates

PLENTY_OF_MEMORY = "Choose a smaller batch size, image size or architecture, or train on a machine with more memory."

DISTURBED = (
    "A training ran on this machine meanwhile, so this is slower than a training alone would be; measure again when "
    "nothing trains."
)


class SpeedTestQuerySet(JobQuerySet):
    def with_disturbance(self) -> "SpeedTestQuerySet":
        """Adds `disturbed`: whether a training ran on the same machine meanwhile, so that the steps took longer."""
        # The module of runs needs this one.
        from .run import TrainingRun

        trainings = TrainingRun.objects.filter(
            models.Q(finished_at__gt=models.OuterRef("started_at")) | models.Q(state=Job.State.RUNNING),
            host=models.OuterRef("host"),
            started_at__lt=Coalesce(models.OuterRef("finished_at"), Now()),
        )
        return self.annotate(disturbed=models.Exists(trainings))


class SpeedTest(Job):
    """A few timed training steps of one architecture, image size and batch size. Seconds and bytes."""

    task = "training.tasks.measure_speed"

    architecture = models.CharField(max_length=60, editable=False)
    image_size = models.PositiveSmallIntegerField(editable=False)
    batch_size = models.PositiveSmallIntegerField(editable=False)
    fine_tuning = models.BooleanField(default=False, editable=False)
    step_seconds = models.FloatField(null=True, editable=False)
    prediction_seconds = models.FloatField(null=True, editable=False, help_text="of a batch, without learning")
    start_seconds = models.FloatField(null=True, editable=False, help_text="until the first step has ended")
    peak_memory = models.BigIntegerField(default=0, editable=False)

    objects = SpeedTestQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Speed of {self.architecture}, {self.image_size} pixels, batches of {self.batch_size}"

    @classmethod
    def request(
        cls, architecture: str, image_size: int, batch_size: int, by: Any, *, fine_tuning: bool = False
    ) -> "SpeedTest":
        """The test of this combination that waits or runs already, or a new one in the queue. Raises JobError."""
        require_memory(architecture, image_size, batch_size)
        reap()
        key = {
            "architecture": architecture,
            "image_size": image_size,
            "batch_size": batch_size,
            "fine_tuning": fine_tuning,
        }
        with transaction.atomic():
            test = cls.objects.active().filter(**key).first()
            if test is None:
                test = cls.objects.create(**key, created_by=by)
                audit.record("speedtest.start", test, actor=by, after=key)
                test.enqueue()
        return test

    @property
    def speed(self) -> estimates.Speed:
        """Of a finished test."""
        step = self.step_seconds or 0.0
        prediction = self.prediction_seconds or step * estimates.FORWARD_SHARE
        return estimates.Speed(step, prediction, self.start_seconds or estimates.START_SECONDS)

    @property
    def remark(self) -> str:
        """What to think of the result; "" when nothing disturbed it."""
        return DISTURBED if self.is_disturbed else ""

    @property
    def is_disturbed(self) -> bool:
        """Whether a training shares, or shared, the machine with the test."""
        return bool(SpeedTest.objects.with_disturbance().values_list("disturbed", flat=True).get(pk=self.pk))

    @property
    def images_per_second(self) -> float | None:
        return self.batch_size / self.step_seconds if self.step_seconds else None


def needed_memory(architecture: str, image_size: int, batch_size: int) -> estimates.Memory:
    """By the newest speed test of the same combination, otherwise by the size of the network and the batch."""
    measured = (
        SpeedTest.objects.filter(
            state=Job.State.SUCCEEDED, architecture=architecture, image_size=image_size, batch_size=batch_size
        )
        .values_list("peak_memory", flat=True)
        .first()
    )
    return estimates.memory(architecture, image_size, batch_size, measured)


def require_memory(architecture: str, image_size: int, batch_size: int, machine: Resources | None = None) -> None:
    """Raise JobError when a training is hopeless: not even the least that it can need is in this machine.

    With a GPU nothing is refused: there the batch size is halved when the memory does not suffice.
    """
    machine = machine or resources()
    total = min(machine.memory_total, memory_limit())
    least = needed_memory(architecture, image_size, batch_size).at_least
    if machine.gpus or least <= total:
        return
    fits = estimates.largest_batch(architecture, image_size, 0.8 * total)
    advice = f"Choose a batch size of {fits} or less, or a smaller image size or architecture." if fits else ""
    raise JobError(
        f"Not enough memory: {architecture} with batches of {batch_size} images of {image_size} pixels needs at least "
        f"{least / estimates.GIB:.1f} GB, and this machine has {total / estimates.GIB:.1f} GB.",
        advice or PLENTY_OF_MEMORY,
    )
