"""`manage.py train_run ID`: the training process that the supervisor starts. It alone imports TensorFlow."""

import errno
import logging
import os
import signal
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, close_old_connections, transaction
from django.utils import timezone

from datasets.cache import CacheError, PreparedData, open_cache
from datasets.quality import TEST_ADVICE
from registry.artifacts import ArtifactError, load
from registry.models import Measured, ModelVersion
from training import independence
from training.configurations import Configuration
from training.measured import about_data, measured
from training.ml.control import Cancelled, Paused, Stop, TrainingFailed
from training.models import EpochMetric, TrainingRun
from training.models.run import DISK_WAIT
from training.supervisor import LEASE_VARIABLE, PARENT_VARIABLE, die_with_parent
from xrayplatform import audit
from xrayplatform.jobs import LeaseLost

if TYPE_CHECKING:
    from training.ml.fit import Progress

logger = logging.getLogger(__name__)
CHECK_EVERY_SECONDS = 1.0
# What ends the run is written again and again for so long while the database does not answer.
PATIENCE_SECONDS = 60.0
RETRY_EVERY_SECONDS = 2.0
# After so long without the database the lease is over, and somebody else may go on from the checkpoint.
SILENCE_SECONDS = 110.0
DISK_ADVICE = "Free some disk space where the models are kept, or ask an administrator; the training goes on by itself."
READ_ADVICE = "See whether the disks of models and datasets are there and can be written, then let the run go on."


class Command(BaseCommand):
    help = "Train one claimed run. Started by the queue worker, not by people."
    # Whoever starts it has checked them; they would cost a second of every start.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("run", type=int)

    def handle(self, *args: Any, **options: Any) -> None:
        die_with_parent(int(os.environ.get(PARENT_VARIABLE, "0")))
        audit.context.set(audit.Context(channel="system"))
        run = _claimed_run(options["run"])
        stop = StopCheck(run)
        signal.signal(signal.SIGTERM, stop.terminate)
        try:
            _train(run, self.stdout.write, stop)
        except LeaseLost as error:
            raise CommandError(str(error)) from error


def _claimed_run(run_id: int) -> TrainingRun:
    """The run, if this process was started by who holds its lease."""
    run = TrainingRun.objects.select_related("preparation__dataset__condition", "created_by").get(pk=run_id)
    token = os.environ.get(LEASE_VARIABLE, "")
    if not token or run.state != run.State.RUNNING or run.lease_token != uuid.UUID(token):
        raise CommandError(f"{run} is not claimed by the process that started this one.")
    return run


def _train(run: TrainingRun, log: Callable[[str], None], stop: "StopCheck") -> None:
    _patiently(lambda: run.write(message="Loading TensorFlow", phase="loading", progress_at=timezone.now()))
    from training.ml import fit

    try:
        data = _open(run)
        trained = fit.train(
            data,
            run.architecture,
            Configuration.from_json(run.configuration),
            weights=run.starting_weights(),
            work_dir=run.work_folder,
            report=Reporter(run, log),
            should_stop=stop,
            batch_size=run.batch_size,
            epoch_limit=run.epoch_limit,
        )
        _register(run, trained, data, stop)
    except Cancelled:
        _patiently(run.end_cancelled)
    except Paused as paused:
        epoch = paused.epoch
        _patiently(lambda: run.pause(epoch))
    except (LeaseLost, DatabaseError):
        raise
    except Exception as error:
        if not _ended_by(run, error):
            raise


def _ended_by(run: TrainingRun, error: Exception) -> bool:
    """End or put back the run for what went wrong; False when it is nothing that is known.

    A file that cannot be read or written is no fault of the training: it goes on from its checkpoint later.
    """
    if _disk_is_full(error):
        reason, later = "The disk is full where models are kept.", timezone.now() + DISK_WAIT
        message = f"Waiting for disk space: {reason}"
        logger.warning("%s: %s", run, error)
        _patiently(lambda: run.end_attempt(reason, DISK_ADVICE, counted=False, not_before=later, message=message))
    elif isinstance(error, ArtifactError) or _is_of_a_file(error):
        reason, hint = _reason(error), getattr(error, "hint", READ_ADVICE)
        _patiently(lambda: run.end_attempt(reason, hint))
    elif isinstance(error, CacheError):
        reason = str(error)
        _patiently(lambda: run.fail(reason, "Open the dataset and choose Prepare for Training, then start again."))
    elif isinstance(error, TrainingFailed):
        reason, hint = str(error), error.hint
        _patiently(lambda: run.fail(reason, hint))
    else:
        return False
    return True


def _disk_is_full(error: BaseException) -> bool:
    """Also when a library that is not written in Python tells it only in words."""
    file_error = _file_error(error)
    if file_error is not None and file_error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def _is_of_a_file(error: BaseException) -> bool:
    """Lack of memory is explained by the supervisor."""
    file_error = _file_error(error)
    return file_error is not None and file_error.errno != errno.ENOMEM


def _file_error(error: BaseException) -> OSError | None:
    """The error itself or what it was raised from, if that is one of the operating system."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    return cause


def _reason(error: Exception) -> str:
    """Without the path, which an OSError names in full."""
    if isinstance(error, OSError):
        return f"A file could not be read or written: {error.strerror or type(error).__name__}."
    return str(error)


def _patiently(write: Callable[[], None]) -> None:
    """Write to the database, also when it does not answer for a moment. Raises DatabaseError after a minute."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return write()
        except DatabaseError as error:
            if time.monotonic() > until:
                raise
            logger.warning("The database did not answer: %s", error)
            close_old_connections()
            time.sleep(RETRY_EVERY_SECONDS)


def _open(run: TrainingRun) -> PreparedData:
    data = open_cache(run.preparation.cache_folder)
    if data.digest != run.preparation.cache_digest:
        raise CacheError("The prepared images are not those of the preparation; prepare the dataset again.")
    run.work_folder.mkdir(parents=True, exist_ok=True)
    return data


class Reporter:
    """Stores progress at most once a second, and every finished epoch; the log gets the epochs and the messages.

    A database that does not answer for a while costs no training: what could not be stored is stored later.
    """

    def __init__(self, run: TrainingRun, log: Callable[[str], None]) -> None:
        self.run, self.log = run, log
        self.last = 0.0
        self.unstored: list[Progress] = []
        self.resuming = bool(run.interruptions)

    def __call__(self, progress: "Progress") -> None:
        told = progress.metrics is not None or bool(progress.message)
        if not told and time.monotonic() - self.last < CHECK_EVERY_SECONDS:
            return
        self.last = time.monotonic()
        if told:
            # A full disk is no reason to end: the log is a copy of what the database knows.
            with suppress(OSError):
                self.log(_log_line(progress))
        if progress.metrics is not None:
            self.unstored.append(progress)
        try:
            self._store(progress)
        except DatabaseError as error:
            logger.warning("%s: its progress could not be stored: %s", self.run, error)
            close_old_connections()

    def _store(self, progress: "Progress") -> None:
        with transaction.atomic():
            self.run.write(**_fields(self.run, progress), **self._outcome(progress))
            for epoch in self.unstored:
                self._store_epoch(epoch)
        self.unstored.clear()

    def _outcome(self, progress: "Progress") -> dict[str, Any]:
        """What a resumed training says before its first epoch has ended: kept with the interruption, as its outcome."""
        self.resuming = self.resuming and progress.metrics is None
        if not (self.resuming and progress.message):
            return {}
        *before, last = self.run.interruptions
        words = f"{last.get('outcome', '')} {progress.message}".strip()
        return {"interruptions": [*before, {**last, "outcome": words}]}

    def _store_epoch(self, progress: "Progress") -> None:
        figures = {name: progress.metrics[name] for name in EpochMetric.QUANTITIES if name in progress.metrics}
        defaults = {**figures, "stage": progress.stage}
        EpochMetric.objects.update_or_create(run=self.run, epoch=progress.epoch, defaults=defaults)
        # Left by an attempt that had come further than the checkpoint from which this one goes on.
        EpochMetric.objects.filter(run=self.run, epoch__gt=progress.epoch).delete()


def _fields(run: TrainingRun, progress: "Progress") -> dict[str, Any]:
    finished = progress.epoch if progress.metrics is not None else max(progress.epoch - 1, 0)
    message = progress.message or f"{progress.phase.capitalize()}, epoch {progress.epoch} of {progress.epochs}"
    return {
        "phase": progress.phase,
        "epoch": finished if progress.phase == "training" else run.epoch,
        "progress": progress.fraction,
        "progress_at": timezone.now(),
        "message": message[:300],
        "batch_size": progress.batch_size or run.batch_size,
        "images_per_second": progress.images_per_second or run.images_per_second,
    }


def _log_line(progress: "Progress") -> str:
    if progress.metrics is None:
        return progress.message
    figures = ", ".join(
        f"{name} {value:.5g}" for name, value in progress.metrics.items() if value is not None and name != "seconds"
    )
    return f"epoch {progress.epoch} of {progress.epochs}: {figures} ({progress.metrics['seconds']:.0f} s)"


class StopCheck:
    """Whether to stop, and how: asked of the database at most once a second, and at once after a SIGTERM.

    Raises LeaseLost when the run was taken away.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.terminated = False
        self.asked_at = time.monotonic()
        self.answer: Stop | None = None
        self.silent_since: float | None = None

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: the worker is to stop, so the training goes to a checkpoint."""
        self.terminated = True
        self.asked_at = float("-inf")

    def __call__(self) -> Stop | None:
        if time.monotonic() - self.asked_at >= CHECK_EVERY_SECONDS:
            self.answer = self.ask()
        return self.answer

    def ask(self) -> Stop | None:
        self.asked_at = time.monotonic()
        row = TrainingRun.objects.filter(pk=self.run.pk, lease_token=self.run.lease_token, state=self.run.State.RUNNING)
        try:
            asked = row.values_list("cancel_requested", "drain_requested").first()
        except DatabaseError as error:
            logger.warning("%s: the database did not answer: %s", self.run, error)
            close_old_connections()
            return self._unanswered()
        self.silent_since = None
        if asked is None:
            raise LeaseLost(f"{self.run} was taken over by another process.")
        cancel, drain = asked
        if cancel:
            return Stop.CANCEL
        return Stop.DRAIN if drain or self.terminated else None

    def _unanswered(self) -> Stop | None:
        self.silent_since = self.silent_since or self.asked_at
        lost = self.asked_at - self.silent_since > SILENCE_SECONDS
        return self.answer or (Stop.DRAIN if lost or self.terminated else None)


def _register(run: TrainingRun, trained: Any, data: PreparedData, stop: StopCheck) -> None:
    """Save the artifact aside; then version, end of the run and audit entries in one transaction."""
    from training.ml.export import save_version

    _patiently(lambda: run.write(phase="saving", message="Saving the version", progress_at=timezone.now()))
    staged = run.staging_folder
    # Part of the figures, so that they never stand without it.
    trained.evaluation.metrics["test"]["warnings"] += independence.warnings_of(
        run.initial_version, run.preparation, compare=True
    )
    sha256 = save_version(trained, data, staged, about_data(run.preparation))
    manifest = load(staged, sha256).manifest
    figures = _measured(run, trained)
    if stop.ask() is Stop.CANCEL:
        raise Cancelled("The training was cancelled.")
    preparation = run.preparation
    with transaction.atomic():
        version = ModelVersion.objects.register(
            preparation.dataset.condition,
            staged,
            sha256=sha256,
            manifest=manifest,
            by=run.created_by,
            measured=figures,
            dataset_name=preparation.dataset.name,
            dataset_digest=preparation.dataset_digest,
            split_digest=preparation.split_digest,
            synthetic=preparation.synthetic,
            origin=f"trained here, run {run.pk}",
            parent=run.initial_version,
        )
        run.write(version=version, initial_weights=trained.initial_weights[:100])
        run.succeed(f"Version {version.number} of {version.condition}", after={"version": str(version)})
    _write_doubts(run, trained)


def _measured(run: TrainingRun, trained: Any) -> list[Measured]:
    """The evaluations. Without them, should one fail, the version still is worth its hours; they can be made later."""
    try:
        return measured(run, trained)
    except Exception:
        logger.exception("The reports of run %s could not be made", run.pk)
        return []


def _write_doubts(run: TrainingRun, trained: Any) -> None:
    """After the end of the run and apart from it: whatever goes wrong here, the trained version stays."""
    try:
        run.preparation.dataset.write_doubts(_doubts(run, trained))
    except Exception:
        logger.exception("The labels that run %s doubts could not be stored", run.pk)


def _doubts(run: TrainingRun, trained: Any) -> Iterator[tuple[str, str, float, str]]:
    """(path, digest, loss, why) of the images whose labels the trained network contradicts most."""
    rows = {doubt.row: doubt for doubt in trained.doubts}
    images = run.preparation.manifest.filter(row__in=list(rows)).values_list("row", "path", "digest")
    for row, path, digest in images:
        doubt = rows[row]
        why = (
            f"Labelled {doubt.label}; {run.architecture} of run {run.pk} reads {doubt.predicted} "
            f"({doubt.probability:.1%}). The image was in the {doubt.split} part."
            + (TEST_ADVICE if doubt.split == "test" else "")
        )
        yield path, digest, doubt.loss, why
