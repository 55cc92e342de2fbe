"""When a version's own images are read: in the queue, soon after it went into service or into an experiment.

A version whose images are not here has a row that says so, and is tried again once a day, or when a preparation with
its division of the images has been made.
"""

from datetime import timedelta
from typing import Final

from django.db import IntegrityError, models, transaction
from django.utils import timezone
from django_q.tasks import async_task

from datasets.models import Preparation
from registry.models import Deployment, ModelVersion
from xrayplatform import audit

from . import likeness, precisions, referencing
from .engine import EngineError, give_back_memory
from .models import Experiment, ServingReference

# The queue ends a task after ten minutes: what has begun so long ago and has not ended never will.
TRY_LASTS: Final = timedelta(hours=1)
AGAIN_AFTER: Final = timedelta(days=1)
AT_ONCE: Final = 10
NOT_HERE: Final = (
    "The images that this version was made with are not on this platform with the pixels that it sees. Prepare their "
    "dataset as for its training; then the reference is computed by itself."
)
NO_LIKENESS: Final = (
    "There are too few images, or the network has no pooled features: what it sees can be compared by week, but "
    "whether a radiograph is like the training images cannot be told."
)


class ReferenceBusy(Exception):
    """The reference is being computed already. The message says since when."""


def wanted() -> models.QuerySet[ModelVersion]:
    """The versions in service or tried in an experiment whose own images should be read now."""
    in_service = Deployment.objects.filter(active__isnull=False).values("active")
    tried = Experiment.objects.running().values("challenger")
    used = ModelVersion.objects.filter(models.Q(pk__in=in_service) | models.Q(pk__in=tried))
    return used.exclude(pk__in=_not_now().values("version")).select_related("condition").order_by("pk")


def _not_now() -> models.QuerySet[ServingReference]:
    """References that are there, that are being computed, and that could not be computed of late."""
    now = timezone.now()
    rows = ServingReference.objects.annotate(
        changed=models.Exists(
            Preparation.objects.filter(
                split_digest=models.OuterRef("version__split_digest"), finished_at__gt=models.OuterRef("created_at")
            ).exclude(split_digest="")
        )
    )
    there = models.Q(images_count__gt=0) & ~models.Q(version__in=precisions.unchecked())
    begun = models.Q(problem="", created_at__gt=now - TRY_LASTS)
    failed = models.Q(created_at__gt=now - AGAIN_AFTER, changed=False) & ~models.Q(problem="")
    return rows.filter(there | begun | failed)


def offer() -> None:
    """Of the work of each minute: a message to the queue for each version whose images should be read."""
    for version in wanted()[:AT_ONCE]:
        with transaction.atomic():
            row = _claimed(version)
            if row is not None:
                async_task(
                    "inference.tasks.compute_reference",
                    version.pk,
                    row.created_at.isoformat(),
                    cluster="xray",
                    task_name=f"reference-{version.pk}",
                )


def claim(version: ModelVersion) -> ServingReference:
    """The row of a try that begins now, also where there is a reference. Raises ReferenceBusy."""
    row = ServingReference.objects.filter(version=version).first()
    begun = row is not None and not row.images_count and not row.problem
    if row is not None and begun and row.created_at > timezone.now() - TRY_LASTS:
        raise ReferenceBusy(f"The reference of {version} is being computed since {row.created_at:%H:%M:%S} UTC.")
    claimed = _claimed(version)
    if claimed is None:
        raise ReferenceBusy(f"The reference of {version} is being computed since a moment ago.")
    return claimed


def _claimed(version: ModelVersion) -> ServingReference | None:
    """None when somebody else was faster. A later claim makes an earlier one void."""
    row = ServingReference.objects.filter(version=version).first()
    if row is None:
        try:
            with transaction.atomic():
                return ServingReference.objects.create(version=version)
        except IntegrityError:
            return None
    now = timezone.now()
    if not ServingReference.objects.filter(pk=row.pk, created_at=row.created_at).update(created_at=now):
        return None
    row.created_at = now
    return row


def compute(row: ServingReference, *, by: object = None) -> str:
    """Read the images of the claimed row's version and store what they look like to it.

    Returns why there is none, "" when there is. What was computed before stays where it cannot be computed again.
    """
    version = row.version
    try:
        computed = referencing.compute(version)
        problem = NOT_HERE if computed is None else ""
    except EngineError as error:
        computed, problem = None, str(error)[:500]
    finally:
        give_back_memory()
    if computed is not None:
        _store(row, computed, by)
        precisions.check(version, by=by)
    elif not row.images_count and row.problem != problem:
        _write(row, by, problem=problem)
    likeness.forget()
    return problem


def _store(row: ServingReference, computed: referencing.Computed, by: object) -> None:
    _write(
        row,
        by,
        reference=computed.reference.to_bytes() if computed.reference else b"",
        distributions=computed.distributions.to_json(),
        images_count=computed.images_count,
        false_alarm_rate=computed.false_alarm_rate,
        problem="" if computed.reference else NO_LIKENESS,
    )


def _write(row: ServingReference, by: object, **fields: object) -> None:
    """Only while the claim holds: of two that compute at once, the later one is kept."""
    with transaction.atomic():
        if not ServingReference.objects.filter(pk=row.pk, created_at=row.created_at).update(**fields):
            return
        row.refresh_from_db()
        outcome = audit.AuditEntry.Outcome.SUCCESS if row.images_count else audit.AuditEntry.Outcome.FAILED
        after = {
            "version": str(row.version),
            "images": row.images_count,
            "false_alarm_rate": row.false_alarm_rate,
            "problem": row.problem,
        }
        audit.record("servingreference.compute", row, actor=by, outcome=outcome, after=after)
