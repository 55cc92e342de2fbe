"""Queue tasks: measure a version on labelled images, answer what came over the DICOM network and send results."""

from datetime import datetime

from django.utils import timezone
from django_q.tasks import async_task

from . import alerting, batches, deliveries, receiving, reference_work, retention
from .evaluating import evaluate as measure
from .models import Batch, EvaluationRun, ServingReference


def evaluate(run_id: int, attempt: int) -> None:
    run_evaluation(
        EvaluationRun.objects.select_related("version__condition", "dataset", "preparation").get(pk=run_id), attempt
    )


def run_evaluation(job: EvaluationRun, attempt: int) -> None:
    job.run(attempt, lambda: measure(job))


def analyse_batch(batch_id: int, attempt: int) -> None:
    run_batch(Batch.objects.select_related("condition__team", "created_by").get(pk=batch_id), attempt)


def run_batch(job: Batch, attempt: int) -> None:
    try:
        job.run(attempt, lambda: batches.analyse(job))
    finally:
        job.discard_ended()


# The minute of each hour in which use is looked at.
WATCH_AT = 17


def watch_when_due() -> None:
    """Of the work of each minute: a message once an hour, the looking itself takes seconds."""
    if timezone.now().minute == WATCH_AT:
        async_task("inference.tasks.watch_use", cluster="xray", task_name="watch-use")


def watch_use() -> None:
    alerting.watch_all()


def compute_reference(version_id: int, claimed_at: str) -> None:
    """A claim that a later one has replaced is void."""
    rows = ServingReference.objects.select_related("version__condition")
    row = rows.filter(version=version_id, created_at=datetime.fromisoformat(claimed_at)).first()
    if row is not None:
        reference_work.compute(row)


# The minute of each hour in which radiographs that were kept long enough are removed.
EXPIRE_AT = 37


def expire_when_due() -> None:
    """Of the work of each minute: a message once an hour."""
    if timezone.now().minute == EXPIRE_AT:
        async_task("inference.tasks.expire_radiographs", cluster="xray", task_name="expire-radiographs")


def expire_radiographs() -> None:
    retention.expire()


def analyse_received(name: str) -> None:
    receiving.analyse_received(name)


def deliver_result(number: int) -> None:
    deliveries.deliver(number)
