"""The audit log: who did what to which object, when, from where, and whether it was allowed.

`record` is called inside the transaction of the action itself: an action whose entry cannot be written fails.
"""

import getpass
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import models

from .immutability import Immutable

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Context:
    """Where the current action comes from; set per request by the middleware."""

    address: str = ""
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    channel: str = "system"


context: ContextVar[Context] = ContextVar("audit_context")


def current_context() -> Context:
    try:
        return context.get()
    except LookupError:
        return Context()


class AuditEntry(Immutable):
    """One action. Rows are only ever added; the admin and the page show them read-only."""

    class Outcome(models.TextChoices):
        SUCCESS = "success", "Success"
        REFUSED = "refused", "Refused"
        FAILED = "failed", "Failed"

    seq = models.BigAutoField(primary_key=True)
    at = models.DateTimeField("time (UTC)", auto_now_add=True, db_index=True)
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+")
    actor_name = models.CharField(max_length=200)
    role = models.CharField(max_length=200, blank=True)
    address = models.GenericIPAddressField(null=True, blank=True)
    channel = models.CharField(max_length=10, help_text="web, api, command or system")
    request_id = models.CharField(max_length=64)
    action = models.CharField(max_length=60, db_index=True)
    object_type = models.CharField(max_length=60, blank=True)
    object_id = models.CharField(max_length=64, blank=True)
    object_label = models.CharField(max_length=300, blank=True)
    outcome = models.CharField(max_length=10, choices=Outcome, default=Outcome.SUCCESS)
    before = models.JSONField(null=True, blank=True)
    after = models.JSONField(null=True, blank=True)

    class Meta:
        ordering = ["-seq"]
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        indexes = [models.Index(fields=["object_type", "object_id"])]

    def __str__(self) -> str:
        return f"{self.seq} {self.actor_name} {self.action} {self.object_label}".strip()


def record(
    action: str,
    obj: models.Model | None = None,
    *,
    actor: Any = None,
    outcome: str = AuditEntry.Outcome.SUCCESS,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    actor_name: str = "",
) -> AuditEntry:
    """Write one entry. `action` is `<object>.<verb>` (`dataset.scan`); `actor` None means no logged-in user."""
    where = current_context()
    known = actor is not None and actor.is_authenticated
    return AuditEntry.objects.create(
        actor=actor if known else None,
        actor_name=actor.get_username() if known else _storable(actor_name) or _nameless_actor(where),
        role=", ".join(_roles(actor)) if known else "",
        address=where.address or None,
        channel=where.channel,
        request_id=where.request_id,
        action=action,
        object_type=obj._meta.model_name if obj is not None else "",
        # The key of an API token is a digest, longer than the column.
        object_id=str(obj.pk)[:64] if obj is not None else "",
        object_label=_storable(str(obj)) if obj is not None else "",
        outcome=outcome,
        before=before,
        after=after,
    )


def _storable(text: str) -> str:
    """What somebody typed or named, cut to the column and without NUL, which PostgreSQL cannot store."""
    return text.replace("\0", "\ufffd")[:200]


def _roles(actor: Any) -> list[str]:
    groups = list(actor.groups.order_by("name").values_list("name", flat=True))
    return ["superuser", *groups] if actor.is_superuser else groups


def _nameless_actor(where: Context) -> str:
    if where.channel != "command":
        return "anonymous" if where.address else "system"
    try:
        return f"{COMMAND_LINE} ({getpass.getuser()})"
    except (KeyError, OSError):
        return COMMAND_LINE
