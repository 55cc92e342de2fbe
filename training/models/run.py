"""Training runs and what they reported epoch by epoch."""

import os
import re
import shutil
import signal
import socket
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone
from django_q.tasks import async_task

from datasets.models import Dataset, Preparation
from registry.models import ModelVersion, staging_folder
from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.immutability import Immutable
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.processes import has_variable, signal_group
from xrayplatform.system import NotEnoughDisk, message_waits, require_disk
from xrayplatform.teams import Team, TeamScopedQuerySet

from .. import announcing, estimates
from ..configurations import Configuration
from ..ml.architectures import ARCHITECTURES
from ..ml.initial import SCRATCH, InitialWeights, WeightsUnusable, from_version, imagenet
from ..pretrained import pretrained_folder, weights_state
from .queue import TrainingQueue
from .search import Search
from .speed import require_memory

# Names the lease in the environment of the training process: whose child it is, also when process numbers return.
LEASE_VARIABLE = "TRAINING_LEASE_TOKEN"
# Between attempts: what made one of them fail, a mount that is missing after a reboot for example, may pass.
BACK_OFF = (timedelta(seconds=10), timedelta(minutes=1), timedelta(minutes=5))
# Attempts that got further than those before are not counted, but they do not go on for ever either.
MOST_ATTEMPTS = 10
DISK_WAIT = timedelta(minutes=5)
CHECKPOINTS_KEPT = timedelta(days=7)
LOGS_KEPT = timedelta(days=90)
LOG_TAIL_BYTES = 64 * 1024
_NAMED = re.compile(r"run-(\d+)(?:\.part|\.log)?")


class NotPrepared(JobError):
    """Training was asked for a dataset that has no finished preparation, or none with the options of the training.

    wanted: the choices of the preparation that is missing, as `Preparation.create` takes them.
    """

    def __init__(self, message: str, hint: str = "", wanted: dict[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.wanted = wanted or {}


class TrainingRunQuerySet(JobQuerySet, TeamScopedQuerySet):
    team_path = "preparation__dataset__condition__team"

    def startable(self) -> "TrainingRunQuerySet":
        """Waiting runs that may start now, the next one first. Whether the queue is paused is not asked here."""
        due = models.Q(not_before__isnull=True) | models.Q(not_before__lte=timezone.now())
        full = Team.objects.filter(training_limit__isnull=False).annotate(
            running=models.Count(
                "condition__datasets__preparations__runs",
                filter=models.Q(condition__datasets__preparations__runs__state=Job.State.RUNNING),
            )
        )
        full = full.filter(running__gte=models.F("training_limit"))
        waiting = self.filter(due, state=Job.State.QUEUED, held=False)
        # Not `exclude`: a run of no team must stay.
        mine = models.Q(**{f"{self.team_path}__isnull": True}) | ~models.Q(
            **{f"{self.team_path}__in": full.values("pk")}
        )
        return waiting.filter(mine).order_by("-priority", "pk")

    def due_within(self, time: timedelta) -> "TrainingRunQuerySet":
        """Runs that wait between two attempts, and not longer than this."""
        now = timezone.now()
        return self.filter(state=Job.State.QUEUED, held=False, not_before__gt=now, not_before__lte=now + time)


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

    task = "training.tasks.train_next"
    cluster = "train"
    time_limit_seconds = 7 * 86_400
    max_attempts = 3
    # Its supervisor renews the lease every five seconds, whatever the training does.
    cancel_silence = timedelta(seconds=20)

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
    not_before = models.DateTimeField(null=True, editable=False, help_text="not tried again earlier")
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
    # The record of a training stays when its version is deleted.
    version = models.OneToOneField(ModelVersion, models.SET_NULL, null=True, editable=False, related_name="run")

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

    @property
    def has_checkpoint(self) -> bool:
        return any(self.work_folder.glob("checkpoint-*.json"))

    @property
    def can_resume(self) -> bool:
        return self.state == self.State.FAILED and self.has_checkpoint

    def clean_up(self) -> None:
        """Remove what an ended training leaves beside its version. The checkpoints of one that failed stay a while."""
        staged = self.staging_folder
        folders = [staged, staged.with_name(staged.name + ".part")]
        if not type(self).objects.filter(pk=self.pk, state=self.State.FAILED).exists():
            folders.append(self.work_folder)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def sweep(cls) -> None:
        """Remove what is left of runs that have ended: folders of the dead, old checkpoints, and very old logs."""
        now = timezone.now()
        ended = cls.objects.exclude(state__in=cls.ACTIVE)
        failed = models.Q(state=cls.State.FAILED)
        old = ended.filter(~failed | models.Q(finished_at__lt=now - CHECKPOINTS_KEPT))
        forgotten = ended.filter(finished_at__lt=now - LOGS_KEPT)
        any_run = cls(pk=0)
        for beside, runs in (
            (any_run.work_folder, old),
            (any_run.staging_folder, ended),
            (any_run.log_path, forgotten),
        ):
            for path, pk in _of_runs(beside.parent):
                if runs.filter(pk=pk).exists():
                    _remove(path)

    def log_tail(self, lines: int = 40) -> str:
        """The end of the run's log, or nothing while there is none."""
        return "".join(self.log_end().splitlines(keepends=True)[-lines:])

    def log_end(self, start: int = 0) -> str:
        """What the log holds from byte `start` on, its last 64 kB at most."""
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(start, size - LOG_TAIL_BYTES))
                return log.read(LOG_TAIL_BYTES).decode(errors="replace")
        except OSError:
            return ""

    @classmethod
    def create(
        cls,
        dataset: Dataset,
        architecture: str,
        configuration: Configuration,
        by: Any,
        *,
        preset: str,
        initial: str = Initial.AUTO,
        version: ModelVersion | None = None,
        choose: Callable[..., InitialWeights | None] | None = None,
        recorded: bool = True,
    ) -> "TrainingRun":
        """Create the row and its audit entry, after the checks that can be made at once. Raises JobError.

        initial, version: what to start from, see `Initial`; with "auto" it is decided here, so that every attempt
        starts from the same. choose: `chosen_weights`, or its memory: it reads and verifies whole files.
        recorded: False leaves `record_start` to a caller that has not set all fields yet.
        """
        reap()
        preparation = preparation_for(dataset, configuration)
        weights = (choose or chosen_weights)(architecture, initial, version, dataset, by)
        try:
            require_disk(estimates.disk(architecture))
        except NotEnoughDisk as error:
            raise JobError(str(error), "Free some space, or ask an administrator.") from error
        require_memory(
            architecture,
            preparation.image_size,
            configuration.batch_size or ARCHITECTURES[architecture].batch_size,
        )
        with transaction.atomic():
            preparation.hold()
            if version is not None:
                _hold(version, dataset, by)
            run = cls.objects.create(
                preparation=preparation,
                architecture=architecture,
                preset=preset,
                configuration=configuration.to_json(),
                epochs=configuration.epochs,
                initial=initial,
                initial_version=version,
                initial_weights=weights.words if weights else SCRATCH,
                created_by=by,
            )
            if recorded:
                run.record_start(by)
        return run

    def record_start(self, by: Any) -> None:
        """The audit entry of a new run."""
        after = {
            "architecture": self.architecture,
            "preset": self.preset,
            "configuration": self.configuration,
            "initial_weights": self.initial_weights,
            "search": self.search_id,
            "priority": self.Priority(self.priority).label,
        }
        audit.record("run.start", self, actor=by, after=after)

    @property
    def lost_its_version(self) -> bool:
        """Whether the version that it made was deleted."""
        return self.state == self.State.SUCCEEDED and self.version_id is None

    @property
    def starts_from_weights(self) -> bool:
        return self.initial_weights != SCRATCH

    def starting_weights(self) -> InitialWeights | None:
        """What was chosen when the run was created, verified anew; None for scratch. Raises WeightsUnusable."""
        if self.initial_version:
            return _weights_of(self.initial_version, self.architecture)
        from_scratch = self.initial == self.Initial.AUTO and not self.starts_from_weights
        if from_scratch or self.initial == self.Initial.SCRATCH:
            return None
        return imagenet(self.architecture, pretrained_folder())

    # -- Waiting and starting

    def enqueue(self) -> None:
        """Ask a worker to look at the queue; it takes whichever run is next. Call it inside the transaction."""
        ask_worker()

    @classmethod
    def resend_lost(cls) -> None:
        """Ask a worker to look at the queue if a run could start and no message waits that says so."""
        Search.objects.decide()
        if not TrainingQueue.current().paused and cls.objects.startable().exists() and not message_waits(cls.cluster):
            ask_worker()

    @classmethod
    def claim_next(cls) -> "TrainingRun | None":
        """The next run that may start, claimed by this process; None when there is none or the queue is paused."""
        return cls._claim_first(cls.objects.all())

    def claim_now(self) -> bool:
        """Claim this run before others that wait, if the queue is open and its team's limit allows."""
        claimed = self._claim_first(type(self).objects.filter(pk=self.pk))
        if claimed:
            self.refresh_from_db()
        return claimed is not None

    @classmethod
    def _claim_first(cls, runs: TrainingRunQuerySet) -> "TrainingRun | None":
        with transaction.atomic():
            if TrainingQueue.locked().paused:
                return None
            for run in runs.startable().select_related("preparation__dataset"):
                if run.waits_for_disk():
                    continue
                return run if run.claim(run.attempt) else None
        return None

    def waits_for_disk(self) -> bool:
        """Whether there is too little free disk for a waiting run; it says so then, and is looked at again later."""
        try:
            require_disk(max(estimates.disk(self.architecture) - _size(self.work_folder), 0))
        except NotEnoughDisk as error:
            message = f"Waiting for disk space: {error}"[:300]
            waiting = TrainingRun.objects.filter(pk=self.pk, state=self.State.QUEUED)
            waiting.update(message=message, not_before=timezone.now() + DISK_WAIT)
            return True
        return False

    # -- Interrupted, paused, ended

    def end_attempt(self, reason: str, hint: str = "", *, counted: bool = True, **fields: Any) -> None:
        """As for every job, but an attempt that got further than those before it is none of the three."""
        # The training process wrote them, whoever ends the attempt.
        self.refresh_from_db(fields=["epoch", "interruptions"])
        reached = max((item.get("epoch", 0) for item in self._since_resumed()), default=0)
        further = counted and self.epoch > reached and not self.is_last_of_all
        if further:
            counted, fields = False, {"further": True, **fields}
        super().end_attempt(reason, hint, counted=counted, **fields)

    @property
    def is_last_attempt(self) -> bool:
        return super().is_last_attempt or self.is_last_of_all

    @property
    def is_last_of_all(self) -> bool:
        return self._tries() + 1 >= MOST_ATTEMPTS

    def requeue(self, reason: str, *, counted: bool = True, further: bool = False, **fields: Any) -> None:
        """As for every job; why is kept in `interruptions`. After an attempt that went wrong it waits for a while.

        further: the attempt is not counted because it got further than those before.
        """
        before = self.interruptions
        if "not_before" in fields and before and before[-1]["reason"] == reason:
            # The same again, as often as it was tried while the cause lasted.
            before = before[:-1]
        interruption = self._interruption(reason, counted) | ({"further": True} if further else {})
        pause = BACK_OFF[min(self._tries(), len(BACK_OFF) - 1)] if counted or further else None
        own = {
            "interruptions": [*before, interruption],
            "drain_requested": False,
            "child_pid": None,
            "phase": "",
            "not_before": pause and timezone.now() + pause,
        }
        super().requeue(reason, counted=counted, **(own | fields))

    def _since_resumed(self) -> list[dict[str, Any]]:
        """The interruptions since a person let the failed run go on, with that; all of them when nobody did."""
        starts = [index for index, item in enumerate(self.interruptions) if item.get("resumed")]
        return list(self.interruptions[starts[-1] if starts else 0 :])

    def _tries(self) -> int:
        """How many attempts have gone wrong, counted or not."""
        return sum(bool(item["counted"] or item.get("further")) for item in self._since_resumed())

    def resume(self, by: Any) -> None:
        """Let a failed run go on from its last checkpoint, with fresh attempts. Raises JobError."""
        if not self.can_resume:
            only = f"Only a failed run can, while its checkpoints are kept: {CHECKPOINTS_KEPT.days} days."
            raise JobError(f"Run {self.pk} cannot go on.", f"{only} Start a new one.")
        name = by.get_username() if by else "the command line"
        going_on = self._interruption(f"Let go on by {name} after it had failed.", counted=False) | {"resumed": True}
        fields = {
            "state": self.State.QUEUED, "attempt": 1, "lease_token": uuid.uuid4(), "lease_until": None,
            "heartbeat_at": None, "pid": None, "child_pid": None, "cancel_requested": False, "drain_requested": False,
            "held": False, "not_before": None, "finished_at": None, "error": "", "hint": "", "phase": "",
            "message": "Waiting to go on from its last checkpoint",
            "interruptions": [*self.interruptions, going_on],
        }  # fmt: skip
        with transaction.atomic():
            self.preparation.hold()
            if not TrainingRun.objects.filter(pk=self.pk, state=self.State.FAILED).update(**fields):
                raise JobError(f"Run {self.pk} has not failed any more.", "Somebody else has just let it go on.")
            audit.record(
                "trainingrun.resume", self, actor=by, before={"error": self.error}, after={"epoch": self.epoch}
            )
            self.refresh_from_db()
            self.enqueue()

    def pause(self, epoch: int) -> None:
        """The training stands at a checkpoint after `epoch` epochs: on request, or at the limit its search set."""
        at_limit = self.search_id is not None and self.epoch_limit is not None and epoch >= self.epoch_limit
        if not at_limit:
            self.requeue(f"Paused after epoch {epoch}.", counted=False)
            return
        with transaction.atomic():
            reason = f"Compared with the others after epoch {epoch}."
            message = f"Waits after {epoch} epochs for the other runs of its search"
            self.requeue(reason, counted=False, held=True, message=message)
            self._tell_search()

    def _tell_search(self) -> None:
        """Let the search decide once this is committed: it locks itself first and its runs after that."""
        if self.search:
            transaction.on_commit(self.search.decide, robust=True)

    def give_up(self, reason: str, hint: str) -> None:
        """Fail with the reasons of all attempts."""
        interruptions = [*self.interruptions, self._interruption(reason, counted=True)]
        tried = [*self._since_resumed(), interruptions[-1]]
        reasons = [item["reason"] for item in tried if item["counted"] or item.get("further")]
        numbered = " ".join(f"({number}) {text}" for number, text in enumerate(reasons, 1))
        error = f"The training was interrupted {len(reasons)} times and is not tried again: {numbered}"
        with transaction.atomic():
            self.write(interruptions=interruptions)
            self.fail(error, hint)

    def _interruption(self, reason: str, counted: bool) -> dict[str, Any]:
        at = timezone.now().isoformat(timespec="seconds")
        return {"at": at, "attempt": self.attempt, "reason": reason, "counted": counted, "epoch": self.epoch}

    def end_remains(self, token: uuid.UUID | None) -> None:
        """Kill the training process that the holder of an expired lease left on this host."""
        here = self.host == socket.gethostname()
        if here and self.child_pid and token and has_variable(self.child_pid, LEASE_VARIABLE, str(token)):
            signal_group(self.child_pid, signal.SIGKILL)

    def _on_end(self) -> None:
        """Called in the transaction that ends the run, whatever its end is."""
        transaction.on_commit(self.clean_up, robust=True)
        self._tell_search()
        announcing.tell_end(self)

    def prioritise(self, priority: int, by: Any) -> None:
        """Change the place of a waiting run in the queue. Raises JobError when it does not wait any more."""
        before, wanted = self.Priority(self.priority), self.Priority(priority)
        with transaction.atomic():
            if not TrainingRun.objects.filter(pk=self.pk, state=self.State.QUEUED).update(priority=wanted):
                raise JobError(f"Run {self.pk} does not wait any more.", "Only the order of waiting runs can change.")
            audit.record(
                "trainingrun.prioritise",
                self,
                actor=by,
                before={"priority": before.label},
                after={"priority": wanted.label},
            )
        self.priority = wanted

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left without early stopping, by its own steady epochs. None where nothing tells."""
        # Measurements are looked up among all runs.
        from ..live import seconds_left

        return seconds_left(self) if self.state == self.State.RUNNING else None

    def note(self, text: str, by: Any) -> "RunNote":
        """Add a note and its audit entry."""
        with transaction.atomic():
            note = self.notes.create(author=by, text=text)
            audit.record("run.note", self, actor=by, after={"text": text})
        return note

    @property
    def curves(self) -> dict[str, list[Any]]:
        """One list a quantity, epoch by epoch, for the charts and their JSON twin."""
        names = ("epoch", *EpochMetric.QUANTITIES)
        rows = list(self.metrics.values_list(*names))
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def preparation_for(dataset: Dataset, configuration: Configuration) -> Preparation:
    """The newest preparation that is ready and has what the configuration asks for. Raises NotPrepared."""
    steps = configuration.preprocessing
    for preparation in Preparation.objects.with_pixels().filter(dataset=dataset):
        right_size = configuration.image_size in (None, preparation.image_size)
        right_steps = steps is None or list(steps) == preparation.pipeline.get("steps", [])
        if right_size and right_steps and preparation.is_ready:
            return preparation
    raise _not_prepared(dataset, configuration)


def _not_prepared(dataset: Dataset, configuration: Configuration) -> NotPrepared:
    size, steps = configuration.image_size, configuration.preprocessing
    wanted: dict[str, Any] = {}
    missing = []
    if size is not None:
        wanted["image_size"] = size
        missing.append(f"images of {size} pixels")
    if steps is not None:
        wanted["steps"] = list(steps)
        missing.append("no preprocessing step" if not steps else f"the preprocessing {', '.join(steps)}")
    if not missing:
        return NotPrepared(
            f"Dataset not prepared: {dataset} has no finished preparation.",
            "Open the dataset and choose Prepare for Training.",
        )
    return NotPrepared(
        f"Dataset not prepared: {dataset} has no finished preparation with {' and '.join(missing)}.",
        "Open the dataset and choose Prepare for Training with these values, or leave the choice to the newest one.",
        wanted,
    )


def chosen_weights(
    architecture: str, initial: str, version: ModelVersion | None, dataset: Dataset, by: Any
) -> InitialWeights | None:
    """What a run is to start from, verified; None for scratch. Raises JobError, with advice."""
    if (version is not None) != (initial == TrainingRun.Initial.VERSION):
        raise JobError(
            "Which weights to start from is not clear.",
            'Name a version exactly when the initial weights are "version".',
        )
    installed = weights_state(ARCHITECTURES[architecture]) == "installed"
    try:
        if version is not None:
            return _weights_of(_usable(version, dataset, by), architecture)
        if initial == TrainingRun.Initial.IMAGENET or (initial == TrainingRun.Initial.AUTO and installed):
            return imagenet(architecture, pretrained_folder())
    except WeightsUnusable as error:
        raise JobError(str(error), error.hint) from error
    return None


def _hold(version: ModelVersion, dataset: Dataset, by: Any) -> None:
    """Look again, under the lock that archiving and deleting take: verifying the weights took its time."""
    Condition.objects.select_for_update().get(pk=version.condition_id)
    current = ModelVersion.objects.select_related("condition__team").filter(pk=version.pk).first()
    _usable(current or version, dataset, by)


def _usable(version: ModelVersion, dataset: Dataset, by: Any) -> ModelVersion:
    if not ModelVersion.objects.seen_by(by).filter(pk=version.pk).exists():
        raise JobError("There is no such version to start from.", "Choose one that Model Management lists.")
    team = version.condition.team
    if team is not None and team != dataset.condition.team:
        raise JobError(
            f"{version} belongs to {team}, the dataset does not.",
            "What learns from a team's images stays with that team: choose a version of the dataset's team or of none.",
        )
    if version.state == version.State.ARCHIVED:
        raise JobError(f"{version} is archived.", "Choose a candidate or an approved version to start from.")
    return version


def _weights_of(version: ModelVersion, architecture: str) -> InitialWeights:
    return from_version(str(version), version.folder, version.sha256, architecture)


def _of_runs(folder: Path) -> list[tuple[Path, int]]:
    """Files and folders that are named after a run, with its number; others are somebody else's."""
    try:
        named = [(path, _NAMED.fullmatch(path.name)) for path in folder.iterdir()]
    except OSError:
        return []
    return [(path, int(match[1])) for path, match in named if match]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; 0 where there is none."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0


def ask_worker() -> None:
    """Send the message "look at the queue". How many of them there are does not matter."""
    async_task(
        TrainingRun.task,
        cluster=TrainingRun.cluster,
        timeout=TrainingRun.time_limit_seconds,
        task_name="next-training",
    )


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


class RunNote(Immutable):
    """What a person noted about a run; notes are never changed."""

    run = models.ForeignKey(TrainingRun, models.PROTECT, related_name="notes")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    at = models.DateTimeField(auto_now_add=True)
    text = models.TextField(max_length=2000)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"note on run {self.run_id}"
