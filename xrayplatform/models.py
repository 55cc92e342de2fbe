"""The tables of the platform itself; each is defined beside the behaviour it belongs to."""

from django.db import models

from .audit import AuditEntry
from .conditions import Condition
from .notifications import Notification
from .system import WorkerSign
from .teams import Team

__all__ = ["AuditEntry", "Condition", "Notification", "SystemAccess", "Team", "WorkerSign"]


class SystemAccess(models.Model):  # noqa: DJ008 - there are no rows to name
    """No table: carries the permission to see System Status."""

    class Meta:
        managed = False
        default_permissions = ()
        permissions = [("view_system", "Can see System Status")]
