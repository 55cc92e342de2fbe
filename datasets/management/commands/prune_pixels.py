"""`manage.py prune_pixels`: give back the space of decoded pixels that have not been needed for some time."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets import storage
from datasets.models import Preparation
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError


class Command(PlatformCommand):
    permission = "datasets.remove_pixels"
    help = "Remove the decoded pixels of old preparations; the newest of each dataset stays, and what a job uses."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--days", type=int, default=storage.DAYS, help="older than this many days")
        parser.add_argument("--preparation", type=int, help="this one only, whatever its age")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        preparations = Preparation.objects.seen_by(by)
        if options["preparation"] is not None:
            return _remove_one(preparations.filter(pk=options["preparation"]).first(), options["preparation"], by)
        if options["days"] < 0:
            raise CommandError("--days must be 0 or more.")
        pruned = storage.prune_older(options["days"], by=by)
        return pruned | {"use": storage.use()}

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['preparations']} preparations removed, {result['bytes'] / 1e6:,.1f} MB free again")


def _remove_one(preparation: Preparation | None, number: int, by: Any) -> dict[str, Any]:
    if preparation is None:
        raise CommandError(f"There is no preparation {number}.")
    try:
        freed = preparation.remove_pixels(by=by)
    except JobError as error:
        raise CommandError(f"{error} {error.hint}") from error
    return {"preparations": 1, "bytes": freed, "use": storage.use()}
