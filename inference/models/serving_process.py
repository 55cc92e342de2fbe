"""Which process answers with which version: written by the request that swaps, read by System Status."""

import logging
import os
import socket
import time
from datetime import timedelta
from typing import Any

import psutil
from django.db import DatabaseError, models
from django.utils import timezone

from xrayplatform.conditions import Condition

# A process that goes on answering says so again; of another host, rows that are older are of a process that is gone.
TELL_AGAIN_SECONDS = 3600.0
STALE_AFTER = timedelta(hours=3)

logger = logging.getLogger(__name__)

# What this process has told, by condition: process, version, epoch and when, by the monotonic clock.
_told: dict[int, tuple[int, int, int, float]] = {}


class ServingProcessQuerySet(models.QuerySet):
    def tell(self, condition: Condition, version_id: int, epoch: int) -> None:
        """Say what this process answers with, unless it has said so of late. What cannot be written harms no answer."""
        told = _told.get(condition.pk)
        now = time.monotonic()
        if told is not None and told[:3] == (os.getpid(), version_id, epoch) and now < told[3] + TELL_AGAIN_SECONDS:
            return
        _told[condition.pk] = (os.getpid(), version_id, epoch, now)
        try:
            self._write(condition, version_id, epoch)
        except DatabaseError:
            logger.exception("Which version answers here could not be written")

    def _write(self, condition: Condition, version_id: int, epoch: int) -> None:
        host = socket.gethostname()
        self.update_or_create(
            host=host, pid=os.getpid(), condition=condition, defaults={"version_id": version_id, "epoch": epoch}
        )
        gone = [row.pk for row in self.filter(host=host).only("pid", "at") if not _is_alive(row)]
        silent = ~models.Q(host=host) & models.Q(at__lt=timezone.now() - STALE_AFTER)
        self.filter(models.Q(pk__in=gone) | silent).delete()

    def alive(self) -> list[Any]:
        """The rows of processes that are there, by condition, host and process.

        On this host a process is looked at, on others a row must not be older than STALE_AFTER.
        """
        host, oldest = socket.gethostname(), timezone.now() - STALE_AFTER
        rows = self.select_related("condition", "version__condition").order_by("condition__name", "host", "pid")
        return [row for row in rows if (_is_alive(row) if row.host == host else row.at >= oldest)]


def _is_alive(row: Any) -> bool:
    """Whether the process that wrote a row of this host is there. Process numbers are used again."""
    try:
        return bool(psutil.Process(row.pid).create_time() <= row.at.timestamp())
    except psutil.Error:
        return False
