"""`manage.py compare_dataset NAME [FROM] [TO]`: what changed between two versions of a dataset."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets.models import Dataset
from datasets.versions import NOW, compare_versions, find_version, newest_version
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError


class Command(PlatformCommand):
    permission = "datasets.view_preparation"
    help = "Compare two preparations of a dataset, or one with what the last scan found (now)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", help="the dataset's path below DATASET_ROOT")
        parser.add_argument("old", nargs="?", help="number of a preparation (default: the newest)")
        parser.add_argument("new", nargs="?", default=NOW, help="number of a preparation, or now (default)")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        datasets = Dataset.objects.seen_by(by)
        try:
            dataset = datasets.named(options["name"])
            old = options["old"] or newest_version(dataset)
            comparison = compare_versions(find_version(dataset, old), find_version(dataset, options["new"]))
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        return {"name": dataset.name, "from": old, "to": options["new"], **comparison.to_json()}

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['name']}, {result['from']} to {result['to']}:")
        self.stdout.write("  " + ", ".join(f"{count} {kind}" for kind, count in result["counts"].items()))
        for name, new_name in result["renamed"].items():
            self.stdout.write(f"  renamed: class {name} is {new_name} now")
        for kind, changes in result["listed"].items():
            for change in changes:
                self.stdout.write(f"  {kind}: {change['path'] or change['old_path']}")
