"""Queue tasks: planned activations, and the nightly look at the files of every version."""

from collections.abc import Callable

from django.db.models import QuerySet
from django.utils import timezone
from django_q.tasks import async_task

from xrayplatform.jobs import JobError

from . import orphans
from .models import ModelVersion, ScheduledActivation, VerificationRun, WebhookDelivery
from .models.integrity import (
    FOLDER_MISSING,
    MOUNT_IT,
    NOT_THERE,
    alert_of_missing_models,
    models_are_missing,
    note_models_found,
)

NIGHT_BEGINS = 1
NIGHT_ENDS = 5
# Messages a minute about calls to other systems, and about planned activations.
MOST_CALLS = MOST_ACTIVATIONS = 50


def every_minute() -> None:
    """Send a message for each planned activation that is due; by night, begin the verification of all versions once.

    A call to another system that waits for its next try, or whose message was lost, gets a message again.
    """
    for number in ScheduledActivation.objects.due().values_list("pk", flat=True)[:MOST_ACTIVATIONS]:
        async_task("registry.tasks.activate_planned", number, cluster="xray", task_name=f"planned-{number}")
    for number in WebhookDelivery.objects.due().values_list("pk", flat=True)[:MOST_CALLS]:
        async_task("registry.tasks.deliver", number, cluster="xray", task_name=f"webhook-{number}")
    if NIGHT_BEGINS <= timezone.localtime().hour < NIGHT_ENDS:
        VerificationRun.start_if_due()


def activate_planned(number: int) -> None:
    rows = ScheduledActivation.objects.select_related("version__condition", "threshold_set", "by")
    planned = rows.filter(pk=number).first()
    if planned is not None:
        planned.run()


def deliver(number: int) -> None:
    delivery = WebhookDelivery.objects.select_related("webhook").filter(pk=number).first()
    if delivery is not None:
        delivery.deliver()


def verify_all(run_id: int, attempt: int) -> None:
    run = VerificationRun.objects.get(pk=run_id)
    run.run(attempt, lambda: _verify_all(run))


def _verify_all(run: VerificationRun) -> None:
    report = run.reporter()
    # Without names: System status shows it to everybody, of whatever team.
    damaged, count = verify_each(
        ModelVersion.objects.order_by("pk"),
        lambda done, total, _: report(done, total, f"{done} of {total} versions verified"),
    )
    run.write(versions_count=count, damaged_count=damaged)
    left = orphans.look()
    more = f"; {left.in_words}" if left.in_words else ""
    after = {"versions": count, "damaged": damaged, "orphans": len(left.orphans)}
    run.succeed(f"{count} versions verified, {damaged} damaged{more}", after)


def verify_each(versions: QuerySet, report: Callable[[int, int, str], None]) -> tuple[int, int]:
    """Verify each version, telling `report(done, total, message)`. Returns how many are damaged, and of how many.

    Raises JobError when the files of all are gone: then one alert is raised and no version is called damaged.
    """
    if models_are_missing():
        alert_of_missing_models()
        raise JobError(NOT_THERE, MOUNT_IT)
    note_models_found()
    # Only the numbers are held: a version may be made, or another be removed, meanwhile.
    numbers = list(versions.values_list("pk", flat=True))
    damaged = 0
    for done, number in enumerate(numbers):
        version = ModelVersion.objects.select_related("condition").filter(pk=number).first()
        if version is not None:
            report(done, len(numbers), f"Verifying {version}")
            damaged += _is_damaged(version)
    return damaged, len(numbers)


def _is_damaged(version: ModelVersion) -> bool:
    check = version.verify()
    if check.reason == FOLDER_MISSING:
        raise JobError(check.message, MOUNT_IT)
    return check.is_damaged
