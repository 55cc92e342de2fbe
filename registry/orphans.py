"""What has lost its other half: rows whose files are not there, and files that no row knows.

A crash between two steps leaves such things, and so does a database or a disk that was restored to another day. Each is
named; only files without a row can be removed here, and only those that nobody has touched for a day.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction

from xrayplatform import audit
from xrayplatform.conditions import Condition

from . import space
from .backups import LEFT_BEHIND_SECONDS
from .models import Evaluation, ModelVersion, ReceivedPackage, evaluation, package
from .models.integrity import MOUNT_IT, NOT_THERE, models_are_missing
from .retention import remove_tree

UNKNOWN_DATABASE = (
    "The database knows no version at all, but there are files of versions: is it the right database? Nothing is "
    "removed until one is known."
)
OTHER_DAY = "Restore it from the backup of the server, "


class Kind(models.TextChoices):
    VERSION = "version", "Version without its folder"
    EVALUATION = "evaluation", "Evaluation without its answers"
    PACKAGE = "package", "Received package without its file"
    FOLDER = "folder", "Folder of a version that does not exist"
    BACKUP = "backup", "Backup of a version that does not exist"
    ANSWERS = "answers", "Answers of an evaluation that does not exist"
    PACKAGE_FILE = "package file", "Package that nobody waits for"
    LEFT_OVER = "left over", "Left by work that was broken off"


@dataclass(frozen=True)
class Orphan:
    """One half. what: its name, or its path below MODEL_ROOT. path: set for files, which can be removed."""

    kind: Kind
    what: str
    advice: str = ""
    bytes: int = 0
    path: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "what": self.what,
            "bytes": self.bytes,
            "removable": self.path is not None,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class Look:
    """obstacle: why nobody can tell what is an orphan, and nothing is removed; there are none in the list then."""

    orphans: list[Orphan] = field(default_factory=list)
    obstacle: str = ""

    @property
    def removable(self) -> list[Orphan]:
        return [one for one in self.orphans if one.path is not None]

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.removable)

    @property
    def in_words(self) -> str:
        """Without names, for everybody. Empty when all is well."""
        if self.obstacle or not self.orphans:
            return self.obstacle
        files = len(self.removable)
        rows = len(self.orphans) - files
        return f"rows without their files: {rows}, files without a row: {files}; registry_check names them"


def look(now: float | None = None) -> Look:
    """now: seconds since 1970. What is younger than a day may belong to work under way and is not looked at."""
    if models_are_missing():
        return Look(obstacle=f"{NOT_THERE} {MOUNT_IT}")
    before = (time.time() if now is None else now) - LEFT_BEHIND_SECONDS
    # Files are listed before rows are asked for: where a row comes with files, both are there at the commit.
    folders, copies = _numbered("registry"), _numbered("backups")
    known = set(ModelVersion.objects.order_by().values_list("condition__slug", "number"))
    if folders and not known:
        return Look(obstacle=UNKNOWN_DATABASE)
    files = [_file(Kind.FOLDER, path) for path in _unknown(folders, known, before)]
    files += [_file(Kind.BACKUP, path) for path in _unknown(copies, known, before)]
    files += [_file(Kind.ANSWERS, path) for path in evaluation.orphans(before)]
    files += [_file(Kind.PACKAGE_FILE, path) for path in _package_files(before)]
    files += [_file(Kind.LEFT_OVER, path) for path in _left_over(before)]
    return Look([*_versions(known - set(folders)), *_evaluations(), *_packages(), *files])


def remove(found: Look, *, by: Any) -> list[Orphan]:
    """Remove the files that `look` found, audited; those are returned that are gone now."""
    gone = [one for one in found.orphans if one.path is not None and _remove(one.kind, one.path)]
    if gone:
        names = [one.what for one in gone][:100]
        after = {"removed": names, "count": len(gone), "bytes": sum(one.bytes for one in gone)}
        audit.record("registry.clean", actor=by, after=after)
    return gone


def _remove(kind: Kind, path: Path) -> bool:
    with transaction.atomic():
        if kind in (Kind.FOLDER, Kind.BACKUP):
            # A registration under this number holds the same lock.
            Condition.objects.select_for_update().filter(slug=path.parent.name).first()
            known = ModelVersion.objects.filter(condition__slug=path.parent.name, number=int(path.name))
            if known.exists():
                return False
        remove_tree(path)
    return not path.exists()


def _versions(missing: set[tuple[str, int]]) -> Iterator[Orphan]:
    for slug, number in sorted(missing):
        # It may have been registered since the folders were listed.
        if not (Path(settings.MODEL_ROOT) / "registry" / slug / str(number)).is_dir():
            advice = f"`restore_version {slug} {number}` puts it back where it was in service before. {OTHER_DAY}"
            yield Orphan(Kind.VERSION, f"{slug} v{number}", f"{advice}or delete the version.")


def _evaluations() -> Iterator[Orphan]:
    rows = Evaluation.objects.order_by("pk").values_list("pk", "key", "version__condition__slug", "version__number")
    for pk, key, slug, number in rows.iterator():
        if not evaluation.file_of(key).exists():
            yield Orphan(Kind.EVALUATION, f"evaluation {pk} of {slug} v{number}", f"{OTHER_DAY}or evaluate it again.")


def _packages() -> Iterator[Orphan]:
    for one in ReceivedPackage.objects.waiting().distinct():
        if not one.file.exists():
            yield Orphan(Kind.PACKAGE, str(one), "Send it again; the row goes by itself after a day.")


def _package_files(before: float) -> list[Path]:
    files = [path for path in package.folder().glob("*") if _touched(path) < before]
    needed = {package.file_of(key).name for key in ReceivedPackage.objects.waiting().values_list("key", flat=True)}
    return [path for path in files if path.name not in needed]


def _numbered(name: str) -> dict[tuple[str, int], Path]:
    """The folders of versions, or of their backups, by condition and number. Others are somebody else's."""
    found = (Path(settings.MODEL_ROOT) / name).glob("[!.]*/*")
    return {(path.parent.name, int(path.name)): path for path in found if path.name.isdecimal() and path.is_dir()}


def _unknown(folders: dict[tuple[str, int], Path], known: set[tuple[str, int]], before: float) -> list[Path]:
    return [path for key, path in folders.items() if key not in known and _touched(path) < before]


def _left_over(before: float) -> Iterator[Path]:
    root = Path(settings.MODEL_ROOT)
    for pattern in ("registry/.staging/*", "registry/*/*.orphan", "registry/*/*.part", "backups/*/*.part"):
        for path in root.glob(pattern):
            # Of a folder, that of what is in it: its own time stays when a file in it grows.
            if max(map(_touched, _all_of(path))) < before:
                yield path


def _all_of(path: Path) -> Iterator[Path]:
    """The path and all that is below it. `rglob` would fail where somebody removes a folder meanwhile."""
    yield path
    for parent, folders, files in os.walk(path):
        yield from (Path(parent, name) for name in (*folders, *files))


def _touched(path: Path) -> float:
    """When it was written or got its name; of what is gone since it was listed: never too long ago."""
    try:
        found = path.lstat()
    except OSError:
        return float("inf")
    return max(found.st_mtime, found.st_ctime)


def _file(kind: Kind, path: Path) -> Orphan:
    return Orphan(kind, str(path.relative_to(settings.MODEL_ROOT)), bytes=space.bytes_of(path), path=path)
