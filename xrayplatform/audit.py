"""The audit log: who did what to which object, when, from where, and whether it was allowed.

`record` is called inside the transaction of the action itself: an action whose entry cannot be written fails. What
makes an entry provable is in `audit_chain`; `seal` gives committed entries their places in the chain.
"""

import getpass
import secrets
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.db import connection, models, transaction
from django.utils import timezone

from . import audit_chain, audit_keys
from .immutability import Immutable

COMMAND_LINE = "command line"
# Entries that one transaction puts into the chain.
SEALED_AT_ONCE = 2000
_SEAL = "UPDATE {table} SET number = %s, prev_hash = %s, seal = %s WHERE seq = %s"


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

    # Filled in when the entry is chained, once; that they are as they were written is what the chain itself proves.
    mutable_fields = frozenset({"number", "prev_hash", "seal"})

    seq = models.BigAutoField(primary_key=True)
    at = models.DateTimeField("time (UTC)", default=timezone.now, editable=False, db_index=True)
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
    nonce = models.CharField(max_length=32, blank=True, help_text="makes each HMAC the only one of its kind")
    key_id = models.CharField(max_length=16, blank=True, help_text="the key of the HMACs")
    hmac = models.CharField("HMAC", max_length=64, blank=True, help_text="over the content")
    number = models.PositiveBigIntegerField(null=True, blank=True, unique=True, help_text="in the chain, without gaps")
    prev_hash = models.CharField("previous seal", max_length=64, blank=True)
    seal = models.CharField(max_length=64, blank=True, help_text="HMAC over the place in the chain")

    class Meta:
        ordering = ["-seq"]
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["object_type", "object_id"]),
            models.Index(fields=["seq"], condition=models.Q(number=None), name="unsealed_entries"),
        ]

    def __str__(self) -> str:
        return f"{self.seq} {self.actor_name} {self.action} {self.object_label}".strip()

    def save(self, *args: Any, **kwargs: Any) -> None:
        if self._state.adding:
            keys = keyring()
            self.nonce, self.key_id = secrets.token_hex(8), keys.current
            content = {name: getattr(self, name) for name in audit_chain.CONTENT}
            self.hmac = audit_chain.content_hmac(content, keys)
        super().save(*args, **kwargs)


class AuditHead(models.Model):
    """One row: where the chain ends. Whoever seals holds it."""

    number = models.PositiveBigIntegerField()
    seal = models.CharField(max_length=64)
    at = models.DateTimeField()
    key_id = models.CharField(max_length=16)
    hmac = models.CharField(max_length=64)

    def __str__(self) -> str:
        return f"the audit log at entry number {self.number}"


def keyring() -> audit_keys.Keyring:
    """The keys of this site. Raises AuditKeyError where the file of AUDIT_KEY cannot be used."""
    path = Path(settings.AUDIT_KEY) if settings.AUDIT_KEY else None
    # A key that was appended counts at once, in every process.
    changed = path.stat().st_mtime_ns if path and path.exists() else 0
    return _keyring(settings.SECRET_KEY, path, changed)


def check_key(**kwargs: Any) -> list[CheckMessage]:
    """For `manage.py check`: without its key nothing can be recorded, so nothing can be done."""
    try:
        keyring()
    except audit_keys.AuditKeyError as error:
        return [Error(str(error), id="xrayplatform.E001")]
    return []


@lru_cache(maxsize=4)
def _keyring(secret: str, path: Path | None, changed: int) -> audit_keys.Keyring:
    return audit_keys.keyring(secret, path)


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
    entry = AuditEntry(
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
    with transaction.atomic(savepoint=False):
        entry.save()
        _chain_soon()
    return entry


def _chain_soon() -> None:
    """SQLite lets in one writer at a time: there the chain costs nobody a wait, and grows in the action's transaction.

    Elsewhere it would make all writers wait for the slowest, and lock out each other; it grows right after the commit.
    """
    if connection.vendor == "sqlite":
        _seal_some(wait=True)
    else:
        transaction.on_commit(_seal_unless_others_do, robust=True)


def _seal_unless_others_do() -> None:
    while AuditEntry.objects.filter(number=None).exists() and _seal_some(wait=False):
        # Those committed meanwhile found the chain held and relied on whoever held it.
        pass


def seal() -> int:
    """Give all committed entries that have none their place in the chain. Returns how many."""
    total = 0
    while count := _seal_some(wait=True):
        total += count
    return total


def _seal_some(*, wait: bool) -> int:
    with transaction.atomic(savepoint=False):
        head = _held_head(wait)
        return extend_chain(AuditEntry, head, keyring()) if head else 0


def _held_head(wait: bool) -> AuditHead | None:
    """The locked end of the chain; None: somebody else holds it, or somebody removed it, which `verify_audit` tells."""
    heads = AuditHead.objects.select_for_update(skip_locked=not wait)
    head = heads.first()
    if head or AuditHead.objects.exists() or AuditEntry.objects.exclude(number=None).exists():
        return head
    start = AuditHead(pk=1, number=0, seal=audit_chain.START)
    _sign(start, keyring())
    # Somebody else may do the same at this moment.
    AuditHead.objects.bulk_create([start], ignore_conflicts=True)
    return heads.all().first()


def extend_chain(entries: type[models.Model], head: Any, keys: audit_keys.Keyring) -> int:
    """Chain the next entries behind the head, which the caller holds, in the order of `seq`. Returns how many."""
    waiting = entries.objects.filter(number=None).order_by("seq").values("seq", "hmac", "key_id")[:SEALED_AT_ONCE]
    places = []
    for row in waiting:
        row |= {"number": head.number + 1, "prev_hash": head.seal}
        head.number, head.seal = row["number"], audit_chain.place_hmac(row, keys)
        places.append((row["number"], row["prev_hash"], head.seal, row["seq"]))
    if places:
        with connection.cursor() as cursor:
            cursor.executemany(_SEAL.format(table=connection.ops.quote_name(entries._meta.db_table)), places)
        _sign(head, keys)
        head.save()
    return len(places)


def _sign(head: Any, keys: audit_keys.Keyring) -> None:
    head.at, head.key_id = timezone.now(), keys.current
    head.hmac = audit_chain.head_hmac(head.number, head.seal, head.at, keys, head.key_id)


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
