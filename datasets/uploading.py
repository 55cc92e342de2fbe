"""Put what a user sent into a dataset folder: unpack, look at every file, move the good ones, start a scan.

Nothing touches the dataset folder before every file has been looked at. Then each is written beside its place under a
hidden name and renamed, so that a scan sees it whole or not at all; when the job ends in any other way than well, what
it had put there is taken away again: by itself, or, when it was killed, by who finds its journal.
"""

import contextlib
import filecmp
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from django.conf import settings
from django.db import transaction

from xrayplatform.jobs import JobError
from xrayplatform.system import GIB

from . import decoding
from .archives import TABLE, ArchiveError, extract, is_archive, left_out_because, long_name, path_danger, same_name
from .models import Dataset, Scan, Upload
from .models.upload import LEFT_OVER_AFTER, NAME_TAKEN, check_free, checked_name, why_closed
from .names import IMAGE_FOLDERS, MAX_CLASS_NAME, is_image, is_mask, patient_folder, printable, shortened, split_of
from .placing import Journal
from .receiving import received
from .survey import HIDDEN

REFUSALS_KEPT: Final = 1000
NOTES_NAMED: Final = 10
BATCH: Final = 500
# Where the parts of the work begin and end on the progress bar.
UNPACK, EXAMINE, MOVE = (0.0, 0.3), (0.3, 0.9), (0.9, 1.0)
PART: Final = ".upload-"


@dataclass
class Item:
    """A file of the upload. name: as sent, with the folders of a zip; relative: its place below the dataset."""

    name: str
    path: Path
    size: int
    relative: str = ""
    digest: str = ""

    @property
    def is_table(self) -> bool:
        return self.name.lower().endswith(TABLE)


@dataclass
class Outcome:
    """What became of the files so far."""

    items: list[Item] = field(default_factory=list)
    refusals: list[dict[str, str]] = field(default_factory=list)
    refused: int = 0
    notes: list[str] = field(default_factory=list)

    def refuse(self, name: str, reason: str) -> None:
        self.refused += 1
        if len(self.refusals) < REFUSALS_KEPT:
            self.refusals.append({"name": shortened(name), "reason": printable(reason)})

    def keep(self, reason_against: Callable[[Item], str]) -> None:
        """Refuse the items for which there is a reason."""
        kept = []
        for item in self.items:
            reason = reason_against(item)
            if reason:
                self.refuse(item.name, reason)
            else:
                kept.append(item)
        self.items = kept


def upload(job: Upload) -> None:
    """Do the job; ends it. Raises JobError, with what was refused stored."""
    closed = why_closed(job.dataset)
    if closed:
        raise closed
    if not job.dataset:
        checked_name(job.name, without=job)
    outcome = Outcome()
    try:
        _unpack(job, outcome)
        _find_places(job, outcome)
        _examine(job, outcome)
        _refuse_copies(job, outcome)
        _check_room(job, outcome)
        _move(job, outcome)
    except JobError:
        _store(job, outcome, size=0)
        raise


def _store(job: Upload, outcome: Outcome, size: int) -> None:
    job.write(size=size, refused=outcome.refused, refusals=outcome.refusals, notes=outcome.notes)


def _reporter(job: Upload, part: tuple[float, float], message: str) -> Callable[[float, float, str], None]:
    """A `report(done, total, message)` for one part of the work; begins by looking whether a cancel was asked for."""
    job.renew(progress=part[0], message=message)
    report, (start, end) = job.reporter(), part

    def tell(done: float, total: float, message: str) -> None:
        share = start + (end - start) * (done / total if total else 1.0)
        report(int(share * 10_000), 10_000, message)

    return tell


# -- What was sent


def _unpack(job: Upload, outcome: Outcome) -> None:
    """Fill `items` with the files that were sent and those in the archives among them."""
    report = _reporter(job, UNPACK, "Unpacking")
    room = _Room(job)
    for number, (name, path) in enumerate(received(job.staging)):
        if is_archive(name):
            content = _extracted(name, path, job.staging / f"unpacked-{number:06d}", room, report)
            outcome.items += [Item(member.name, member.path, member.size) for member in content.members]
            for problem in content.left_out:
                outcome.refuse(problem.path, problem.reason)
            path.unlink()
        elif danger := path_danger(name):
            outcome.refuse(name, f"The name {danger}. Rename the file.")
        elif not any(part.startswith(HIDDEN) for part in name.split("/")):
            outcome.items.append(Item(name, path, path.stat().st_size))
    outcome.keep(lambda item: left_out_because(item.name))
    if not any(is_image(item.name) for item in outcome.items) and not outcome.refused:
        raise JobError("The upload holds no images.", "Choose .jpg, .png or .dcm files, or a zip archive of them.")


class _Room:
    """How many bytes may still be unpacked: what quota and disks leave."""

    def __init__(self, job: Upload) -> None:
        quota = Upload.quota(job.team, without=job).left
        self.left = min(quota, free_bytes(settings.MODEL_ROOT), free_bytes(settings.DATASET_ROOT))

    def take(self, size: int) -> None:
        self.left = max(self.left - size, 0)


def free_bytes(folder: Path) -> int:
    """Bytes that may be written there with MIN_FREE_DISK_GB to spare."""
    while not folder.exists():
        folder = folder.parent
    return max(shutil.disk_usage(folder).free - int(settings.MIN_FREE_DISK_GB * GIB), 0)


def _extracted(name: str, archive: Path, folder: Path, room: _Room, report: Callable[..., None]) -> Any:
    def progress(done: int, total: int) -> None:
        report(done, total, f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB unpacked")

    try:
        content = extract(archive, folder, max_bytes=room.left, progress=progress)
    except ArchiveError as error:
        raise JobError(f"{shortened(name)} was refused. {error}", "Nothing was changed in the dataset.") from error
    except OSError as error:
        raise _not_written(error) from error
    room.take(sum(member.size for member in content.members))
    return content


def _not_written(error: OSError) -> JobError:
    # The text of an OSError names the path, which is nobody's business but the administrator's.
    return JobError(
        f"The files could not be written: {error.strerror or 'the disk does not answer'}.",
        "Tell an administrator; the disk may be full. Nothing was changed in the dataset.",
    )


# -- Where each file goes


def _find_places(job: Upload, outcome: Outcome) -> None:
    """Set `relative` of each item, and refuse those for which there is no place."""
    places = _Places(job, outcome)
    outcome.keep(places.refusal)
    if job.dataset and job.dataset.layout == "images-csv":
        outcome.notes.append(
            "The labels of this dataset are in its CSV file: images that have no row in it are not used. Ask IT to add "
            "their rows, then scan."
        )


class _Places:
    def __init__(self, job: Upload, outcome: Outcome) -> None:
        self.job = job
        self.folders = image_folders(job.dataset) if job.dataset else set()
        self.wrapper = _wrapper(outcome.items, job)
        if self.wrapper:
            outcome.notes.append(
                f"The folder {shortened(self.wrapper)} around all files of the upload was left out of their paths."
            )
        has_table = any(item.is_table for item in outcome.items)
        self.flat = (not job.dataset and has_table) or "" in self.folders
        self._spelled: dict[str, str] = {"": ""}

    def refusal(self, item: Item) -> str:
        """Set the item's place; why it has none, in words, or ""."""
        name = item.name.removeprefix(f"{self.wrapper}/") if self.wrapper else item.name
        if item.is_table:
            item.relative = name
            return _TABLE_REFUSED if self.job.dataset else ""
        inner, _, file = name.rpartition("/")
        folder = "/".join(filter(None, (self.job.class_folder, inner)))
        chosen = chosen_class(self.job)
        if chosen and class_folder(inner):
            return f"It lies in a folder of the archive, {shortened(inner)}, but the class {chosen} was chosen."
        if not folder and not self.flat:
            folder = self._only_folder()
            if not folder:
                return "It lies in no class folder. Choose the class of the images, or sort them into class folders."
        return self._put_into(item, folder, file)

    def _put_into(self, item: Item, folder: str, file: str) -> str:
        if any(len(part) > MAX_CLASS_NAME for part in folder.split("/")):
            return "The name of its folder is too long. Shorten it."
        try:
            item.relative = f"{self._spelling(folder)}/{file}".lstrip("/")
        except JobError as error:
            return str(error)
        return long_name(item.relative)

    def _only_folder(self) -> str:
        """Where images without a folder go when a CSV file has the labels: to the others, if they lie in one place."""
        is_labelled = self.job.dataset and self.job.dataset.layout == "images-csv"
        return next(iter(self.folders)) if is_labelled and len(self.folders) == 1 else ""

    def _spelling(self, folder: str) -> str:
        """The path as existing folders spell it: "normal" goes into NORMAL. Raises JobError for links and files."""
        key = same_name(folder)
        if key not in self._spelled:
            above, _, name = folder.rpartition("/")
            above = self._spelling(above)
            self._spelled[key] = f"{above}/{_existing_name(self.job.target / above, name)}".lstrip("/")
        return self._spelled[key]


_TABLE_REFUSED: Final = (
    "A CSV file could change the labels of images that are there already. Ask IT to put it in place."
)


def _existing_name(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_symlink() and path.is_dir():
        return name
    entries = list(folder.iterdir()) if folder.is_dir() else []
    alike = next((entry for entry in entries if same_name(entry.name) == same_name(name)), None)
    if alike is None:
        return name
    if alike.is_symlink() or not alike.is_dir():
        raise JobError(f"{shortened(alike.name)} in the dataset is no folder. Choose another class.")
    return alike.name


def image_folders(dataset: Dataset) -> set[str]:
    """Folders of the dataset in which images lie, the folders of patients taken off."""
    folders = dataset.images.order_by().values_list("folder", flat=True).distinct()
    return {class_folder(folder) for folder in folders.iterator(2000)}


def chosen_class(job: Upload) -> str:
    """The class that the sender chose; "" where only a split was chosen, or nothing."""
    name = job.class_folder.rpartition("/")[2]
    return "" if split_of(name) else name


def class_folder(folder: str) -> str:
    """A folder of images without those of patients and studies at its end.

    >>> class_folder("train/NORMAL/patient12/study1")
    'train/NORMAL'
    """
    parts = folder.split("/")
    while parts and patient_folder(parts[-1:]):
        parts.pop()
    return "/".join(parts)


def _wrapper(items: Iterable[Item], job: Upload) -> str:
    """The one folder around all files that only the packing of a folder put there; "" when there is none.

    It is none where it may mean something: a split, a patient, a class, a folder that the dataset has.
    """
    paths = [item.name.split("/") for item in items]
    tops = {path[0] for path in paths}
    if len(tops) != 1 or not all(len(path) > 1 for path in paths):
        return ""
    (top,) = tops
    if chosen_class(job):
        return "" if patient_folder([top]) else top
    if _means_something(top) or (job.target / job.class_folder / top).exists():
        return ""
    holds_classes = any(len(path) > 2 and not patient_folder(path[1:2]) for path in paths)
    return top if holds_classes or any(path[-1].lower().endswith(TABLE) for path in paths) else ""


def _means_something(folder: str) -> bool:
    return bool(split_of(folder) or patient_folder([folder]) or is_mask(folder) or folder.casefold() in IMAGE_FOLDERS)


# -- What each file is


def _examine(job: Upload, outcome: Outcome) -> None:
    """Read every image and refuse those that cannot be used, each for its own reason."""
    report = _reporter(job, EXAMINE, "Checking the images")
    images = [item for item in outcome.items if not item.is_table]
    answers: dict[int, str] = {}
    requests = ((number, {"op": "examine", "path": str(item.path)}) for number, item in enumerate(images))
    for done, (number, answer) in enumerate(decoding.shared().run(requests), start=1):
        if "error" in answer:
            answers[id(images[number])] = answer["message"]
        else:
            images[number].digest = answer["digest"]
        report(done, len(images), f"{done:,} of {len(images):,} images checked")
    outcome.keep(lambda item: answers.get(id(item), ""))


def _refuse_copies(job: Upload, outcome: Outcome) -> None:
    """Refuse pictures that the dataset has, or that come twice in the upload."""
    known = _known_digests(job, [item.digest for item in outcome.items if item.digest])
    first: dict[str, str] = {}

    def reason(item: Item) -> str:
        if not item.digest:
            return ""
        if item.digest in known:
            return f"The same picture is in the dataset already: {known[item.digest]}."
        if item.digest in first:
            return f"The same picture is in this upload already: {first[item.digest]}."
        first[item.digest] = shortened(item.name)
        return ""

    outcome.keep(reason)


def _known_digests(job: Upload, digests: list[str]) -> dict[str, str]:
    if not job.dataset:
        return {}
    known: dict[str, str] = {}
    for start in range(0, len(digests), BATCH):
        rows = job.dataset.images.order_by().filter(digest__in=digests[start : start + BATCH])
        known |= {digest: path for digest, path in rows.values_list("digest", "path") if (job.target / path).is_file()}
    return known


def _check_room(job: Upload, outcome: Outcome) -> None:
    images = sum(not item.is_table for item in outcome.items)
    if not images:
        raise _nothing_added(outcome)
    size = sum(item.size for item in outcome.items)
    # Written first, so that of two uploads at a time at least one sees the other.
    job.write(size=size)
    quota = Upload.quota(job.team)
    if quota.used > quota.limit:
        raise JobError(
            f"The images have {size / GIB:.2f} GB, more than is left of the team's {quota.limit / GIB:g} GB.",
            "Upload less, or ask an administrator to raise UPLOAD_QUOTA_GB.",
        )
    if size > free_bytes(settings.DATASET_ROOT):
        raise JobError(
            f"The images have {size / GIB:.2f} GB, more than may be written where datasets are kept.",
            "Ask an administrator to free some space, then upload again.",
        )


def _nothing_added(outcome: Outcome) -> JobError:
    return JobError(
        f"No image could be added; {outcome.refused:,} file{'' if outcome.refused == 1 else 's'} refused.",
        "The reasons are listed below. Nothing was changed in the dataset.",
    )


# -- Into the dataset folder


def _move(job: Upload, outcome: Outcome) -> None:
    """Put the files in place and end the job; all or nothing."""
    report = _reporter(job, MOVE, "Moving the files into the dataset")
    if not job.dataset:
        # Checking the images takes its time; others had it too.
        check_free(job.name, without=job)
    placed = _Placed(job.target, Journal(job.journal, job.target), is_new=not job.dataset)
    try:
        for done, item in enumerate(outcome.items, start=1):
            reason = placed.put(item)
            if reason:
                outcome.refuse(item.name, reason)
            report(done, len(outcome.items), f"{done:,} of {len(outcome.items):,} files moved")
        placed.sync()
        job.renew()
        _finish(job, outcome, placed)
    except OSError as error:
        placed.undo()
        raise _not_written(error) from error
    except BaseException:
        placed.undo()
        raise


def _finish(job: Upload, outcome: Outcome, placed: "_Placed") -> None:
    accepted = placed.files
    if not accepted:
        raise _nothing_added(outcome)
    if job.dataset and placed.class_folders:
        outcome.notes.append(f"New folders in the dataset: {', '.join(sorted(placed.class_folders)[:NOTES_NAMED])}.")
    words = (
        f"{accepted:,} file{'' if accepted == 1 else 's'} added to {shortened(job.name)}, {outcome.refused:,} refused"
    )
    with transaction.atomic():
        scan = _start_scan(job)
        _store(job, outcome, size=placed.size)
        job.write(accepted=accepted)
        job.succeed(f"{words}. {scan}", after={"accepted": accepted, "refused": outcome.refused, "bytes": placed.size})


def _start_scan(job: Upload) -> str:
    try:
        scan = Scan.create(job.created_by)
    except JobError:
        return "A scan is running already and may miss them: scan again when it has finished."
    scan.enqueue()
    return "A scan has been started."


class _Placed:
    """Files put into the dataset folder, each whole, and how to take them away again."""

    def __init__(self, target: Path, journal: Journal, is_new: bool) -> None:
        self.target = target
        self.files = 0
        self.size = 0
        self.class_folders: set[str] = set()
        self._journal = journal
        # Whether the target must be made here: what somebody else has made meanwhile is theirs.
        self._must_make = is_new
        self._made: list[Path] = []
        self._folders: set[Path] = set()
        self._numbers: Counter[Path] = Counter()

    def put(self, item: Item) -> str:
        """Move the item to its place, under a number when the name is taken. Why it was not, in words, or ""."""
        wanted = self.target / PurePosixPath(item.relative)
        self._make(wanted.parent)
        if _is_same_file(item.path, wanted):
            return f"The same file is in the dataset already: {item.relative}."
        part = wanted.with_name(f"{PART}{uuid.uuid4().hex}.part")
        self._journal.part(part)
        try:
            _bring(item.path, part)
            self._rename(part, wanted)
        finally:
            part.unlink(missing_ok=True)
        self.files += 1
        self.size += item.size
        return ""

    def sync(self) -> None:
        """Make the names as durable as the contents are."""
        for folder in self._folders | {folder.parent for folder in self._made}:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def undo(self) -> None:
        self._journal.undo()

    def _make(self, folder: Path) -> None:
        if folder in self._folders:
            return
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        if self._must_make and self.target not in missing:
            raise JobError(*NAME_TAKEN)
        for path in reversed(missing):
            self._make_one(path)
        self._must_make = False
        if missing and folder != self.target:
            self.class_folders.add(class_folder(folder.relative_to(self.target).as_posix()))
        self._folders.add(folder)
        _remove_old_parts(folder)

    def _make_one(self, folder: Path) -> None:
        try:
            folder.mkdir()
        except FileExistsError:
            if self._must_make and folder == self.target:
                raise JobError(*NAME_TAKEN) from None
            return
        self._journal.folder(folder)
        self._made.append(folder)

    def _rename(self, part: Path, wanted: Path) -> None:
        """Give the file its name, or the name with the first number that is free; never over another file."""
        for path in self._names(wanted):
            self._journal.file(path, part)
            try:
                _rename_new(part, path)
            except FileExistsError:
                continue
            return
        raise AssertionError("numbers do not end")

    def _names(self, wanted: Path) -> Iterator[Path]:
        if not self._numbers[wanted]:
            self._numbers[wanted] = 1
            yield wanted
        while True:
            self._numbers[wanted] += 1
            yield wanted.with_name(f"{wanted.stem} ({self._numbers[wanted]}){wanted.suffix}")


def _is_same_file(source: Path, wanted: Path) -> bool:
    if wanted.is_symlink() or not wanted.is_file() or wanted.stat().st_size != source.stat().st_size:
        return False
    return filecmp.cmp(source, wanted, shallow=False)


def _bring(source: Path, part: Path) -> None:
    """Move the bytes to the hidden name and to the disk, from another file system as well."""
    try:
        source.rename(part)
    except OSError:
        # Not `shutil.move`: the new file gets the rights that new files get there.
        shutil.copyfile(source, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())


def _rename_new(part: Path, path: Path) -> None:
    """`rename` that raises FileExistsError where there is something already."""
    if os.path.lexists(path):
        raise FileExistsError(path)
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: what comes between the look and the rename would be lost, but only there.
        part.rename(path)


def _remove_old_parts(folder: Path) -> None:
    """What an upload left that died while it was writing."""
    for part in folder.glob(f"{PART}*.part"):
        with contextlib.suppress(OSError):
            if part.lstat().st_mtime < time.time() - LEFT_OVER_AFTER.total_seconds():
                part.unlink()
