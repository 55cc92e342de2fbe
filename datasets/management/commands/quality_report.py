"""`manage.py quality_report NAME`: what is suspicious in a dataset, and decisions about single images."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets.findings import report
from datasets.models import Dataset, Decision
from xrayplatform import audit
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError

ACTIONS = ("exclude", "keep", "withdraw", "exclude_all", "keep_all")


class Command(PlatformCommand):
    permission = "datasets.view_finding"
    help = "Print the quality report of a dataset; with --exclude, --keep or --exclude-all judge images first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", help="the dataset's path below DATASET_ROOT")
        judge = parser.add_mutually_exclusive_group()
        for action in ("exclude", "keep", "withdraw"):
            judge.add_argument(f"--{action}", metavar="PATH", help=f"{action} this image, relative to the dataset")
        judge.add_argument("--exclude-all", metavar="CODE", help="leave out all open images with this finding")
        judge.add_argument("--keep-all", metavar="CODE", help="keep all open images with this finding")
        parser.add_argument("--spare-one", action="store_true", help="with --exclude-all: keep the first of each copy")
        parser.add_argument("--code", default=Decision.BY_HAND, help="the finding that the decision is about")
        parser.add_argument("--reason", default="", help="why")
        parser.add_argument("--list", metavar="CODE", help="list all images with this finding")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        datasets = Dataset.objects.seen_by(by)
        try:
            dataset = datasets.named(options["name"])
            _judge(dataset, options, by)
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        audit.record("dataset.view_quality", dataset, actor=by, after={"listed": options["list"] or ""})
        result = report(dataset).to_json()
        if options["list"]:
            found = dataset.findings.filter(code=options["list"]).with_decision().order_by("image__path")
            result["listed"] = list(found.values("image__path", "value", "detail", "action", "reason"))
        return result

    def show(self, result: dict[str, Any]) -> None:
        left_out = f", {result['excluded']} left out by hand" if result["excluded"] else ""
        self.stdout.write(f"{result['name']}: {result['images']} images{left_out}")
        for hint in result["hints"]:
            self.stdout.write(f"  {'!' if hint['level'] == 'warning' else '-'} {hint['text']}")
        for finding in result["findings"].values():
            if finding["images"]:
                self.stdout.write(f"  {finding['title']}: {finding['images']} ({finding['open']} open)")
        for row in result.get("listed", []):
            self.stdout.write(f"    {row['image__path']}: {row['detail']}")


def _judge(dataset: Dataset, options: dict[str, Any], by: Any) -> None:
    action = next((name for name in ACTIONS if options[name]), None)
    if options["spare_one"] and action != "exclude_all":
        raise CommandError("--spare-one goes with --exclude-all only.")
    if action is None:
        return
    if by is not None and not by.has_perm("datasets.curate_dataset"):
        raise CommandError(f"{by} has no role that allows this (datasets.curate_dataset).")
    if action.endswith("_all"):
        spare_one = options["spare_one"]
        verb = action.removesuffix("_all")
        dataset.decide_all(options[action], verb, options["reason"], spare_one=spare_one, by=by)
        return
    image = dataset.images.filter(path=options[action]).first()
    if image is None:
        raise CommandError(f"{dataset} has no image {options[action]!r}.")
    if action == "withdraw":
        image.withdraw(options["code"], by=by)
    else:
        image.decide(options["code"], action, options["reason"], by=by)
