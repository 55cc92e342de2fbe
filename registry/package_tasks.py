"""Queue tasks: make a version of a received package, and a file of all versions of a condition."""

from .condition_exporting import export_condition as write_file
from .importing import import_package as make_version
from .models import ConditionExport, PackageImport


def import_package(job_id: int, attempt: int) -> None:
    run_import(PackageImport.objects.select_related("package", "condition", "team").get(pk=job_id), attempt)


def run_import(job: PackageImport, attempt: int) -> None:
    job.run(attempt, lambda: make_version(job))


def export_condition(job_id: int, attempt: int) -> None:
    run_export(ConditionExport.objects.select_related("condition", "created_by").get(pk=job_id), attempt)


def run_export(job: ConditionExport, attempt: int) -> None:
    job.run(attempt, lambda: write_file(job))
