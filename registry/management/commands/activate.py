"""`manage.py activate CONDITION VERSION --reason WHY`: put a version in service, as the Activate button does."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from registry.models import ActivationError, ModelVersion, ScheduledActivation, ThresholdSet
from registry.outlook import outlook
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.activate_modelversion"
    help = "Put a model version in service for its condition, now or at a time."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("--reason", required=True, help="kept in the history")
        parser.add_argument(
            "--threshold-set", type=int, metavar="N", help="decide at this threshold set (default: as trained)"
        )
        parser.add_argument("--at", metavar="TIME", help="not now but then, such as 2030-05-06T07:00; see `planned`")
        parser.add_argument(
            "--epoch", type=int, metavar="N", help="refuse when the deployment is not at this epoch any more"
        )

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        if len(options["reason"]) > 500:
            raise CommandError("The reason is too long; 500 characters at most.")
        actor = self.actor(options)
        try:
            version = ModelVersion.objects.seen_by(actor).numbered(options["condition"], options["version"])
            wish = {
                "by": actor,
                "reason": options["reason"],
                "threshold_set": version.threshold_set_numbered(options["threshold_set"]),
                "seen_epoch": options["epoch"],
            }
            if options["at"]:
                return _plan(version, _time(options["at"]), wish)
            return self._activate(version, wish)
        except ThresholdSet.DoesNotExist as error:
            raise CommandError(f"{error} See `operating_point` for those there are.") from error
        except (ModelVersion.DoesNotExist, ActivationError) as error:
            raise CommandError(str(error)) from error

    def _activate(self, version: ModelVersion, wish: dict[str, Any]) -> dict[str, Any]:
        deployment = getattr(version.condition, "deployment", None)
        expected = outlook(deployment.active if deployment else None, version)
        for warning in expected.warnings if expected else []:
            self.tell(f"Note: {warning}")
        deployment = version.activate(**wish)
        return {
            "condition": version.condition.slug,
            "active": version.number,
            "previous": deployment.previous.number if deployment.previous else None,
            "threshold": deployment.threshold,
            "threshold_set": deployment.threshold_set.number if deployment.threshold_set else None,
        }

    def show(self, result: dict[str, Any]) -> None:
        if "at" in result:
            self.stdout.write(
                f"Version {result['version']} goes into service for {result['condition']} at {result['at']}."
            )
            return
        self.stdout.write(f"Version {result['active']} is in service for {result['condition']}.")
        if result["threshold"] is not None:
            chosen = f"threshold set {result['threshold_set']}" if result["threshold_set"] else "as trained"
            self.stdout.write(f"It decides at a probability of {result['threshold']:.4g} ({chosen}).")


def _plan(version: ModelVersion, at: datetime, wish: dict[str, Any]) -> dict[str, Any]:
    planned = ScheduledActivation.objects.plan(version, at, **wish)
    return {
        "condition": version.condition.slug,
        "version": version.number,
        "planned": planned.pk,
        "at": planned.at.isoformat(),
    }


def _time(text: str) -> datetime:
    try:
        at = parse_datetime(text)
    except ValueError:
        at = None
    if at is None:
        raise CommandError(f"{text!r} is no time. Write it like 2030-05-06T07:00.")
    return at if timezone.is_aware(at) else timezone.make_aware(at)
