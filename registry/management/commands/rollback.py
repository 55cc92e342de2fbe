"""`manage.py rollback CONDITION --reason WHY`: go back to the version that was in service before."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import ActivationError, Deployment
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.activate_modelversion"
    help = "Put the version that was in service before back, with the threshold it had."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("--reason", required=True, help="kept in the history")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        if len(options["reason"]) > 500:
            raise CommandError("The reason is too long; 500 characters at most.")
        actor = self.actor(options)
        deployments = Deployment.objects.seen_by(actor).select_related("active__condition", "condition")
        deployment = deployments.filter(condition__slug=options["condition"]).first()
        if deployment is None:
            raise CommandError(f"Nothing is in service for {options['condition']!r}.")
        try:
            back = deployment.roll_back(by=actor, reason=options["reason"])
        except ActivationError as error:
            raise CommandError(str(error)) from error
        return {
            "condition": options["condition"],
            "active": back.active.number,
            "previous": back.previous.number,
            "threshold": back.threshold,
            "threshold_set": back.threshold_set.number if back.threshold_set else None,
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(
            f"Version {result['active']} is in service for {result['condition']} again, "
            f"instead of version {result['previous']}."
        )
