"""Queue tasks: planned activations, and the nightly look at the files of every version."""

from collections.abc import Callable

from django.db.models import QuerySet
from django.utils import timezone
from django_q.tasks import async_task

from .models import ModelVersion, ScheduledActivation, VerificationRun, WebhookDelivery

NIGHT_BEGINS = 1
NIGHT_ENDS = 5
# Messages a minute about calls to other systems.
MOST_CALLS = 50


def every_minute() -> None:
    """Do the planned activations that are due; by night, begin the verification of all versions once.

    A call to another system that waits for its next try, or whose message was lost, gets a message again.
    """
    for planned in ScheduledActivation.objects.due():
        planned.run()
    for number in WebhookDelivery.objects.due().values_list("pk", flat=True)[:MOST_CALLS]:
        async_task("registry.tasks.deliver", number, cluster="xray", task_name=f"webhook-{number}")
    if NIGHT_BEGINS <= timezone.localtime().hour < NIGHT_ENDS:
        VerificationRun.start_if_due()


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
    run.succeed(f"{count} versions verified, {damaged} damaged", {"versions": count, "damaged": damaged})


def verify_each(versions: QuerySet, report: Callable[[int, int, str], None]) -> tuple[int, int]:
    """Verify each version, telling `report(done, total, message)`. Returns how many are damaged, and of how many."""
    # Only the numbers are held: a version may be made, or another be removed, meanwhile.
    numbers = list(versions.values_list("pk", flat=True))
    damaged = 0
    for done, number in enumerate(numbers):
        version = ModelVersion.objects.select_related("condition").filter(pk=number).first()
        if version is not None:
            report(done, len(numbers), f"Verifying {version}")
            damaged += version.verify().is_damaged
    return damaged, len(numbers)
