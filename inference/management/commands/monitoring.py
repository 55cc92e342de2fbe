"""`manage.py monitoring CONDITION [--weeks N]`: how the versions of a condition do in use, week by week."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from inference.models import MonitoringAlert
from inference.monitoring import MOST_WEEKS, WEEKS, figures
from inference.monitoring_api import MonitoringAlertSerializer
from xrayplatform.commands import PlatformCommand
from xrayplatform.conditions import Condition


class Command(PlatformCommand):
    permission = "inference.view_monitoringalert"
    help = "Show load, refusals, drift against validation and agreement of readers by week, and the open alerts."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("--weeks", type=int, default=WEEKS, help=f"1 to {MOST_WEEKS} (default: {WEEKS})")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        if not 1 <= options["weeks"] <= MOST_WEEKS:
            raise CommandError(f"Name 1 to {MOST_WEEKS} weeks.")
        condition = Condition.objects.seen_by(self.actor(options)).filter(slug=options["condition"]).first()
        if condition is None:
            raise CommandError(f"There is no condition {options['condition']!r}.")
        alerts = MonitoringAlert.objects.filter(condition=condition, seen_at__isnull=True).select_related("condition")
        return {
            "condition": condition.slug,
            "weeks": [week.to_json() for week in figures(condition, weeks=options["weeks"])],
            "alerts": [dict(MonitoringAlertSerializer(alert).data) for alert in alerts],
        }

    def show(self, result: dict[str, Any]) -> None:
        if not result["weeks"]:
            self.stdout.write("No radiograph was analysed in these weeks.")
        for week in result["weeks"]:
            self.stdout.write(_line(week))
        for alert in result["alerts"]:
            self.stdout.write(f"  ! week from {alert['week']}: {alert['text']}")


def _line(week: dict[str, Any]) -> str:
    name = f"v{week['version']}" if week["version"] else "no version"
    readers, drifted = week["readers"], [one for one in week["drift"] if one["psi"]]
    largest = max(drifted, key=lambda one: one["psi"]["value"], default=None)
    parts = [f"{week['answers']} answers"]
    if week["latency_ms"]["p95"] is not None:
        parts.append(f"p95 {week['latency_ms']['p95']:.0f} ms")
    parts.append(f"refused {_percent(week['refused'])}, errors {_percent(week['errors'])}")
    if largest:
        parts.append(f"largest PSI {largest['psi']['value']:.2f} ({largest['label']})")
    parts.append(f"agreement {_percent(readers['agreement'])} of {readers['judged']} judged")
    return f"{week['week']} {name}{'' if week['shown'] else ' as a shadow'}: {', '.join(parts)}"


def _percent(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return "not available"
    return f"{100 * rate['value']:.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
