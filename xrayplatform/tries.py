"""Rows whose work is tried again: what another machine refuses now it may take in a while."""

from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db import models
from django.utils import timezone

# Between the tries; there is one try more than there are pauses.
PAUSES = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))


def next_try_after(tries: int) -> datetime | None:
    """When the next try is due after so many that failed; None after the last one."""
    return timezone.now() + PAUSES[tries - 1] if tries <= len(PAUSES) else None


class Tried(models.Model):
    """A row with `next_at`, before which it is not tried, and a manager whose `due()` are those to try now.

    try_lasts: what a worker that died had begun is taken up again after this.
    """

    try_lasts: ClassVar[timedelta]

    tries = models.PositiveSmallIntegerField(default=0)
    next_at: Any
    objects: Any

    class Meta:
        abstract = True

    def claim(self) -> bool:
        """Take the row for one try; false when it is not due, or another worker has it."""
        claimed = type(self).objects.due().filter(pk=self.pk)
        if not claimed.update(tries=models.F("tries") + 1, next_at=timezone.now() + self.try_lasts):
            return False
        self.refresh_from_db()
        return True
