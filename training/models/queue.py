"""The training queue as people see it: paused or not, and by whom."""

from typing import Any

from django.conf import settings
from django.db import models, transaction

from xrayplatform import audit


class TrainingQueue(models.Model):
    """One row: whether waiting runs may start. What runs already goes on."""

    ONLY = 1

    paused = models.BooleanField(default=False)
    reason = models.CharField(max_length=300, blank=True)
    changed_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        permissions = [
            ("pause_trainingqueue", "Can pause and continue the training queue"),
        ]

    def __str__(self) -> str:
        return "paused" if self.paused else "open"

    @property
    def pause_words(self) -> str:
        """That, and why, nothing starts; "" while the queue is open."""
        return f"The training queue is paused{f': {self.reason}' if self.reason else '.'}" if self.paused else ""

    @classmethod
    def current(cls) -> "TrainingQueue":
        """The one row, made when it is asked for first."""
        return cls.objects.get_or_create(pk=cls.ONLY)[0]

    @classmethod
    def locked(cls) -> "TrainingQueue":
        """The one row, locked until the transaction ends: runs are taken from the queue one at a time."""
        cls.current()
        return cls.objects.select_for_update().get(pk=cls.ONLY)

    @classmethod
    def pause(cls, by: Any, reason: str = "") -> bool:
        """No waiting run starts any more; an earlier pause gets the new reason. False when that was so already."""
        return cls._change(by, paused=True, reason=reason)

    @classmethod
    def open(cls, by: Any) -> bool:
        """Waiting runs start again. False when the queue was open already."""
        from .run import TrainingRun

        with transaction.atomic():
            changed = cls._change(by, paused=False, reason="")
            TrainingRun.resend_lost()
        return changed

    @classmethod
    def _change(cls, by: Any, *, paused: bool, reason: str) -> bool:
        with transaction.atomic():
            queue = cls.locked()
            reason = reason[:300]
            if (queue.paused, queue.reason) == (paused, reason) or not (queue.paused or paused):
                return False
            before = {"reason": queue.reason} if queue.paused else None
            queue.paused, queue.reason, queue.changed_by = paused, reason, by
            queue.save()
            verb = "pause" if paused else "open"
            audit.record(f"trainingqueue.{verb}", queue, actor=by, before=before, after={"reason": queue.reason})
        return True
