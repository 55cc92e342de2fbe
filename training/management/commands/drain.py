"""`manage.py drain`: before an update, stop all trainings at a checkpoint; `drain --end` lets them go on."""

import time
from argparse import ArgumentParser
from typing import Any

from django.db import transaction

from training.models import TrainingQueue, TrainingRun
from xrayplatform import audit
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import Job, reap

POLL_SECONDS = 0.5


class Command(PlatformCommand):
    permission = "training.pause_trainingqueue"
    help = "Pause the training queue and stop what runs at a checkpoint; nothing is lost. With --end, go on."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--wait", type=float, default=300.0, metavar="SECONDS", help="for the trainings (300)")
        parser.add_argument("--end", action="store_true", help="open the queue again; waiting trainings go on")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        if options["end"]:
            return {"paused": False, "changed": TrainingQueue.open(by), "waiting": waiting()}
        runs = self._ask(by)
        running = self._wait(runs, options["wait"])
        result = {
            "paused": True,
            "stopped": [run for run in runs if run not in running],
            "running": running,
            "waiting": waiting(),
        }
        return result | ({"failed": True, "error": "Some trainings still run."} if running else {})

    def _ask(self, by: Any) -> list[int]:
        with transaction.atomic():
            TrainingQueue.pause(by, "Stopped for an update")
            runs = TrainingRun.objects.filter(state=Job.State.RUNNING)
            for run in runs.select_related("preparation__dataset"):
                audit.record("trainingrun.drain", run, actor=by)
            asked = list(runs.order_by("pk").values_list("pk", flat=True))
            runs.update(drain_requested=True, message="Stopping at a checkpoint")
        return asked

    def _wait(self, runs: list[int], seconds: float) -> list[int]:
        """Those that still run after so long."""
        until = time.monotonic() + seconds
        while True:
            reap()
            running = TrainingRun.objects.filter(pk__in=runs, state=Job.State.RUNNING)
            left = list(running.order_by("pk").values_list("pk", flat=True))
            if not left or time.monotonic() >= until:
                return left
            time.sleep(POLL_SECONDS)

    def show(self, result: dict[str, Any]) -> None:
        if not result["paused"]:
            self.stdout.write(f"The training queue is open; {result['waiting']} trainings wait.")
            return
        self.stdout.write(f"The training queue is paused; {len(result['stopped'])} trainings were stopped.")
        if result["running"]:
            numbers = ", ".join(map(str, result["running"]))
            self.stderr.write(f"Still running: {numbers}. Call drain again, or stop the workers: they lose little.")
        else:
            self.stdout.write("Stop the services, update, start them, and let the trainings go on with drain --end.")


def waiting() -> int:
    return TrainingRun.objects.filter(state=Job.State.QUEUED, held=False).count()
