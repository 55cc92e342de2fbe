"""What an upload has put into a dataset folder, written down before it is done, so that it can be taken away again.

A process that is killed undoes nothing: whoever finds its journal does it instead.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

JOURNAL: Final = "placed.jsonl"


class Journal:
    """One line of JSON for each folder made, each part begun and each file that gets its name; paths below `target`."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self._records: list[dict[str, Any]] = []

    def folder(self, path: Path) -> None:
        self._add(kind="folder", path=self._below(path))

    def part(self, path: Path) -> None:
        # Not at once to the disk: a hidden part that a power cut leaves is in nobody's way.
        self._add(kind="part", path=self._below(path), durable=False)

    def file(self, path: Path, part: Path) -> None:
        """The part will get this name. By inode and time it is known again: another file there is not ours."""
        state = part.lstat()
        self._add(kind="file", path=self._below(path), inode=state.st_ino, mtime_ns=state.st_mtime_ns)

    def undo(self) -> bool:
        """Take everything away, the last first. False when something could not be, and has to be tried again."""
        taken = [_taken_away(self._target, record) for record in reversed(self._records)]
        return all(taken)

    @classmethod
    def read(cls, path: Path, target: Path) -> "Journal":
        """The journal of another process; without the last line where it died writing it."""
        journal = cls(path, target)
        journal._records = list(_records(path))
        return journal

    def _below(self, path: Path) -> str:
        # Also folders above the target, which are made with it.
        return os.path.relpath(path, self._target)

    def _add(self, durable: bool = True, **record: Any) -> None:
        self._records.append(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _taken_away(target: Path, record: dict[str, Any]) -> bool:
    path = Path(os.path.normpath(target / record["path"]))
    try:
        if record["kind"] == "folder":
            path.rmdir()
        elif record["kind"] == "part" or _is_ours(path, record):
            path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        # A folder that others have put something into stays.
        return bool(record["kind"] == "folder")
    return True


def _is_ours(path: Path, record: dict[str, Any]) -> bool:
    state = path.lstat()
    return bool(state.st_ino == record["inode"] and state.st_mtime_ns == record["mtime_ns"])
