"""The audit log to take along: CSV or JSON, streamed, whose last line signs every byte before it.

The signature is Ed25519 under a key that is derived from the audit key: whoever is given the file and the public key
can verify it without the secret, and without this platform (the signed bytes are the file without its last line).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import audit_keys
from .audit_chain import CONTENT, PLACE
from .audit_keys import Keyring
from .spreadsheets import csv_lines

COLUMNS: Final = ("seq", *CONTENT, *PLACE[1:])
FORMATS: Final = {"csv": "text/csv; charset=utf-8", "json": "application/json"}
_JSON_END: Final = b'"signature": '
_CSV_END: Final = b"signature,"
_LARGEST_END: Final = 4096


@dataclass(frozen=True)
class Signed:
    """What the last line of an export says. trusted: by a key of this site, or by the one that was asked for."""

    whole: bool
    trusted: bool
    public_key: str
    message: str


def export(rows: Iterable[dict[str, Any]], form: str, keys: Keyring, about: dict[str, Any]) -> Iterator[bytes]:
    """The file in pieces. rows: with the columns COLUMNS; form: csv or json; about: JSON of what was asked for."""
    digest = hashlib.sha256()
    pieces = _as_csv(rows) if form == "csv" else _as_json(rows, about)
    for piece in pieces:
        digest.update(piece)
        yield piece
    signature, public_key = keys.sign(digest.digest()), keys.public_key()
    if form == "csv":
        yield f"signature,Ed25519 of SHA-256,{public_key},{signature}\r\n".encode()
    else:
        end = {"algorithm": "Ed25519 of SHA-256", "public_key": public_key, "signature": signature}
        yield _JSON_END + json.dumps(end).encode() + b"}\n"


def verify(path: Path, keys: Keyring, public_key: str = "") -> Signed:
    """Whether a file is as it was exported. public_key: of another site; without it those of this one count.

    Raises OSError.
    """
    digest, last = hashlib.sha256(), b""
    with path.open("rb") as file:
        for line in file:
            digest.update(last)
            last = line
    told, signature = _signature(last)
    if not signature:
        return Signed(False, False, "", "The file has no signature in its last line: it was cut, or is not an export.")
    if not audit_keys.is_signed(digest.digest(), signature, told):
        return Signed(False, False, told, "The file was changed after the export: the signature does not fit it.")
    own = [public_key] if public_key else [keys.public_key(key_id) for key_id in keys.keys]
    if told not in own:
        return Signed(True, False, told, f"The file was signed with a key that is not known here: {told}.")
    return Signed(True, True, told, "The file is as it was exported.")


def _signature(last: bytes) -> tuple[str, str]:
    """Public key and signature as the last line tells them, or empty texts."""
    if len(last) > _LARGEST_END:
        return "", ""
    text = last.decode(errors="replace").strip()
    if last.startswith(_CSV_END):
        cells = text.split(",")
        return (cells[2], cells[3]) if len(cells) == 4 else ("", "")
    if not last.startswith(_JSON_END):
        return "", ""
    try:
        told = json.loads("{" + text)["signature"]
        return str(told["public_key"]), str(told["signature"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ""


def _as_csv(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    cells = ([_cell(row[name]) for name in COLUMNS] for row in rows)
    for line in csv_lines(_all([COLUMNS], cells)):
        yield line.encode()


def _all(*parts: Iterable[Iterable[Any]]) -> Iterator[Iterable[Any]]:
    for part in parts:
        yield from part


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    return value.isoformat() if hasattr(value, "isoformat") else value


def _as_json(rows: Iterable[dict[str, Any]], about: dict[str, Any]) -> Iterator[bytes]:
    yield f'{{"about": {json.dumps(about)}, "entries": [\n'.encode()
    before = ""
    for row in rows:
        shown = {name: row[name] if isinstance(row[name], dict | list) else _cell(row[name]) for name in COLUMNS}
        yield f"{before}{json.dumps(shown)}".encode()
        before = ",\n"
    yield b"\n],\n"
