"""`manage.py evaluate CONDITION VERSION (--dataset NAME | FOLDER)`: measure a version on other images.

`evaluate --cancel RUN` stops an evaluation that waits or runs.
"""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from datasets.models import Dataset, Preparation
from inference import folders
from inference.engine import EngineError, load
from inference.models import EvaluationRun
from inference.tasks import run_evaluation
from registry.models import Evaluation, ModelVersion
from xrayplatform.commands import PlatformCommand
from xrayplatform.http import row_number
from xrayplatform.jobs import JobError

# As the key figures of versions are called, and as reports call them.
FIGURES = {
    "accuracy": "accuracy",
    "auc": "auc",
    "precision": "precision",
    "recall": "sensitivity",
    "f1": "f1",
    "quadratic_kappa": "quadratic_kappa",
}


class Command(PlatformCommand):
    permission = "inference.add_evaluationrun"
    help = "Measure a model version on a dataset, or on a folder with one subfolder a class; the report is kept."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", nargs="?", help="the condition's slug")
        parser.add_argument("version", type=int, nargs="?", help="the version's number")
        parser.add_argument(
            "folder", type=Path, nargs="?", help="class folders named as the version's classes, outside of the datasets"
        )
        parser.add_argument("--dataset", help="the dataset's path below DATASET_ROOT, instead of a folder")
        parser.add_argument("--preparation", type=int, help="number of a preparation of the dataset")
        parser.add_argument(
            "--part",
            choices=EvaluationRun.Part.values,
            help="default: all images of the dataset, or with --preparation its test part",
        )
        parser.add_argument("--cancel", metavar="RUN", help="instead of measuring: cancel this evaluation run")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        if options["cancel"] is not None:
            if options["condition"] is not None:
                raise CommandError("Name only the run to cancel, and no condition.")
            return _cancelled(options["cancel"], self.actor(options))
        if options["version"] is None:
            raise CommandError("Name a condition and the number of a version.")
        return self._measured(options)

    def _measured(self, options: dict[str, Any]) -> dict[str, Any]:
        if (options["folder"] is None) == (options["dataset"] is None):
            raise CommandError("Name either a folder or, with --dataset, a dataset.")
        if options["folder"] is not None and (options["preparation"] or options["part"]):
            raise CommandError("A folder has no preparations and no parts; these go with --dataset.")
        by = self.actor(options)
        try:
            version = ModelVersion.objects.seen_by(by).numbered(options["condition"], options["version"])
            if options["folder"] is not None:
                evaluation, problems = self._of_folder(version, options["folder"], by)
            else:
                evaluation, problems = self._of_dataset(version, options, by)
        except (ModelVersion.DoesNotExist, EngineError) as error:
            raise CommandError(str(error)) from error
        except JobError as error:
            raise CommandError(f"{error} {error.hint}".strip()) from error
        return _result(evaluation, problems)

    def _of_folder(self, version: ModelVersion, folder: Path, by: Any) -> tuple[Evaluation, list[dict[str, str]]]:
        measured, problems = folders.measure(version, load(version.folder, version.sha256), folder)
        with transaction.atomic():
            return Evaluation.objects.store(version, measured, by=by), problems

    def _of_dataset(
        self, version: ModelVersion, options: dict[str, Any], by: Any
    ) -> tuple[Evaluation, list[dict[str, str]]]:
        dataset = Dataset.objects.seen_by(by).named(options["dataset"])
        preparation = _preparation(version, dataset, options)
        part = options["part"] or ("all" if preparation is None else "test")
        run = EvaluationRun.create(version, dataset, by, preparation=preparation, part=part)
        run.listener = self.tell_progress
        run_evaluation(run, run.attempt)
        if run.evaluation is None:
            raise JobError(run.error or run.message, run.hint)
        return run.evaluation, run.problems

    def show(self, result: dict[str, Any]) -> None:
        if "run" in result:
            self.stdout.write(f"Evaluation run {result['run']}: {_end(result)}")
            return
        self.stdout.write(f"{result['n']} radiographs, {len(result['errors'])} could not be read")
        for name in FIGURES:
            if name in result:
                self.stdout.write(f"  {name:16} {_shown(result[name], result['intervals'][name])}")
        self.stdout.write("Confusion matrix (rows: true class, columns: decision)")
        for name, row in zip(result["classes"], result["confusion_matrix"], strict=True):
            self.stdout.write(f"  {name:24} " + " ".join(f"{count:6d}" for count in row))
        for warning in result["warnings"]:
            self.stdout.write(f"  ! {warning}")
        self.stdout.write(f"Kept as evaluation {result['evaluation']}")


def _cancelled(number: str, by: Any) -> dict[str, Any]:
    run = EvaluationRun.objects.seen_by(by).filter(pk=row_number(number)).first()
    if run is None:
        raise CommandError(f"There is no evaluation run {number}.")
    asked = run.request_cancel(by)
    return {"run": run.pk, "asked": asked, "state": run.state}


def _end(result: dict[str, Any]) -> str:
    if not result["asked"]:
        return f"it had ended already ({result['state']})."
    return "cancelled." if result["state"] == EvaluationRun.State.CANCELLED else "asked to stop; it ends in a moment."


def _preparation(version: ModelVersion, dataset: Dataset, options: dict[str, Any]) -> Preparation | None:
    """The one that is named; for a part without one the version's own, or else the newest. Raises JobError."""
    number, part = options["preparation"], options["part"]
    if number is not None:
        preparation = dataset.preparations.filter(pk=number).first()
        if preparation is None:
            known = ", ".join(str(pk) for pk in dataset.preparations.values_list("pk", flat=True)) or "none"
            raise JobError(f"{dataset} has no preparation {number}. Its preparations: {known}.")
        return preparation
    if part in (None, EvaluationRun.Part.ALL):
        return None
    finished = dataset.preparations.filter(state=Preparation.State.SUCCEEDED)
    return finished.filter(split_digest=version.split_digest).first() or finished.first()


def _result(evaluation: Evaluation, problems: list[dict[str, str]]) -> dict[str, Any]:
    report = evaluation.report
    figures = {name: report["metrics"][key] for name, key in FIGURES.items() if key in report["metrics"]}
    return {
        "evaluation": evaluation.pk,
        "n": report["n"],
        **{name: figure["value"] for name, figure in figures.items()},
        "intervals": {
            name: None if figure["value"] is None else [figure["low"], figure["high"]]
            for name, figure in figures.items()
        },
        "confusion_matrix": report["confusion_matrix"],
        "classes": report["classes"],
        "positive_class": report["positive_class"] or None,
        "threshold": report["threshold"],
        "warnings": report["warnings"],
        "errors": problems,
    }


def _shown(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return "not available"
    return f"{value:.3f} (95 % {interval[0]:.3f} to {interval[1]:.3f})"
