"""`manage.py lineage CONDITION VERSION` and `lineage --dataset NAME`: the twin of the pages about lineage."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets.models import Dataset
from registry import lineage as versions
from registry.models import ModelVersion
from training import lineage as datasets
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError


class Command(PlatformCommand):
    permission = "registry.view_modelversion"
    help = (
        "Show what a version came from and what came of it, or every version, activation, evaluation and number of "
        "predictions that came of a dataset. Without --user that of all teams."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", nargs="?", help="the condition's slug")
        parser.add_argument("version", nargs="?", type=int, help="the version's number")
        parser.add_argument("--dataset", metavar="NAME", help="instead of a version: its path below DATASET_ROOT")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        named = options["condition"] is not None and options["version"] is not None
        if named == (options["dataset"] is not None) or (options["condition"] is not None and not named):
            raise CommandError("Name a condition with the number of a version, or a dataset with --dataset.")
        return self._of_version(options) if named else self._of_dataset(options)

    def _of_version(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        seen = ModelVersion.objects.seen_by(by).select_related("created_by")
        try:
            version = seen.numbered(options["condition"], options["version"])
        except ModelVersion.DoesNotExist as error:
            raise CommandError(str(error)) from error
        return versions.lineage_of(version, by).to_json()

    def _of_dataset(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        if not versions.may(by, "datasets.view_dataset"):
            raise CommandError(f"{by} has no role that allows this (datasets.view_dataset).")
        try:
            dataset = Dataset.objects.seen_by(by).named(options["dataset"])
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        return datasets.lineage_of(dataset, by).to_json()

    def show(self, result: dict[str, Any]) -> None:
        for line in _dataset_lines(result) if "dataset" in result else _version_lines(result):
            self.stdout.write(line)


def _version_lines(result: dict[str, Any]) -> list[str]:
    lines = [line for one in result["ancestors"] for line in _member_lines(one)]
    lines += _member_lines(result)
    return lines + [f"  {_words(one['version'])}, {one['through']}" for one in result["descendants"]]


def _dataset_lines(result: dict[str, Any]) -> list[str]:
    totals = result["totals"]
    lines = [
        _words(result["dataset"]),
        *(f"  {_words(step)}" for step in result["preparations"]),
        f"{totals['version']} versions learned from it, with {totals['activation']} activations, "
        f"{totals['evaluation']} evaluations and {totals['predictions']:,} predictions.",
        f"In service now: {', '.join(result['in_service']) or 'none of them'}",
    ]
    for one in result["versions"]:
        lines += [f"{_words(one['version'])}, {one['through']}", *_steps(one["downstream"])]
    return lines + [f"Measured on it: {_words(step)}" for step in result["measured"]]


def _member_lines(one: dict[str, Any]) -> list[str]:
    return [*_steps(one["upstream"]), _words(one["version"]), *_steps(one["downstream"])]


def _steps(steps: list[dict[str, Any]]) -> list[str]:
    return [f"  {_words(step)}" for step in steps]


def _words(step: dict[str, Any]) -> str:
    """The step in one line, with its whole digest: it is compared."""
    made = " ".join(text for text in ((step["when"] or "")[:16], f"by {step['by']}" if step["by"] else "") if text)
    facts = [f"{name.lower()} {value}" for name, value in step["facts"].items() if value]
    return ", ".join(text for text in (f"{step['kind']}: {step['label']}", made, step["digest"], *facts) if text)
