"""`manage.py curate_dataset NAME`: say how a dataset is to be read, as its page Classes and patients does."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets.models import Dataset
from xrayplatform.commands import PlatformCommand
from xrayplatform.conditions import Condition
from xrayplatform.jobs import JobError

from .scan_dataset import dataset_json


class Command(PlatformCommand):
    permission = "datasets.curate_dataset"
    help = "Answer a dataset's question; rename, merge or drop classes; set condition, positive class, patient pattern."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", help="the dataset's path below DATASET_ROOT")
        parser.add_argument("--answer", help="value of an answer to the question that the scan asked")
        parser.add_argument(
            "--class", dest="classes", action="append", default=[], metavar="FOUND=USED",
            help="rename (0=Normal), merge (two to the same name), drop (0=); may be repeated",
        )  # fmt: skip
        parser.add_argument("--positive", help="of two classes the one that means disease")
        parser.add_argument("--grades", choices=["yes", "no"], help="whether the classes follow each other")
        parser.add_argument("--condition", help="slug of an existing condition")
        parser.add_argument("--pattern", help="regular expression of the patient in file names; empty: built-in")
        parser.add_argument("--accept-missing", action="store_true", help="the missing images were removed on purpose")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        datasets = Dataset.objects.seen_by(by)
        try:
            dataset = datasets.named(options["name"])
            dataset.apply_choices(_choices(options, by), by=by)
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        return dataset_json(dataset) | {"pattern": dataset.pattern, "ordinal": dataset.ordinal}

    def show(self, result: dict[str, Any]) -> None:
        classes = ", ".join(f"{name} {count}" for name, count in result["classes"].items())
        self.stdout.write(f"{result['name']} ({result['condition']}): {classes}")


def _choices(options: dict[str, Any], by: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if options["classes"]:
        given["classes"] = dict(_assignment(text) for text in options["classes"])
    for option, name in (("answer", "answer"), ("positive", "positive_class"), ("pattern", "pattern")):
        if options[option] is not None:
            given[name] = options[option]
    if options["grades"]:
        given["ordinal"] = options["grades"] == "yes"
    if options["condition"]:
        given["condition"] = _condition(options["condition"], by)
    if options["accept_missing"]:
        given["accept_missing"] = True
    return given


def _assignment(text: str) -> tuple[str, str]:
    found, equals, used = text.partition("=")
    if not equals:
        raise CommandError(f"--class {text}: write FOUND=USED, for example 0=Normal.")
    return found, used


def _condition(slug: str, by: Any) -> Condition:
    conditions = Condition.objects.seen_by(by)
    condition = conditions.filter(slug=slug).first()
    if condition is None:
        raise CommandError(f"There is no condition {slug!r}. Known: {', '.join(c.slug for c in conditions)}.")
    return condition
