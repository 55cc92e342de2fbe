"""All versions of a condition as one file: made by the queue, kept for a day, taken along with an audit entry."""

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from django.db import models, transaction
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils import timezone

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.system import NotEnoughDisk, require_disk
from xrayplatform.teams import TeamScopedQuerySet

from .. import announcing
from .package import exports_folder
from .version import ModelVersion

# A finished file is there for so long.
KEPT_FOR = timedelta(days=1)
# The zip, and the package that is being made for it.
DISK_FACTOR = 2


class ConditionExportQuerySet(JobQuerySet, TeamScopedQuerySet):
    team_path = "condition__team"

    def expire(self) -> None:
        """Remove the files whose time is over; called each minute."""
        for export in self.filter(expires_at__lte=timezone.now()):
            export.clean_up()
            self.filter(pk=export.pk).update(expires_at=None)


class ConditionExport(Job):
    """Writes the signed packages of all versions of a condition, with the history of its service, into one zip."""

    task = "registry.package_tasks.export_condition"

    condition = models.ForeignKey(Condition, models.PROTECT, related_name="exports", editable=False)
    key = models.UUIDField(default=uuid.uuid4, unique=True, editable=False, help_text="name of the file")
    versions_count = models.PositiveIntegerField(editable=False, help_text="versions when it was started or written")
    left_out = models.JSONField(
        default=list, editable=False, help_text="number and problem of each version that could not be exported"
    )
    size = models.BigIntegerField(default=0, editable=False, help_text="bytes of the file")
    expires_at = models.DateTimeField(null=True, editable=False, help_text="empty: there is no file")

    objects = ConditionExportQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["condition", "created_by"],
                condition=models.Q(state__in=Job.ACTIVE),
                name="one_active_export_per_condition_and_user",
            )
        ]

    def __str__(self) -> str:
        return f"Export of {self.condition}"

    def get_absolute_url(self) -> str:
        return reverse("registry:export-detail", args=[self.pk])

    @property
    def file(self) -> Path:
        return exports_folder() / f"{self.key.hex}.zip"

    @property
    def file_name(self) -> str:
        """What the browser calls the file."""
        return f"{self.condition.slug}.zip"

    @property
    def is_ready(self) -> bool:
        return self.expires_at is not None and timezone.now() < self.expires_at

    @classmethod
    def start(cls, condition: Condition, by: Any) -> "ConditionExport":
        """The export of the condition that this user has under way, or a new one, waiting in the queue.

        Raises JobError when there is nothing to export or no room for it.
        """
        reap()
        with transaction.atomic():
            # Of two clicks at once the second waits here, and finds the first one's row.
            Condition.objects.select_for_update().get(pk=condition.pk)
            active = cls.objects.active().filter(condition=condition, created_by=by).first()
            return active or cls._create(condition, by)

    @classmethod
    def _create(cls, condition: Condition, by: Any) -> "ConditionExport":
        there = ModelVersion.objects.filter(condition=condition).aggregate(
            count=models.Count("pk"), size=models.Sum("size")
        )
        if not there["count"]:
            raise JobError(f"{condition} has no versions, so that there is nothing to export.")
        try:
            require_disk(DISK_FACTOR * there["size"])
        except NotEnoughDisk as error:
            raise JobError(str(error), "Ask an administrator to free some space, then export again.") from error
        job = cls.objects.create(condition=condition, versions_count=there["count"], created_by=by)
        audit.record("conditionexport.start", job, actor=by, after={"versions": job.versions_count})
        job.enqueue()
        return job

    def finish(self, told: list[dict[str, Any]]) -> None:
        """End with the file that was written. told: what its history tells about each version."""
        left_out = [{"number": one["number"], "problem": one["problem"]} for one in told if one["problem"]]
        size = self.file.stat().st_size
        message = f"{len(told) - len(left_out)} of {len(told)} versions, {filesizeformat(size)}"
        with transaction.atomic():
            self.write(versions_count=len(told), left_out=left_out, size=size, expires_at=timezone.now() + KEPT_FOR)
            self.succeed(message, after={"versions": len(told), "left_out": len(left_out), "bytes": size})

    def take_along(self, by: Any) -> BinaryIO:
        """The open file, with the audit entry that it leaves. Raises JobError when there is none."""
        if not self.is_ready:
            raise JobError("There is no file of this export, or not any more.", "See its page, or start a new export.")
        try:
            with transaction.atomic():
                after = {"export": self.pk, "versions": self.versions_count, "left_out": len(self.left_out)}
                audit.record("condition.export", self.condition, actor=by, after=after)
                return self.file.open("rb")
        except OSError as error:
            raise JobError(f"The file cannot be read: {error.strerror}.", "Start a new export.") from error

    def clean_up(self) -> None:
        """Remove the file, whole or half."""
        for left in exports_folder().glob(f"{self.key.hex}.*"):
            left.unlink(missing_ok=True)

    def _on_end(self) -> None:
        if self.state != self.State.SUCCEEDED:
            self.clean_up()
        announcing.tell_export_end(self)

    def end_remains(self, token: uuid.UUID | None) -> None:
        self.clean_up()
