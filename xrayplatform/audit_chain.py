"""What the HMACs of the audit log are computed over, the same on every database.

An entry has two: `hmac` over its content, made when it is written, and `seal` over its place, made when it is chained:
its number (1, 2, 3, ... without gaps), its key in the table, the seal of the entry before it (`prev_hash`), its `hmac`.
"""

import hmac
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from .audit_keys import Keyring

# Before the first entry.
START: Final = "0" * 64
# The nonces of entries from before the chain begin so; what happened to them before the upgrade cannot be known.
UPGRADED: Final = "upgrade "
CONTENT: Final = (
    "at",
    "actor_id",
    "actor_name",
    "role",
    "address",
    "channel",
    "request_id",
    "action",
    "object_type",
    "object_id",
    "object_label",
    "outcome",
    "before",
    "after",
    "nonce",
    "key_id",
)
PLACE: Final = ("seq", "number", "prev_hash", "hmac", "seal")


@dataclass(frozen=True)
class Problem:
    """What is wrong with the log. kind: altered, missing, inserted, reordered, unknown-key or head."""

    kind: str
    message: str
    seq: int | None = None
    number: int | None = None


def content_hmac(row: Mapping[str, Any], keys: Keyring) -> str:
    """HMAC over the columns named in CONTENT, under the key that the row names. KeyError: it is not known."""
    values = {name: _plain(row[name]) for name in CONTENT}
    return keys.mac(_canonical([values | {"address": _address(row["address"] or "")}]), row["key_id"])


def place_hmac(row: Mapping[str, Any], keys: Keyring) -> str:
    """HMAC over where the row stands. A key that is not known (the row is not ours) is replaced by the current one."""
    place = [row["number"], row["seq"], row["prev_hash"], row["hmac"]]
    return keys.mac(_canonical(place), row["key_id"] if row["key_id"] in keys.keys else "")


def head_hmac(number: int, seal: str, at: datetime, keys: Keyring, key_id: str) -> str:
    """HMAC over the end of the chain, in the database and in the file outside of it."""
    return keys.mac(_canonical(["head", number, seal, _plain(at)]), key_id)


def problem_in(row: Mapping[str, Any], number: int, previous: str, keys: Keyring) -> Problem | None:
    """What is wrong with a row that should have this number and follow the entry with the seal `previous`."""
    seq, found = row["seq"], row["number"]
    if found > number:
        gone = f"entry number {number} is" if found == number + 1 else f"entries number {number} to {found - 1} are"
        return Problem("missing", f"In the log {gone} missing; the next one there is {found} (seq {seq}).", seq, number)
    if found < number:
        return Problem("inserted", f"Two rows have the number {found}; the second (seq {seq}) was added.", seq, found)
    return content_problem(row, keys) or _place_problem(row, previous, keys)


def content_problem(row: Mapping[str, Any], keys: Keyring) -> Problem | None:
    seq, number = row["seq"], row["number"]
    name = f"The row seq {seq}" + (f" (entry number {number})" if number else "")
    if not row["hmac"]:
        return Problem("inserted", f"{name} has no HMAC: it was added past the platform.", seq, number)
    if row["key_id"] not in keys.keys:
        message = f"{name} was signed with the key {row['key_id']!r}, which this site does not have."
        return Problem("unknown-key", f"{message} Put the key back into the file of AUDIT_KEY.", seq, number)
    if not hmac.compare_digest(content_hmac(row, keys), row["hmac"]):
        return Problem("altered", f"{name} was altered: its content does not fit its HMAC.", seq, number)
    return None


def _place_problem(row: Mapping[str, Any], previous: str, keys: Keyring) -> Problem | None:
    seq, number = row["seq"], row["number"]
    if row["prev_hash"] == previous and hmac.compare_digest(place_hmac(row, keys), row["seal"]):
        return None
    message = (
        f"The row seq {seq} stands as entry number {number} and was not written there: rows were reordered, or the "
        "content of one was put into another."
    )
    return Problem("reordered", message, seq, number)


def _canonical(values: list[Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        # Django's JSON, in which rows move from one database to another, has no more.
        return value.astimezone(UTC).isoformat(timespec="milliseconds")
    if isinstance(value, dict | list | tuple):
        # Through JSON first: what a row is given and what it is read back as are then the same.
        return _numbers(json.loads(json.dumps(value)))
    return _numbers(value)


def _address(value: str) -> str:
    """Databases write the addresses of IPv6 in different ways."""
    if ":" not in value:
        return str(value)
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return str(value)


def _numbers(value: Any) -> Any:
    """PostgreSQL keeps numbers in decimal: 1e23 comes back as an integer, and -0.0 as 0.0."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(Decimal(repr(value)))
    return value
