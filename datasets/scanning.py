"""Read the files of a dataset once: what is in each, what is wrong with it, what did not change since last time."""

import os
import stat
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from datasets import imaging
from datasets.layouts import MAX_IMAGE_PATH, Candidate, Problem, printable, shortened

# Files decoded ahead of the consumer for each worker: enough to keep it busy, few enough to bound the memory.
LOOK_AHEAD: Final = 4
WORKERS: Final = min(8, os.cpu_count() or 1)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Record:
    """A readable radiograph. patient identifies a person: hash it before it is stored.

    path: POSIX, relative to the dataset. patient_source: "dicom", "csv", "folder" or "". digest: hex sha256 of the
    rendered pixels. mtime_ns: modification time in nanoseconds since 1970.
    """

    path: str
    class_name: str
    source_split: str
    size: int
    mtime_ns: int
    digest: str
    width: int
    height: int
    format: str
    patient: str | None
    patient_source: str


@dataclass(frozen=True)
class Unchanged:
    """A file with the size and time it had at the last scan; not opened again. Its class may still be a new one."""

    path: str
    class_name: str
    source_split: str
    patient: str | None = None
    patient_source: str = ""


Outcome = Record | Problem | Unchanged


def scan_files(
    candidates: Iterable[Candidate], known: Mapping[str, tuple[int, int]], workers: int = WORKERS
) -> Iterator[Outcome]:
    """Read files in a pool of threads and yield one outcome for each, in order.

    known: (size, mtime_ns) by path of what an earlier scan has read; such a file costs one stat.
    """
    return map_ahead(lambda candidate: _outcome(candidate, known), candidates, workers)


def map_ahead(work: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKERS) -> Iterator[Result]:
    """`map` in a pool of threads: the results in the order of the items, at most LOOK_AHEAD a worker ahead.

    What `work` raises comes out at its place. Whoever stops early waits for the items under way, not for the others.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= workers * LOOK_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _outcome(candidate: Candidate, known: Mapping[str, tuple[int, int]]) -> Outcome:
    if len(candidate.relative) > MAX_IMAGE_PATH:
        reason = (
            f"The path has {len(candidate.relative)} characters, at most {MAX_IMAGE_PATH} can be used. "
            "Shorten the names of the file or its folders."
        )
        return Problem(shortened(candidate.relative), reason, "name-too-long")
    return _without_reading(candidate, known) or _read(candidate)


def _without_reading(candidate: Candidate, known: Mapping[str, tuple[int, int]]) -> Outcome | None:
    """What one stat tells: not a file, or the same file as before. None when the file has to be read."""
    try:
        status = candidate.path.lstat()
    except OSError as error:
        return _problem(candidate, f"The file cannot be opened: {error.strerror}.", "unreadable")
    if stat.S_ISLNK(status.st_mode):
        return _problem(candidate, "This is a link; links are not followed. Copy the file here.", "link")
    if not stat.S_ISREG(status.st_mode):
        return _problem(candidate, "This is not a regular file (a folder, pipe or device).", "not-a-file")
    if known.get(candidate.relative) == _signature(status):
        return Unchanged(
            candidate.relative,
            candidate.class_name,
            candidate.source_split,
            candidate.patient,
            candidate.patient_source,
        )
    return None


def _signature(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _problem(candidate: Candidate, reason: str, code: str) -> Problem:
    return Problem(printable(candidate.relative), reason, code)


def _read(candidate: Candidate) -> Outcome:
    """Read a file; once more when it changed meanwhile, as files do that are still being copied."""
    for _ in range(2):
        try:
            before = _signature(candidate.path.lstat())
            outcome = _decode(candidate, before)
            if _signature(candidate.path.lstat()) == before:
                return outcome
        except OSError as error:
            return _problem(candidate, f"The file cannot be opened: {error.strerror}.", "unreadable")
    return _problem(candidate, "The file changes while it is read; scan again when it is complete.", "changing")


def _decode(candidate: Candidate, signature: tuple[int, int]) -> Outcome:
    try:
        found = imaging.read(candidate.path)
    except imaging.ImageError as error:
        return _problem(candidate, str(error), error.code)
    patient, source = (found.patient, "dicom") if found.patient else (candidate.patient, candidate.patient_source)
    return Record(
        path=candidate.relative,
        class_name=candidate.class_name,
        source_split=candidate.source_split,
        size=signature[0],
        mtime_ns=signature[1],
        digest=found.digest,
        width=found.width,
        height=found.height,
        format=found.format,
        patient=patient,
        patient_source=source,
    )


def label_conflicts(rows: Iterable[tuple[str, str, str]]) -> list[Problem]:
    """One problem for each file whose pixels also bear another label, from (path, digest, class) rows."""
    problems = []
    for group in _equal_pixels(rows):
        for path, name in group:
            others = [f"{printable(other)} ({label})" for other, label in group if label != name]
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                reason = f"The same pixels are labelled {name} here and differently in {others[0]}{more}."
                problems.append(Problem(printable(path), reason, "label-conflict"))
    return sorted(problems, key=lambda problem: problem.path)


def _equal_pixels(rows: Iterable[tuple[str, str, str]]) -> list[list[tuple[str, str]]]:
    same: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for path, digest, class_name in rows:
        same[digest].append((path, class_name))
    return sorted(sorted(group) for group in same.values() if len(group) > 1)
