"""`manage.py train NAME --architecture A --configuration quick`: start a training, as the Train button does."""

import threading
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import connection, transaction

from datasets.models import Dataset
from training.configurations import PRESETS, USER_OPTIONS, ConfigurationError
from training.ml.architectures import ARCHITECTURES
from training.models import TrainingRun
from training.tasks import train_here
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import Job, JobError, reap
from xrayplatform.system import queue_is_alive

# A training worker that is alive and idle takes a message within its poll of one second.
WORKER_TAKES_WITHIN_SECONDS = 8.0
POLL_SECONDS = 0.5


class Command(PlatformCommand):
    permission = "training.add_trainingrun"
    help = "Train a model on a prepared dataset."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", help="the dataset's path below DATASET_ROOT")
        parser.add_argument("--architecture", default="Custom_CNN", choices=list(ARCHITECTURES))
        parser.add_argument("--configuration", default="quick", choices=list(PRESETS))
        parser.add_argument("--epochs", type=int)
        parser.add_argument("--batch-size", type=int)
        parser.add_argument("--learning-rate", type=float)
        parser.add_argument("--seed", type=int)
        parser.add_argument("--wait", action="store_true", help="until it has ended; runs it here if no worker does")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        run = self._create(options)
        if options["wait"]:
            self._wait(run)
        result = run_json(run)
        result["seconds"] = round(time.monotonic() - start, 2)
        if options["wait"] and run.state != Job.State.SUCCEEDED:
            result |= {"failed": True, "error": run.error or run.message, "hint": run.hint}
        return result

    def _create(self, options: dict[str, Any]) -> TrainingRun:
        given = {name: options[name] for name in USER_OPTIONS if options[name] is not None}
        by = self.actor(options)
        datasets = Dataset.objects.seen_by(by)
        try:
            configuration = PRESETS[options["configuration"]].configuration.with_options(**given)
            with transaction.atomic():
                run = TrainingRun.create(
                    datasets.named(options["name"]),
                    options["architecture"],
                    configuration,
                    by,
                    preset=options["configuration"],
                )
                run.enqueue()
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        return run

    def _wait(self, run: TrainingRun) -> None:
        """Until the run has ended. If no worker takes it and none is busy with another, run it in this process."""
        waiting_since = time.monotonic()
        told = ""
        while run.is_active:
            reap()
            patience = WORKER_TAKES_WITHIN_SECONDS if queue_is_alive(run.cluster) else 0
            idle_too_long = time.monotonic() - waiting_since > patience
            if run.state == Job.State.QUEUED and idle_too_long and not _worker_is_busy():
                self.tell("No training worker took the run; running it here.")
                threading.Thread(target=_train_here, args=[run.pk], daemon=True).start()
                waiting_since = float("inf")
            time.sleep(POLL_SECONDS)
            run.refresh_from_db()
            if run.message != told:
                self.tell_progress(run)
                told = run.message

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Run {result['run']}: {result['state']}")
        if result["version"] is not None:
            metrics = result["metrics"]
            self.stdout.write(f"{result['condition']} version {result['version']}")
            for name in ("accuracy", "auc", "precision", "recall", "f1"):
                value = metrics.get(name)
                self.stdout.write(f"  {name:10} {'not available' if value is None else f'{value:.3f}'}")
        elif result.get("failed"):
            self.stderr.write(f"{result['error']} {result['hint']}")


def _train_here(run_id: int) -> None:
    """Beside the progress report; if a worker claims the run first this does nothing."""
    try:
        train_here(TrainingRun.objects.select_related("preparation__dataset").get(pk=run_id))
    finally:
        connection.close()


def _worker_is_busy() -> bool:
    return TrainingRun.objects.alive().exists()


def run_json(run: TrainingRun) -> dict[str, Any]:
    version = run.version
    return {
        "run": run.pk,
        "state": run.state,
        "condition": run.preparation.dataset.condition.slug,
        "version": version.number if version else None,
        "metrics": version.metrics if version else None,
    }
