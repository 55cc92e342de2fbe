"""`manage.py planned [--cancel N]`: the planned activations that wait for their time."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import ActivationError, ScheduledActivation
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.activate_modelversion"
    help = "List the planned activations, or cancel one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--cancel", type=int, metavar="N", help="the number of the planned activation to cancel")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        rows = ScheduledActivation.objects.seen_by(actor).select_related("version__condition", "by")
        if options["cancel"] is not None:
            _cancel(rows.filter(pk=options["cancel"]).first(), actor, options["cancel"])
        return {
            "planned": [
                {
                    "id": row.pk,
                    "condition": row.version.condition.slug,
                    "version": row.version.number,
                    "at": row.at.isoformat(),
                    "reason": row.reason,
                    "by": row.by.get_username() if row.by else None,
                }
                for row in rows.waiting().order_by("at")
            ]
        }

    def show(self, result: dict[str, Any]) -> None:
        for row in result["planned"]:
            self.stdout.write(f"{row['id']}: {row['condition']} v{row['version']} at {row['at']} ({row['reason']})")
        if not result["planned"]:
            self.stdout.write("No activation is planned.")


def _cancel(planned: ScheduledActivation | None, actor: Any, number: int) -> None:
    if planned is None:
        raise CommandError(f"There is no planned activation {number}.")
    try:
        planned.cancel(by=actor)
    except ActivationError as error:
        raise CommandError(str(error)) from error
