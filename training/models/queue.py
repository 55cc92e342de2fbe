"""The training queue as people see it: paused or not, and by whom."""

from django.conf import settings
from django.db import models


class TrainingQueue(models.Model):
    """One row: whether waiting runs may start. What runs already goes on."""

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
