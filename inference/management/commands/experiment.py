"""`manage.py experiment start|stop|promote|report`: try a version beside the one in service, and decide."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from inference.experiment_api import document
from inference.models import Experiment
from registry.models import ActivationError, ModelVersion
from xrayplatform.commands import PlatformCommand

RIGHTS = {
    "start": ("inference.add_experiment",),
    "stop": ("inference.change_experiment",),
    "promote": ("inference.change_experiment", "registry.activate_modelversion"),
    "report": ("inference.view_experiment",),
}


class Command(PlatformCommand):
    help = "Try a version beside the one in service, see what it showed, and end it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="what", required=True, metavar="start|stop|promote|report")
        start = commands.add_parser("start", help="try a version")
        start.add_argument("condition", help="the condition's slug")
        start.add_argument("version", type=int, help="the number of the version to try")
        start.add_argument("--kind", choices=Experiment.Kind.values, default=Experiment.Kind.SHADOW.value)
        start.add_argument("--share", type=int, default=10, help="per cent of the studies, for ab (default: 10)")
        start.add_argument("--max-error-rate", type=float, help="share of its requests that may fail (default: 0.05)")
        start.add_argument("--max-latency-ratio", type=float, help="its latency by the champion's (default: 3)")
        start.add_argument("--min-requests", type=int, help="before it may be stopped by itself (default: 20)")
        for name, words in (
            ("stop", "end it"),
            ("promote", "put the challenger in service"),
            ("report", "what it showed"),
        ):
            commands.add_parser(name, help=words).add_argument("experiment", type=int, help="the experiment's number")
        for name, command in commands.choices.items():
            super().add_arguments(command)
            if name != "report":
                command.add_argument("--reason", required=True, help="why; it is kept in the history")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        for right in RIGHTS[options["what"]]:
            if actor is not None and not actor.has_perm(right):
                raise CommandError(f"{actor} has no role that allows this ({right}).")
        try:
            experiment = _start(options, actor) if options["what"] == "start" else _named(options, actor)
            if options["what"] in ("stop", "promote"):
                getattr(experiment, options["what"])(by=actor, reason=options["reason"])
        except (ActivationError, ModelVersion.DoesNotExist) as error:
            raise CommandError(str(error)) from error
        return document(experiment)

    def show(self, result: dict[str, Any]) -> None:
        so_far, report = result["so_far"], result["report"]
        self.stdout.write(f"Experiment {result['id']} on {result['condition']} ({result['kind']}): {result['state']}")
        if result["ended_reason"]:
            self.stdout.write(f"  {result['ended_reason']}")
        self.stdout.write(
            f"  {so_far['champion_answers']} answers of the champion, {so_far['challenger_answers']} of the "
            f"challenger, which failed {so_far['challenger_failures']}"
        )
        self.stdout.write(f"  {report['conclusion']}")
        for line in (*report["cautions"], *report["notes"]):
            self.stdout.write(f"  {line}")


def _start(options: dict[str, Any], actor: Any) -> Experiment:
    version = ModelVersion.objects.seen_by(actor).numbered(options["condition"], options["version"])
    names = ("max_error_rate", "max_latency_ratio", "min_requests")
    limits = {name: options[name] for name in names if options[name] is not None}
    return Experiment.objects.start(
        version.condition,
        version,
        kind=options["kind"],
        share=options["share"],
        by=actor,
        reason=options["reason"],
        **limits,
    )


def _named(options: dict[str, Any], actor: Any) -> Experiment:
    experiment = Experiment.objects.seen_by(actor).with_names().filter(pk=options["experiment"]).first()
    if experiment is None:
        raise CommandError(f"There is no experiment {options['experiment']}.")
    return experiment
