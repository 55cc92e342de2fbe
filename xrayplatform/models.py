"""The tables of the platform itself; each is defined beside the behaviour it belongs to."""

from django.db import models

from .audit import AuditEntry, AuditHead
from .conditions import Condition
from .idempotency import IdempotentAnswer
from .notifications import Notification
from .system import WorkerSign
from .teams import Team

__all__ = [
    "AuditEntry",
    "AuditHead",
    "Condition",
    "IdempotentAnswer",
    "Notification",
    "SystemAccess",
    "Team",
    "WorkerSign",
]


class _NoRows(models.Manager):
    """So that `dumpdata`, which asks every model, does not look for the table."""

    def get_queryset(self) -> models.QuerySet:
        return super().get_queryset().none()


class SystemAccess(models.Model):  # noqa: DJ008 - there are no rows to name
    """No table: carries the permission to see System Status."""

    objects = _NoRows()

    class Meta:
        managed = False
        default_permissions = ()
        permissions = [("view_system", "Can see System Status")]
