"""`manage.py activate CONDITION VERSION`: put a version in service, as the Activate button does."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import ActivationError, ModelVersion, ThresholdSet
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.activate_modelversion"
    help = "Put a model version in service for its condition."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("--reason", default="", help="kept in the history")
        parser.add_argument(
            "--threshold-set", type=int, metavar="N", help="decide at this threshold set (default: as trained)"
        )

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        if len(options["reason"]) > 500:
            raise CommandError("The reason is too long; 500 characters at most.")
        by = self.actor(options)
        try:
            version = ModelVersion.objects.seen_by(by).numbered(options["condition"], options["version"])
            deployment = version.activate(
                by=by,
                reason=options["reason"],
                threshold_set=_threshold_set(version, options["threshold_set"]),
            )
        except (ModelVersion.DoesNotExist, ActivationError) as error:
            raise CommandError(str(error)) from error
        return {
            "condition": version.condition.slug,
            "active": version.number,
            "previous": deployment.previous.number if deployment.previous else None,
            "threshold": deployment.threshold,
            "threshold_set": deployment.threshold_set.number if deployment.threshold_set else None,
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Version {result['active']} is in service for {result['condition']}.")
        if result["threshold"] is not None:
            chosen = f"threshold set {result['threshold_set']}" if result["threshold_set"] else "as trained"
            self.stdout.write(f"It decides at a probability of {result['threshold']:.4g} ({chosen}).")


def _threshold_set(version: ModelVersion, number: int | None) -> ThresholdSet | None:
    if number is None:
        return None
    point = version.threshold_sets.filter(number=number).first()
    if point is None:
        raise CommandError(f"{version} has no threshold set {number}. See `operating_point` for those there are.")
    return point
