"""Queue tasks: make a version of a received package."""

from .importing import import_package as make_version
from .models import PackageImport


def import_package(job_id: int, attempt: int) -> None:
    run_import(PackageImport.objects.select_related("package", "condition", "team").get(pk=job_id), attempt)


def run_import(job: PackageImport, attempt: int) -> None:
    job.run(attempt, lambda: make_version(job))
