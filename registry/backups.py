"""Copies of the files of versions that were in service, for the day on which a file of one of them is damaged."""

import logging
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings

from xrayplatform.system import NotEnoughDisk, require_disk

from . import artifacts

if TYPE_CHECKING:
    from .models import ModelVersion

logger = logging.getLogger(__name__)
PART = ".part"
LEFT_BEHIND_SECONDS = 24 * 3600.0


class BackupError(Exception):
    """A version cannot be backed up or restored. The message says why and what to do."""


def folder_of(version: "ModelVersion") -> Path:
    return Path(settings.MODEL_ROOT) / "backups" / version.condition.slug / str(version.number)


def keep(version: "ModelVersion") -> Path:
    """Copy the version's files to its backup, unless they are there and whole. Raises BackupError.

    The copy is read back and proved against the digest before it gets its name.
    """
    target = folder_of(version)
    # Of two who back up the same version at once, neither writes into the other's copy.
    part = target.with_name(f"{target.name}-{uuid.uuid4().hex[:8]}{PART}")
    try:
        if _is_whole(target, version.sha256):
            # It counts as new, since its version was in service just now.
            os.utime(target)
            return target
        require_disk(version.size)
        copy(version.folder, part, version.sha256)
        artifacts.place(part, target)
    except (artifacts.ArtifactError, NotEnoughDisk, OSError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BackupError(f"{version} could not be backed up: {error}") from error
    return target


def keep_both(replaced: "ModelVersion | None", chosen: "ModelVersion") -> None:
    """Back up the version that leaves service and the one that enters it, and remove backups beyond those to keep.

    A disk that is full, or a replaced version that is damaged, must not stand in the way of what helps against it: a
    backup that fails is logged.
    """
    both = [version for version in (replaced, chosen) if version is not None]
    for version in both:
        try:
            keep(version)
        except BackupError:
            logger.exception("Going on without a backup of %s", version)
    try:
        prune(folder_of(chosen).parent, {str(version.number) for version in both})
    except OSError:
        # Somebody else may have removed one while it was looked at.
        logger.exception("Going on without removing old backups of %s", chosen.condition)


def stage(version: "ModelVersion", staged: Path) -> None:
    """Copy the version's backup to a staging place, proved against the digest. Raises BackupError."""
    source = folder_of(version)
    if not source.is_dir():
        raise BackupError(
            f"There is no backup of {version}: only versions that were in service have one. Restore the folder "
            f"registry/{version.condition.slug}/{version.number} from the backup of the server, or train again."
        )
    try:
        require_disk(version.size)
        copy(source, staged, version.sha256)
    except (artifacts.ArtifactError, NotEnoughDisk, OSError) as error:
        raise BackupError(f"{version} cannot be restored from its backup: {error}") from error


def copy(source: Path, target: Path, sha256: str) -> None:
    """A true copy, no links: what spoils one must not spoil the other. Raises ArtifactError and OSError."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        artifacts.load(source, sha256)
        shutil.copytree(source, target)
        # Its age is that of the copy, not of what was copied: `prune` goes by it.
        os.utime(target)
        artifacts.sync_tree(target)
        artifacts.load(target, sha256)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def prune(folder: Path, needed: set[str]) -> None:
    """Remove the oldest backups of a condition beyond MODEL_BACKUPS_KEPT, never `needed`; and what crashes left."""
    if not folder.is_dir():
        return
    newest_first = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    others = [path for path in newest_first if path.name.isdecimal() and path.name not in needed]
    too_many = others[max(settings.MODEL_BACKUPS_KEPT - len(needed), 0) :]
    for path in [*too_many, *filter(_is_left_behind, newest_first)]:
        shutil.rmtree(path, ignore_errors=True)


def _is_left_behind(path: Path) -> bool:
    """What a copy that crashed left; one that is being made is younger."""
    return not path.name.isdecimal() and time.time() - path.stat().st_mtime > LEFT_BEHIND_SECONDS


def _is_whole(folder: Path, sha256: str) -> bool:
    try:
        artifacts.load(folder, sha256)
    except (artifacts.ArtifactError, OSError):
        return False
    return True
