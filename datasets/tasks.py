"""Queue tasks: scan DATASET_ROOT, prepare a dataset, put uploaded files into one."""

from .cataloguing import scan_root
from .models import Preparation, Scan, Upload
from .preparing import prepare as prepare_dataset
from .uploading import upload as put_in_place


def scan(scan_id: int, attempt: int) -> None:
    run_scan(Scan.objects.get(pk=scan_id), attempt)


def run_scan(job: Scan, attempt: int) -> None:
    # A scan must not find what a killed upload has left in a dataset folder.
    Upload.remove_left_over()
    job.run(attempt, lambda: scan_root(job))
    if job.state == Scan.State.SUCCEEDED:
        Upload.adopt_found()


def prepare(preparation_id: int, attempt: int) -> None:
    run_preparation(Preparation.objects.select_related("dataset").get(pk=preparation_id), attempt)


def run_preparation(job: Preparation, attempt: int) -> None:
    job.run(attempt, lambda: prepare_dataset(job))


def upload(upload_id: int, attempt: int) -> None:
    run_upload(Upload.objects.select_related("dataset__condition", "team").get(pk=upload_id), attempt)


def run_upload(job: Upload, attempt: int) -> None:
    try:
        job.run(attempt, lambda: put_in_place(job))
    finally:
        # Not by what this process remembers: another one may be at work, or may have ended the job.
        if not Upload.objects.active().filter(pk=job.pk).exists():
            job.discard()
