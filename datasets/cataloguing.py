"""Bring the tables up to date with what lies below DATASET_ROOT.

A folder whose names, sizes and times are those of the last scan costs one walk and no look at the tables. In a folder
that changed, each file is compared with its row, a batch at a time; only what differs is read, by all cores. Of
all files at once only little is held: 8 bytes each for what is gone, and their figures while they are judged.
"""

import hashlib
import itertools
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from django.db import models, transaction
from django.utils import timezone

from xrayplatform.jobs import JobCancelled, JobError

from . import decoding, findings, imaging, layouts, scanning
from .layouts import MAX_IMAGE_PATH, Candidate, FolderFiles, FoundDataset, Problem
from .models import (
    ABOUT_LABELS,
    Dataset,
    DatasetImage,
    FileProblem,
    Finding,
    Scan,
    ScannedFolder,
    Upload,
    patient_key,
    patient_key_fingerprint,
    site_pseudonym,
)

BATCH = 500
# A modification time that no file has: the next scan reads the file again.
UNKNOWN_TIME = -1
PROBLEMS_KEPT = 1000
# To be raised when measures, fingerprints or attributes change, so that every image is measured anew.
MEASURED = 3
# Reasons that may be over although the file looks the same; a decoder may have been ended for want of memory.
PASSING = frozenset({"changing", "unreadable", "timeout", "decoder-crashed"})
# When more than this share of a larger dataset is gone, somebody unmounted a folder rather than removed the images.
MISSING_SHARE, MISSING_AT_LEAST = 0.5, 100
LABELS = ("class_name", "source_split", "patient_key", "patient_source")
KNOWN = ("pk", "path", "size", "mtime_ns", *LABELS)
CONTENT = [
    "folder", "size", "mtime_ns", "digest", *LABELS, "width", "height", "format", "measures", "attributes",
    "fingerprint", "cluster",
]  # fmt: skip

# What a scan writes of a dataset. The choices of its users are not among it: they may choose while a scan runs.
STRUCTURE = [
    "state", "layout", "layout_label", "because", "question", "answer", "source_classes", "synthetic",
]  # fmt: skip
CHOICES = ["class_choices", "positive_choice", "ordinal_choice", "pattern"]
DERIVED = ["classes", "positive_class", "ordinal", "unnamed_grades", "counts"]
SUMMARY = [
    "state", "source_counts", "images_count", "unreadable_count", "missing_count", "quality", "digest", "signature",
]  # fmt: skip

LOOKING_FOR_GONE = "Looking for images that are gone"

Report = Callable[[int, int, str], None]


def scan_root(job: Scan) -> None:
    """Find the datasets of the job's root and look at their files; ends the job."""
    root = Path(job.root)
    if not root.is_dir():
        raise JobError(
            "The dataset folder is not there.",
            "Mount it or correct DATASET_ROOT, then scan again. What was found before stays as it is.",
        )
    report = job.reporter()
    tree = layouts.survey(root, lambda files: report(0, 0, f"{files:,} files found"))
    # The structure of a large tree takes a while, without a word: the lease begins anew before it.
    job.renew(message="Looking for datasets")
    found = layouts.find_in(tree, dict(Dataset.objects.exclude(answer="").values_list("name", "answer")))
    images, before, total = 0, 0, sum(folder.file_count for folder in found)
    for folder in found:
        images += DatasetScan(folder, _Progress(report, before, total)).run()
        before += folder.file_count
    Dataset.objects.exclude(name__in=[folder.name for folder in found]).update(state=Dataset.State.OFFLINE)
    job.write(images=images, problems=_problems_for_all(root, layouts.problems_in(tree, found)))
    count = f"{len(found)} dataset{'' if len(found) == 1 else 's'}"
    job.succeed(f"{count}, {images:,} images", after={"datasets": [folder.name for folder in found], "images": images})


def reading() -> str:
    """What images are read with: pixel code, measures, key of the pseudonyms. Another one has to read them anew."""
    return f"{MEASURED}-{imaging.PIPELINE['id']}-{imaging.PIPELINE['version']}-{patient_key_fingerprint()}"


def _problem_rows(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"path": problem.path, "reason": problem.reason} for problem in problems]


def _problems_for_all(root: Path, problems: list[Problem]) -> list[dict[str, str]]:
    """Every team sees a scan: what is wrong in a folder of one of them is counted there, and no name told."""
    teams = Upload.objects.exclude(team=None).values_list("name", flat=True)
    datasets = Dataset.objects.exclude(condition__team=None).values_list("name", flat=True)
    names = {layouts.printable(name) for name in [*teams, *datasets]}
    told = [problem for problem in problems if not _tells_of(problem.path, names, root)]
    hidden = len(problems) - len(told)
    if hidden:
        words = f"{hidden} problem{'' if hidden == 1 else 's'} in folders of teams, which only the teams may know."
        told.append(Problem(".", words, "of-teams"))
    return _problem_rows(told)


def _tells_of(path: str, names: Iterable[str], root: Path) -> bool:
    """Whether a problem's path, as it is shown, is one of the folders, lies in one, or holds nothing else."""
    # The middle of a long path is not shown: a beginning that could be that of the folder is enough.
    start, cut, _ = path.partition("…")
    if any(f"{path}/".startswith(f"{name}/") or (cut and f"{name}/".startswith(start)) for name in names):
        return True
    inner = {name.removeprefix(f"{path}/").partition("/")[0] for name in names if name.startswith(f"{path}/")}
    if not inner or not (root / path).is_dir():
        return bool(inner)
    return {layouts.printable(entry.name) for entry in (root / path).iterdir()} <= inner


class _Progress:
    """Reports on all datasets' files together, by number alone: everybody sees it, the names not everybody may.

    before: files of the datasets before this one.
    """

    def __init__(self, report: Report, before: int, total: int) -> None:
        self._report, self._done, self._total = report, before, total

    def __call__(self, files: int = 1) -> None:
        # Files that came since they were counted must not show as more than all.
        self._done = min(self._done + files, self._total)
        self._report(self._done, self._total, f"{self._done:,} of {self._total:,} files read")

    def say(self, message: str) -> None:
        self._report(self._done, self._total, message)


class DatasetScan:
    """One dataset being scanned."""

    def __init__(self, found: FoundDataset, progress: _Progress) -> None:
        self.found = found
        self.progress = progress
        self.dataset = _dataset_row(found)
        self.records: list[scanning.Record] = []
        self.problems: dict[str, tuple[Candidate, Problem]] = {}
        self.relabelled: list[DatasetImage] = []
        self.other_labels: list[str] = []
        # By changed folder, what is there: hashes instead of names, because there may be a million.
        self.seen: dict[str, set[int]] = {}
        self.seen_problems: dict[str, set[int]] = {}
        self.signatures: dict[str, str] = {}
        # Folders with a file that the next scan has to look at again.
        self.unsettled: set[str] = set()
        # Whether an image has other pixels, another label or another patient than before.
        self.changed = False
        # Of what is gone: all images by class, and those whose files are not there by class and folder.
        self.gone: Counter[str] = Counter()
        self.missing: Counter[tuple[str, str]] = Counter()

    def run(self) -> int:
        """Returns the number of readable images."""
        dataset = self.dataset
        if dataset.signature == self.found.signature:
            self.progress(self.found.file_count)
        else:
            # Blank until every file has been looked at: a scan that stops half-way leaves rows of both kinds behind.
            Dataset.objects.filter(pk=dataset.pk).update(signature="", digest="")
            self._read_changed()
            self._forget_gone()
            self._remember_folders()
            self._summarise()
        self._save_problems_of_folders()
        return dataset.images_count

    # -- Files

    def _read_changed(self) -> None:
        try:
            for candidate, answer in decoding.shared().run(self._requests()):
                self._take(candidate, scanning.outcome(candidate, answer))
                self.progress()
        except JobCancelled:
            # What has been read need not be read again by the next scan.
            self._flush()
            raise
        self._flush()

    def _requests(self) -> Iterator[tuple[Candidate, dict[str, Any]]]:
        """What has to be read; on the way, what is known already is compared with its row."""
        for folder in self._changed_folders():
            self.seen[folder.relative], self.seen_problems[folder.relative] = set(), set()
            entries = folder.entries()
            while batch := list(itertools.islice(entries, BATCH)):
                yield from self._unknown(batch)

    def _changed_folders(self) -> list[FolderFiles]:
        """What was known of them is forgotten first: a scan that stops half-way leaves rows that it no longer fits."""
        before = dict(self.dataset.folders.values_list("path", "signature"))
        changed = []
        for folder in self.found.folders():
            signature = _folder_signature(folder, self.found)
            if before.get(folder.relative) == signature:
                self.progress(folder.count)
                continue
            self.signatures[folder.relative] = signature
            changed.append(folder)
        known = [folder.relative for folder in changed if folder.relative in before]
        for start in range(0, len(known), BATCH):
            self.dataset.folders.filter(path__in=known[start : start + BATCH]).delete()
        return changed

    def _unknown(self, batch: list[Candidate]) -> Iterator[tuple[Candidate, dict[str, Any]]]:
        paths = [candidate.relative for candidate in batch]
        images = {image.path: image for image in self.dataset.images.filter(path__in=paths).only(*KNOWN, "dataset")}
        told = self.dataset.file_problems.filter(path__in=paths).values_list("path", "size", "mtime_ns")
        problems = {path: (size, time) for path, size, time in told}
        for candidate in batch:
            image = images.get(candidate.relative)
            state = (candidate.size, candidate.mtime_ns)
            if image is not None and (image.size, image.mtime_ns) == state:
                self.seen[image_folder(image.path)].add(hash(image.path))
                self._relabel(image, candidate)
                self.progress()
            elif problems.get(candidate.relative) == state:
                self.seen_problems[image_folder(candidate.relative)].add(hash(candidate.relative))
                self.progress()
            elif problem := scanning.name_problem(candidate):
                self._take(candidate, problem)
                self.progress()
            else:
                yield candidate, scanning.request(candidate)

    def _take(self, candidate: Candidate, outcome: scanning.Record | Problem) -> None:
        if isinstance(outcome, Problem):
            self.problems[outcome.path] = (candidate, outcome)
            self.seen_problems[image_folder(candidate.relative)].add(hash(outcome.path))
            if outcome.code in PASSING:
                self.unsettled.add(image_folder(candidate.relative))
        else:
            self.seen[image_folder(outcome.path)].add(hash(outcome.path))
            self.records.append(outcome)
        if len(self.records) >= BATCH or len(self.problems) >= BATCH:
            self._flush()

    def _relabel(self, image: DatasetImage, candidate: Candidate) -> None:
        """The pixels are those of the last scan, but a CSV file may say something else about them now."""
        said = {"class_name": candidate.class_name, "source_split": candidate.source_split}
        if image.patient_source != "dicom":
            said["patient_key"] = patient_key(candidate.patient) if candidate.patient else ""
            said["patient_source"] = candidate.patient_source
        if all(getattr(image, name) == value for name, value in said.items()):
            return
        if image.class_name != candidate.class_name:
            self.other_labels.append(image.path)
        for name, value in said.items():
            setattr(image, name, value)
        self.relabelled.append(image)
        if len(self.relabelled) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        """Insert or update what has gathered; short transactions, because others wait for the writer on SQLite."""
        self.changed = self.changed or bool(self.records or self.relabelled)
        with transaction.atomic():
            self._save_images()
            self._save_problems()
            DatasetImage.objects.bulk_update(self.relabelled, LABELS)
            self._forget_doubts(self.other_labels)
        self.records, self.problems, self.relabelled, self.other_labels = [], {}, [], []

    def _save_images(self) -> None:
        images = [_image_row(self.dataset, record) for record in self.records]
        read = [image.path for image in images]
        known = self.dataset.images.filter(path__in=read).values_list("path", "digest", "class_name")
        before = {path: (digest, class_name) for path, digest, class_name in known}
        DatasetImage.objects.bulk_create(
            images, update_conflicts=True, unique_fields=["dataset", "path"], update_fields=CONTENT
        )
        self.dataset.file_problems.filter(path__in=read).delete()
        self._forget_doubts(
            [image.path for image in images if before.get(image.path, ()) != (image.digest, image.class_name)]
        )

    def _forget_doubts(self, paths: list[str]) -> None:
        """What a model or a person thought of other pixels, or of another label, says nothing of these."""
        Finding.objects.filter(dataset=self.dataset, code__in=ABOUT_LABELS, image__path__in=paths).delete()

    def _save_problems(self) -> None:
        FileProblem.objects.bulk_create(
            [_problem_row(self.dataset, *found) for found in self.problems.values()],
            update_conflicts=True,
            unique_fields=["dataset", "path"],
            update_fields=["folder", "code", "reason", "size", "mtime_ns"],
        )
        self.dataset.images.filter(path__in=list(self.problems)).delete()

    # -- What is not there any more

    def _forget_gone(self) -> None:
        """Drop the rows of files that were removed, unless so many are gone that this must be a mistake."""
        dataset = self.dataset
        gone, missing = self._gone()
        mistake = missing >= MISSING_AT_LEAST and missing > MISSING_SHARE * dataset.images.count()
        # Accepted was the loss that the page told, and none that came since.
        accepted = dataset.missing_accepted and missing <= dataset.missing_count
        dataset.missing_count = missing if mistake and not accepted else 0
        if dataset.missing_accepted:
            Dataset.objects.filter(pk=dataset.pk).update(missing_accepted=False)
        if dataset.missing_count:
            dataset.state = Dataset.State.OFFLINE
            return
        if not mistake:
            self._tell_of_vanished(gone)
        for start in range(0, len(gone), BATCH):
            dataset.images.filter(pk__in=gone[start : start + BATCH].tolist()).delete()
            self.progress.say(f"{start:,} of {len(gone):,} images that are gone forgotten")
        for folder, seen in self.seen_problems.items():
            self._forget_problems(folder, seen)

    def _gone(self) -> tuple["array[int]", int]:
        """Numbers of the rows that no file was seen of, and how many of these files are not there at all."""
        gone = array("q")
        for pk, path, class_name in self._unseen():
            gone.append(pk)
            self.gone[class_name] += 1
            if not _is_there(self.dataset.folder / path):
                self.missing[class_name, image_folder(path)] += 1
            self.progress.say(LOOKING_FOR_GONE)
        return gone, self.missing.total()

    def _tell_of_vanished(self, gone: "array[int]") -> None:
        """Store, before they are forgotten, what folders are no more, and which classes will have no image left.

        Nobody has said that this was meant. One entry a class, however many folders it had; images that were moved, as
        when a folder is renamed, are no loss.
        """
        dataset, root = self.dataset, self.dataset.folder
        there = dict(dataset.images.order_by().values_list("class_name").annotate(models.Count("pk")))
        lost: dict[str, Counter[str]] = {}
        for (name, folder), count in self.missing.items():
            if there.get(name, 0) <= self.gone[name] or not _is_there(root / folder):
                lost.setdefault(name, Counter())[_outermost_missing(root, folder)] += count
        for (name, folder), count in (self._moved(gone) if lost else Counter()).items():
            if name in lost:
                lost[name][_outermost_missing(root, folder)] -= count
        lost = {name: +folders for name, folders in lost.items() if +folders}
        if not lost:
            return
        told = {loss["class"]: loss for loss in dataset.vanished}
        for name, folders in lost.items():
            told[name] = _added_loss(told.get(name), {"class": name, "folder": min(folders), "images": folders.total()})
        dataset.quality = dataset.quality | {"vanished": [told[name] for name in sorted(told)]}
        Dataset.objects.filter(pk=dataset.pk).update(quality=dataset.quality)

    def _moved(self, gone: "array[int]") -> Counter[tuple[str, str]]:
        """Of what is gone, by class and folder, the images whose pixels came to another place since the last scan."""
        # What has just been read was not yet compared with other images.
        fresh = self.dataset.images.filter(cluster=None).order_by()
        images, numbers = self.dataset.images.order_by(), array("q", sorted(gone))
        moved: Counter[tuple[str, str]] = Counter()
        for start in range(0, len(numbers), BATCH):
            batch = images.filter(pk__in=numbers[start : start + BATCH].tolist())
            rows = list(batch.values_list("digest", "class_name", "folder"))
            copies = fresh.filter(digest__in={digest for digest, *_ in rows}).values_list("pk", "digest")
            left = {digest for pk, digest in copies.iterator(2000) if not _contains(numbers, pk)}
            moved.update((name, folder) for digest, name, folder in rows if digest in left)
            self.progress.say(LOOKING_FOR_GONE)
        return moved

    def _still_vanished(self) -> list[dict[str, Any]]:
        """Losses that nobody has accepted meanwhile and that are not made good."""
        stored = Dataset.objects.values_list("quality", flat=True).get(pk=self.dataset.pk)
        return [loss for loss in stored.get("vanished", []) if not self._is_back(loss)]

    def _is_back(self, loss: dict[str, Any]) -> bool:
        images = self.dataset.images.filter(class_name=loss["class"])
        below = models.Q(folder=loss["folder"]) | models.Q(folder__startswith=f"{loss['folder']}/")
        return (images.filter(below) if loss["folder"] else images).exists()

    def _unseen(self) -> Iterator[tuple[int, str, str]]:
        """Rows (number, path, class) of changed folders, and of those that are no part of the dataset any more."""
        there = {folder.relative for folder in self.found.folders()}
        known = self.dataset.images.order_by().values_list("folder", flat=True).distinct()
        for folder in [name for name in known if name in self.seen or name not in there]:
            seen = self.seen.get(folder, set())
            rows = self.dataset.images.filter(folder=folder).order_by().values_list("pk", "path", "class_name")
            yield from (row for row in rows.iterator(2000) if hash(row[1]) not in seen)
            self.progress.say(LOOKING_FOR_GONE)

    def _forget_problems(self, folder: str, seen: set[int]) -> None:
        """Problems of files that were removed, renamed, or are no part of the dataset any more."""
        rows = self.dataset.file_problems.filter(folder=folder[:MAX_IMAGE_PATH]).values_list("pk", "path")
        self._delete_problems([pk for pk, path in rows.iterator(2000) if hash(path) not in seen])

    def _delete_problems(self, numbers: list[int]) -> None:
        for start in range(0, len(numbers), BATCH):
            FileProblem.objects.filter(pk__in=numbers[start : start + BATCH]).delete()
            self.progress.say("Forgetting what was said about removed files")

    def _remember_folders(self) -> None:
        there = {folder.relative for folder in self.found.folders()}
        gone = [name for name in self.dataset.folders.values_list("path", flat=True) if name not in there]
        for start in range(0, len(gone), BATCH):
            self.dataset.folders.filter(path__in=gone[start : start + BATCH]).delete()
            problems = self.dataset.file_problems.filter(folder__in=gone[start : start + BATCH]).order_by()
            self._delete_problems(list(problems.values_list("pk", flat=True).iterator(2000)))
        if self.dataset.missing_count:
            return
        ScannedFolder.objects.bulk_create(
            [
                ScannedFolder(dataset=self.dataset, path=path, signature=signature)
                for path, signature in self.signatures.items()
                if path not in self.unsettled and len(path) <= MAX_IMAGE_PATH
            ],
            batch_size=BATCH,
            update_conflicts=True,
            unique_fields=["dataset", "path"],
            update_fields=["signature"],
        )

    # -- The dataset itself

    def _summarise(self) -> None:
        dataset, found = self.dataset, self.found
        content = hashlib.sha256()
        identities = dataset.images.in_byte_order().values_list("path", "digest", "class_name")
        for path, digest, class_name in identities.iterator(2000):
            content.update(f"{path}\0{digest}\0{class_name}\n".encode())
            self.progress.say("Summing up the images")
        counted = dataset.images.order_by("class_name").values_list("class_name").annotate(models.Count("pk"))
        dataset.source_counts = dict.fromkeys(found.classes, 0) | dict(counted)
        dataset.images_count = sum(dataset.source_counts.values())
        dataset.unreadable_count = dataset.file_problems.count()
        known, dataset.digest = dataset.digest, content.hexdigest()
        dataset.signature = "" if dataset.missing_count or self.unsettled else found.signature
        if self.changed or dataset.digest != known or dataset.quality.get("pattern", "") != dataset.pattern:
            self.progress.say(findings.JUDGING)
            dataset.refresh_from_db(fields=CHOICES)
            dataset.derive_classes()
            findings.refresh(dataset, self.progress.say)
        dataset.quality = dataset.quality | {"vanished": self._still_vanished()}
        _save_with_choices(dataset, SUMMARY)

    def _save_problems_of_folders(self) -> None:
        """Also in a dataset without a change: files of other kinds beside the images are no part of its signature."""
        dataset, problems = self.dataset, _problem_rows(self.found.problems)
        dataset.problems = problems[:PROBLEMS_KEPT]
        dataset.problems_count = len(problems) + len(dataset.vanished) + dataset.unreadable_count
        dataset.scanned_at = timezone.now()
        dataset.save(update_fields=["problems", "problems_count", "scanned_at", "state"])


def _dataset_row(found: FoundDataset) -> Dataset:
    with transaction.atomic():
        dataset = Dataset.objects.select_for_update().filter(name=found.name).first() or Dataset(
            name=found.name, condition=Dataset.new_condition(found.name, found.body_part)
        )
        dataset.state = Dataset.State.PRESENT
        dataset.layout, dataset.layout_label, dataset.because = found.layout, found.label, found.because
        dataset.question = _question(found)
        options = {option.value for option in found.question.options} if found.question else set()
        # One that was given since the scan began is for the next scan.
        dataset.answer = dataset.answer if dataset.answer in options else ""
        dataset.source_classes, dataset.synthetic = list(found.classes), found.synthetic
        dataset.derive_classes()
        is_new = dataset.pk is None
        dataset.save(update_fields=None if is_new else [*STRUCTURE, *DERIVED])
        if is_new:
            Upload.adopt(dataset)
    if dataset.read_with != reading():
        _have_read_anew(dataset)
    return dataset


def _have_read_anew(dataset: Dataset) -> None:
    """In this order: when it stops half-way, the next scan begins with it again."""
    dataset.signature = dataset.digest = ""
    dataset.save(update_fields=["signature", "digest"])
    dataset.folders.all().delete()
    dataset.images.update(mtime_ns=UNKNOWN_TIME)
    dataset.file_problems.update(mtime_ns=UNKNOWN_TIME)
    dataset.read_with = reading()
    dataset.save(update_fields=["read_with"])


def _save_with_choices(dataset: Dataset, fields: list[str]) -> None:
    """Save what a scan found, and what follows from it and from the choices of users as they are now."""
    with transaction.atomic():
        chosen = Dataset.objects.select_for_update().values(*CHOICES).get(pk=dataset.pk)
        for name, value in chosen.items():
            setattr(dataset, name, value)
        dataset.derive_classes()
        if dataset.quality.get("pattern", "") != dataset.pattern:
            # It was chosen after the patients were counted: the next scan counts them anew.
            dataset.signature = ""
        dataset.save(update_fields=[*fields, *DERIVED])


def _question(found: FoundDataset) -> dict[str, Any] | None:
    if found.question is None:
        return None
    return {
        "code": found.question.code,
        "text": found.question.text,
        "suggested": found.question.suggested,
        "used": found.answer,
        "options": [
            {
                "value": option.value,
                "label": option.label,
                "because": option.because,
                "counts": option.counts,
                "examples": list(option.examples),
            }
            for option in found.question.options
        ],
    }


def _folder_signature(folder: FolderFiles, found: FoundDataset) -> str:
    """Of all that the rows of a folder depend on: its files, what the structure says of them, and the CSV file."""
    said = (
        folder.signature, folder.class_name, folder.source_split, folder.patient or "", found.table_digest,
        found.answer,
    )  # fmt: skip
    return hashlib.sha256("\0".join(said).encode("utf-8", "surrogateescape")).hexdigest()


def image_folder(path: str) -> str:
    return path.rpartition("/")[0]


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def _contains(numbers: "array[int]", number: int) -> bool:
    """Whether the number is among the sorted ones."""
    place = bisect_left(numbers, number)
    return place < len(numbers) and numbers[place] == number


def _added_loss(earlier: dict[str, Any] | None, loss: dict[str, Any]) -> dict[str, Any]:
    """Both losses of a class in one. Of the same folder they are one: a scan that forgets may stop half-way."""
    if earlier is None:
        return loss
    if earlier["folder"] == loss["folder"]:
        return earlier
    return earlier | {"images": earlier["images"] + loss["images"]}


def _outermost_missing(root: Path, folder: str) -> str:
    """The outermost of a folder and those around it that is not there; the folder itself if it is."""
    above = image_folder(folder)
    while above and not _is_there(root / above):
        folder, above = above, image_folder(above)
    return folder


def _image_row(dataset: Dataset, record: scanning.Record) -> DatasetImage:
    return DatasetImage(
        dataset=dataset,
        path=record.path,
        folder=image_folder(record.path),
        size=record.size,
        mtime_ns=record.mtime_ns,
        digest=record.digest,
        class_name=record.class_name,
        source_split=record.source_split,
        patient_key=patient_key(record.patient) if record.patient else "",
        patient_source=record.patient_source,
        width=record.width,
        height=record.height,
        format=record.format,
        measures=record.measures,
        attributes=_attributes(record),
        fingerprint=record.fingerprint,
    )


def _attributes(record: scanning.Record) -> dict[str, str]:
    """What is known of the patient and the place, as little as groups need."""
    site = site_pseudonym(record.institution) if record.institution else ""
    found = {"sex": record.sex, "age": record.age, "site": site}
    return {name: value for name, value in found.items() if value}


def _problem_row(dataset: Dataset, candidate: Candidate, problem: Problem) -> FileProblem:
    return FileProblem(
        dataset=dataset,
        path=problem.path,
        folder=image_folder(candidate.relative)[:MAX_IMAGE_PATH],
        code=problem.code,
        reason=problem.reason,
        size=candidate.size,
        mtime_ns=UNKNOWN_TIME if problem.code in PASSING else candidate.mtime_ns,
    )
