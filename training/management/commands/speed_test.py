"""`manage.py speed_test ARCHITECTURE`: how fast this machine trains, as the Measure button asks."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets.models import IMAGE_SIZES
from training.configurations import OPTIONS
from training.measuring import measure
from training.ml.architectures import ARCHITECTURES
from training.models import SpeedTest
from training.models.speed import DISTURBED
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import Job, JobError


class Command(PlatformCommand):
    permission = "training.add_speedtest"
    help = "Time a few training steps of an architecture here, for estimates of how long a training will take."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("architecture", choices=list(ARCHITECTURES))
        parser.add_argument("--image-size", type=int, default=224, choices=IMAGE_SIZES)
        parser.add_argument("--batch-size", type=int, help="default: the architecture's own")
        parser.add_argument("--fine-tuning", action="store_true", help="as with pretrained weights")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        batch_size, allowed = options["batch_size"], OPTIONS["batch_size"].range
        if batch_size is None:
            batch_size = ARCHITECTURES[options["architecture"]].batch_size
        elif not 1 <= batch_size <= allowed.high:
            raise CommandError(f"The batch size must be from 1 to {allowed.high:g}, not {batch_size}.")
        try:
            test = SpeedTest.request(
                options["architecture"], options["image_size"], batch_size, by, fine_tuning=options["fine_tuning"]
            )
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        # Here and now: the message of the queue then finds nothing left to do.
        if not test.run(test.attempt, lambda: measure(test)):
            raise CommandError("A worker is measuring this combination already; ask again in a minute.")
        test.refresh_from_db()
        return result_of(test)

    def show(self, result: dict[str, Any]) -> None:
        if result.get("failed"):
            self.stderr.write(result["error"])
            return
        self.stdout.write(
            f"{result['images_per_second']:.1f} images a second ({result['step_seconds']:.3f} s a step), first step "
            f"after {result['start_seconds']:.0f} s, {result['peak_memory'] / 1024**2:.0f} MB of memory."
        )
        if result["disturbed"]:
            self.stdout.write(DISTURBED)


def result_of(test: SpeedTest) -> dict[str, Any]:
    names = ("architecture", "image_size", "batch_size", "fine_tuning", "step_seconds", "prediction_seconds")
    result = {name: getattr(test, name) for name in (*names, "start_seconds", "peak_memory", "images_per_second")}
    result["disturbed"] = test.is_disturbed
    if test.state != Job.State.SUCCEEDED:
        result |= {"failed": True, "error": f"{test.error or test.message} {test.hint}".strip()}
    return {"speed_test": test.pk, "state": test.state, **result}
