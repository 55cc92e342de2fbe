"""Read the files of a dataset once: what is in each, what is wrong with it, what did not change since last time."""

import os
import stat
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from datasets import imaging
from datasets.layouts import Candidate, Problem, printable

# Files decoded ahead of the consumer for each worker: enough to keep it busy, few enough to bound the memory.
LOOK_AHEAD: Final = 4
REPORT_SECONDS: Final = 0.5
WORKERS: Final = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Record:
    """A readable radiograph. patient identifies a person: hash it before it is stored.

    path: POSIX, relative to the dataset. patient_source: "dicom", "csv" or "". digest: hex sha256 of the
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
    study_uid: str
    series_uid: str
    sop_uid: str
    body_part: str
    modality: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Unchanged:
    """A file with the size and time it had at the last scan; not opened again. Its class may still be a new one."""

    path: str
    class_name: str
    source_split: str
    patient: str | None = None


Outcome = Record | Problem | Unchanged


def _silent(done: int) -> None:
    """Report to nobody."""


def _never() -> bool:
    return False


def scan_files(
    candidates: Iterable[Candidate],
    known: Mapping[str, tuple[int, int]],
    report: Callable[[int], None] = _silent,
    should_stop: Callable[[], bool] = _never,
    workers: int = WORKERS,
) -> Iterator[Outcome]:
    """Read files in a pool of threads and yield one outcome for each, in no promised order.

    known: (size, mtime_ns) by path of what an earlier scan has read; such a file costs one stat. report is
    called with the number of files done, at most twice a second and once at the end. When should_stop says so the
    scan ends early: files under way are finished, the others are not started.
    """
    progress = _Progress(report)
    pending: deque[Future[Outcome]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="scan") as pool:
        for candidate in candidates:
            if should_stop():
                break
            outcome = _without_reading(candidate, known)
            if outcome is None:
                pending.append(pool.submit(_read, candidate))
            else:
                yield progress.count(outcome)
            while len(pending) >= workers * LOOK_AHEAD:
                yield progress.count(pending.popleft().result())
        for future in pending:
            if not should_stop() or not future.cancel():
                yield progress.count(future.result())
    progress.finish()


class _Progress:
    def __init__(self, report: Callable[[int], None]) -> None:
        self.report = report
        self.done = 0
        self.told = time.monotonic()

    def count(self, outcome: Outcome) -> Outcome:
        self.done += 1
        if time.monotonic() - self.told >= REPORT_SECONDS:
            self.finish()
        return outcome

    def finish(self) -> None:
        self.told = time.monotonic()
        self.report(self.done)


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
        return Unchanged(candidate.relative, candidate.class_name, candidate.source_split, candidate.patient)
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
    patient, source = (candidate.patient, "csv") if not found.patient else (found.patient, "dicom")
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
        patient_source=source if patient else "",
        study_uid=found.study_uid,
        series_uid=found.series_uid,
        sop_uid=found.sop_uid,
        body_part=found.body_part,
        modality=found.modality,
        steps=found.steps,
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


def exact_copies(rows: Iterable[tuple[str, str, str]]) -> list[tuple[str, ...]]:
    """Sets of files with equal pixels and one label, from (path, digest, class) rows; sorted."""
    return [tuple(path for path, _ in group) for group in _equal_pixels(rows) if len({name for _, name in group}) == 1]


def _equal_pixels(rows: Iterable[tuple[str, str, str]]) -> list[list[tuple[str, str]]]:
    same: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for path, digest, class_name in rows:
        same[digest].append((path, class_name))
    return sorted(sorted(group) for group in same.values() if len(group) > 1)
