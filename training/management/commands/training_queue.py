"""`manage.py training_queue`: what trains and what waits, pausing it, and its order; the queue page's twin."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from training.models import TrainingQueue, TrainingRun
from training.queue_api import PRIORITIES
from training.waiting import overview
from xrayplatform.commands import PlatformCommand
from xrayplatform.http import row_number
from xrayplatform.jobs import JobError


class Command(PlatformCommand):
    permission = "training.view_trainingqueue"
    help = "Show the training queue; pause or open it, or change the priority of a waiting run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        change = parser.add_mutually_exclusive_group()
        change.add_argument("--pause", metavar="REASON", help="let no waiting run start; what runs goes on")
        change.add_argument("--open", action="store_true", help="let waiting runs start again")
        change.add_argument("--priority", nargs=2, metavar=("RUN", "low|normal|high"), help="of a waiting run")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        self.permission = self._needed(options)
        by = self.actor(options)
        if options["pause"] is not None:
            if not options["pause"].strip():
                raise CommandError("Say why the queue is paused: everybody who waits reads it.")
            TrainingQueue.pause(by, options["pause"])
        elif options["open"]:
            TrainingQueue.open(by)
        elif options["priority"]:
            _prioritise(*options["priority"], by)
        return overview(by).to_json()

    def _needed(self, options: dict[str, Any]) -> str:
        if options["pause"] is not None or options["open"]:
            return "training.pause_trainingqueue"
        return "training.prioritise_trainingrun" if options["priority"] else self.permission

    def show(self, result: dict[str, Any]) -> None:
        if result["paused"]:
            self.stdout.write(f"Paused by {result['changed_by'] or 'the command line'}: {result['reason']}")
        if result["problem"]:
            self.stdout.write(result["problem"])
        for title in ("running", "waiting", "held"):
            for entry in result[title]:
                self.stdout.write(f"{title:8} {_words(entry)}")
        if not any(result[title] for title in ("running", "waiting", "held")):
            self.stdout.write("Nothing runs and nothing waits.")


def _prioritise(run: str, priority: str, by: Any) -> None:
    if priority.lower() not in PRIORITIES:
        raise CommandError(f"The priority must be one of {', '.join(PRIORITIES)}, not {priority}.")
    found = TrainingRun.objects.seen_by(by).filter(pk=row_number(run)).first()
    if found is None:
        raise CommandError(f"There is no run {run}.")
    try:
        found.prioritise(PRIORITIES[priority.lower()], by)
    except JobError as error:
        raise CommandError(f"{error} {error.hint}") from error


def _words(entry: dict[str, Any]) -> str:
    if entry["run"] is None:
        what = "a run of another team"
    else:
        who = entry["started_by"] or "command line"
        what = f"run {entry['run']}: {entry['architecture']} on {entry['dataset']} by {who}"
    return f"{what}, priority {entry['priority'].lower()}. {entry['why']}".rstrip()
