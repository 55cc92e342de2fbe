"""Analysed radiographs, kept for a while as bare pixels: to be shown again, and to learn from what readers corrected.

A file is named by the digest of its pixels, so that the same radiograph is kept once. Nothing of a header is kept.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from datasets import bare, imaging
from datasets.radiograph import ImageError, Radiograph
from xrayplatform.system import NotEnoughDisk, require_disk

logger = logging.getLogger(__name__)
_DAY = 86_400.0
_LEFT_BEHIND_SECONDS = 3600.0


class NotKept(Exception):
    """The pixels of an analysed radiograph are not here any more. The message says why."""


def root() -> Path:
    return Path(settings.MODEL_ROOT) / "radiographs"


def file_of(image_digest: str) -> Path:
    return root() / image_digest[:2] / f"{image_digest}.bin"


def keep(source: bytes, radiograph: Radiograph) -> None:
    """Keep the pixels, if this platform keeps any. A full disk must not stand in the way of an answer: it is logged."""
    if settings.KEEP_RADIOGRAPHS_DAYS <= 0:
        return
    target = file_of(radiograph.digest)
    try:
        if target.exists():
            # Its time begins anew.
            os.utime(target)
            return
        content = bare.bare(source, radiograph)
        require_disk(len(content))
        _write(target, content)
    except (OSError, NotEnoughDisk):
        logger.exception("A radiograph was analysed and could not be kept")


def is_there(image_digest: str) -> bool:
    """Whether the pixels are here; `load` alone tells whether they can still be read."""
    return file_of(image_digest).is_file()


def why_missing() -> str:
    """Why the pixels of an analysed radiograph are not here, in words."""
    if settings.KEEP_RADIOGRAPHS_DAYS > 0:
        return f"The picture is not here any more: radiographs are kept for {settings.KEEP_RADIOGRAPHS_DAYS} days."
    return "This platform does not keep the pictures that it analyses."


def load(image_digest: str) -> Radiograph:
    """The radiograph, decoded from what is kept and proved to be the same pixels. Raises NotKept."""
    path = file_of(image_digest)
    try:
        radiograph = imaging.read(path.read_bytes())
    except FileNotFoundError as error:
        raise NotKept(why_missing()) from error
    except (OSError, ImageError) as error:
        raise NotKept(f"The kept picture cannot be read any more: {error}") from error
    if radiograph.digest != image_digest:
        raise NotKept("The kept picture is not the one that was analysed: its file was changed.")
    return radiograph


def expire(needed: set[str]) -> int:
    """Remove what was kept long enough, but for the digests that are needed still; returns how many files went."""
    oldest = time.time() - settings.KEEP_RADIOGRAPHS_DAYS * _DAY
    removed = 0
    for path in _files():
        modified = path.stat().st_mtime
        is_old = modified < oldest and path.stem not in needed
        is_left_behind = path.suffix == ".part" and modified < time.time() - _LEFT_BEHIND_SECONDS
        if is_old or is_left_behind:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def kept() -> tuple[int, int]:
    """Number and bytes of the radiographs that are kept."""
    sizes = [path.stat().st_size for path in _files() if path.suffix == ".bin"]
    return len(sizes), sum(sizes)


def _files() -> Iterator[Path]:
    return root().glob("??/*") if root().is_dir() else iter(())


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = target.with_name(f"{target.stem}-{uuid.uuid4().hex[:8]}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
    part.rename(target)
