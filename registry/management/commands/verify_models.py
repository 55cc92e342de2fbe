"""`manage.py verify_models`: look at every file of every version; exit status 1 when one is not what was registered."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import ModelVersion
from registry.tasks import verify_each
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError


class Command(PlatformCommand):
    permission = "registry.activate_modelversion"
    help = "Verify the files of all versions, of one condition, or of one version, against their digests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", nargs="?", help="the condition's slug (default: all)")
        parser.add_argument("version", nargs="?", type=int, help="the version's number (default: all of the condition)")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        versions = ModelVersion.objects.seen_by(self.actor(options)).order_by("pk")
        for name, value in (("condition__slug", options["condition"]), ("number", options["version"])):
            versions = versions if value is None else versions.filter(**{name: value})
        if options["condition"] and not versions.exists():
            raise CommandError("There is no such version.")
        try:
            damaged, count = verify_each(versions, self._report)
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        rows = versions.exclude(integrity__reason="").select_related("condition", "integrity")
        return {
            "verified": count,
            "failed": damaged,
            "damaged": [
                {
                    "condition": version.condition.slug,
                    "version": version.number,
                    "reason": version.integrity.reason,
                    "message": version.integrity.message,
                }
                for version in rows
            ],
        }

    def _report(self, done: int, total: int, message: str) -> None:
        self.tell(f"  {done / total:4.0%} {message}")

    def show(self, result: dict[str, Any]) -> None:
        for row in result["damaged"]:
            self.stdout.write(f"{row['condition']} v{row['version']} is damaged: {row['message']}")
        self.stdout.write(f"{result['verified']} versions verified, {result['failed']} damaged.")
