"""The ImageNet weights on this server: which are there, and the two ways in which they come."""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.db import transaction

from xrayplatform import audit
from xrayplatform.system import NotEnoughDisk, require_disk

from .ml.architectures import ARCHITECTURES, Architecture, PublishedWeights
from .ml.initial import advice

TIMEOUT_SECONDS = 30
# The largest published file has 111 MB; whatever sends more than this is not one of them.
MAX_BYTES = 400_000_000
_CHUNK = 1 << 20


class PretrainedError(Exception):
    """A weights file did not come in. The message says why and what to do; nothing on this server has changed."""


def pretrained_folder() -> Path:
    return Path(settings.MODEL_ROOT) / "pretrained"


def weights_state(entry: Architecture) -> str:
    """Of an architecture's ImageNet weights here: "installed", "damaged", "absent", or "none" if there are none."""
    return entry.pretrained.state(pretrained_folder()) if entry.pretrained else "none"


def inventory() -> list[dict[str, Any]]:
    """Every architecture that has published weights, with what the file is and whether it is here."""
    return [_row(entry) for entry in ARCHITECTURES.values() if entry.pretrained]


def _row(entry: Architecture) -> dict[str, Any]:
    published = _published(entry)
    return {
        "architecture": entry.id,
        "state": weights_state(entry),
        "file": published.file_name,
        "algorithm": published.algorithm,
        "digest": published.digest,
        "url": published.url,
    }


def fetch(entry: Architecture, by: Any, on_progress: Callable[[int], None] = lambda _: None) -> None:
    """Download the published weights of an architecture. Raises PretrainedError.

    on_progress: told of the bytes received so far, after each MiB.
    """
    published = _published(entry)
    with _incoming(published) as part:
        try:
            # The address comes from the catalogue, never from a user.
            with urllib.request.urlopen(published.url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
                _copy(response, part, on_progress)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            raise PretrainedError(
                f"{published.url} could not be downloaded: {reason}. Without internet on this server, download that "
                "address elsewhere, bring the file along and run `manage.py pretrained add FILE`."
            ) from error
        found = _hashes(part)[published.algorithm]
        if found != published.digest:
            raise PretrainedError(
                f"What {published.url} sent is not the published file: its {published.algorithm_name} is {found} and "
                f"should be {published.digest}. A proxy may have put a page of its own in its place; {advice(entry)}"
            )
        _install(part, entry, "pretrained.fetch", by)


def add(path: Path, by: Any) -> Architecture:
    """Take over a weights file that was carried in; its hash, not its name, says whose it is.

    Returns the architecture. Raises PretrainedError for a file that is none of the published ones.
    """
    try:
        hashes = _hashes(path)
    except OSError as error:
        raise PretrainedError(f"{path} cannot be read: {error.strerror}.") from error
    entry = next((entry for entry in ARCHITECTURES.values() if _is_of(entry, hashes)), None)
    if entry is None:
        known = "; ".join(f"{row['file']} {row['digest']}" for row in inventory())
        raise PretrainedError(
            f"{path.name} has MD5 {hashes['md5']} and SHA-256 {hashes['sha256']}, which is none of the published files "
            f"this platform knows: {known}. Download it again, and the file without classifier (notop, no_top)."
        )
    published = _published(entry)
    with _incoming(published) as part:
        with path.open("rb") as source:
            _copy(source, part)
        if _hashes(part)[published.algorithm] != published.digest:
            raise PretrainedError(f"{path.name} changed while it was copied. Try again.")
        _install(part, entry, "pretrained.add", by)
    return entry


def _published(entry: Architecture) -> PublishedWeights:
    if entry.pretrained is None:
        raise PretrainedError(f"{entry.name} has no published weights; it learns from scratch.")
    return entry.pretrained


def _is_of(entry: Architecture, hashes: dict[str, str]) -> bool:
    return entry.pretrained is not None and hashes[entry.pretrained.algorithm] == entry.pretrained.digest


def _hashes(path: Path) -> dict[str, str]:
    hashes = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for each in hashes.values():
                each.update(chunk)
    return {name: each.hexdigest() for name, each in hashes.items()}


@contextmanager
def _incoming(published: PublishedWeights) -> Iterator[Path]:
    """A new file beside the target, of this process alone; it is gone afterwards unless it was renamed."""
    folder = pretrained_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_disk(MAX_BYTES)
        descriptor, name = tempfile.mkstemp(prefix=published.file_name, suffix=".part", dir=folder)
    except NotEnoughDisk as error:
        raise PretrainedError(str(error)) from error
    except OSError as error:
        raise PretrainedError(f"{folder} cannot be written: {error.strerror}.") from error
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _copy(source: IO[bytes], part: Path, on_progress: Callable[[int], None] = lambda _: None) -> None:
    received = 0
    with part.open("wb") as target:
        while chunk := source.read(_CHUNK):
            received += len(chunk)
            if received > MAX_BYTES:
                raise PretrainedError(f"The file has more than {MAX_BYTES:,} bytes; no published one has.")
            target.write(chunk)
            on_progress(received)
        target.flush()
        os.fsync(target.fileno())


def _install(part: Path, entry: Architecture, action: str, by: Any) -> None:
    """Let the verified file appear under its name, together with the audit entry."""
    published = _published(entry)
    with transaction.atomic():
        audit.record(
            action,
            actor=by,
            after={"architecture": entry.id, "file": published.file_name, published.algorithm: published.digest},
        )
        # The web process may belong to another user than the one who ran the command.
        part.chmod(0o644)
        part.replace(pretrained_folder() / published.file_name)
