"""Analyse the files of a batch one by one; a worker that dies is followed by one that goes on where it stood.

First it is settled which files there are, in which order: their rows, and beside the files the plan, which says where
each lies. Then each row waits until it has its answer, or the reason why there is none.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from datasets.archives import ARCHIVES, ArchiveError, extract, is_archive, long_name
from datasets.imaging import ImageError, read_bytes
from datasets.models import Dataset
from datasets.names import EXTENSIONS, counted, printable, shortened
from datasets.receiving import received
from datasets.survey import HIDDEN
from datasets.uploading import free_bytes
from xrayplatform.jobs import JobError, LeaseLost
from xrayplatform.system import GIB

from .analysing import GateRefused
from .engine import EngineError
from .models import Batch, BatchItem, NoActiveModel, Prediction
from .models.batch import SOURCE, images_in
from .turns import Busy

logger = logging.getLogger(__name__)

MAX_FILES: Final = 50_000
PLAN: Final = "plan.json"
# Which file is being analysed and how often it was begun; left behind only by a worker that was killed.
BEGUN: Final = "begun.json"
MAX_TIMES: Final = 2
# DICOM files often have no ending, or the last number of their UID for one.
_ENDINGS: Final = (*EXTENSIONS, ".dicom", ".ima", "")
_KILLED: Final = (
    f"The worker was killed {MAX_TIMES} times while it analysed this file, so that the others go on without it. Tell "
    "an administrator; System Status shows whether memory ran out."
)
_GO_ON: Final = "Then let the batch go on with the rest, within a day."


@dataclass
class Given:
    """A file of a batch. path: where it lies, absolute or in the batch's folder; refusal: why it is not read."""

    name: str
    path: str = ""
    refusal: str = ""


@dataclass
class Plan:
    """The files in their order. hidden: files of archives that no one asked about, such as those in __MACOSX."""

    files: list[Given] = field(default_factory=list)
    hidden: int = 0

    def add(self, name: str, path: Path) -> None:
        reason = why_left_out(name)
        self.files.append(Given(name, "" if reason else str(path), reason))


def why_left_out(name: str) -> str:
    """Why a file of this name is not analysed, in words; "" when it is: what is in it decides then."""
    lower = name.lower()
    if lower.endswith(ARCHIVES):
        return "An archive in an archive, or of another kind than zip, is not unpacked. Send what is in it."
    ending = PurePosixPath(lower).suffix
    if ending not in _ENDINGS and not ending[1:].isdigit():
        return f"Only JPEG, PNG and DICOM files are analysed, not {shortened(ending)}."
    return long_name(name)


def analyse(job: Batch) -> None:
    """Do the job; ends it. Raises JobError."""
    plan = _read_plan(job) if job.items.exists() else _make_plan(job)
    paths = [job.folder / given if given else None for given in plan["paths"]]
    try:
        _answer_all(job, paths)
    finally:
        (job.folder / BEGUN).unlink(missing_ok=True)
    _succeed(job, plan["hidden"])


def _answer_all(job: Batch, paths: list[Path | None]) -> None:
    waiting = list(job.items.filter(state=BatchItem.State.WAITING))
    done, total = job.items_count - len(waiting), job.items_count
    job.renew(progress=done / total, message=_so_far(done, total))
    report = job.reporter()
    for item in waiting:
        if _begin(job, item.position) > MAX_TIMES:
            _settle(job, item, state=BatchItem.State.REFUSED, code="killed", error=_KILLED)
        else:
            _answer(job, item, paths[item.position])
        done += 1
        report(done, total, _so_far(done, total))


def _begin(job: Batch, position: int) -> int:
    """Note that this file is begun; returns how often it was, this time and those that were killed over it."""
    path = job.folder / BEGUN
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = {}
    times = before.get("times", 0) + 1 if before.get("position") == position else 1
    path.write_text(json.dumps({"position": position, "times": times}))
    return times


def _so_far(done: int, total: int) -> str:
    return f"{done:,} of {counted(total, 'file')} analysed"


def _succeed(job: Batch, hidden: int) -> None:
    found = Batch.objects.counted().get(pk=job.pk)
    words = f"{counted(found.answered, 'file')} analysed, {found.refused:,} refused"
    if found.warned:
        words += f", {found.warned:,} of the answers with a warning"
    if hidden:
        words += f". {counted(hidden, 'hidden file')} in the archive left out"
    job.succeed(f"{words}.", after={"answered": found.answered, "refused": found.refused, "hidden": hidden})


# -- Which files there are


def _read_plan(job: Batch) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads((job.folder / PLAN).read_text())
    except OSError as error:
        raise _gone() from error
    return plan


def _gone() -> JobError:
    return JobError("The files of the batch are not there any more.", "Send them again as a new batch.")


def _make_plan(job: Batch) -> dict[str, Any]:
    """Settle the files and store a row for each. Raises JobError."""
    job.renew(message="Looking through the files")
    if not job.folder.is_dir():
        raise _gone()
    try:
        found = _of_dataset(job) if (job.folder / SOURCE).is_file() else _of_received(job)
        _check(found)
        plan = {"hidden": found.hidden, "paths": [given.path for given in found.files]}
        part = job.folder / f"{PLAN}.part"
        part.write_text(json.dumps(plan))
        part.rename(job.folder / PLAN)
    except OSError as error:
        # The text of an OSError names the path, which is nobody's business but the administrator's.
        reason = error.strerror or "the disk does not answer"
        hint = f"Tell an administrator; the disk may be full. {_GO_ON}"
        raise JobError(f"The files could not be unpacked: {reason}.", hint) from error
    with transaction.atomic():
        BatchItem.objects.bulk_create(_rows(job, found.files), batch_size=1000)
        job.write(items_count=len(found.files))
    for archive in job.folder.glob("received-*"):
        if archive.name not in plan["paths"]:
            archive.unlink(missing_ok=True)
    return plan


def _check(found: Plan) -> None:
    if not found.files:
        raise JobError("There is no file to analyse.", "Choose JPEG, PNG or DICOM files, or a zip archive of them.")
    if len(found.files) > MAX_FILES:
        raise JobError(f"There are more than {MAX_FILES:,} files.", "Divide them into several batches.")


def _rows(job: Batch, files: list[Given]) -> Iterator[BatchItem]:
    for position, given in enumerate(files):
        refused = {"state": BatchItem.State.REFUSED, "code": "left-out", "error": printable(given.refusal)[:500]}
        name = printable(given.name.rpartition("/")[2])[:200]
        yield BatchItem(batch=job, position=position, name=name, **(refused if given.refusal else {}))


def _of_dataset(job: Batch) -> Plan:
    source = json.loads((job.folder / SOURCE).read_text())
    dataset = Dataset.objects.filter(pk=source["dataset"]).first()
    if dataset is None:
        raise JobError("The dataset is not there any more.", "Choose another one.")
    paths = images_in(dataset, source["folder"]).values_list("path", flat=True)[: MAX_FILES + 1]
    return Plan([Given(path, str(dataset.folder / path)) for path in paths])


def _of_received(job: Batch) -> Plan:
    found = Plan()
    left = min(free_bytes(settings.MODEL_ROOT), int(settings.UPLOAD_QUOTA_GB * GIB))
    for number, (name, path) in enumerate(received(job.folder)):
        if _is_hidden(name):
            found.hidden += 1
            continue
        if not is_archive(name):
            found.add(name, path.relative_to(job.folder))
            continue
        folder = job.folder / f"unpacked-{number:06d}"
        # Of an attempt that was interrupted.
        shutil.rmtree(folder, ignore_errors=True)
        left -= _unpack(job, found, name, path, folder, left)
    return found


def _unpack(job: Batch, found: Plan, name: str, archive: Path, folder: Path, left: int) -> int:
    """Add the files of an archive; returns their bytes. Raises JobError when it is refused."""
    report = job.reporter()

    def progress(done: int, total: int) -> None:
        report(0, 1, f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB unpacked")

    try:
        content = extract(archive, folder, max_bytes=max(left, 0), progress=progress, left_out=why_left_out)
    except ArchiveError as error:
        # Nothing would be different the next time.
        job.discard()
        raise JobError(f"{shortened(name)} was refused. {error}", "Nothing was analysed.") from error
    found.files += [Given(member.name, str(member.path.relative_to(job.folder))) for member in content.members]
    found.files += [Given(problem.path, refusal=problem.reason) for problem in content.left_out]
    found.hidden += content.hidden
    return sum(member.size for member in content.members)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(HIDDEN) for part in name.split("/"))


# -- The answer to each


def _answer(job: Batch, item: BatchItem, path: Path | None) -> None:
    try:
        source = _read(path)
        prediction = _answered_before(job, source) or _asked(job, source)
    except (ImageError, GateRefused) as error:
        _settle(job, item, state=BatchItem.State.REFUSED, code=error.code[:40], error=printable(str(error))[:500])
    except NoActiveModel as error:
        raise JobError(str(error), _GO_ON) from error
    except EngineError as error:
        raise JobError(str(error), f"A model manager sees to that under Model Management. {_GO_ON}") from error
    else:
        warned = next((verdict["check"] for verdict in prediction.gate if verdict["outcome"] in ("warn", "fail")), "")
        _settle(job, item, state=BatchItem.State.ANSWERED, prediction=prediction, code=warned[:40])


def _read(path: Path | None) -> bytes:
    if path is None:
        raise ImageError("unreadable", "The file is not there any more.")
    if path.is_relative_to(settings.DATASET_ROOT) and not _is_without_links(path):
        raise ImageError("link", "A link lies where the file was, and links are not followed.")
    size = path.stat().st_size if path.is_file() else 0
    if size > settings.MAX_UPLOAD_MB * 1024**2:
        raise ImageError("too-large", f"The file is larger than the limit of {settings.MAX_UPLOAD_MB} MB.")
    return read_bytes(path, follow=False)


def _is_without_links(path: Path) -> bool:
    """Whether no link is on the way from DATASET_ROOT to the file: a scan follows none."""
    root = Path(settings.DATASET_ROOT)
    try:
        return path.resolve() == root.resolve() / path.relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _answered_before(job: Batch, source: bytes) -> Prediction | None:
    """An answer of this batch about such a file that no row has: its worker died before it could write that down."""
    named = BatchItem.objects.filter(prediction=OuterRef("pk"))
    answers = Prediction.objects.shown().filter(batch=job, file_digest=hashlib.sha256(source).hexdigest())
    return answers.filter(~Exists(named)).order_by("created_at").first()


def _asked(job: Batch, source: bytes) -> Prediction:
    """Ask until there is room for the question. Raises what analysing raises, but Busy."""
    while True:
        try:
            way = {"channel": Prediction.Channel.BATCH, "batch": job}
            return Prediction.objects.analyse(job.condition, source, by=job.created_by, **way).prediction
        except Busy as busy:
            _wait(job, busy.retry_after)
        except (ImageError, GateRefused, NoActiveModel, EngineError, DatabaseError):
            raise
        except Exception as error:
            # One file that nobody reckoned with must not keep the others from their answers.
            logger.exception("A file of batch %s could not be analysed", job.pk)
            text = "The analysis of this file failed unexpectedly. The details are in the worker's log."
            raise ImageError("failed", text) from error


def _wait(job: Batch, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Let others go first, as long as the batch is to go on at all. Raises JobCancelled and LeaseLost."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job.renew()
        sleep(min(1.0, max(until - time.monotonic(), 0)))


def _settle(job: Batch, item: BatchItem, **fields: Any) -> None:
    """Write what became of an item, if this process still has the job. Raises LeaseLost."""
    with transaction.atomic():
        job.write(heartbeat_at=timezone.now())
        if not BatchItem.objects.filter(pk=item.pk, state=BatchItem.State.WAITING).update(**fields):
            raise LeaseLost(f"Item {item.position} of batch {job.pk} was settled by another process.")
