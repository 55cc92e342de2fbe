"""`manage.py prepare_dataset NAME`: split and decode a dataset, as Prepare for Training does, in this process."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets.enhancement import STEPS
from datasets.models import IMAGE_SIZES, Dataset, Preparation
from datasets.tasks import run_preparation
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError

OPTIONS = ("seed", "image_size", "fit", "steps", "validation_share", "test_share", "source_splits")


class Command(PlatformCommand):
    permission = "datasets.prepare_dataset"
    help = "Prepare a scanned dataset for training."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", help="the dataset's path below DATASET_ROOT")
        parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same split")
        parser.add_argument("--image-size", type=int, default=224, choices=IMAGE_SIZES)
        parser.add_argument("--fit", default="auto", choices=Preparation.Fit.values, help="how images become square")
        parser.add_argument("--steps", nargs="*", default=[], choices=list(STEPS), help="preprocessing (default: none)")
        parser.add_argument("--validation-share", type=float, default=0.15, help="of the images, 0.05 to 0.40")
        parser.add_argument("--test-share", type=float, default=0.15, help="of the images, 0.05 to 0.40")
        parser.add_argument("--source-splits", default="honour", choices=Preparation.SourceSplits.values)

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        try:
            by = self.actor(options)
            datasets = Dataset.objects.seen_by(by)
            dataset = datasets.named(options["name"])
            job = Preparation.create(dataset, by, **{name: options[name] for name in OPTIONS})
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        job.listener = self.tell_progress
        run_preparation(job, job.attempt)
        if job.state != Preparation.State.SUCCEEDED:
            raise CommandError(f"{job.error or job.message} {job.hint}".strip())
        return {
            "preparation": job.pk,
            "train": job.split_total("train"),
            "validation": job.split_total("validation"),
            "test": job.split_total("test"),
            "group_key": job.group_key,
            "shared_patients": job.shared_patients,
            "groups": job.group_counts,
            "excluded": job.excluded,
            "left_out": job.left_out,
            "split_digest": job.split_digest,
            "warnings": job.warnings,
            "seconds": round(time.monotonic() - start, 2),
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(
            f"Preparation {result['preparation']}: {result['train']} for training, {result['validation']} for "
            f"validation, {result['test']} for the test, {result['excluded']} excluded"
        )
        self.stdout.write(f"Grouped by {result['group_key']}: {result['shared_patients']} shared patients")
        for warning in result["warnings"]:
            self.stdout.write(f"  ! {warning}")
