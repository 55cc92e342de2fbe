"""`manage.py train NAME --architecture A --configuration quick`: start a training, as the Train button does."""

import threading
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import connection, transaction

from datasets.models import Dataset
from training.advice import warnings_of
from training.arguments import add_initial, add_options, chosen_initial, given_options
from training.configurations import Configuration, ConfigurationError, Preset
from training.live import hints_of
from training.ml.architectures import ARCHITECTURES
from training.models import SavedPreset, TrainingQueue, TrainingRun
from training.preflight import preflight
from training.tasks import train_here
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import Job, JobError, reap
from xrayplatform.system import queue_is_alive
from xrayplatform.templatetags.platform_tags import duration

# A training worker that is alive and idle takes a message within its poll of one second.
WORKER_TAKES_WITHIN_SECONDS = 8.0
POLL_SECONDS = 0.5


class Command(PlatformCommand):
    permission = "training.add_trainingrun"
    help = "Train a model on a prepared dataset."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", nargs="?", help="the dataset's path below DATASET_ROOT")
        parser.add_argument(
            "--resume", type=int, metavar="RUN", help="let this failed run go on from its last checkpoint"
        )
        parser.add_argument("--architecture", default="Custom_CNN", choices=list(ARCHITECTURES))
        parser.add_argument(
            "--configuration",
            default="quick",
            help="quick, standard, intensive, or saved:NUMBER (see training_presets)",
        )
        add_initial(parser)
        add_options(parser)
        parser.add_argument("--check", action="store_true", help="start nothing; say whether it could, and how long")
        parser.add_argument("--wait", action="store_true", help="until it has ended; runs it here if no worker does")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        if options["check"]:
            return self._check(options)
        run = self._create(options) if options["resume"] is None else self._resumed(options)
        for warning in warnings_of(run.configuration, run.preparation.dataset.condition):
            self.tell(warning)
        if options["wait"]:
            self._wait(run)
        result = run_json(run)
        result["seconds"] = round(time.monotonic() - start, 2)
        if options["wait"] and run.state != Job.State.SUCCEEDED:
            result |= {"failed": True, "error": run.error or run.message, "hint": run.hint}
        return result

    def _resumed(self, options: dict[str, Any]) -> TrainingRun:
        by = self.actor(options)
        run = TrainingRun.objects.seen_by(by).filter(pk=options["resume"]).first()
        if run is None:
            raise CommandError(f"There is no run {options['resume']}.")
        try:
            run.resume(by)
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        return run

    def _create(self, options: dict[str, Any]) -> TrainingRun:
        by, preset, wanted = self._wanted(options)
        try:
            with transaction.atomic():
                run = TrainingRun.create(*wanted, by, preset=preset.recorded, **chosen_initial(options, by))
                run.enqueue()
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        return run

    def _check(self, options: dict[str, Any]) -> dict[str, Any]:
        by, _, wanted = self._wanted(options)
        found = preflight(*wanted, by, **chosen_initial(options, by)).to_json()
        return found if found["can_start"] else found | {"failed": True}

    def _wanted(self, options: dict[str, Any]) -> tuple[Any, Preset, tuple[Dataset, str, Configuration]]:
        """Who asks, with which preset, and what is to be trained: dataset, architecture, configuration."""
        if not options["name"]:
            raise CommandError("Name the dataset to train on.")
        by = self.actor(options)
        datasets = Dataset.objects.seen_by(by)
        try:
            preset = SavedPreset.objects.chosen(options["configuration"], by)
            configuration = preset.configuration.with_options(**given_options(options))
            dataset = datasets.named(options["name"])
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        return by, preset, (dataset, options["architecture"], configuration)

    def _wait(self, run: TrainingRun) -> None:
        """Until the run has ended. If no worker takes it and none is busy with another, run it in this process."""
        waiting_since = time.monotonic()
        told = ""
        here = threading.Thread(target=_train_here, args=[run.pk], daemon=True)
        while run.is_active:
            reap()
            patience = WORKER_TAKES_WITHIN_SECONDS if queue_is_alive(run.cluster) else 0
            if run.state != Job.State.QUEUED or here.is_alive():
                waiting_since = time.monotonic()
            elif time.monotonic() - waiting_since > patience and _may_start_here(run):
                self.tell("No training worker took the run; running it here.")
                here = threading.Thread(target=_train_here, args=[run.pk], daemon=True)
                here.start()
            time.sleep(POLL_SECONDS)
            run.refresh_from_db()
            if run.message != told:
                self.tell_progress(run)
                told = run.message

    def show(self, result: dict[str, Any]) -> None:
        if "checks" in result:
            self._show_checks(result)
            return
        self.stdout.write(f"Run {result['run']}: {result['state']}")
        if result["version"] is not None:
            metrics = result["metrics"]
            self.stdout.write(f"{result['condition']} version {result['version']}")
            for name in ("accuracy", "auc", "precision", "recall", "f1"):
                value = metrics.get(name)
                self.stdout.write(f"  {name:10} {'not available' if value is None else f'{value:.3f}'}")
        elif result.get("failed"):
            self.stderr.write(f"{result['error']} {result['hint']}")

    def _show_checks(self, result: dict[str, Any]) -> None:
        for check in result["checks"]:
            self.stdout.write(f"{check['level']:8} {check['name']}: {check['text']} {check['advice']}".rstrip())
        seconds = result["seconds"]
        words = "not known; see speed_test"
        if seconds:
            words = f"about {duration(seconds['total'])} without early stopping, {result['source']}"
        self.stdout.write(f"{'time':8} {words}")


def _train_here(run_id: int) -> None:
    """Beside the progress report; if a worker claims the run first this does nothing."""
    try:
        train_here(TrainingRun.objects.select_related("preparation__dataset").get(pk=run_id))
    finally:
        connection.close()


def _may_start_here(run: TrainingRun) -> bool:
    """Not while a worker is busy with another, and not what a pause of the queue or a limit of its team forbids."""
    startable = TrainingRun.objects.startable().filter(pk=run.pk).exists()
    return startable and not TrainingQueue.current().paused and not TrainingRun.objects.alive().exists()


def run_json(run: TrainingRun) -> dict[str, Any]:
    version = run.version
    return {
        "run": run.pk,
        "state": run.state,
        "condition": run.preparation.dataset.condition.slug,
        "version": version.number if version else None,
        "metrics": version.metrics if version else None,
        "eta_seconds": run.eta_seconds,
        "hints": [hint.to_json() for hint in hints_of(run)],
        "warnings": warnings_of(run.configuration, run.preparation.dataset.condition),
    }
