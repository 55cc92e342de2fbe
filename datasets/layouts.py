"""Which datasets lie below a folder, in which structure, and which files belong to which class.

Recognised are class folders, train/validation/test folders with class folders in them, studies that bear their label,
and images with a CSV file. A folder that can be read in several ways is one dataset with a question, and a preview of
each answer. Only names are looked at here; `scanning` opens the files. Links are never followed, so nothing outside
the folder is ever read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Final

from datasets import tables
from datasets.names import (
    EXTENSIONS,
    MAX_CLASS_NAME,
    MAX_CLASSES,
    MAX_DATASET_NAME,
    MAX_IMAGE_PATH,
    MAX_LISTED,
    Problem,
    body_part,
    capped,
    counted,
    exact_key,
    is_ordinal,
    natural_key,
    patient_folder,
    positive_class,
    printable,
    shortened,
)
from datasets.readings import Candidate, FolderFiles, Reading, Structures, file_names, is_covered, path_below
from datasets.survey import Folder, Progress, survey

__all__ = [
    "EXTENSIONS", "MARKER", "MAX_CLASSES", "MAX_CLASS_NAME", "MAX_DATASET_NAME", "MAX_IMAGE_PATH", "MAX_LISTED",
    "Candidate", "Folder", "FolderFiles", "FoundDataset", "Option", "Problem", "Progress", "Question",
    "find_datasets", "find_in", "folder_problems", "natural_key", "patient_folder", "printable", "problems_in",
    "shortened", "survey",
]  # fmt: skip

MARKER: Final = "SYNTHETIC.txt"
EXAMPLES: Final = 4

LABELS: Final = {
    "class-folders": "Class folders",
    "split-folders": "Train, validation and test folders",
    "study-folders": "Studies that bear their label",
    "images-csv": "Images with a CSV file",
}


@dataclass(frozen=True)
class Option:
    """One way to read a folder. value: what an answer holds. counts: images of each class, with "split / class" where
    there are splits. examples: a few paths relative to the dataset."""

    value: str
    label: str
    because: str
    counts: dict[str, int]
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """What the names do not tell. suggested: the value of the option that is used until somebody answers."""

    code: str
    text: str
    options: tuple[Option, ...]
    suggested: str


@dataclass(frozen=True)
class FoundDataset:
    """A dataset that was recognised. name: POSIX path below the root, "." for the root itself.

    positive_class is a suggestion for two classes and "" otherwise. ordinal: the classes are consecutive grades.
    unnamed_grades: the classes are bare numbers, so a display name for each is worth asking for. question: None where
    the names leave no doubt. answer: the option in use, "" without a question. signature: hex digest; while it stays
    the same, nothing at all has changed. table_digest: the same for what the CSV file says of the images, "" without.
    """

    name: str
    path: Path
    layout: str
    because: str
    classes: tuple[str, ...]
    positive_class: str
    ordinal: bool
    body_part: str
    synthetic: bool
    problems: tuple[Problem, ...]
    signature: str
    unnamed_grades: bool = False
    question: Question | None = None
    answer: str = ""
    table_digest: str = ""
    _folders: tuple[FolderFiles, ...] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        return LABELS[self.layout]

    @property
    def file_count(self) -> int:
        """Image files that were there when the dataset was found; `files` yields fewer where a CSV file lacks rows."""
        return sum(folder.count for folder in self._folders)

    def folders(self) -> Iterator[FolderFiles]:
        """The folders in which the images lie, in natural order of their paths."""
        yield from self._folders

    def files(self) -> Iterator[Candidate]:
        """The files of the dataset, one by one; within a folder in the order of the file system."""
        for folder in self._folders:
            yield from folder.entries()


def find_datasets(root: Path, answers: Mapping[str, str] | None = None) -> list[FoundDataset]:
    """All datasets at or below `root`, by name. A folder without any is told by `folder_problems`.

    answers: value of an `Option` by the name of the dataset; one that fits no longer is ignored.
    """
    return find_in(survey(root), answers)


def find_in(tree: Folder, answers: Mapping[str, str] | None = None) -> list[FoundDataset]:
    """`find_datasets` in a folder tree that has been surveyed."""
    return sorted(_Finder(tree, answers or {}).datasets(tree), key=lambda found: exact_key(found.name))


def folder_problems(root: Path, found: Sequence[FoundDataset]) -> list[Problem]:
    """Folders below `root` in which nothing usable was found, with the reason. Paths are relative to `root`."""
    return problems_in(survey(root), found)


def problems_in(tree: Folder, found: Sequence[FoundDataset]) -> list[Problem]:
    """`folder_problems` in a folder tree that has been surveyed."""
    missing = [notice for notice in tree.notices if notice.code == "missing-folder"]
    if missing:
        return [Problem(".", notice.reason, notice.code) for notice in missing]
    return list(_folder_problems(tree, _Holders(tree, found)))


class _Finder:
    """Looks for datasets in one surveyed tree."""

    def __init__(self, tree: Folder, answers: Mapping[str, str]):
        self.root = tree.path
        self.answers = answers
        self.structures = Structures(tree)

    def datasets(self, folder: Folder) -> Iterator[FoundDataset]:
        """The dataset that this folder is, then those in the folders that are not part of it."""
        if _name_too_long(folder, self.root) or not folder.total:
            return
        readings = self.structures.readings(folder)
        used = {part.folder.path for reading in readings for part in reading.parts}
        free = [child for child in folder.folders if not is_covered(child, used)]
        inner = {child.path: list(self.datasets(child)) for child in free}
        if readings:
            yield self._build(folder, readings, [child for child in free if inner[child.path]])
        for found in inner.values():
            yield from found

    def _build(self, folder: Folder, readings: Sequence[Reading], others: Sequence[Folder]) -> FoundDataset:
        name = folder.path.relative_to(self.root).as_posix()
        wanted = self.answers.get(name)
        reading = next((reading for reading in readings if reading.value == wanted), readings[0])
        usable = replace(reading, parts=tuple(part for part in reading.parts if len(part.class_name) <= MAX_CLASS_NAME))
        classes = _classes(usable)
        files = usable.files(folder)
        problems = tuple(_problems(folder, reading, classes, others))
        question = _question(folder, readings) if len(readings) > 1 else None
        synthetic = _is_synthetic(folder.path, self.root)
        return FoundDataset(
            name=name,
            path=folder.path,
            layout=reading.layout,
            because=reading.because,
            classes=classes,
            positive_class=positive_class(classes),
            ordinal=is_ordinal(classes),
            body_part=body_part(folder.path.relative_to(self.root).parts),
            synthetic=synthetic,
            problems=problems,
            signature=_signature(reading, classes, files, problems, synthetic),
            unnamed_grades=len(classes) > 1 and all(name.isdecimal() for name in classes),
            question=question,
            answer=reading.value,
            table_digest=reading.labels.digest() if reading.labels else "",
            _folders=tuple(files),
        )


def _question(folder: Folder, readings: Sequence[Reading]) -> Question:
    asked = list(dict.fromkeys((choice.code, choice.text) for reading in readings for choice in reading.choices))
    options = tuple(
        Option(
            value=reading.value,
            label="; ".join(choice.label for choice in reading.choices),
            because=reading.because,
            counts=reading.counts(),
            examples=_examples(reading, folder),
        )
        for reading in readings
    )
    code = "+".join(dict.fromkeys(code for code, _ in asked))
    return Question(code, " ".join(dict.fromkeys(text for _, text in asked)), options, readings[0].value)


def _examples(reading: Reading, folder: Folder) -> tuple[str, ...]:
    """A few files, of different classes where folders tell them."""
    files = reading.files(folder)
    by_class = list({files.class_name: files for files in reversed(files)}.values())[::-1]
    each = max(1, EXAMPLES // len(by_class)) if by_class else 0
    found = (candidate.relative for files in by_class for candidate in islice(files.entries(), each))
    return tuple(printable(relative) for relative in islice(found, EXAMPLES))


def _classes(reading: Reading) -> tuple[str, ...]:
    """Those of the folders, or those of the CSV file that images have."""
    if reading.labels and reading.match and (reading.labels.trust == "csv" or not reading.folder_classes):
        return tuple(name for name, count in reading.match.counts(reading.labels).items() if count)
    return tuple(reading.folder_classes)


def _signature(
    reading: Reading,
    classes: Sequence[str],
    files: Sequence[FolderFiles],
    problems: Sequence[Problem],
    synthetic: bool,
) -> str:
    content = blake2b(digest_size=16)
    table = reading.labels.digest() if reading.labels else ""
    rows: list[tuple[object, ...]] = [
        (reading.layout, reading.value, reading.because, synthetic, table, *classes),
        *((file.relative, file.class_name, file.source_split, file.count, file.signature) for file in files),
        *((problem.path, problem.reason, problem.code) for problem in problems),
    ]
    for row in rows:
        content.update(repr(row).encode("utf-8", "backslashreplace"))
    return content.hexdigest()


def _is_synthetic(path: Path, root: Path) -> bool:
    inside = [path, *(parent for parent in path.parents if parent.is_relative_to(root) and parent != root)]
    return any((folder / MARKER).is_file() for folder in inside)


# --- Problems of a dataset -------------------------------------------------------------------------------------------


def _problems(folder: Folder, reading: Reading, classes: Sequence[str], others: Sequence[Folder]) -> Iterator[Problem]:
    """All that is told of a dataset. others: folders in it that hold datasets of their own."""
    yield from capped(reading.problems)
    if reading.labels and reading.match:
        yield from tables.check(reading.labels, reading.match, lambda: file_names(reading.files(folder)))
        yield from _split_conflicts(reading.labels, reading.files(folder))
        if not classes or len(classes) < len(_labels_meant(reading)):
            unused = [name for name in _labels_meant(reading) if name not in classes]
            reason = f"No image has the class {', '.join(map(shortened, unused))}."
            yield Problem(reading.labels.table.name, reason, "no-images")
    yield from _long_names(folder, reading)
    yield from _content_problems(folder, reading, others)
    if len(classes) == 1:
        reason = f"Only one class was found ({classes[0]}); a classifier needs at least two class folders."
        yield Problem(".", reason, "one-class")


def _split_conflicts(labels: tables.Labels, folders: Sequence[FolderFiles]) -> list[Problem]:
    """Images in the folder of one split whose row is in the CSV file of another."""
    problems: list[Problem] = []
    total = 0
    for folder in folders if labels.table.has_splits else ():
        for relative, _ in file_names([folder] if folder.source_split else []):
            index = labels.table.find(relative)
            if index is None or labels.table.split_of(index) == folder.source_split:
                continue
            total += 1
            if len(problems) < MAX_LISTED:
                says = f"{labels.table.row_of(index)} says {labels.table.split_of(index)}"
                reason = f"The folder says {folder.source_split}, {says}; the folder's split is used."
                problems.append(Problem(printable(relative), reason, "split-conflict"))
    return capped(problems, total)


def _labels_meant(reading: Reading) -> tuple[str, ...]:
    if not reading.labels or not reading.labels.labelling or (reading.folder_classes and reading.labels.trust != "csv"):
        return ()
    return reading.labels.labelling.classes


def _long_names(folder: Folder, reading: Reading) -> Iterator[Problem]:
    for part in reading.parts:
        if len(part.class_name) > MAX_CLASS_NAME:
            yield Problem(
                shortened(path_below(part.folder, folder)),
                f"The name of this class folder has {len(part.class_name)} characters, at most {MAX_CLASS_NAME} can be "
                f"used; its {counted(part.folder.images, 'image')} left out. Rename the folder.",
                "name-too-long",
            )


def _content_problems(folder: Folder, reading: Reading, others: Sequence[Folder]) -> Iterator[Problem]:
    region = [folder, *(below for child in folder.folders if child not in others for below in child.below())]
    holders = {top.path.parent for top in reading.tops}
    for empty in region:
        if not empty.total and (empty.path in {top.path for top in reading.tops} or empty.path.parent in holders):
            reason = f"The class folder holds no images ({', '.join(EXTENSIONS)})."
            yield Problem(printable(path_below(empty, folder)), reason, "no-images")
    for top in reading.tops:
        yield from _other_files(top, folder)
    yield from capped(list(_drawings(folder, reading)))
    yield from _left_out(folder, reading, region)
    yield from _notices(region, folder)


def _other_files(top: Folder, base: Folder) -> Iterator[Problem]:
    kinds: Counter[str] = Counter()
    for below in top.below():
        kinds.update(below.others)
    if kinds:
        common = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items(), key=lambda kind: -kind[1])[:5])
        reason = f"{counted(kinds.total(), 'file')} of other kinds left out ({printable(common)})."
        yield Problem(printable(path_below(top, base)) or ".", reason, "other-files")


def _drawings(folder: Folder, reading: Reading) -> Iterator[Problem]:
    why = " by the answer to the question" if reading.choices else ""
    for part in reading.parts:
        if part.bare and part.folder.drawings:
            images = counted(part.folder.drawings, "image")
            reason = f"{images} named like drawings on the image beside them{why}, left out."
            yield Problem(printable(path_below(part.folder, folder)) or ".", reason, "drawings")


def _left_out(folder: Folder, reading: Reading, region: Sequence[Folder]) -> list[Problem]:
    used = {part.folder.path for part in reading.parts}
    chosen = "by the answer to the question" if reading.choices else ""
    problems = []
    for below in region:
        if below.images and below.path not in used:
            inside = _is_inside(below, reading.tops)
            drawn = inside and below.images == below.drawings and any(part.bare for part in reading.parts)
            where = chosen if inside and chosen else "named like drawings" if drawn else "outside the class folders"
            reason = f"{counted(below.images, 'image')} {where}, left out."
            problems.append(Problem(printable(path_below(below, folder)) or ".", reason, "outside-classes"))
    return capped(problems)


def _is_inside(folder: Folder, tops: Sequence[Folder]) -> bool:
    paths = {top.path for top in tops}
    return folder.path in paths or not paths.isdisjoint(folder.path.parents)


def _notices(region: Iterable[Folder], base: Folder) -> list[Problem]:
    """What the survey noticed, by code."""
    listed: dict[str, list[Problem]] = {}
    counts: Counter[str] = Counter()
    for folder in region:
        counts.update(folder.notice_counts)
        below = printable(path_below(folder, base))
        for notice in folder.notices:
            path = "/".join(filter(None, (below, notice.name))) or "."
            problems = listed.setdefault(notice.code, [])
            if len(problems) < MAX_LISTED:
                problems.append(Problem(path, notice.reason, notice.code))
    return [problem for code, problems in listed.items() for problem in capped(problems, counts[code])]


# --- Problems of folders that are no dataset -------------------------------------------------------------------------


class _Holders:
    """Which folders of a tree are datasets, and which hold some."""

    def __init__(self, tree: Folder, found: Sequence[FoundDataset]):
        self.tree = tree
        self.datasets = {dataset.path for dataset in found}
        self.holding = {path for dataset in found for path in (dataset.path, *dataset.path.parents)}

    def holds(self, folder: Folder) -> bool:
        return folder.path in self.holding


def _folder_problems(folder: Folder, holders: _Holders) -> Iterator[Problem]:
    if folder.path in holders.datasets:
        # What lies in folders without a dataset is told by this one.
        inner = [child for child in folder.folders if holders.holds(child)]
    else:
        descend = holders.holds(folder) or folder is holders.tree
        yield from _notices([folder] if descend else folder.below(), holders.tree)
        yield from _unused(folder, holders)
        inner = folder.folders if descend else []
    for child in inner:
        yield from _folder_problems(child, holders)


def _name_too_long(folder: Folder, root: Path) -> bool:
    return len(folder.path.relative_to(root).as_posix()) > MAX_DATASET_NAME


def _unused(folder: Folder, holders: _Holders) -> Iterator[Problem]:
    root = holders.tree
    name = shortened(path_below(folder, root)) or "."
    holds = holders.holds(folder)
    if not holds and any(_name_too_long(below, root.path) and below.images for below in folder.below()):
        yield Problem(
            name,
            f"The path to the images below this folder has more than {MAX_DATASET_NAME} characters; they are left out. "
            "Shorten the names of the folders.",
            "name-too-long",
        )
    elif folder.images:
        # The folders below are told one by one only where a dataset is among them.
        alone = holds or folder is root
        where = "here" if alone or folder.total == folder.images else "here and in the folders below"
        images = counted(folder.images if alone else folder.total, "image")
        yield Problem(
            name,
            f"{images} lie {where} without class folders. Sort them into one folder for each class, or "
            "put a CSV file with an image and a label column beside them.",
            "no-classes",
        )
    elif not holds and not (folder is root and folder.folders):
        reason = "The folder is empty." if not folder.folders and not folder.others else "The folder holds no dataset."
        if folder.total:
            reason = "The images in this folder are not sorted into class folders."
        yield Problem(name, reason, "empty-folder" if reason == "The folder is empty." else "no-dataset")
