"""`manage.py make_samples`: synthetic sample radiographs in the documented layouts, to try the platform with."""

import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from datasets.phantoms import make_samples
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    help = "Write synthetic sample datasets below DATASET_ROOT, marked as synthetic."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--per-class", type=int, default=80, help="images per class")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        if options["per_class"] < 10:
            raise CommandError("A class needs at least 10 images to be trained on: --per-class 10 or more.")
        start = time.monotonic()
        folders = make_samples(settings.DATASET_ROOT, per_class=options["per_class"])
        names = [folder.relative_to(settings.DATASET_ROOT).as_posix() for folder in folders]
        return {"datasets": names, "seconds": round(time.monotonic() - start, 2)}

    def show(self, result: dict[str, Any]) -> None:
        for name in result["datasets"]:
            self.stdout.write(f"  {name} (synthetic)")
