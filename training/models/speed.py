"""How fast this machine trains an architecture: a few timed steps, so that a run's duration is known before it."""

from django.db import models

from xrayplatform.jobs import Job, JobQuerySet


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

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Speed of {self.architecture}, {self.image_size} pixels, batches of {self.batch_size}"
