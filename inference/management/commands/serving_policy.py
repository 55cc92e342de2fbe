"""`manage.py serving_policy CONDITION [--set on_unlike=refuse ...]`: a condition's policy, as on its page."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from inference.models import ServingPolicy
from inference.policies import LIMITS, PolicyError, change
from inference.policy_api import document
from xrayplatform.commands import PlatformCommand
from xrayplatform.conditions import Condition


class Command(PlatformCommand):
    permission = "inference.view_servingpolicy"
    help = "What the checks before the model do in a condition, and the limits beyond which people are told."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument(
            "--set",
            nargs="+",
            default=[],
            metavar="NAME=VALUE",
            dest="changes",
            help="such as on_unlike=refuse or max_latency_ms=1500",
        )

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        condition = Condition.objects.seen_by(actor).filter(slug=options["condition"]).first()
        if condition is None:
            raise CommandError(f"There is no condition {options['condition']!r}.")
        if not options["changes"]:
            return document(ServingPolicy.objects.of(condition))
        if actor is not None and not actor.has_perm("inference.change_servingpolicy"):
            raise CommandError(f"{actor} has no role that allows this (inference.change_servingpolicy).")
        try:
            return document(change(condition, dict(map(_pair, options["changes"])), by=actor))
        except PolicyError as error:
            raise CommandError(str(error)) from error

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Serving policy of {result['condition']}:")
        for name, value in result.items():
            if name != "condition":
                self.stdout.write(f"  {name} = {value}" + (f" ({LIMITS[name].unit})" if name in LIMITS else ""))


def _pair(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise CommandError(f"{text} is no NAME=VALUE.")
    if name not in LIMITS:
        return name, value
    try:
        return name, float(value)
    except ValueError as error:
        raise CommandError(f"{name} is a number, not {value}.") from error
