"""Which datasets lie below a folder, in which structure, and which files belong to which class.

Three structures are recognised: class folders, train/validation/test folders with class folders in them, and an
images folder with a CSV file beside it. Only names are looked at here; `scanning` opens the files. Links are never
followed, so nothing outside the folder is ever read.
"""

import csv
import functools
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

EXTENSIONS: Final = (".jpg", ".jpeg", ".png", ".dcm")
MARKER: Final = "SYNTHETIC.txt"
# More folders than this are patients or studies, not classes.
MAX_CLASSES: Final = 100
MAX_CSV_BYTES: Final = 64 * 1024**2
# Beyond this many problems of one kind only their number is told.
MAX_LISTED: Final = 500
# Characters of a name that the tables hold; what is longer is left out and reported.
MAX_DATASET_NAME: Final = 400
MAX_CLASS_NAME: Final = 200
MAX_IMAGE_PATH: Final = 700

LABELS: Final = {
    "class-folders": "Class folders",
    "split-folders": "Train, validation and test folders",
    "images-csv": "Images with a CSV file",
}
SPLIT_WORDS: Final = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
NEGATIVE_WORDS: Final = frozenset(
    {
        "normal",
        "negative",
        "neg",
        "healthy",
        "benign",
        "control",
        "controls",
        "no",
        "non",
        "not",
        "without",
        "absent",
        "0",
    }
)
# Folders of one patient, as some archives have them inside a class folder. Where a patient's folder and a study's lie
# inside each other the patient's tells more, whichever is outside.
PATIENT_FOLDERS: Final = (
    re.compile(r"(?:patient|pat|subject|subj)[-_ ]?\d\w*"),
    re.compile(r"(?:case|study|series)[-_ ]?\d\w*"),
)
BODY_PARTS: Final = frozenset(
    {"abdomen", "ankle", "arm", "breast", "chest", "elbow", "finger", "foot", "forearm", "hand", "head", "hip"}
    | {"humerus", "knee", "leg", "neck", "pelvis", "shoulder", "skull", "spine", "teeth", "thorax", "toe", "wrist"}
)
IMAGE_FOLDERS: Final = frozenset({"images", "image", "imgs", "img", "pictures", "xrays"})
FILE_COLUMNS: Final = (
    "imageid",
    "filename",
    "file",
    "filepath",
    "imagename",
    "imagepath",
    "imagefile",
    "image",
    "path",
    "img",
    "name",
    "id",
)
LABEL_COLUMNS: Final = (
    "label",
    "class",
    "classname",
    "category",
    "diagnosis",
    "finding",
    "target",
    "grade",
    "kl",
    "klgrade",
)
PATIENT_COLUMNS: Final = (
    "patientid",
    "patient",
    "patientkey",
    "subjectid",
    "subject",
    "participantid",
    "participant",
    "caseid",
)
TRUE_WORDS: Final = frozenset({"1", "1.0", "true", "yes", "y"})
FALSE_WORDS: Final = frozenset({"", "0", "0.0", "false", "no", "n"})
# Characters that reorder the text around them: never needed in a file name, often used to disguise one.
BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Problem:
    """Something a user should know. path: POSIX, printable, relative to the dataset; reason: in words."""

    path: str
    reason: str
    code: str = ""


@dataclass(frozen=True)
class Candidate:
    """A file that should be a radiograph of a dataset; not opened yet.

    relative: POSIX path below the dataset. source_split: "train", "validation", "test" or "" where the folders do
    not say. patient: value of the CSV file's patient column, else the name of a patient's folder; identifies a person,
    so hash it before storing it. patient_source: "csv", "folder" or "" without a patient.
    """

    path: Path
    relative: str
    class_name: str
    source_split: str = ""
    patient: str | None = None
    patient_source: str = ""


@dataclass(frozen=True)
class FoundDataset:
    """A dataset that was recognised. name: POSIX path below the root, "." for the root itself.

    positive_class is a suggestion for two classes and "" otherwise. ordinal: the classes are consecutive grades.
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
    _sources: tuple["_Source", ...] = field(repr=False)
    _table: "_Table | None" = field(default=None, repr=False)

    @property
    def label(self) -> str:
        return LABELS[self.layout]

    @property
    def file_count(self) -> int:
        """Image files that were there when the dataset was found; `files` yields fewer where a CSV file lacks rows."""
        return sum(source.count for source in self._sources)

    def files(self) -> Iterator[Candidate]:
        """The files of the dataset, one by one, in the order of the file system."""
        for source in self._sources:
            for candidate in source.walk(self.path):
                labelled = candidate if self._table is None else self._table.apply(candidate)
                if labelled is not None:
                    yield labelled


def find_datasets(root: Path) -> list[FoundDataset]:
    """All datasets at or below `root`, by name. A folder without any is told by `folder_problems`."""
    if not root.is_dir():
        return []
    return sorted(_datasets(_survey(root), root), key=lambda found: natural_key(found.name))


def folder_problems(root: Path, found: Sequence[FoundDataset]) -> list[Problem]:
    """Folders below `root` in which nothing usable was found, with the reason. Paths are relative to `root`."""
    if not root.is_dir():
        return [Problem(".", "The dataset folder does not exist or cannot be opened.", "missing-folder")]
    return list(_folder_problems(_survey(root), {dataset.path for dataset in found}, root))


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts 2 before 10 and ignores case."""
    return tuple(
        (0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", text)
    )


def printable(text: str) -> str:
    """The text with control, bidirectional and undecodable characters spelt out, safe to show and to store."""
    return "".join(char if _harmless(char) else f"\\u{ord(char):04x}" for char in text)


def shortened(text: str) -> str:
    """A printable text of at most 120 characters, for names that are too long to be used."""
    shown = printable(text)
    return shown if len(shown) <= 120 else f"{shown[:80]}…{shown[-39:]}"


def patient_folder(folders: Sequence[str]) -> str | None:
    """The name, in lower case, of the folder of one patient (or of one study) among the folders above an image."""
    names = [name.casefold() for name in folders]
    return next((name for pattern in PATIENT_FOLDERS for name in names if pattern.fullmatch(name)), None)


@functools.cache
def _harmless(char: str) -> bool:
    return char not in BIDI and unicodedata.category(char) not in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^0-9a-z]+", spaced.casefold()) if word]


def _plain(name: str) -> str:
    return "".join(re.findall(r"[^\W_]+", name.casefold()))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- Folders ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Folder:
    """Names and numbers of a folder's content; never the file names themselves, of which there may be a million."""

    path: Path
    folders: list["_Folder"] = field(default_factory=list)
    images: int = 0
    tables: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[Path, str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    def total(self) -> int:
        return self.images + sum(folder.total() for folder in self.folders)

    def below(self) -> Iterator["_Folder"]:
        yield self
        for folder in self.folders:
            yield from folder.below()


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    """The visible entries of a folder; raises OSError when it cannot be opened."""
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith((".", "__MACOSX")):
                yield entry


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _survey(path: Path) -> _Folder:
    folder = _Folder(path)
    try:
        for entry in _entries(path):
            _note(folder, entry)
    except OSError as error:
        folder.problems.append((path, f"The folder cannot be opened: {error.strerror}.", "unreadable"))
    folder.folders.sort(key=lambda child: natural_key(child.name))
    folder.tables.sort(key=natural_key)
    return folder


def _note(folder: _Folder, entry: os.DirEntry[str]) -> None:
    path = folder.path / entry.name
    if not all(map(_harmless, entry.name)):
        folder.problems.append((path, "The name has characters that cannot be shown; rename it.", "unsafe-name"))
    elif entry.is_symlink():
        folder.problems.append((path, "This is a link; links are not followed. Copy the files here.", "link"))
    elif entry.is_dir(follow_symlinks=False):
        folder.folders.append(_survey(path))
    elif _is_image(entry.name):
        folder.images += 1
    elif entry.name.lower().endswith(".csv"):
        folder.tables.append(entry.name)
    else:
        folder.others[PurePosixPath(entry.name).suffix.lower() or "no extension"] += 1


def _split_of(name: str) -> str:
    return SPLIT_WORDS.get(_plain(name), "")


def _transparent(folder: _Folder) -> bool:
    """A folder that divides a class without being one."""
    return bool(_split_of(folder.name) or patient_folder([folder.name]))


def _is_class(folder: _Folder) -> bool:
    """Whether the folder holds the images of one class, directly or in folders of patients or splits."""
    filled = [child for child in folder.folders if child.total()]
    if folder.images:
        return len(_class_folders(folder)) < 2
    return bool(filled) and all(_transparent(child) and _is_class(child) for child in filled)


def _class_folders(folder: _Folder) -> list[_Folder]:
    return [child for child in folder.folders if not _transparent(child) and _is_class(child)]


def _split_folders(folder: _Folder) -> list[_Folder]:
    return [child for child in folder.folders if _split_of(child.name) and _class_folders(child)]


# --- From folders to datasets ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A folder whose images share a class ("" when a CSV file tells it) and a split. count: how many there are."""

    path: Path
    class_name: str
    count: int
    split: str = ""
    deep: bool = True

    def walk(self, base: Path) -> Iterator[Candidate]:
        below = self.path.relative_to(base).as_posix()
        yield from self._walk(self.path, "" if below == "." else f"{below}/", self.split)

    def _walk(self, folder: Path, below: str, split: str) -> Iterator[Candidate]:
        patient = patient_folder(below.split("/"))
        source = "folder" if patient else ""
        try:
            for entry in _entries(folder):
                name = entry.name
                if not all(map(_harmless, name)) or entry.is_symlink():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if self.deep:
                        yield from self._walk(folder / name, f"{below}{name}/", split or _split_of(name))
                elif _is_image(name):
                    yield Candidate(folder / name, below + name, self.class_name, split, patient, source)
        except OSError:
            return  # told by the survey


def _datasets(folder: _Folder, root: Path) -> Iterator[FoundDataset]:
    """The dataset that this folder is, then those in the folders that are not part of it."""
    if _name_too_long(folder, root):
        return
    found = _images_csv(folder, root) or _split_layout(folder, root) or _class_layout(folder, root)
    used = {source.path for source in found._sources} if found else set()
    if found:
        yield found
    for child in folder.folders:
        if not any(path == child.path or path.is_relative_to(child.path) for path in used):
            yield from _datasets(child, root)


def _class_layout(folder: _Folder, root: Path) -> FoundDataset | None:
    classes = [child for child in _class_folders(folder) if folder.path != root or _body_part((child.name,)) == ""]
    others = set(folder.folders).difference(classes)
    if len(classes) == 1 and (folder.path == root or any(child.total() for child in others)):
        return None
    if not 1 <= len(classes) <= MAX_CLASSES:
        return None
    names = ", ".join(child.name for child in classes)
    because = f"found because the folder holds {_count(len(classes), 'class folder')}: {names}"
    sources = [_Source(child.path, child.name, child.total()) for child in classes]
    empty = [child for child in folder.folders if not child.total()]
    return _build(folder, root, "class-folders", because, sources, [*classes, *empty])


def _split_layout(folder: _Folder, root: Path) -> FoundDataset | None:
    splits = _split_folders(folder)
    if not splits:
        return None
    spelling: dict[str, str] = {}
    sources, parts = [], []
    for split in splits:
        for child in split.folders:
            parts.append(child)
            if child.total():
                name = spelling.setdefault(child.name.casefold(), child.name)
                sources.append(_Source(child.path, name, child.total(), _split_of(split.name)))
    words = " and ".join(f"{split.name}/" for split in splits)
    holds = "holds" if len(splits) == 1 else "hold"
    because = f"found because {words} {holds} the class folders {', '.join(sorted(spelling.values(), key=natural_key))}"
    problems = [
        Problem(split.name, f"There is no class folder {name} in {split.name}.", "missing-class")
        for split in splits
        for key, name in spelling.items()
        if key not in {child.name.casefold() for child in split.folders if child.total()}
    ]
    return _build(folder, root, "split-folders", because, sources, parts, problems)


def _images_csv(folder: _Folder, root: Path) -> FoundDataset | None:
    """An images folder, with or without class folders, and a CSV file beside it or in it."""
    for images in (*(child for child in folder.folders if child.name.casefold() in IMAGE_FOLDERS), folder):
        tables = [folder.path / name for name in folder.tables] + [
            images.path / name for name in images.tables if images is not folder
        ]
        if not tables or not images.total():
            continue
        found = _with_table(folder, images, root, tables)
        if found:
            return found
    return None


def _with_table(folder: _Folder, images: _Folder, root: Path, tables: list[Path]) -> FoundDataset | None:
    classes = _class_folders(images)
    if images is folder and not (folder.images and not classes):
        return None
    table, problems = _choose_table(tables, [child.name for child in classes], folder.path)
    if classes:
        sources = [_Source(child.path, child.name, child.total()) for child in classes]
        parts = list(images.folders)
    elif table and table.classes:
        deep = images is not folder
        sources, parts = [_Source(images.path, "", images.total() if deep else images.images, deep=deep)], [images]
    else:
        return None
    where = f"{images.name}/" if images is not folder else "the folder"
    because = f"found because {where} holds images and {tables[0].name} lies beside them"
    if table:
        because = f"found because {where} holds images and {table.path.name} describes them ({table.description})"
        problems += table.check(candidate for source in sources for candidate in source.walk(folder.path))
    return _build(folder, root, "images-csv", because, sources, parts, problems, table, images)


def _build(
    folder: _Folder,
    root: Path,
    layout: str,
    because: str,
    sources: Sequence[_Source],
    parts: Sequence[_Folder],
    problems: Sequence[Problem] = (),
    table: "_Table | None" = None,
    images: _Folder | None = None,
) -> FoundDataset:
    usable = [source for source in sources if len(source.class_name) <= MAX_CLASS_NAME]
    names = {source.class_name for source in usable} - {""} or set(table.classes if table else ())
    classes = tuple(sorted(names, key=natural_key))
    name = folder.path.relative_to(root).as_posix()
    long = [source for source in sources if source not in usable]
    told = [
        *problems,
        *(_long_class_folder(source, folder) for source in long),
        *_content_problems(folder, parts, images),
        *_class_problems(classes),
    ]
    return FoundDataset(
        name=name,
        path=folder.path,
        layout=layout,
        because=because,
        classes=classes,
        positive_class=_positive(classes),
        ordinal=_is_ordinal(classes),
        body_part=_body_part(folder.path.relative_to(root).parts),
        synthetic=_is_synthetic(folder.path, root),
        problems=tuple(told),
        _sources=tuple(usable),
        _table=table,
    )


def _long_class_folder(source: _Source, folder: _Folder) -> Problem:
    return Problem(
        shortened(source.path.relative_to(folder.path).as_posix()),
        f"The name of this class folder has {len(source.class_name)} characters, at most {MAX_CLASS_NAME} can be used; "
        f"its {_count(source.count, 'image')} left out. Rename the folder.",
        "name-too-long",
    )


def _class_problems(classes: Sequence[str]) -> Iterator[Problem]:
    if len(classes) == 1:
        yield Problem(
            ".", f"Only one class was found ({classes[0]}); a classifier needs at least two class folders.", "one-class"
        )


def _content_problems(folder: _Folder, parts: Sequence[_Folder], images: _Folder | None) -> Iterator[Problem]:
    for part in parts:
        if not part.total():
            yield Problem(
                _below(part.path, folder), "The class folder holds no images (.jpg, .jpeg, .png, .dcm).", "no-images"
            )
        yield from _own_problems(part, folder)
    holders = {folder.path: folder} | ({images.path: images} if images else {})
    for holder in holders.values():
        if holder.images and holder not in parts:
            yield Problem(
                _below(holder.path, folder),
                f"{_count(holder.images, 'image')} outside the class folders, left out.",
                "outside-classes",
            )
        yield from _listed(holder.problems, folder)


def _own_problems(part: _Folder, dataset: _Folder) -> Iterator[Problem]:
    others: Counter[str] = Counter()
    for folder in part.below():
        others.update(folder.others)
        yield from _listed(folder.problems, dataset)
    if others:
        kinds = ", ".join(f"{kind} {count}" for kind, count in others.most_common(5))
        yield Problem(
            _below(part.path, dataset),
            f"{_count(others.total(), 'file')} of other kinds left out ({printable(kinds)}).",
            "other-files",
        )


def _listed(problems: Sequence[tuple[Path, str, str]], dataset: _Folder) -> Iterator[Problem]:
    for path, reason, code in problems[:MAX_LISTED]:
        yield Problem(_below(path, dataset), reason, code)
    if len(problems) > MAX_LISTED:
        yield Problem(
            _below(problems[0][0].parent, dataset), f"{len(problems) - MAX_LISTED} more such entries.", "more"
        )


def _below(path: Path, folder: _Folder) -> str:
    return printable(path.relative_to(folder.path).as_posix())


def _folder_problems(folder: _Folder, datasets: set[Path], root: Path) -> Iterator[Problem]:
    if folder.path in datasets:
        inner: Iterable[_Folder] = [child for child in folder.folders if _holds(child, datasets)]
    else:
        for path, reason, code in folder.problems[:MAX_LISTED]:
            yield Problem(printable(path.relative_to(root).as_posix()), reason, code)
        inner = folder.folders
        yield from _unused(folder, datasets, root)
        if not _holds(folder, datasets) and folder.path != root:
            return
    for child in inner:
        yield from _folder_problems(child, datasets, root)


def _name_too_long(folder: _Folder, root: Path) -> bool:
    return len(folder.path.relative_to(root).as_posix()) > MAX_DATASET_NAME


def _holds(folder: _Folder, datasets: set[Path]) -> bool:
    return any(path.is_relative_to(folder.path) for path in datasets)


def _unused(folder: _Folder, datasets: set[Path], root: Path) -> Iterator[Problem]:
    name = shortened(folder.path.relative_to(root).as_posix())
    holds = _holds(folder, datasets)
    if any(_name_too_long(below, root) and below.images for below in folder.below()) and not holds:
        yield Problem(
            name,
            f"The path to the images below this folder has more than {MAX_DATASET_NAME} characters; they are left out. "
            "Shorten the names of the folders.",
            "name-too-long",
        )
    elif folder.images:
        yield Problem(
            name,
            f"{_count(folder.images, 'image')} lie here without class folders. Sort them into one folder for each "
            "class, or put a CSV file with an image and a label column beside them.",
            "no-classes",
        )
    elif not holds and not (folder.path == root and folder.folders):
        reason = "The folder is empty." if not folder.folders and not folder.others else "The folder holds no dataset."
        if folder.total():
            reason = "The images in this folder are not sorted into class folders."
        yield Problem(name, reason, "empty-folder" if reason == "The folder is empty." else "no-dataset")


# --- What the names say ----------------------------------------------------------------------------------------------


def _positive(classes: Sequence[str]) -> str:
    """For two classes the one whose name does not deny something; the second when the names do not tell."""
    if len(classes) != 2:
        return ""
    first, second = classes
    return first if _is_negative(second, first) and not _is_negative(first, second) else second


def _is_negative(name: str, other: str) -> bool:
    if NEGATIVE_WORDS.intersection(_words(name)):
        return True
    return _plain(name) in {prefix + _plain(other) for prefix in ("no", "non", "not", "un", "without")}


def _is_ordinal(classes: Sequence[str]) -> bool:
    """Three or more consecutive grades, as in 0 1 2 3 4 or "Grade 1" "Grade 2" "Grade 3"."""
    matches = [re.fullmatch(r"(\D*)(\d+)", name) for name in classes]
    if len(classes) < 3 or not all(matches):
        return False
    prefixes = {match[1].casefold() for match in matches if match}
    numbers = [int(match[2]) for match in matches if match]
    return len(prefixes) == 1 and numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _body_part(parts: Sequence[str]) -> str:
    return next((word for part in parts for word in _words(part) if word in BODY_PARTS), "")


def _is_synthetic(path: Path, root: Path) -> bool:
    inside = [path, *(parent for parent in path.parents if parent.is_relative_to(root) and parent != root)]
    return any((folder / MARKER).is_file() for folder in inside)


# --- CSV files -------------------------------------------------------------------------------------------------------


class _TableError(Exception):
    """A CSV file that cannot be used, with the reason in words."""


@dataclass
class _Row:
    number: int
    file: str
    label: str | None
    patient: str | None
    conflict: bool = False


@dataclass
class _Table:
    """Labels and patients by file. A file is found by its path or, shorter, by its name, with or without extension."""

    path: Path
    rows: dict[str, _Row]
    classes: tuple[str, ...]
    description: str
    problems: list[Problem]

    def apply(self, candidate: Candidate) -> Candidate | None:
        """The candidate with what its row says; None when folder and row disagree on the class."""
        row = self.find(candidate.relative)
        if row is None:
            return candidate if candidate.class_name else None
        if row.conflict or (row.label and candidate.class_name and row.label != candidate.class_name):
            return None
        label = candidate.class_name or row.label
        if not label:
            return None
        if row.patient:
            return replace(candidate, class_name=label, patient=row.patient, patient_source="csv")
        return replace(candidate, class_name=label)

    def find(self, relative: str) -> _Row | None:
        parts = _file_key(relative).split("/")
        keys = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self.rows[key] for key in keys if key in self.rows), None)

    def check(self, candidates: Iterable[Candidate]) -> list[Problem]:
        """What folders and rows say of each other, row by row."""
        seen, missing, contrary = set(), [], []
        for candidate in candidates:
            row = self.find(candidate.relative)
            name = printable(candidate.relative)
            if row is None:
                kept = "the folder's class is used" if candidate.class_name else "left out"
                missing.append(Problem(name, f"{self.path.name} has no row for this file; {kept}.", "no-row"))
                continue
            seen.add(row.number)
            if row.label and candidate.class_name and row.label != candidate.class_name:
                reason = f"The folder says {candidate.class_name}, row {row.number} says {row.label}; left out."
                contrary.append(Problem(name, reason, "label-conflict"))
            elif not row.label and not candidate.class_name:
                missing.append(Problem(name, f"Row {row.number} has no usable label; left out.", "no-label"))
        orphans = [
            Problem(self.path.name, f"Row {row.number}: there is no file {printable(row.file)}.", "no-file")
            for row in self.rows.values()
            if row.number not in seen
        ]
        return [*_capped(self.problems), *_capped(contrary), *_capped(missing), *_capped(orphans)]


def _capped(problems: Sequence[Problem]) -> list[Problem]:
    listed = list(problems[:MAX_LISTED])
    if len(problems) > MAX_LISTED:
        listed.append(Problem(".", f"{len(problems) - MAX_LISTED} more of these: {problems[0].reason}", "more"))
    return listed


def _choose_table(paths: Sequence[Path], classes: Sequence[str], base: Path) -> tuple[_Table | None, list[Problem]]:
    problems: list[Problem] = []
    for path in paths:
        try:
            return _read_table(path, classes), problems
        except _TableError as error:
            problems.append(Problem(printable(path.relative_to(base).as_posix()), str(error), "csv"))
    return None, problems


def _read_table(path: Path, classes: Sequence[str]) -> _Table:
    header, lines = _parse(_text(path))
    columns = [_plain(name) for name in header]
    file_column = _first_column(columns, FILE_COLUMNS)
    if file_column is None:
        raise _TableError(f"No column names the image files (columns: {printable(', '.join(header))[:200]}).")
    labels, known, description = _label_reader(header, columns, lines, classes, file_column)
    patient_column = _first_column(columns, PATIENT_COLUMNS)
    if patient_column is not None:
        description += f", patients from the column {header[patient_column]}"
    unusable = [name for name in known if len(name) > MAX_CLASS_NAME or not all(map(_harmless, name))]
    known = tuple(name for name in known if name not in unusable)
    labels = {number: None if label in unusable else label for number, label in labels.items()}
    table = _Table(path, {}, known, description, [_unusable_class(path, name) for name in unusable])
    if classes and not known:
        table.problems.append(
            Problem(path.name, "No column tells the class; the folders' classes are used.", "no-label-column")
        )
    for number, line in lines:
        _add_row(table, number, line, file_column, labels, patient_column)
    return table


def _unusable_class(path: Path, name: str) -> Problem:
    reason = f"has {len(name)} characters, at most {MAX_CLASS_NAME} can be used"
    if len(name) <= MAX_CLASS_NAME:
        reason = "has characters that cannot be shown"
    reason = f"The class name {shortened(name)} {reason}; its rows count as not labelled."
    return Problem(path.name, reason, "class-name")


def _add_row(
    table: _Table,
    number: int,
    line: Sequence[str],
    file_column: int,
    labels: dict[int, str | None],
    patient_column: int | None,
) -> None:
    file = _cell(line, file_column)
    if not file:
        table.problems.append(Problem(table.path.name, f"Row {number} names no file.", "csv-row"))
        return
    patient = None if patient_column is None else _cell(line, patient_column) or None
    row = _Row(number, file, labels.get(number), patient)
    first = table.rows.setdefault(_file_key(file), row)
    if first is not row and (first.label, first.patient) != (row.label, row.patient):
        first.conflict = True
        reason = f"Rows {first.number} and {number} say different things of {printable(file)}; left out."
        table.problems.append(Problem(table.path.name, reason, "csv-conflict"))


def _text(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        raise _TableError("This is a link or not a regular file; it is not read.")
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise _TableError(f"The CSV file is larger than {MAX_CSV_BYTES // 1024**2} MB.")
        data = path.read_bytes()
    except OSError as error:
        raise _TableError(f"The CSV file cannot be opened: {error.strerror}.") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        # Spreadsheets in western Europe still write this one, in which every byte means something.
        return data.decode("latin-1")


def _parse(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and numbered rows. The delimiter is the one that the header line has most of."""
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise _TableError(f"The CSV file cannot be parsed: {error}.") from error
    if len(rows) < 2:
        raise _TableError("The CSV file has no rows.")
    return [cell.strip() for cell in rows[0][1]], rows[1:]


def _cell(line: Sequence[str], column: int) -> str:
    return line[column].strip() if column < len(line) else ""


def _first_column(columns: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((columns.index(name) for name in wanted if name in columns), None)


def _file_key(name: str) -> str:
    path = name.replace("\\", "/").strip("/").casefold()
    return path[: -len(PurePosixPath(path).suffix)] if _is_image(path) else path


def _label_reader(
    header: Sequence[str],
    columns: Sequence[str],
    lines: Sequence[tuple[int, list[str]]],
    classes: Sequence[str],
    file_column: int,
) -> tuple[dict[int, str | None], tuple[str, ...], str]:
    """The label of each row by its number, the classes, and in words where the labels come from."""
    column = _first_column(columns, LABEL_COLUMNS)
    if column is not None:
        return _named_labels(header[column], column, lines, classes)
    flags = [
        index
        for index in range(len(columns))
        if index != file_column and all(_cell(line, index).casefold() in TRUE_WORDS | FALSE_WORDS for _, line in lines)
    ]
    meaning = _flag_meaning(header, flags, lines, classes)
    if not meaning:
        return {}, (), "labels from the folders"
    yes, no = meaning
    labels = {number: _flag_label(line, yes, no) for number, line in lines}
    names = tuple(sorted({*yes.values(), *([no] if no else [])}, key=natural_key))
    return labels, names, f"labels from the column {', '.join(header[index] for index in yes)}"


def _named_labels(
    title: str, column: int, lines: Sequence[tuple[int, list[str]]], classes: Sequence[str]
) -> tuple[dict[int, str | None], tuple[str, ...], str]:
    spelling = {_plain(name): name for name in classes}
    labels: dict[int, str | None] = {}
    for number, line in lines:
        value = re.sub(r"^(\d+)\.0$", r"\1", _cell(line, column))
        labels[number] = spelling.get(_plain(value), value or None) if classes else value or None
    names = {label for label in labels.values() if label}
    if classes and not names & set(classes):
        return {}, (), "labels from the folders"
    return labels, tuple(sorted(names, key=natural_key)), f"labels from the column {title}"


def _flag_meaning(
    header: Sequence[str], flags: Sequence[int], lines: Sequence[tuple[int, list[str]]], classes: Sequence[str]
) -> tuple[dict[int, str], str] | None:
    """Which 0/1 column means which class, and the class of a row in which all of them are 0 ("" for none)."""
    spelling = {_plain(name): name for name in classes}
    named = {index: spelling[_plain(header[index])] for index in flags if _plain(header[index]) in spelling}
    if len(classes) == 2 and len(named) == 1:
        (positive,) = named.values()
        return named, classes[0] if classes[1] == positive else classes[1]
    if named:
        return named, ""
    if len(flags) == 1:
        title = header[flags[0]]
        positive = _positive(classes) or title
        negative = next((name for name in classes if name != positive), f"not {title}")
        return ({flags[0]: positive}, negative) if len(classes) in (0, 2) else None
    one_hot = len(flags) > 1 and all(
        sum(_cell(line, index).casefold() in TRUE_WORDS for index in flags) == 1 for _, line in lines
    )
    return ({index: header[index] for index in flags}, "") if one_hot and not classes else None


def _flag_label(line: Sequence[str], yes: dict[int, str], no: str) -> str | None:
    said = [name for index, name in yes.items() if _cell(line, index).casefold() in TRUE_WORDS]
    return said[0] if len(said) == 1 else (no or None) if not said else None
