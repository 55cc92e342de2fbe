"""`manage.py train_run ID`: the training process that the supervisor starts. It alone imports TensorFlow."""

import logging
import os
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from datasets.cache import CacheError, PreparedData, open_cache
from registry.artifacts import load
from registry.models import ModelVersion
from training.configurations import Configuration
from training.ml.architectures import pretrained_weights
from training.models import EpochMetric, TrainingRun
from training.supervisor import PARENT_VARIABLE, TOKEN_VARIABLE, die_with_parent, pretrained_folder
from xrayplatform import audit
from xrayplatform.jobs import LeaseLost

if TYPE_CHECKING:
    from training.ml.fit import Progress

logger = logging.getLogger(__name__)
CHECK_EVERY_SECONDS = 1.0
TEST_ADVICE = " Correct what is wrong, but do not tidy up the test part until its figures please."


class Command(BaseCommand):
    help = "Train one claimed run. Started by the queue worker, not by people."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("run", type=int)

    def handle(self, *args: Any, **options: Any) -> None:
        die_with_parent(int(os.environ.get(PARENT_VARIABLE, "0")))
        audit.context.set(audit.Context(channel="system"))
        run = _claimed_run(options["run"])
        try:
            _train(run, self.stdout.write)
        except LeaseLost as error:
            raise CommandError(str(error)) from error


def _claimed_run(run_id: int) -> TrainingRun:
    """The run, if this process was started by who holds its lease."""
    run = TrainingRun.objects.select_related("preparation__dataset__condition", "created_by").get(pk=run_id)
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token or run.state != run.State.RUNNING or run.lease_token != uuid.UUID(token):
        raise CommandError(f"{run} is not claimed by the process that started this one.")
    return run


def _train(run: TrainingRun, log: Callable[[str], None]) -> None:
    run.write(message="Loading TensorFlow", phase="loading")
    from training.ml import fit

    try:
        data = _open(run)
        trained = fit.train(
            data,
            run.architecture,
            Configuration.from_json(run.configuration),
            weights=pretrained_weights(run.architecture, pretrained_folder()),
            work_dir=run.work_folder,
            report=_reporter(run, log),
            should_stop=_stop_check(run),
        )
        _register(run, trained, data)
    except CacheError as error:
        run.fail(str(error), "Open the dataset and choose Prepare for Training, then start again.")
    except fit.Cancelled:
        run.end_cancelled()
    except fit.TrainingFailed as error:
        run.fail(str(error), error.hint)


def _open(run: TrainingRun) -> PreparedData:
    data = open_cache(run.preparation.cache_folder)
    if data.digest != run.preparation.cache_digest:
        raise CacheError("The prepared images are not those of the preparation; prepare the dataset again.")
    run.work_folder.mkdir(parents=True, exist_ok=True)
    return data


def _reporter(run: TrainingRun, log: Callable[[str], None]) -> "Callable[[Progress], None]":
    """Store progress at most once a second, and every finished epoch; the log gets the epochs and the messages."""
    last = 0.0

    def report(progress: "Progress") -> None:
        nonlocal last
        now = time.monotonic()
        if progress.metrics is None and not progress.message and now - last < CHECK_EVERY_SECONDS:
            return
        last = now
        finished = progress.epoch if progress.metrics is not None else max(progress.epoch - 1, 0)
        message = progress.message or f"{progress.phase.capitalize()}, epoch {progress.epoch} of {progress.epochs}"
        if progress.metrics is not None or progress.message:
            log(_log_line(progress))
        with transaction.atomic():
            run.write(
                phase=progress.phase,
                epoch=finished if progress.phase == "training" else run.epoch,
                progress=progress.fraction,
                message=message[:300],
            )
            if progress.metrics is not None:
                EpochMetric.objects.update_or_create(run=run, epoch=progress.epoch, defaults=progress.metrics)

    return report


def _log_line(progress: "Progress") -> str:
    if progress.metrics is None:
        return progress.message
    figures = ", ".join(
        f"{name} {value:.5g}" for name, value in progress.metrics.items() if value is not None and name != "seconds"
    )
    return f"epoch {progress.epoch} of {progress.epochs}: {figures} ({progress.metrics['seconds']:.0f} s)"


def _stop_check(run: TrainingRun) -> Callable[[], bool]:
    """Whether to stop, asked of the database at most once a second. Raises LeaseLost when the run was taken away."""
    last = time.monotonic()

    def should_stop() -> bool:
        nonlocal last
        if time.monotonic() - last < CHECK_EVERY_SECONDS:
            return False
        last = time.monotonic()
        row = TrainingRun.objects.filter(pk=run.pk, lease_token=run.lease_token, state=run.State.RUNNING)
        asked = row.values_list("cancel_requested", flat=True).first()
        if asked is None:
            raise LeaseLost(f"{run} was taken over by another process.")
        return asked

    return should_stop


def _register(run: TrainingRun, trained: Any, data: PreparedData) -> None:
    """Save the artifact aside; then version, end of the run and audit entries in one transaction."""
    from training.ml.export import save_version

    run.write(phase="saving", message="Saving the version")
    staged = run.staging_folder
    sha256 = save_version(trained, data, staged)
    manifest = load(staged, sha256).manifest
    preparation = run.preparation
    with transaction.atomic():
        version = ModelVersion.objects.register(
            preparation.dataset.condition,
            staged,
            sha256=sha256,
            manifest=manifest,
            by=run.created_by,
            dataset_name=preparation.dataset.name,
            dataset_digest=preparation.dataset_digest,
            split_digest=preparation.split_digest,
            synthetic=preparation.synthetic,
            origin=f"trained here, run {run.pk}",
        )
        run.write(version=version, initial_weights=trained.initial_weights[:100])
        run.succeed(f"Version {version.number} of {version.condition}", after={"version": str(version)})
    _write_doubts(run, trained)


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
