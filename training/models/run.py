"""Training runs and what they reported epoch by epoch."""

import shutil
from collections import deque
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse

from datasets.models import Dataset, Preparation
from registry.models import ModelVersion, staging_folder
from xrayplatform import audit
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.system import NotEnoughDisk, require_disk
from xrayplatform.teams import TeamScopedQuerySet

from ..configurations import Configuration
from ..ml.architectures import ARCHITECTURES
from .search import Search

# Weights, optimizer state and best weights on disk, the OpenVINO copy, and some air.
COPIES_ON_DISK = 6
BYTES_PER_PARAMETER = 4


class NotPrepared(JobError):
    """Training was asked for a dataset that has no finished preparation."""


class TrainingRunQuerySet(JobQuerySet, TeamScopedQuerySet):
    team_path = "preparation__dataset__condition__team"


class TrainingRun(Job):
    """One training of one architecture on one preparation; a success becomes a ModelVersion."""

    class Initial(models.TextChoices):
        AUTO = "auto", "ImageNet where it is installed, else from scratch"
        IMAGENET = "imagenet", "ImageNet"
        SCRATCH = "scratch", "From scratch"
        VERSION = "version", "A version of the registry"

    class Priority(models.IntegerChoices):
        LOW = -1, "Low"
        NORMAL = 0, "Normal"
        HIGH = 1, "High"

    task = "training.tasks.train"
    cluster = "train"
    time_limit_seconds = 7 * 86_400

    preparation = models.ForeignKey(Preparation, models.PROTECT, related_name="runs", editable=False)
    architecture = models.CharField(max_length=60, editable=False)
    preset = models.CharField(max_length=60, editable=False)
    configuration = models.JSONField(editable=False)
    initial_weights = models.CharField(max_length=100, default="scratch", editable=False)
    # What was asked for; `initial_weights` is what was used.
    initial = models.CharField(max_length=10, choices=Initial, default=Initial.AUTO, editable=False)
    initial_version = models.ForeignKey(ModelVersion, models.PROTECT, null=True, editable=False, related_name="+")
    search = models.ForeignKey(Search, models.PROTECT, null=True, editable=False, related_name="runs")
    priority = models.SmallIntegerField(choices=Priority, default=Priority.NORMAL, editable=False)
    held = models.BooleanField(default=False, editable=False, help_text="waits for the other runs of its search")
    epoch_limit = models.PositiveIntegerField(null=True, editable=False, help_text="pause after so many epochs")
    drain_requested = models.BooleanField(default=False, editable=False, help_text="stop at a checkpoint, go on later")
    progress_at = models.DateTimeField(null=True, editable=False, help_text="when the training itself last moved on")
    batch_size = models.PositiveIntegerField(
        null=True, editable=False, help_text="in use; smaller after lack of memory"
    )
    images_per_second = models.FloatField(null=True, editable=False)
    interruptions = models.JSONField(default=list, editable=False, help_text="when and why the run was interrupted")
    phase = models.CharField(max_length=40, blank=True, editable=False)
    epoch = models.PositiveIntegerField(default=0, editable=False, help_text="finished epochs")
    epochs = models.PositiveIntegerField(default=0, editable=False)
    peak_memory = models.BigIntegerField(default=0, editable=False, help_text="bytes, of the training process")
    child_pid = models.PositiveIntegerField(null=True, editable=False)
    version = models.OneToOneField(ModelVersion, models.PROTECT, null=True, editable=False, related_name="run")

    objects = TrainingRunQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        permissions = [
            ("cancel_trainingrun", "Can cancel a training run"),
            ("prioritise_trainingrun", "Can change the order of waiting training runs"),
        ]

    def __str__(self) -> str:
        return f"Run {self.pk}: {self.architecture} on {self.preparation.dataset}"

    def get_absolute_url(self) -> str:
        return reverse("training:run-detail", args=[self.pk])

    @property
    def log_path(self) -> Path:
        return Path(settings.MODEL_ROOT) / "logs" / f"run-{self.pk}.log"

    @property
    def work_folder(self) -> Path:
        return Path(settings.MODEL_ROOT) / "checkpoints" / f"run-{self.pk}"

    @property
    def staging_folder(self) -> Path:
        return staging_folder(f"run-{self.pk}")

    def clean_up(self) -> None:
        """Remove what a training leaves beside its version: best weights, and a version that was not registered."""
        staged = self.staging_folder
        for folder in (self.work_folder, staged, staged.with_name(staged.name + ".part")):
            shutil.rmtree(folder, ignore_errors=True)

    def log_tail(self, lines: int = 40) -> str:
        """The end of the run's log, or nothing while there is none."""
        try:
            with self.log_path.open(encoding="utf-8", errors="replace") as log:
                return "".join(deque(log, lines))
        except OSError:
            return ""

    @classmethod
    def create(
        cls, dataset: Dataset, architecture: str, configuration: Configuration, by: Any, *, preset: str
    ) -> "TrainingRun":
        """Create the row and its audit entry, after the checks that can be made at once. Raises JobError."""
        reap()
        preparation = dataset.preparation
        if preparation is None or not preparation.is_ready:
            raise NotPrepared(
                f"Dataset not prepared: {dataset} has no finished preparation.",
                "Open the dataset and choose Prepare for Training.",
            )
        parameters = ARCHITECTURES[architecture].parameters
        try:
            require_disk(COPIES_ON_DISK * BYTES_PER_PARAMETER * parameters)
        except NotEnoughDisk as error:
            raise JobError(str(error), "Free some space, or ask an administrator.") from error
        with transaction.atomic():
            preparation.hold()
            run = cls.objects.create(
                preparation=preparation,
                architecture=architecture,
                preset=preset,
                configuration=configuration.to_json(),
                epochs=configuration.epochs,
                created_by=by,
            )
            audit.record(
                "run.start", run, actor=by, after={"architecture": architecture, "configuration": run.configuration}
            )
        return run

    @property
    def curves(self) -> dict[str, list[Any]]:
        """One list a quantity, epoch by epoch, for the charts and their JSON twin."""
        names = ("epoch", *EpochMetric.QUANTITIES)
        rows = list(self.metrics.values_list(*names))
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}


class EpochMetric(models.Model):
    """What one epoch of a run ended with."""

    QUANTITIES = ("loss", "accuracy", "auc", "val_loss", "val_accuracy", "val_auc", "learning_rate", "seconds")

    run = models.ForeignKey(TrainingRun, models.CASCADE, related_name="metrics")
    epoch = models.PositiveIntegerField(help_text="counted from 1")
    stage = models.CharField(max_length=20, blank=True, help_text="what learned: the head, or everything")
    loss = models.FloatField(null=True)
    accuracy = models.FloatField(null=True)
    auc = models.FloatField(null=True)
    val_loss = models.FloatField(null=True)
    val_accuracy = models.FloatField(null=True)
    val_auc = models.FloatField(null=True)
    learning_rate = models.FloatField(null=True)
    seconds = models.FloatField(null=True)

    class Meta:
        ordering = ["run", "epoch"]
        constraints = [models.UniqueConstraint(fields=["run", "epoch"], name="one_metric_row_per_epoch")]

    def __str__(self) -> str:
        return f"run {self.run_id} epoch {self.epoch}"


class RunNote(models.Model):
    """What a person noted about a run; notes are never changed."""

    run = models.ForeignKey(TrainingRun, models.PROTECT, related_name="notes")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    at = models.DateTimeField(auto_now_add=True)
    text = models.TextField(max_length=2000)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"note on run {self.run_id}"
