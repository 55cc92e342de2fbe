"""`manage.py corrections CONDITION [--from-version N] [--preview]`: make a dataset of what readers said."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from inference import corrections
from registry.models import ModelVersion
from xrayplatform.commands import PlatformCommand
from xrayplatform.conditions import Condition
from xrayplatform.jobs import JobError


class Command(PlatformCommand):
    permission = "datasets.upload_dataset"
    help = "Make a dataset of the analysed radiographs that readers judged, and have it scanned."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("--from-version", type=int, metavar="N", help="to train on from (default: in service)")
        parser.add_argument("--preview", action="store_true", help="only say what it would hold")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        condition = Condition.objects.seen_by(by).filter(slug=options["condition"]).first()
        if condition is None:
            raise CommandError(f"There is no condition {options['condition']!r}.")
        try:
            version = (
                corrections.base_of(condition)
                if options["from_version"] is None
                else ModelVersion.objects.numbered(condition.slug, options["from_version"])
            )
            if options["preview"]:
                return corrections.plan(condition, version).to_json()
            return corrections.make(condition, version, by=by).to_json()
        except ModelVersion.DoesNotExist as error:
            raise CommandError(str(error)) from error
        except JobError as error:
            raise CommandError(f"{error} {error.hint}".strip()) from error

    def show(self, result: dict[str, Any]) -> None:
        for name, count in result["by_class"].items():
            self.stdout.write(f"  {name:24} {count:6d}")
        for one in result["left_out"]:
            self.stdout.write(f"  left out {one['images']}: {one['reason']}")
        self.stdout.write(result["note"])
        self.stdout.write(result.get("text") or result["obstacle"] or "Nothing was made; this was a preview.")
