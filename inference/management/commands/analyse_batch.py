"""`manage.py analyse_batch CONDITION PATH...`: analyse files, folders and zips of the server, in this process."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from datasets.receiving import Inbox, files_of
from inference import batch_results
from inference.batches import MAX_FILES
from inference.models import Batch
from inference.tasks import run_batch
from xrayplatform.commands import PlatformCommand
from xrayplatform.conditions import Condition
from xrayplatform.jobs import JobError
from xrayplatform.spreadsheets import csv_lines
from xrayplatform.system import NotEnoughDisk, require_disk


class Command(PlatformCommand):
    permission = "inference.add_batch"
    help = "Analyse many radiographs with the model in service for a condition, as one batch."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, zip archives or folders")
        parser.add_argument("--name", default="", help="of the batch, to find it again")
        parser.add_argument("--csv", type=Path, metavar="OUT", help="write the results into this file as well")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        user = self.actor(options)
        condition = Condition.objects.seen_by(user).filter(slug=options["condition"]).first()
        if condition is None:
            known = ", ".join(Condition.objects.seen_by(user).values_list("slug", flat=True)) or "none"
            raise CommandError(f"There is no condition {options['condition']!r}. Known conditions: {known}.")
        job = _batch(condition, options, user)
        job.listener = self.tell_progress
        run_batch(job, job.attempt)
        job.refresh_from_db()
        result = batch_results.as_json(job, user)
        if options["csv"]:
            _write(options["csv"], job)
        if job.state != Batch.State.SUCCEEDED:
            result |= {"failed": True, "error": f"{job.error or job.message} {job.hint}".strip()}
        return result

    def show(self, result: dict[str, Any]) -> None:
        for item in result["results"]:
            chance = item["probabilities"][item["decision"]] if item["prediction"] else None
            words = f"{item['decision']} ({chance:.3f})" if chance is not None else item["error"] or item["state"]
            self.stdout.write(f"{item['name']}: {words}")
            for warning in item.get("warnings", ()):
                self.stdout.write(f"  ! {warning}")
        if result.get("failed"):
            self.tell(result["error"])


def _batch(condition: Condition, options: dict[str, Any], user: Any) -> Batch:
    inbox = Inbox()
    try:
        for number, (name, path) in enumerate(files_of(options["paths"])):
            if number >= MAX_FILES:
                raise JobError(f"There are more than {MAX_FILES:,} files.", "Divide them into several batches.")
            require_disk(path.stat().st_size)
            inbox.add(name, path)
        return Batch.of_files(condition, inbox.seal(), by=user, name=options["name"])
    except NotEnoughDisk as error:
        raise CommandError(str(error)) from error
    except JobError as error:
        raise CommandError(f"{error} {error.hint}") from error
    finally:
        inbox.discard()


def _write(path: Path, job: Batch) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines(csv_lines(batch_results.csv_rows(job)))
    except OSError as error:
        raise CommandError(f"The results could not be written to {path}: {error.strerror}.") from error
