"""A scan: one walk over DATASET_ROOT."""

from typing import Any

from django.conf import settings
from django.db import IntegrityError, models, transaction

from xrayplatform import audit
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap


class Scan(Job):
    """One walk over DATASET_ROOT."""

    task = "datasets.tasks.scan"

    root = models.CharField(max_length=500, editable=False)
    images = models.PositiveIntegerField(default=0, editable=False)
    problems = models.JSONField(default=list, editable=False, help_text="folders in which nothing usable was found")

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["root"], condition=models.Q(state__in=Job.ACTIVE), name="one_active_scan_per_root"
            )
        ]

    def __str__(self) -> str:
        return f"Scan {self.pk}"

    @classmethod
    def under_way(cls) -> "JobQuerySet":
        return cls.objects.active().filter(root=str(settings.DATASET_ROOT))

    @classmethod
    def waiting(cls) -> "Scan | None":
        """The scan of this root that no worker has taken yet."""
        return cls.objects.filter(root=str(settings.DATASET_ROOT), state=Job.State.QUEUED).first()

    @classmethod
    def create(cls, by: Any) -> "Scan":
        """Create the row and its audit entry. Raises JobError when a scan of this root is under way."""
        reap()
        running = cls.under_way().first()
        if running:
            raise JobError(
                f"{running} is already under way (since {running.created_at:%H:%M} UTC).",
                "Wait until it has finished, or cancel it.",
            )
        try:
            with transaction.atomic():
                scan = cls.objects.create(root=str(settings.DATASET_ROOT), created_by=by)
                audit.record("dataset.scan", scan, actor=by)
        except IntegrityError as error:
            # Somebody else's click came between the look and the row; the constraint lets one in.
            raise JobError(
                "Another scan has just been started.", "Wait until it has finished, or cancel it."
            ) from error
        return scan
