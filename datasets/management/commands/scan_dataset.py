"""`manage.py scan_dataset`: look through DATASET_ROOT, as the Scan button does, in this process."""

import time
from typing import Any

from django.core.management.base import CommandError

from datasets.models import Dataset, Scan
from datasets.tasks import run_scan
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError


class Command(PlatformCommand):
    permission = "datasets.scan_dataset"
    help = "Scan DATASET_ROOT for datasets."

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        try:
            # A scan that waits for a worker is done here: on a site without one it would wait for ever.
            by = self.actor(options)
            job = Scan.waiting() or Scan.create(by)
        except JobError as error:
            raise CommandError(f"{error} {error.hint}") from error
        job.listener = self.tell_progress
        run_scan(job, job.attempt)
        if job.state != Scan.State.SUCCEEDED:
            raise CommandError(f"{job.error or job.message} {job.hint}".strip())
        datasets = Dataset.objects.seen_by(by)
        present = datasets.filter(state=Dataset.State.PRESENT).select_related("condition")
        return {
            "datasets": [dataset_json(dataset) for dataset in present],
            "problems": job.problems,
            "seconds": round(time.monotonic() - start, 2),
        }

    def show(self, result: dict[str, Any]) -> None:
        for dataset in result["datasets"]:
            self.stdout.write(f"{dataset['name']}: {dataset['layout']}, {dataset['images']} images")
            self.stdout.write("  " + ", ".join(f"{name} {count}" for name, count in dataset["classes"].items()))
            if dataset["question"]:
                self.stdout.write(f"  ? {dataset['question']['text']} Answer with curate_dataset.")
            for problem in dataset["problems"]:
                self.stdout.write(f"  ! {problem['path']}: {problem['reason']}")
        self.stdout.write(f"{len(result['datasets'])} datasets in {result['seconds']} s")


def dataset_json(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "condition": dataset.condition.slug,
        "layout": dataset.layout,
        "images": dataset.images_count,
        "classes": {name: dataset.counts.get(name, 0) for name in dataset.classes},
        "positive_class": dataset.positive_class,
        "synthetic": dataset.synthetic,
        "question": dataset.question if dataset.is_asking else None,
        "missing": dataset.missing_count,
        "vanished": dataset.vanished,
        "problems": dataset.listed_problems,
    }
