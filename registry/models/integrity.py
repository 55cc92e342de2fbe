"""Whether the files of each version are what was registered, by the last look at them; versions never change."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.utils import timezone

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.jobs import Job, JobQuerySet
from xrayplatform.teams import TeamScopedQuerySet

from .. import announcing, artifacts

# What is said of a version that is whole on the disk and still cannot be put to work here.
UNUSABLE = "unusable"
# What is said of a version when none has its files there: nothing is known about its own.
FOLDER_MISSING = "no folder"
NOT_THERE = "The folder of models is not there: is the disk mounted?"
MOUNT_IT = "Mount the disk of MODEL_ROOT. Versions in service answer from memory until then; none is damaged by it."
BEGIN_ANEW = "Mount the disk of MODEL_ROOT; if it is lost for good, make a folder `registry/lost` there to begin anew."
VERIFY_EVERY = timedelta(days=1)
_ALERT, _ALL_CLEAR = "models.missing", "models.found"


def models_are_missing() -> bool:
    """Whether there are versions but no folder with the files of any, as when a disk is not mounted."""
    return not _any_folder() and Condition.objects.filter(versions__isnull=False).exists()


def _any_folder() -> bool:
    """Apart from folders of work under way, whose names begin with a dot."""
    try:
        return any(not path.name.startswith(".") for path in (Path(settings.MODEL_ROOT) / "registry").iterdir())
    except OSError:
        return False


def alert_of_missing_models() -> None:
    """Told, and written into the audit log, once until they are found again."""
    if _note(_ALERT, audit.AuditEntry.Outcome.FAILED):
        announcing.tell_missing_models(f"{NOT_THERE} {MOUNT_IT}")


def note_models_found() -> None:
    """The next time that they are missing is another alert."""
    _note(_ALL_CLEAR, audit.AuditEntry.Outcome.SUCCESS)


def _note(action: str, outcome: str) -> bool:
    """Write an entry unless the last one says so already; False then. Without any they are taken to be there."""
    last = audit.AuditEntry.objects.filter(action__in=[_ALERT, _ALL_CLEAR])
    with transaction.atomic():
        # Of several processes that notice at once one tells: the rows of the conditions serve as the lock.
        list(Condition.objects.select_for_update().order_by("pk")[:1])
        if (last.values_list("action", flat=True).first() or _ALL_CLEAR) == action:
            return False
        audit.record(action, outcome=outcome, after={"folder": "registry"})
    return True


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
            if not type(version).objects.filter(pk=version.pk).exists():
                # It was deleted while its files were read.
                return check
            is_news = bool(before) != bool(check.reason)
            if is_news:
                check.since = now if damage else None
            check.save()
            if is_news:
                check.announce(by)
        return check

    def of_missing_models(self, version: Any) -> "IntegrityCheck":
        """What a look found when the files of no version are there; not kept, as the version may well be whole."""
        alert_of_missing_models()
        return IntegrityCheck(version=version, reason=FOLDER_MISSING, message=NOT_THERE, checked_at=timezone.now())


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

    @property
    def verdict(self) -> str:
        """In words for people."""
        if self.reason == FOLDER_MISSING:
            return self.message
        if self.is_damaged:
            return f"{self.version} is damaged: {self.message}"
        return f"Every file of {self.version} is what was registered."

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
