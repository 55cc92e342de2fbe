"""The space that decoded pixels take below MODEL_ROOT, and how it is given back."""

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.utils import timezone

from xrayplatform import audit
from xrayplatform.jobs import JobError

from .models import Preparation

DAYS = 30
MAX_DAYS = 36_500


def use() -> dict[str, int]:
    """Bytes of finished pixels and of unfinished ones, which a preparation with the same choices would go on with."""
    root = Preparation.cache_root()
    folders = [path for path in root.glob("*") if path.is_dir()] if root.is_dir() else []
    return {
        "finished": sum(_bytes(path) for path in folders if path.suffix != ".part"),
        "unfinished": sum(_bytes(path) for path in folders if path.suffix == ".part"),
    }


def prune_older(days: int, *, by: Any) -> dict[str, int]:
    """Remove pixels that ended longer ago and are not the newest of their dataset, as far as `by` may see them.

    by: a user, or None for the command line. Returns how many preparations and bytes; audited.
    """
    before = timezone.now() - timedelta(days=min(max(days, 0), MAX_DAYS))
    pruned = prune(Preparation.unused_since(before).seen_by(by), before, by=by)
    audit.record("storage.prune", actor=by, after=pruned | {"days": days})
    return pruned


def prune(preparations: Iterable[Preparation], before: datetime, *, by: Any) -> dict[str, int]:
    """Remove the pixels of these preparations, but of none that a job uses; and what stopped ones left behind."""
    removed, freed = 0, 0
    for preparation in preparations:
        try:
            freed += preparation.remove_pixels(by=by)
            removed += 1
        except JobError:
            continue  # in use
    return {"preparations": removed, "bytes": freed + _remove_left_over(before)}


def _remove_left_over(before: datetime) -> int:
    """Folders that no row names: unfinished ones of before that moment, and what a lost database left."""
    root = Preparation.cache_root()
    if not root.is_dir() or Preparation.objects.active().exists():
        return 0
    rows = Preparation.objects.with_pixels()
    named = {f"preparation-{pk}" for pk in rows.values_list("pk", flat=True)} | set(
        rows.values_list("pixels", flat=True)
    )
    freed = 0
    for folder in root.iterdir():
        if folder.name not in named and folder.is_dir() and _modified(folder) < before.timestamp():
            freed += _bytes(folder)
            shutil.rmtree(folder, ignore_errors=True)
    return freed


def _modified(folder: Path) -> float:
    """Of what is gone since it was listed: now."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _bytes(folder: Path) -> int:
    """What the files really take: an unfinished one has holes. What a job removes or renames meanwhile is no error."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_blocks * 512
    return total
