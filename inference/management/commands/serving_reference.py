"""`manage.py serving_reference CONDITION VERSION`: read the version's own images now, as the queue does by itself."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from inference import reference_work
from registry.models import ModelVersion
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.activate_modelversion"
    help = "Compute what a version's own images look like to it, for the checks before the model and for monitoring."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        try:
            version = ModelVersion.objects.seen_by(actor).numbered(options["condition"], options["version"])
            row = reference_work.claim(version)
        except (ModelVersion.DoesNotExist, reference_work.ReferenceBusy) as error:
            raise CommandError(str(error)) from error
        problem = reference_work.compute(row, by=actor)
        if problem:
            raise CommandError(problem)
        row.refresh_from_db()
        return {
            "condition": version.condition.slug,
            "version": version.number,
            "images": row.images_count,
            "tells_likeness": bool(row.reference),
            "false_alarm_rate": row.false_alarm_rate,
            "problem": row.problem,
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Reference of {result['condition']} v{result['version']}: {result['images']} images.")
        if result["false_alarm_rate"] is not None:
            rate = f"{100 * result['false_alarm_rate']:.1f} %"
            self.stdout.write(f"  At most {rate} of the right radiographs are called unlike.")
        if result["problem"]:
            self.stdout.write(f"  {result['problem']}")
        self.stdout.write("  Processes that serve take it up within an hour.")
