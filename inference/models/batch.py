"""Many radiographs analysed in the queue."""

import json
import shutil
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone

from datasets.models import Dataset
from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.notifications import notify
from xrayplatform.teams import visible

# How long the files of a failed batch are kept, so that it can go on when the reason is gone.
GOES_ON_WITHIN = timedelta(days=1)
SOURCE = "source.json"


class BatchQuerySet(JobQuerySet):
    def visible_to(self, user: object) -> "BatchQuerySet":
        return visible(self, "condition__team", user)

    def seen_by(self, actor: object) -> "BatchQuerySet":
        """What the actor of a command may see: a user's rows, or everything for the command line itself (None)."""
        return self.all() if actor is None else self.visible_to(actor)

    def counted(self) -> "BatchQuerySet":
        """Annotated with how many items are `waiting`, `answered`, `refused`, and `warned` of those answered."""
        state, states = "items__state", BatchItem.State
        # Counting in groups loses the order of the table.
        return self.order_by("-pk").annotate(
            waiting=models.Count("items", models.Q(**{state: states.WAITING})),
            answered=models.Count("items", models.Q(**{state: states.ANSWERED})),
            refused=models.Count("items", models.Q(**{state: states.REFUSED})),
            warned=models.Count("items", models.Q(**{state: states.ANSWERED}) & ~models.Q(items__code="")),
        )


class Batch(Job):
    """Files that were given together, analysed one after another by the version in service at each one's turn."""

    task = "inference.tasks.analyse_batch"
    max_attempts = 3

    key = models.UUIDField(unique=True, default=uuid.uuid4, editable=False, help_text="names the folder of the files")
    condition = models.ForeignKey(Condition, models.PROTECT, related_name="batches", editable=False)
    name = models.CharField(max_length=200, blank=True)
    items_count = models.PositiveIntegerField(default=0, editable=False)

    objects = BatchQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        verbose_name_plural = "batches"

    def __str__(self) -> str:
        return self.name or f"Batch {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("inference:batch-detail", args=[self.pk])

    @staticmethod
    def root() -> Path:
        return Path(settings.MODEL_ROOT) / "batches"

    @property
    def folder(self) -> Path:
        """What was sent, and what the job notes about it; gone when the job has ended for good."""
        return self.root() / str(self.key)

    # -- Starting

    @classmethod
    def of_files(cls, condition: Condition, sealed: Path, *, by: Any, name: str = "") -> "Batch":
        """A batch of received files, whose folder it takes over; see `datasets.receiving.Inbox.seal`."""
        reap()
        with transaction.atomic():
            batch = cls._created(condition, by, name)
            cls.root().mkdir(parents=True, exist_ok=True)
            sealed.rename(batch.folder)
        return batch

    @classmethod
    def of_dataset(
        cls, condition: Condition, dataset: Dataset, folder: str = "", *, by: Any, name: str = ""
    ) -> "Batch":
        """A batch of the images that the last scan found in a dataset, or in one of its folders and those below it.

        They are read where they lie. Raises JobError.
        """
        reap()
        team = dataset.condition.team
        if team is not None and team != condition.team:
            others = condition.team or "every team"
            raise JobError(
                f"{dataset} belongs to {team}; the names of its files would be seen by {others}.",
                "Choose a condition of the same team.",
            )
        if not images_in(dataset, folder).exists():
            raise JobError("There are no images in this folder.", "Choose another folder, or scan the dataset again.")
        with transaction.atomic():
            batch = cls._created(condition, by, name or f"{dataset}{'/' if folder else ''}{folder}", dataset=dataset.pk)
            batch.folder.mkdir(parents=True)
            (batch.folder / SOURCE).write_text(json.dumps({"dataset": dataset.pk, "folder": folder}))
        return batch

    @classmethod
    def _created(cls, condition: Condition, by: Any, name: str, **about: Any) -> "Batch":
        batch = cls.objects.create(condition=condition, name=name[:200], created_by=by)
        audit.record("batch.create", batch, actor=by, after={"condition": condition.slug, **about})
        return batch

    # -- Ending

    def _on_end(self) -> None:
        """Tell who asked for it, unless they ended it themselves."""
        if self.state == self.State.SUCCEEDED:
            notify(self.created_by, f"{self} has finished: {self.message}", self.get_absolute_url())
        elif self.state == self.State.FAILED:
            notify(self.created_by, f"{self} failed: {self.error}", self.get_absolute_url())

    @property
    def can_go_on(self) -> bool:
        return self.state == self.State.FAILED and self.folder.is_dir()

    def go_on(self, by: Any) -> None:
        """Let a failed batch go on with the files that have no answer yet. Raises JobError."""
        if not self.can_go_on:
            raise JobError(
                f"{self} cannot go on: only a failed one can, for a day, and not when its files were refused.",
                "Start a new one.",
            )
        fields = {
            "state": self.State.QUEUED, "attempt": 1, "lease_token": uuid.uuid4(), "lease_until": None, "pid": None,
            "heartbeat_at": None, "cancel_requested": False, "finished_at": None, "error": "", "hint": "",
            "message": "Waiting to go on",
        }  # fmt: skip
        with transaction.atomic():
            if not Batch.objects.filter(pk=self.pk, state=self.State.FAILED).update(**fields):
                raise JobError(f"{self} goes on already.", "Somebody else has just asked for it.")
            audit.record("batch.go_on", self, actor=by, before={"error": self.error})
            self.refresh_from_db()
            self.enqueue()

    def request_cancel(self, by: Any) -> bool:
        asked = super().request_cancel(by)
        self.discard_ended()
        return asked

    def discard_ended(self) -> None:
        """Remove the files unless the batch may still need them, by what the table says and not this process."""
        batch = Batch.objects.filter(pk=self.pk).first()
        if batch is None or batch._needs_no_files():
            self.discard()

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _needs_no_files(self) -> bool:
        if self.state == self.State.FAILED:
            return self.finished_at is not None and self.finished_at < timezone.now() - GOES_ON_WITHIN
        return not self.is_active

    @classmethod
    def sweep(cls) -> None:
        if not cls.root().is_dir():
            return
        folders = {folder.name: folder for folder in cls.root().iterdir()}
        batches = {str(batch.key): batch for batch in cls.objects.filter(key__in=[*filter(_is_key, folders)])}
        before = time.time() - GOES_ON_WITHIN.total_seconds()
        for name, folder in folders.items():
            # Without a row it may be on its way in, or its row not committed yet.
            unneeded = batches[name]._needs_no_files() if name in batches else folder.stat().st_mtime < before
            if unneeded:
                shutil.rmtree(folder, ignore_errors=True)


def _is_key(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def images_in(dataset: Dataset, folder: str) -> models.QuerySet:
    """The images of a dataset, or of one of its folders and those below it, in the order of their paths."""
    images = dataset.images.in_byte_order()
    return images.filter(models.Q(folder=folder) | models.Q(folder__startswith=f"{folder}/")) if folder else images


class BatchItem(models.Model):
    """One file of a batch: waiting, answered, or refused with the reason.

    code: of the reason; of an answer the first check that warned, empty without a warning.
    """

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        ANSWERED = "answered", "Answered"
        REFUSED = "refused", "Refused"

    batch = models.ForeignKey(Batch, models.CASCADE, related_name="items")
    position = models.PositiveIntegerField()
    name = models.CharField(max_length=200, help_text="of the file as it was given, without folders")
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    prediction = models.ForeignKey("inference.Prediction", models.PROTECT, null=True, related_name="+")
    code = models.CharField(max_length=40, blank=True)
    error = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["batch", "position"], name="one_item_per_position")]

    def __str__(self) -> str:
        return f"{self.name} of {self.batch}"
