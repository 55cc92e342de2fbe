"""`manage.py evaluate CONDITION VERSION FOLDER`: test a version on class folders of new radiographs."""

from argparse import ArgumentParser
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from django.core.management.base import CommandError
from numpy.typing import NDArray

from datasets import imaging
from datasets.scanning import map_ahead
from inference.engine import EngineError, LoadedModel, load
from registry.models import ModelVersion
from registry.statistics import classification_metrics
from xrayplatform import audit
from xrayplatform.commands import PlatformCommand

BATCH = 16
FIGURES = ("accuracy", "auc", "precision", "recall", "f1", "quadratic_kappa")
REPORTED = ("n", *FIGURES, "confusion_matrix", "classes")


class Command(PlatformCommand):
    permission = "registry.view_modelversion"
    help = "Evaluate a model version on a folder with one subfolder a class."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("folder", type=Path, help="class folders named as the version's classes")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        try:
            version = ModelVersion.objects.numbered(options["condition"], options["version"])
            model = load(version.folder, version.sha256)
        except (ModelVersion.DoesNotExist, EngineError) as error:
            raise CommandError(str(error)) from error
        files, errors = _labelled_files(options["folder"], version.classes)
        labels, probabilities = _predict(model, files, version, errors)
        if not len(labels):
            raise CommandError("Not one radiograph could be read in the class folders.")
        metrics = classification_metrics(
            labels,
            probabilities,
            version.classes,
            version.positive_class or None,
            version.threshold,
            # Only versions whose classes are grades were measured by it.
            ordinal="quadratic_kappa" in version.metrics,
        )
        audit.record("version.evaluate", version, actor=self.actor(options), after={"n": metrics["n"]})
        return {name: metrics[name] for name in REPORTED if name in metrics} | {
            "positive_class": version.positive_class or None,
            "threshold": version.threshold,
            "warnings": metrics["warnings"],
            "errors": errors,
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['n']} radiographs, {len(result['errors'])} could not be read")
        for name in FIGURES:
            if name in result:
                value = result[name]
                self.stdout.write(f"  {name:16} {'not available' if value is None else f'{value:.3f}'}")
        self.stdout.write("Confusion matrix (rows: true class, columns: decision)")
        for name, row in zip(result["classes"], result["confusion_matrix"], strict=True):
            self.stdout.write(f"  {name:24} " + " ".join(f"{count:6d}" for count in row))


def _labelled_files(folder: Path, classes: list[str]) -> tuple[list[tuple[Path, int]], list[dict[str, str]]]:
    """Files with the index of their class; folders that are no class of the version are errors."""
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder.")
    numbers = {name.casefold(): number for number, name in enumerate(classes)}
    files: list[tuple[Path, int]] = []
    errors: list[dict[str, str]] = []
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        number = numbers.get(sub.name.casefold())
        if number is None:
            errors.append({"path": sub.name, "reason": f"Not a class of this version ({', '.join(classes)})."})
            continue
        files += [(path, number) for path in sorted(sub.iterdir()) if not path.name.startswith(".")]
    if not files:
        raise CommandError(f"{folder} has no files in folders named {', '.join(classes)}.")
    return files, errors


def _predict(
    model: LoadedModel, files: list[tuple[Path, int]], version: ModelVersion, errors: list[dict[str, str]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    labels: list[int] = []
    answers: list[NDArray[np.float64]] = []
    for batch in _batches(_readable(files, version, errors)):
        labels += [label for _, label in batch]
        answers.append(model.predict(np.stack([pixels for pixels, _ in batch])))
    return np.asarray(labels, np.int64), np.concatenate([np.zeros((0, len(version.classes))), *answers])


def _readable(
    files: list[tuple[Path, int]], version: ModelVersion, errors: list[dict[str, str]]
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    treatment = version.preprocessing
    steps = tuple(treatment.get("steps", ()))
    read = partial(_model_input, size=version.image_size, fit=treatment["fit"], steps=steps)
    decoded = map_ahead(read, [path for path, _ in files])
    for (path, label), pixels in zip(files, decoded, strict=True):
        if isinstance(pixels, imaging.ImageError):
            errors.append({"path": f"{path.parent.name}/{path.name}", "reason": str(pixels)})
        else:
            yield pixels, label


def _model_input(path: Path, size: int, fit: str, steps: tuple[str, ...]) -> NDArray[np.uint8] | imaging.ImageError:
    try:
        return imaging.model_input(imaging.read(path), size, fit, steps)
    except imaging.ImageError as error:
        return error


def _batches(items: Iterator[tuple[NDArray[np.uint8], int]]) -> Iterator[list[tuple[NDArray[np.uint8], int]]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
