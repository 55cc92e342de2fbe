"""`manage.py time_steps ARCHITECTURE`: the process that a speed test starts. It alone imports TensorFlow."""

import json
import os
import time
from argparse import ArgumentParser
from typing import Any

import psutil
from django.core.management.base import BaseCommand, CommandError

from training.measuring import PARENT_VARIABLE
from training.ml.architectures import ARCHITECTURES
from training.ml.control import TrainingFailed
from xrayplatform.processes import die_with_parent


class Command(BaseCommand):
    help = "Time a few training steps. Started by a speed test, not by people; see speed_test."
    # Whoever starts it has checked them; they would cost a second of every start.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("architecture", choices=list(ARCHITECTURES))
        parser.add_argument("--image-size", type=int, required=True)
        parser.add_argument("--batch-size", type=int, required=True)
        parser.add_argument("--fine-tuning", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if PARENT_VARIABLE in os.environ:
            die_with_parent(int(os.environ[PARENT_VARIABLE]))
        from training.ml.fit import timed_steps

        # The start of a training has the loading of Python, Django and TensorFlow in it too.
        loading = time.time() - psutil.Process().create_time()
        try:
            timing = timed_steps(
                options["architecture"],
                image_size=options["image_size"],
                classes=2,
                batch_size=options["batch_size"],
                fine_tuning=options["fine_tuning"],
            )
        except TrainingFailed as error:
            raise CommandError(f"{error} {error.hint}") from error
        result = {
            "step_seconds": timing.step_seconds,
            "prediction_seconds": timing.prediction_seconds,
            "start_seconds": loading + timing.start_seconds,
            "peak_memory": timing.peak_memory,
        }
        self.stdout.write(json.dumps(result))
