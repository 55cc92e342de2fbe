"""`manage.py activate CONDITION VERSION`: put a version in service, as the Activate button does."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import ActivationError, ModelVersion
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.activate_modelversion"
    help = "Put a model version in service for its condition."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("--reason", default="", help="kept in the history")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        if len(options["reason"]) > 500:
            raise CommandError("The reason is too long; 500 characters at most.")
        try:
            version = ModelVersion.objects.numbered(options["condition"], options["version"])
            deployment = version.activate(by=self.actor(options), reason=options["reason"])
        except (ModelVersion.DoesNotExist, ActivationError) as error:
            raise CommandError(str(error)) from error
        return {
            "condition": version.condition.slug,
            "active": version.number,
            "previous": deployment.previous.number if deployment.previous else None,
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Version {result['active']} is in service for {result['condition']}.")
