"""`manage.py version_state CONDITION VERSION approve --reason WHY`: approve, archive or reopen a version."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import ModelVersion, StateError
from xrayplatform.commands import PlatformCommand

CHANGES = {"approve": ModelVersion.approve, "archive": ModelVersion.archive, "reopen": ModelVersion.reopen}


class Command(PlatformCommand):
    permission = "registry.change_state_modelversion"
    help = "Approve a model version, archive it, or make it a candidate again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("change", choices=list(CHANGES), help="what to do with it")
        parser.add_argument("--reason", required=True, help="kept in the history")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        try:
            version = ModelVersion.objects.seen_by(actor).numbered(options["condition"], options["version"])
            change = CHANGES[options["change"]](version, by=actor, reason=options["reason"])
        except (ModelVersion.DoesNotExist, StateError) as error:
            raise CommandError(str(error)) from error
        return {
            "condition": version.condition.slug,
            "version": version.number,
            "state": change.to_state,
            "before": change.from_state,
            "reason": change.reason,
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(
            f"Version {result['version']} of {result['condition']} is {result['state']} (before: {result['before']})."
        )
