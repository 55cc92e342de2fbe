"""`manage.py delete_version CONDITION VERSION --reason WHY`: delete an archived version that nothing refers to."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import ModelVersion
from registry.retention import DeletionError, delete
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.delete_modelversion"
    help = "Delete an archived version that nothing refers to, with its files. Its number is never given again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("--reason", required=True, help="kept for good")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        try:
            version = ModelVersion.objects.seen_by(actor).numbered(options["condition"], options["version"])
            gone = delete(version, by=actor, reason=options["reason"])
        except (ModelVersion.DoesNotExist, DeletionError) as error:
            raise CommandError(str(error)) from error
        return {
            "condition": options["condition"],
            "version": gone.number,
            "sha256": gone.sha256,
            "freed": gone.size,
            "reason": gone.reason,
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(
            f"Version {result['version']} of {result['condition']} was deleted; {result['freed'] / 1e6:,.1f} MB are "
            "free again."
        )
