"""Is the audit log as it was written? The check of the whole chain, and its ends kept in files outside the database.

Who can write to the database but does not have the key can neither alter, add, remove nor reorder a chained entry
without being found. What the database alone cannot show is that it was put back to an earlier state as a whole: that
is what the ends of the chain in `MODEL_ROOT/audit/` are for, and copies of them that nobody here can change.
"""

import hmac
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Count, Min
from django.urls import reverse
from django.utils import timezone
from django_q.tasks import async_task

from . import audit, audit_chain
from .audit import AuditEntry, AuditHead
from .audit_chain import Problem
from .audit_keys import Keyring
from .notifications import notify

logger = logging.getLogger(__name__)
VERIFY = "xrayplatform.tasks.verify_audit"
ACTION = "audit.verify"
EVERY = timedelta(hours=24)
_COLUMNS = (*audit_chain.CONTENT, *audit_chain.PLACE)
_AT_ONCE = 2000


@dataclass(frozen=True)
class Verification:
    """entries: how many were read; upgraded: of these from before the chain; anchors: ends from files compared."""

    entries: int
    upgraded: int
    anchors: int
    problem: Problem | None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self.problem) if self.problem else None
        return {"entries": self.entries, "upgraded": self.upgraded, "anchors": self.anchors, "problem": found}


def verify(*, since: int = 0, anchor: Path | None = None) -> Verification:
    """Read the log in order and name the first thing that is wrong with it.

    since: begin at the first entry with this `seq` or a later one; what is before it is taken for right.
    anchor: a file of ends of the chain besides those that this site keeps itself. Raises OSError.
    """
    audit.seal()
    keys = audit.keyring()
    reader = _Reader(keys)
    problem = reader.read(since)
    if problem is None:
        problem = next(_afterwards(keys, reader), None)
    files = [*_own_files(), *([anchor] if anchor else [])]
    anchors = [end for file in files for end in read_ends(file)]
    if problem is None:
        problem = next(_anchor_problems(anchors, keys), None)
    return Verification(reader.entries, reader.upgraded, len(anchors), problem)


class _Reader:
    """Follows the chain. number, seal: of the last entry that was right."""

    def __init__(self, keys: Keyring) -> None:
        self.keys = keys
        self.entries = self.upgraded = self.number = 0
        self.seal = audit_chain.START

    def read(self, since: int) -> Problem | None:
        chained = AuditEntry.objects.exclude(number=None).order_by("number")
        if since:
            first = chained.filter(seq__gte=since).first()
            before = chained.filter(number__lt=first.number).last() if first else chained.last()
            if before:
                self.number, self.seal = before.number, before.seal
        rows = chained.filter(number__gt=self.number).values(*_COLUMNS)
        for row in rows.iterator(chunk_size=_AT_ONCE):
            problem = audit_chain.problem_in(row, self.number + 1, self.seal, self.keys)
            if problem:
                return problem
            self.number, self.seal = row["number"], row["seal"]
            self.entries += 1
            self.upgraded += row["nonce"].startswith(audit_chain.UPGRADED)
        return None


def _afterwards(keys: Keyring, reader: _Reader) -> Iterator[Problem]:
    """What the chain itself does not tell: its end, rows outside of it, and rows that are there twice."""
    yield from _head_problems(keys, reader)
    for row in AuditEntry.objects.filter(number=None).order_by("seq").values(*_COLUMNS)[:_AT_ONCE]:
        problem = audit_chain.content_problem(row, keys)
        if problem:
            yield problem
    twice = AuditEntry.objects.order_by().values("hmac").annotate(rows=Count("seq"), first=Min("seq"))
    for row in twice.filter(rows__gt=1).order_by("first")[:1]:
        copy = AuditEntry.objects.filter(hmac=row["hmac"]).order_by("number").last()
        assert copy is not None  # noqa: S101 - it was counted
        message = f"The row seq {copy.seq} is a copy of the row seq {row['first']}: it was added past the platform."
        yield Problem("inserted", message, copy.seq, copy.number)


def _head_problems(keys: Keyring, reader: _Reader) -> Iterator[Problem]:
    head = AuditHead.objects.first()
    if head is None:
        if reader.number:
            yield Problem("head", "The row that says where the log ends was removed. No entry can be chained any more.")
        return
    known = head.key_id in keys.keys
    if not known or not _same(audit_chain.head_hmac(head.number, head.seal, head.at, keys, head.key_id), head.hmac):
        yield Problem("head", "The row that says where the log ends does not fit its HMAC: it was altered.")
    elif head.number < reader.number:
        message = f"The log should end with entry number {head.number} and goes on to number {reader.number}."
        yield Problem("head", message, None, head.number + 1)
    elif head.number == reader.number and head.seal != reader.seal:
        yield Problem(
            "head", f"The log ends with another entry number {head.number} than it should.", None, head.number
        )
    elif head.number > reader.number and not _went_on(reader):
        message = f"The newest entries are missing: number {reader.number + 1} to {head.number}, the end of the log."
        yield Problem("missing", message, None, reader.number + 1)


def _went_on(reader: _Reader) -> bool:
    """Whether entries were added while the log was read."""
    return AuditEntry.objects.filter(number=reader.number + 1).exists()


def _same(computed: str, found: str) -> bool:
    return hmac.compare_digest(computed.encode(), found.encode())


# -- Ends of the chain in files


@dataclass(frozen=True)
class End:
    """Where the chain ended at a time; where: the file and line it was read from."""

    number: int
    seal: str
    at: str
    key_id: str
    hmac: str
    where: str


def keep_end() -> Path | None:
    """Append the end of the chain to the file of the month, for a copy outside; None: nothing is new, or no entry."""
    head = AuditHead.objects.first()
    if head is None or head.number == 0:
        return None
    folder = Path(settings.MODEL_ROOT) / "audit"
    path = folder / f"heads-{timezone.now():%Y-%m}.jsonl"
    if path.exists() and any(end.number == head.number for end in read_ends(path)):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    at = head.at.isoformat()
    line = {"number": head.number, "seal": head.seal, "at": at, "key_id": head.key_id, "hmac": head.hmac}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640), "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return path


def read_ends(path: Path) -> list[End]:
    """The ends in a file; of what cannot be read as one the number is 0. Raises OSError."""
    lines = path.read_text(errors="replace").splitlines()
    return [_end(line, f"{path.name}, line {index}") for index, line in enumerate(lines, 1) if line.strip()]


def _end(line: str, where: str) -> End:
    try:
        told = json.loads(line)
        texts = {name: str(told[name]) for name in ("seal", "at", "key_id", "hmac")}
        return End(int(told["number"]), **texts, where=where)
    except (ValueError, KeyError, TypeError, RecursionError):
        return End(0, "", "", "", "", where)


def _own_files() -> list[Path]:
    return sorted((Path(settings.MODEL_ROOT) / "audit").glob("heads-*.jsonl"))


def _anchor_problems(ends: list[End], keys: Keyring) -> Iterator[Problem]:
    for start in range(0, len(ends), _AT_ONCE):
        some = ends[start : start + _AT_ONCE]
        genuine = [end for end in some if _is_genuine(end, keys)]
        numbers = [end.number for end in genuine]
        seals = dict(AuditEntry.objects.filter(number__in=numbers).values_list("number", "seal"))
        for end in some:
            if end not in genuine:
                yield Problem("head", f"What {end.where} says was altered or was not written by this site.")
            elif end.number not in seals:
                message = (
                    f"The log had {end.number} entries on {end.at} ({end.where}), and the newest of them are missing. "
                    "They were removed, or the database was put back to an earlier state."
                )
                yield Problem("missing", message, None, end.number)
            elif not _same(seals[end.number], end.seal):
                message = f"Entry number {end.number} is another than on {end.at} ({end.where})."
                yield Problem("reordered", message, None, end.number)


def _is_genuine(end: End, keys: Keyring) -> bool:
    if end.key_id not in keys.keys or not 0 < end.number < 2**63:
        return False
    try:
        at = datetime.fromisoformat(end.at)
    except ValueError:
        return False
    return at.tzinfo is not None and _same(audit_chain.head_hmac(end.number, end.seal, at, keys, end.key_id), end.hmac)


# -- Each night, and what was found last


def verify_and_record(*, actor: Any = None, since: int = 0, anchor: Path | None = None) -> Verification:
    """`verify`, and an entry that says what came out; of a problem auditors and administrators are told."""
    found = verify(since=since, anchor=anchor)
    outcome = AuditEntry.Outcome.FAILED if found.problem else AuditEntry.Outcome.SUCCESS
    with transaction.atomic():
        is_news = found.problem and _last_problem() != asdict(found.problem)
        audit.record(ACTION, actor=actor, outcome=outcome, after=found.to_json() | {"since": since})
        if found.problem and is_news:
            _tell(found.problem)
    return found


def last_verification() -> AuditEntry | None:
    return AuditEntry.objects.filter(action=ACTION).first()


def ask_for_verification() -> None:
    """Put a verification into the queue when the last one is a day old."""
    last = last_verification()
    if last is None or timezone.now() - last.at >= EVERY:
        async_task(VERIFY, cluster="xray", task_name=f"verify-audit-{timezone.now():%Y-%m-%d}")


def _last_problem() -> Any:
    last = last_verification()
    return last.after.get("problem") if last and last.after else None


def _tell(problem: Problem) -> None:
    logger.error("The audit log is not as it was written: %s", problem.message)
    why = "You get this message because you may see the audit log or administer the platform."
    for user in _watchers():
        text = f"The audit log is not as it was written. {problem.message}"
        notify(user, text, reverse("xrayplatform:system-status"), why=why)


def _watchers() -> Iterable[Any]:
    groups = ["auditor", "administrator"]
    return get_user_model().objects.filter(is_active=True, groups__name__in=groups).distinct()
