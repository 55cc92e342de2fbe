"""`manage.py upload_images DATASET PATH...`: add images to a dataset folder, as the Upload page does, at once."""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from datasets.archives import MAX_MEMBERS
from datasets.models import Dataset, Scan, Upload
from datasets.receiving import Inbox, files_of
from datasets.tasks import run_scan, run_upload
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError
from xrayplatform.teams import Team


class Command(PlatformCommand):
    permission = "datasets.upload_dataset"
    help = "Check images and put them into a dataset folder, then scan."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("dataset", help="the dataset's path below DATASET_ROOT")
        parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, zip archives or folders")
        parser.add_argument("--class", dest="class_folder", default="", help="class folder, where the paths have none")
        parser.add_argument("--new", action="store_true", help="make a new folder of that name")
        parser.add_argument("--team", help="the team of a new dataset (default: that of --user)")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        inbox = Inbox()
        try:
            job = self._submit(inbox, options)
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        finally:
            inbox.discard()
        job.listener = self.tell_progress
        run_upload(job, job.attempt)
        if job.state != Upload.State.SUCCEEDED:
            return self._failure(job, options)
        scan = self._scan()
        result = {
            "upload": job.pk,
            "dataset": job.name,
            "accepted": job.accepted,
            "refused": job.refused,
            "bytes": job.size,
            "refusals": job.refusals,
            "notes": job.notes,
            "scan": scan and scan.state,
            "seconds": round(time.monotonic() - start, 2),
        }
        if scan and scan.state in (Scan.State.FAILED, Scan.State.CANCELLED):
            result |= {"failed": True, "scan_error": f"{scan.error or scan.message} {scan.hint}".strip()}
        return result

    def _failure(self, job: Upload, options: dict[str, Any]) -> dict[str, Any]:
        """With the reason of each file, in the JSON object or as words before the error."""
        error = f"{job.error or job.message} {job.hint}".strip()
        if options["json"]:
            return {
                "failed": True,
                "error": error,
                "upload": job.pk,
                "dataset": job.name,
                "accepted": 0,
                "refused": job.refused,
                "refusals": job.refusals,
            }
        for refusal in job.refusals:
            self.tell(f"  ! {refusal['name']}: {refusal['reason']}")
        raise CommandError(error)

    def _submit(self, inbox: Inbox, options: dict[str, Any]) -> Upload:
        user = self.actor(options)
        target = _new_folder(options, user) if options["new"] else {"dataset": _dataset(options["dataset"], user)}
        for number, (name, path) in enumerate(files_of(options["paths"])):
            if number >= MAX_MEMBERS:
                raise JobError(f"There are more than {MAX_MEMBERS:,} files.", "Upload them in several parts.")
            inbox.add(name, path)
        return inbox.submit(user, class_folder=options["class_folder"], **target)

    def _scan(self) -> Scan | None:
        """The scan that the upload has asked for is done here: on a site without a worker it would wait for ever.

        None when one was at work already.
        """
        scan = Scan.waiting()
        if scan:
            scan.listener = self.tell_progress
            run_scan(scan, scan.attempt)
            scan.refresh_from_db()
        return scan

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['accepted']} files added to {result['dataset']}, {result['refused']} refused")
        for refusal in result["refusals"]:
            self.stdout.write(f"  ! {refusal['name']}: {refusal['reason']}")
        for note in result["notes"]:
            self.stdout.write(f"  {note}")
        if result.get("failed"):
            self.tell(f"The files are in place, but the scan after it did not succeed. {result['scan_error']}")


def _dataset(name: str, user: Any) -> Dataset:
    datasets = Dataset.objects.visible_to(user) if user else Dataset.objects.all()
    try:
        return datasets.select_related("condition__team").named(name)
    except JobError as error:
        raise JobError(str(error), "Add --new to make a new folder of that name.") from error


def _new_folder(options: dict[str, Any], user: Any) -> dict[str, Any]:
    teams = user.teams.all() if user else Team.objects.all()
    if options["team"]:
        team = teams.filter(name=options["team"]).first()
        if team is None:
            raise JobError(f"There is no team {options['team']!r} that {user or 'anybody'} is in.")
        return {"name": options["dataset"], "team": team}
    if user and len(teams) > 1:
        raise JobError(f"{user} is in several teams.", "Say with --team which one the dataset belongs to.")
    return {"name": options["dataset"], "team": teams.first() if user else None}
