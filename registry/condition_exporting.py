"""The work of an export of a whole condition: from the versions to a file that is whole, or not there."""

from xrayplatform.jobs import JobError

from . import exporting
from .models import ConditionExport
from .models.package import exports_folder

AGAIN = "Nothing is left of it. Remove what is in the way, then export again."


def export_condition(job: ConditionExport) -> None:
    """Do the work of a claimed job. Raises JobError, JobCancelled, LeaseLost; there is no file then."""
    exports_folder().mkdir(parents=True, exist_ok=True)
    try:
        _export(job)
    except BaseException:
        # Whoever lost the lease may have put the file in place after others cleaned up.
        job.clean_up()
        raise


def _export(job: ConditionExport) -> None:
    try:
        history = exporting.write_condition(job.condition, job.file, by=job.created_by, progress=job.reporter())
    except exporting.REFUSALS as error:
        raise JobError(str(error), AGAIN) from error
    except OSError as error:
        raise JobError(f"The file cannot be written: {error.strerror}.", AGAIN) from error
    job.renew(progress=1.0, message="Finishing")
    job.finish(history["versions"])
