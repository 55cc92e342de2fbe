"""Whether the files of each version are what was registered, by the last look at them; versions never change."""

from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.utils import timezone

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.jobs import Job, JobQuerySet
from xrayplatform.teams import TeamScopedQuerySet

from .. import announcing, artifacts

# What is said of a version that is whole on the disk and still cannot be put to work here.
UNUSABLE = "unusable"
VERIFY_EVERY = timedelta(days=1)


class IntegrityCheckQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"

    def damaged(self) -> "IntegrityCheckQuerySet":
        return self.exclude(reason="").select_related("version__condition").order_by("version__condition", "version")

    def note(self, version: Any, damage: artifacts.ArtifactError | None, *, by: Any = None) -> "IntegrityCheck":
        """Keep what a look at the files found. Audited, and told to people, only when it is news."""
        with transaction.atomic():
            # Of several processes that find the same damage one tells of it.
            Condition.objects.select_for_update().get(pk=version.condition_id)
            check, now = self.filter(version=version).first() or IntegrityCheck(version=version), timezone.now()
            before, check.reason, check.checked_at = check.reason, damage.reason if damage else "", now
            check.message = str(damage)[:500] if damage else ""
            is_news = bool(before) != bool(check.reason)
            if is_news:
                check.since = now if damage else None
            check.save()
            if is_news:
                check.announce(by)
        return check


class IntegrityCheck(models.Model):
    """The last look at a version's files. There is none for a version that nobody has looked at yet.

    reason: of the ArtifactError; empty for a version that is whole.
    """

    version = models.OneToOneField("registry.ModelVersion", models.CASCADE, related_name="integrity")
    checked_at = models.DateTimeField()
    reason = models.CharField(max_length=20, blank=True)
    message = models.CharField(max_length=500, blank=True)
    since = models.DateTimeField(null=True, help_text="since when it is known to be damaged")

    objects = IntegrityCheckQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.version}: {self.reason or 'whole'}"

    @property
    def is_damaged(self) -> bool:
        return bool(self.reason)

    def announce(self, by: Any) -> None:
        """The audit entry of a version that was found damaged, or whole again, and word to those who can help."""
        action = "version.damaged" if self.is_damaged else "version.whole"
        outcome = audit.AuditEntry.Outcome.FAILED if self.is_damaged else audit.AuditEntry.Outcome.SUCCESS
        after = {"reason": self.reason, "message": self.message}
        audit.record(action, self.version, actor=by, outcome=outcome, after=after)
        if self.is_damaged:
            announcing.tell_damage(self.version, self.message)


class VerificationRun(Job):
    """Looks at the files of every version, one after another; each night one is made."""

    task = "registry.tasks.verify_all"
    max_attempts = 3

    versions_count = models.PositiveIntegerField(default=0, editable=False)
    damaged_count = models.PositiveIntegerField(default=0, editable=False)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Verification {self.pk} of all versions"

    @classmethod
    def start_if_due(cls) -> "VerificationRun | None":
        """Create and enqueue one, unless there is one of the last day. Of several callers one gets it."""
        with transaction.atomic():
            # On PostgreSQL the rows of the conditions serve as the lock; SQLite has one writer anyway.
            list(Condition.objects.select_for_update().order_by("pk")[:1])
            recent = cls.objects.filter(created_at__gt=timezone.now() - VERIFY_EVERY)
            if recent.exists() or cls.objects.active().exists():
                return None
            run = cls.objects.create()
            run.enqueue()
        return run
