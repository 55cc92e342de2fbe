"""What reading a file of a dataset gives: a radiograph's record, or the reason why it cannot be used."""

import base64
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from datasets.layouts import MAX_IMAGE_PATH, Candidate, Problem, printable, shortened

# Files read ahead of the consumer for each worker: enough to keep it busy, few enough to bound the memory.
LOOK_AHEAD: Final = 4
WORKERS: Final = min(8, os.cpu_count() or 1)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Record:
    """A readable radiograph. patient identifies a person, institution a hospital: hash both before they are stored.

    path: POSIX, relative to the dataset. patient_source: "dicom", "csv", "folder" or "". digest: hex sha256 of the
    rendered pixels. mtime_ns: modification time in nanoseconds since 1970. measures: see `quality.measure`.
    fingerprint: see `duplicates.fingerprint`. sex, age: see `Radiograph`.
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
    measures: dict[str, float]
    fingerprint: bytes
    institution: str | None = None
    sex: str = ""
    age: str = ""


def request(candidate: Candidate) -> dict[str, Any]:
    """What to ask the decoders about a file."""
    return {"op": "examine", "path": os.fspath(candidate.path)}


def outcome(candidate: Candidate, answer: dict[str, Any]) -> Record | Problem:
    """What the decoders' answer says of the file."""
    if "error" in answer:
        return Problem(printable(candidate.relative), answer["message"], answer["error"])
    patient, source = (
        (answer["patient"], "dicom") if answer["patient"] else (candidate.patient, candidate.patient_source)
    )
    return Record(
        path=candidate.relative,
        class_name=candidate.class_name,
        source_split=candidate.source_split,
        size=answer["size"],
        mtime_ns=answer["mtime_ns"],
        digest=answer["digest"],
        width=answer["width"],
        height=answer["height"],
        format=answer["format"],
        patient=patient,
        patient_source=source,
        measures=answer["measures"],
        fingerprint=base64.b64decode(answer["fingerprint"]),
        institution=answer["institution"],
        sex=answer["sex"],
        age=answer["age"],
    )


def name_problem(candidate: Candidate) -> Problem | None:
    """The file's name cannot be stored, so that the file is not even opened."""
    length = len(candidate.relative)
    if length <= MAX_IMAGE_PATH:
        return None
    reason = (
        f"The path has {length} characters, at most {MAX_IMAGE_PATH} can be used. "
        "Shorten the names of the file or its folders."
    )
    return Problem(shortened(candidate.relative), reason, "name-too-long")


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
