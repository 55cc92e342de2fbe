"""The ways to read a folder as a dataset: class folders, splits, studies, a CSV file; several where in doubt."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import DirEntry
from pathlib import Path
from typing import Final

from datasets import tables
from datasets.names import (
    IMAGE_FOLDERS,
    MAX_CLASSES,
    Problem,
    body_part,
    counted,
    denies,
    exact_key,
    is_mask,
    is_ordinal,
    patient_folder,
    printable,
    shortened,
    split_of,
    study_label,
    words,
)
from datasets.survey import EVALUATION, Folder, is_evaluation, listing, picture_of

# CSV files of one dataset that are read; the others are told.
MAX_TABLES: Final = 20
MAX_OPTIONS: Final = 40
# Folder and CSV file that disagree on more than this share of the images are not about the same thing.
DISAGREEMENT: Final = 0.2
# So few of them are mistakes in single rows, whatever their share.
FEW: Final = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that should be a radiograph of a dataset; not opened yet.

    relative: POSIX path below the dataset. source_split: "train", "validation", "test" or "" where the folders do
    not say. patient: value of the CSV file's patient column, else the name of a patient's folder; identifies a person,
    so hash it before storing it. patient_source: "csv", "folder" or "" without a patient. size in bytes and mtime_ns
    in nanoseconds since 1970, from the listing of the folder; -1 for what is no regular file.
    """

    path: Path
    relative: str
    class_name: str
    source_split: str = ""
    patient: str | None = None
    patient_source: str = ""
    size: int = -1
    mtime_ns: int = -1


@dataclass(frozen=True)
class FolderFiles:
    """One folder of a dataset with the images that lie directly in it.

    relative: POSIX path below the dataset, "" for the dataset's own folder. class_name: "" where a CSV file tells it.
    count: images when the folder was surveyed; signature: hex digest over their names, sizes and modification times.
    """

    path: Path
    relative: str
    class_name: str
    source_split: str
    patient: str | None
    patient_source: str
    count: int
    signature: str
    _labels: tables.Labels | None = field(default=None, repr=False, compare=False)
    _without_drawings: bool = False

    def entries(self) -> Iterator[Candidate]:
        """The images as they are now, one by one, with what the CSV file says; those it leaves out are missing."""
        for entry in self._listing():
            relative = f"{self.relative}/{entry.name}" if self.relative else entry.name
            class_name, patient, source = self.class_name, self.patient, self.patient_source
            split = self.source_split
            if self._labels:
                said = self._labels.apply(relative, class_name)
                if said is None:
                    continue
                class_name = said[0]
                patient, source = (said[1], "csv") if said[1] else (patient, source)
                split = split or self._labels.split(relative)
            size, mtime_ns = -1, -1
            try:
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    size, mtime_ns = status.st_size, status.st_mtime_ns
            except OSError:
                pass  # gone since it was listed: whoever reads it will say so
            yield Candidate(self.path / entry.name, relative, class_name, split, patient, source, size, mtime_ns)

    def _names(self) -> Iterator[tables.File]:
        below = f"{self.relative}/" if self.relative else ""
        return ((below + entry.name, self.class_name) for entry in self._listing())

    def _listing(self) -> Iterator[DirEntry[str]]:
        entries = listing(self.path)
        return (entry for entry in entries if picture_of(entry.name) is None) if self._without_drawings else entries


# --- Folders ---------------------------------------------------------------------------------------------------------


def _divides(folder: Folder) -> bool:
    """Whether a folder divides a class without being one: a split, a patient, the images apart from their masks."""
    name = folder.name
    return bool(folder.split or is_evaluation(name) or patient_folder([name]) or _is_kind(name))


def _is_kind(name: str) -> bool:
    return name.casefold() in IMAGE_FOLDERS or is_mask(name)


def path_below(folder: Folder, base: Folder) -> str:
    relative = folder.path.relative_to(base.path).as_posix()
    return "" if relative == "." else relative


def is_covered(folder: Folder, used: set[Path]) -> bool:
    return any(below.path in used for below in folder.below())


# --- Readings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A folder with images of one class ("" when a CSV file tells it). kind: the images or masks folder it is in.
    bare: without the images that are named like drawings on others."""

    folder: Folder
    class_name: str
    split: str = ""
    kind: str = ""
    bare: bool = False

    @property
    def images(self) -> int:
        return self.folder.images - (self.folder.drawings if self.bare else 0)


@dataclass(frozen=True)
class Choice:
    """What tells a reading from others of the same folder."""

    code: str
    text: str
    value: str
    label: str


@dataclass(frozen=True)
class Reading:
    """One way to understand a folder. tops: the class folders, or what stands for them. found: files and CSV rows."""

    layout: str
    because: str
    parts: tuple[Part, ...]
    tops: tuple[Folder, ...]
    problems: tuple[Problem, ...] = ()
    choices: tuple[Choice, ...] = ()
    images: Folder | None = None
    labels: tables.Labels | None = None
    match: tables.Match | None = None

    @property
    def value(self) -> str:
        return "+".join(choice.value for choice in self.choices)

    @property
    def folder_classes(self) -> list[str]:
        return sorted({part.class_name for part in self.parts} - {""}, key=exact_key)

    def chosen(self, *choices: Choice) -> "Reading":
        return replace(self, choices=(*self.choices, *choices))

    def files(self, folder: Folder) -> list[FolderFiles]:
        return sorted(
            (_folder_files(part, folder, self.labels) for part in self.parts),
            key=lambda files: exact_key(files.relative),
        )

    def counts(self) -> dict[str, int]:
        if self.match and self.labels:
            return self.match.counts(self.labels)
        counts: Counter[str] = Counter()
        has_splits = any(part.split for part in self.parts)
        for part in self.parts:
            key = f"{part.split or 'no split'} / {part.class_name}" if has_splits else part.class_name
            counts[key] += part.images
        return dict(sorted(counts.items(), key=lambda item: exact_key(item[0])))


def _folder_files(part: Part, base: Folder, labels: tables.Labels | None) -> FolderFiles:
    relative = path_below(part.folder, base)
    patient = patient_folder(relative.split("/"))
    return FolderFiles(
        path=part.folder.path,
        relative=relative,
        class_name=part.class_name,
        source_split=part.split,
        patient=patient,
        patient_source="folder" if patient else "",
        count=part.images,
        signature=part.folder.signature,
        _labels=labels,
        _without_drawings=part.bare,
    )


def _parts(folder: Folder, class_name: str, split: str = "", kind: str = "") -> Iterator[Part]:
    """The folders with images of a class, from the class folder down."""
    if folder.images:
        yield Part(folder, class_name, split, kind)
    for child in folder.folders:
        below = child.name.casefold() if not kind and _is_kind(child.name) else kind
        yield from _parts(child, class_name, split or child.split, below)


def _names(folders: Iterable[Folder]) -> str:
    return ", ".join(shortened(folder.name) for folder in folders)


class Structures:
    """Reads the folders of one surveyed tree; keeps the CSV files it has read."""

    def __init__(self, tree: Folder):
        self.root = tree.path
        self.tables: dict[tuple[tables.Source, ...], tables.Table | tables.TableError] = {}

    def readings(self, folder: Folder) -> list[Reading]:
        """All ways to read a folder, the suggested first; none for a folder that is no dataset."""
        structures = (self._in_images, self._in_studies, self._in_splits, self._in_classes, self._flat, self._one_class)
        for structure in structures:
            readings = [
                labelled
                for reading in structure(folder)
                for kind in _by_kind(reading)
                for split in _by_evaluation(kind, folder)
                for labelled in self._by_drawings(split, folder)
            ]
            if readings:
                return _told_apart(readings)
        return []

    # -- Structures: readings by the names of folders alone

    def _is_class(self, folder: Folder) -> bool:
        """Whether the folder holds the images of one class, directly or in folders that divide it."""
        if folder.images:
            return len(self._class_folders(folder)) < 2 and not self._describes_itself(folder)
        filled = folder.filled
        inside = bool(filled) and all(_divides(child) and self._is_class(child) for child in filled)
        return inside and not self._describes_itself(folder)

    def _class_folders(self, folder: Folder) -> list[Folder]:
        return [child for child in folder.filled if not _divides(child) and self._is_class(child)]

    def _describes_itself(self, folder: Folder) -> bool:
        """Whether a CSV file in the folder sorts its images into classes: then it is a dataset, and not a class."""
        read = (self._table((tables.Source(path),), folder) for path in _table_paths(folder))
        return any(
            len(labelling.classes) > 1
            for table in read
            if isinstance(table, tables.Table)
            for labelling in tables.labellings(table, ())
        )

    def _classes_below(self, folder: Folder) -> tuple[list[Folder], bool]:
        """The class folders of a folder, and whether some of them hold folders that could be classes themselves."""
        single = self._class_folders(folder)
        if folder.path == self.root:
            single = [child for child in single if not body_part((child.name,))]
        nested = [child for child in folder.filled if child not in single and self._is_nested(child, folder)]
        outer = sorted([*single, *nested], key=lambda child: exact_key(child.name))
        if len(outer) < 2 or not (len(single) > 1 or any(denies(child.name) for child in outer)):
            outer = single
        return outer, any(self._class_folders(child) for child in outer)

    def _is_nested(self, folder: Folder, parent: Folder) -> bool:
        """Whether a folder of class folders may be a class of its parent, and not a dataset of its own."""
        inner = self._class_folders(folder)
        names = [child.name for child in inner]
        siblings = {child.name.casefold() for child in parent.folders}
        return (
            bool(inner)
            and not _divides(folder)
            and not body_part((folder.name,))
            and not is_ordinal(sorted(names, key=exact_key))
            and not any(denies(name) or name.casefold() in siblings for name in names)
            and all(child in inner or _divides(child) for child in folder.filled)
        )

    def _in_images(self, folder: Folder) -> list[Reading]:
        """An images folder with class folders, or with images alone, and a CSV file beside it or in it."""
        found = []
        for images in folder.filled:
            if images.name.casefold() in IMAGE_FOLDERS and (folder.tables or images.tables):
                classes, _ = self._classes_below(images)
                inside = self._in_splits(images) or (self._in_classes(images) if len(classes) > 1 else [])
                inside = inside or self._one_class(images, alone=False)
                because = f"found because {shortened(images.name)}/ holds images"
                flat = Reading("images-csv", because, tuple(_parts(images, "")), (images,))
                found += [replace(reading, layout="images-csv", because=because, images=images) for reading in inside]
                found += [] if inside else [replace(flat, images=images)]
        return found[:1] if found and not found[0].choices else found

    def _in_classes(self, folder: Folder) -> list[Reading]:
        classes, nested = self._classes_below(folder)
        if not 2 <= len(classes) <= MAX_CLASSES:
            return []
        because = f"found because the folder holds {counted(len(classes), 'class folder')}: {_names(classes)}"
        return self._by_level("class-folders", because, [("", child) for child in classes], nested)

    def _one_class(self, folder: Folder, alone: bool = True) -> list[Reading]:
        classes, nested = self._classes_below(folder)
        if len(classes) != 1 or (alone and (folder.path == self.root or len(folder.filled) > 1)):
            return []
        because = f"found because the folder holds 1 class folder: {_names(classes)}"
        return self._by_level("class-folders", because, [("", classes[0])], nested)

    def _by_level(
        self, layout: str, because: str, classes: Sequence[tuple[str, Folder]], nested: bool
    ) -> list[Reading]:
        """Readings of class folders, each with its split, that may hold further class folders."""
        spelling: dict[str, str] = {}
        one, two = [], []
        for split, top in classes:
            name = spelling.setdefault(top.name.casefold(), top.name)
            inner = self._class_folders(top)
            inside = {child.path for child in inner}
            parts = list(_parts(top, name, split))
            one += parts
            two += [part for part in parts if not inside.intersection((part.folder.path, *part.folder.path.parents))]
            for child in inner:
                below = spelling.setdefault(f"{name}/{child.name}".casefold(), f"{name} {child.name}")
                two += _parts(child, below, split)
        tops = tuple(top for _, top in classes)
        reading = Reading(layout, because, tuple(one), tops)
        if not nested or len({part.class_name for part in two}) > MAX_CLASSES:
            return [reading]
        text = "Some class folders hold further folders. Which ones are the classes?"
        return [
            reading.chosen(Choice("levels", text, "one-level", "The outer folders; what is inside belongs to them")),
            replace(reading, parts=tuple(two)).chosen(
                Choice("levels", text, "two-levels", "The inner folders, each as a class of its own")
            ),
        ]

    def _in_splits(self, folder: Folder) -> list[Reading]:
        splits = [child for child in folder.filled if child.split and self._classes_below(child)[0]]
        if not splits:
            return []
        classes, nested = [], False
        for split in splits:
            below, deeper = self._classes_below(split)
            classes += [(split.split, child) for child in below]
            nested = nested or deeper
        names = sorted({child.name.casefold(): child.name for _, child in reversed(classes)}.values(), key=exact_key)
        if len(names) > MAX_CLASSES:
            return []
        folders = " and ".join(f"{split.name}/" for split in splits)
        holds = "holds" if len(splits) == 1 else "hold"
        because = f"found because {folders} {holds} the class folders {', '.join(map(shortened, names))}"
        problems = tuple(_missing_classes(splits, names))
        with_splits = [
            replace(reading, problems=problems) for reading in self._by_level("split-folders", because, classes, nested)
        ]
        return self._beside_splits(folder, with_splits, splits, names)

    def _beside_splits(
        self, folder: Folder, with_splits: list[Reading], splits: Sequence[Folder], names: Sequence[str]
    ) -> list[Reading]:
        """The same, and the other readings where class folders lie beside the split folders."""
        loose = self._class_folders(folder)
        known = {name.casefold() for name in names}
        if not loose or (len(loose) < 2 and not any(child.name.casefold() in known for child in loose)):
            return with_splits
        text = f"Class folders ({_names(loose)}) lie beside the split folders ({_names(splits)}). Which ones count?"
        because = f"found because the folder holds {counted(len(loose), 'class folder')}: {_names(loose)}"
        spelling = {name.casefold(): name for name in names}
        readings = [
            reading.chosen(Choice("splits-beside-classes", text, "splits", "The split folders alone"))
            for reading in with_splits
        ]
        alone = self._by_level("class-folders", because, [("", child) for child in loose], False)[0]
        readings.append(alone.chosen(Choice("splits-beside-classes", text, "classes", "The class folders alone")))
        for reading in with_splits:
            added = [
                replace(part, class_name=spelling.get(part.class_name.casefold(), part.class_name))
                for part in alone.parts
            ]
            both = replace(
                reading,
                parts=(*reading.parts, *added),
                tops=(*reading.tops, *alone.tops),
                because=f"{reading.because}; {_names(loose)} lie beside them, without a split",
            )
            label = "Both; the images of the class folders have no split"
            readings.append(both.chosen(Choice("splits-beside-classes", text, "both", label)))
        return readings

    def _in_studies(self, folder: Folder) -> list[Reading]:
        """Folders of studies that bear their label, in folders of patients, as in the MURA collection."""
        if not any(_holds_patients(child) for child in folder.filled):
            return []
        parts = [Part(below, study_label(below.name), split) for below, split in _with_splits(folder) if below.images]
        labels = sorted({part.class_name for part in parts} - {""})
        if not 2 <= len(labels) <= MAX_CLASSES or not all(part.class_name for part in parts):
            return []
        because = f"found because the folders of the studies end in {', '.join(labels)}"
        studies = Reading("study-folders", because, tuple(parts), tuple(folder.filled))
        folders = self._in_splits(folder) or self._in_classes(folder)
        if not folders or len(folders[0].folder_classes) < 2:
            return [studies]
        text = (
            "Both the folders and the studies in them have names that could be the class. Which ones are the classes?"
        )
        readings = [
            studies.chosen(Choice("studies", text, "studies", "The labels of the studies")),
            *(reading.chosen(Choice("studies", text, "folders", "The names of the folders")) for reading in folders),
        ]
        first = any(map(denies, folders[0].folder_classes)) and not any(map(denies, labels))
        return [*readings[1:], readings[0]] if first else readings

    def _flat(self, folder: Folder) -> list[Reading]:
        """Images that only a CSV file sorts."""
        if not folder.tables or any(not _divides(child) and not self._is_class(child) for child in folder.filled):
            return []
        if any(self._class_folders(child) for child in folder.filled if _divides(child)):
            return []
        reading = Reading("images-csv", "found because the folder holds images", tuple(_parts(folder, "")), (folder,))
        return [replace(reading, images=folder)]

    # -- Labels: what CSV files add to a reading

    def _by_drawings(self, reading: Reading, folder: Folder) -> list[Reading]:
        """Readings with their labels, without and with drawings that lie beside the images they are drawn on."""
        everything, without = self._labelled(reading, folder), _without_drawings(reading)
        if without is None:
            return everything
        name = shortened(next(part.folder.drawing for part in reading.parts if part.folder.drawing))
        pictures = [
            replace(found, because=f"{found.because}, without files such as {name}, which are named like drawings")
            for found in self._labelled(without, folder)
        ]
        if [found.counts() for found in pictures] == [found.counts() for found in everything]:
            # The CSV file sorts the images alone: there is nothing to ask.
            return pictures
        text = f"Some files, such as {name}, are named like drawings on the image beside them. Do they count as images?"
        return [
            *(found.chosen(Choice("drawings", text, "pictures", "The images without them")) for found in pictures),
            *(found.chosen(Choice("drawings", text, "drawings", "All; they are radiographs")) for found in everything),
        ]

    def _table(self, sources: tuple[tables.Source, ...], base: Folder) -> tables.Table | tables.TableError:
        if sources not in self.tables:
            try:
                self.tables[sources] = tables.read_parts(sources, base.path)
            except tables.TableError as error:
                self.tables[sources] = error
        return self.tables[sources]

    def _tables(self, paths: Sequence[Path], base: Folder) -> tuple[list[tables.Table], list[Problem]]:
        """The CSV files that can be read, those of the splits put together, and what is wrong with the others."""
        found, problems = [], []
        for sources in _by_split(paths):
            table = self._table(sources, base)
            if isinstance(table, tables.Table):
                found.append(table)
            elif len(sources) > 1:
                names = _and([shortened(source.path.name) for source in sources])
                reason = f"{names} are not read as one table with the split of each row. {table}"
                problems.append(Problem(printable(sources[0].path.name), reason, "csv"))
                single = self._tables_alone([source.path for source in sources], base)
                found += single[0]
                problems += single[1]
            else:
                problems.append(Problem(_name_below(sources[0].path, base), str(table), "csv"))
        return found, problems

    def _tables_alone(self, paths: Sequence[Path], base: Folder) -> tuple[list[tables.Table], list[Problem]]:
        read = [(path, self._table((tables.Source(path),), base)) for path in paths]
        wrong = [(path, table) for path, table in read if isinstance(table, tables.TableError)]
        problems = [Problem(_name_below(path, base), str(error), "csv") for path, error in wrong]
        return [table for _, table in read if isinstance(table, tables.Table)], problems

    def _labelled(self, reading: Reading, folder: Folder) -> list[Reading]:
        paths = _table_paths(folder, reading.images)
        read, problems = self._tables(paths[:MAX_TABLES], folder)
        matches: list[tables.Match] = []
        for table in read:
            found = tables.match(table, file_names(reading.files(folder)))
            if found.pairs or found.repeated:
                matches.append(found)
                continue
            problems += [
                Problem(
                    _name_below(source.path, folder),
                    "No row names an image of this dataset; the file is not used.",
                    "csv",
                )
                for source in table.sources
            ]
        if len(paths) > MAX_TABLES:
            problems.append(Problem(".", f"{len(paths) - MAX_TABLES} more CSV files are not read.", "csv"))
        reading = replace(reading, problems=(*reading.problems, *problems))
        return _with_folders(reading, matches, paths) if reading.folder_classes else _with_rows(reading, matches)


def _name_below(path: Path, base: Folder) -> str:
    return printable(path.relative_to(base.path).as_posix())


def _by_split(paths: Sequence[Path]) -> list[tuple[tables.Source, ...]]:
    """The files of each table: train.csv and test.csv are one, as are labels_train.csv and labels_test.csv."""
    groups: dict[tuple[Path, str], list[tables.Source]] = {}
    for path in paths:
        said = words(path.stem)
        splits = [split for split in map(split_of, said) if split]
        rest = " ".join(word for word in said if not split_of(word))
        key, split = (f"split {rest}", splits[0]) if len(splits) == 1 else (path.name, "")
        groups.setdefault((path.parent, key), []).append(tables.Source(path, split))
    found: list[tuple[tables.Source, ...]] = []
    for group in groups.values():
        splits = [source.split for source in group]
        apart = len(group) == 1 or len(set(splits)) < len(splits)
        found += [(tables.Source(source.path),) for source in group] if apart else [tuple(group)]
    return found


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _table_paths(folder: Folder, images: Folder | None = None) -> list[Path]:
    inside = [] if images is None or images is folder else [images.path / name for name in images.tables]
    return [*(folder.path / name for name in folder.tables), *inside]


def _holds_patients(folder: Folder) -> bool:
    """Whether this is a patient's folder or patients' folders lie in it, under one more folder at most for a split."""
    if patient_folder([folder.name]) or any(patient_folder([child.name]) for child in folder.filled):
        return True
    return bool(folder.split) and any(_holds_patients(child) for child in folder.filled)


def _with_splits(folder: Folder, split: str = "") -> Iterator[tuple[Folder, str]]:
    """The folder and all below it, each with the split it lies in."""
    yield folder, split
    for child in folder.folders:
        yield from _with_splits(child, split or child.split)


def _missing_classes(splits: Sequence[Folder], names: Sequence[str]) -> Iterator[Problem]:
    for split in splits:
        present = {child.name.casefold() for child in split.filled}
        for name in names:
            if name.casefold() not in present:
                reason = f"There is no class folder {shortened(name)} in {shortened(split.name)}."
                yield Problem(printable(split.name), reason, "missing-class")


def _by_kind(reading: Reading) -> list[Reading]:
    """Readings of class folders in which images and masks, say, lie in folders of their own."""
    kinds = sorted({part.kind for part in reading.parts}, key=exact_key)
    if len(kinds) < 2:
        return [reading]
    pictures = [kind for kind in kinds if not is_mask(kind)] or kinds
    sets = [tuple(pictures), *((kind,) for kind in pictures if len(pictures) > 1), tuple(kinds)]
    text = f"The images lie in several folders of a class ({', '.join(map(_kind_name, kinds))}). Which ones count?"
    readings = []
    for chosen in dict.fromkeys(sets):
        left = [kind for kind in kinds if kind not in chosen]
        label = f"{' and '.join(map(_kind_name, chosen))}{' without ' if left else ''}"
        label += " and ".join(map(_kind_name, left))
        choice = Choice("subfolders", text, shortened(",".join(kind or "." for kind in chosen)), label)
        parts = tuple(part for part in reading.parts if part.kind in chosen)
        readings.append(replace(reading, parts=parts).chosen(choice))
    return readings


def _by_evaluation(reading: Reading, folder: Folder) -> list[Reading]:
    """Says which split a folder is taken for whose name does not tell it alone; two readings where that is open."""
    used = {path for part in reading.parts for path in (part.folder.path, *part.folder.path.parents)}
    unusual = [child for child in folder.below() if child.split and not split_of(child.name) and child.path in used]
    if not unusual:
        return [reading]
    sure = {shortened(child.name): child.split for child in unusual if child.split != EVALUATION}
    open_ = list(dict.fromkeys(shortened(child.name) for child in unusual if child.split == EVALUATION))
    if not open_:
        return [_with_splits_told(reading, sure)]
    folders = _and([f"{name}/" for name in open_])
    text = (
        f"The names do not tell whether {folders} {'is' if len(open_) == 1 else 'are'} for validation or for the test."
    )
    readings = []
    for split, label in (("test", "The final test"), ("validation", "Validation during the training")):
        parts = tuple(replace(part, split=split) if part.split == EVALUATION else part for part in reading.parts)
        told = _with_splits_told(replace(reading, parts=parts), sure | dict.fromkeys(open_, split))
        choice = Choice(
            "evaluation", f"{text} What are these images for?", f"evaluation-{split}", f"{folders}: {label}"
        )
        readings.append(told.chosen(choice))
    return readings


def _with_splits_told(reading: Reading, splits: Mapping[str, str]) -> Reading:
    told = ", ".join(f"{name}/ counts as {split}" for name, split in splits.items())
    return replace(reading, because=f"{reading.because} ({told})")


def _without_drawings(reading: Reading) -> Reading | None:
    """The same without images that are named like drawings on others; None where no such one lies beside its image."""
    if not any(part.folder.drawing for part in reading.parts):
        return None
    parts = (replace(part, bare=True) for part in reading.parts)
    return replace(reading, parts=tuple(part for part in parts if part.images))


def _kind_name(kind: str) -> str:
    return f"{shortened(kind)}/" if kind else "the class folder itself"


def file_names(files: Iterable[FolderFiles]) -> Iterator[tables.File]:
    for folder in files:
        yield from folder._names()


def _with_folders(reading: Reading, matches: Sequence[tables.Match], paths: Sequence[Path]) -> list[Reading]:
    """Class folders with the best of the CSV files, which confirms the classes or brings the patients."""
    classes = reading.folder_classes
    ranked = sorted(
        ((found, next(iter(tables.labellings(found.table, classes)), None)) for found in matches),
        key=lambda pair: (pair[1] is None or not pair[1].by_name, pair[0].table.patient_column is None),
    )
    if not ranked:
        beside = f" and {shortened(paths[0].name)} lies beside them" if paths and reading.images else ""
        return [replace(reading, because=reading.because + beside)]
    (found, labelling), unused = ranked[0], ranked[1:]
    problems = [
        Problem(other.table.name, f"{shortened(found.table.name)} is used instead.", "csv-unused")
        for other, _ in unused
    ]
    apart = labelling is not None and _are_apart(found, labelling)
    if labelling and apart and labelling.by_name:
        return _folders_or_rows(replace(reading, problems=(*reading.problems, *problems)), found, labelling)
    labelling = None if apart else labelling
    if labelling is None:
        reason = "No column tells the class; the folders' classes are used."
        problems.append(Problem(found.table.name, reason, "no-label-column"))
    used = replace(reading, problems=(*reading.problems, *problems))
    return [_with_table(used, found, labelling, "both")]


def _are_apart(found: tables.Match, labelling: tables.Labelling) -> bool:
    files, share = found.disagreement(labelling)
    return files > FEW and share > DISAGREEMENT


def _folders_or_rows(reading: Reading, found: tables.Match, labelling: tables.Labelling) -> list[Reading]:
    name = shortened(found.table.name)
    _, share = found.disagreement(labelling)
    text = f"The folders and {name} name different classes for {share:.0%} of the images. Which one is right?"
    by_folder = _with_table(reading, found, labelling, "folder")
    by_rows = _with_table(replace(reading, layout="images-csv"), found, labelling, "csv")
    title = shortened(labelling.value)
    return [
        by_folder.chosen(Choice("folder-or-csv", text, "folder", "The folders")),
        by_rows.chosen(Choice("folder-or-csv", text, "csv", f"The column {title} of {name}")),
    ]


def _with_rows(reading: Reading, matches: Sequence[tables.Match]) -> list[Reading]:
    """Images that only a CSV file sorts: a reading for each column that could be the label."""
    found = [(match, labelling) for match in matches for labelling in tables.labellings(match.table, ())]
    readings = [
        _with_table(reading, match, labelling, "csv").chosen(
            Choice(
                "label-column",
                "Several columns could be the class. Which one is it?",
                f"{shortened(match.table.name)}:{shortened(labelling.value)}",
                f"The column {shortened(labelling.value)} of {shortened(match.table.name)}",
            )
        )
        for match, labelling in sorted(found, key=lambda pair: not pair[1].by_name)
    ]
    usable = [option for option in readings if option.counts()][:MAX_OPTIONS]
    return [replace(usable[0], choices=reading.choices)] if len(usable) == 1 else usable


def _with_table(reading: Reading, found: tables.Match, labelling: tables.Labelling | None, trust: str) -> Reading:
    table = found.table
    unsorted = not reading.folder_classes or trust == "csv"
    labels = tables.use(table, labelling, trust, found, unsorted)
    says = labelling.description if labelling and trust != "folder" else "labels from the folders"
    if table.patient_column is not None:
        says += f", patients from the column {shortened(table.titles[table.patient_column])}"
    if table.has_splits:
        says += ", split of each row from the name of its file"
    describes = "describe" if table.has_splits else "describes"
    names = _and([shortened(source.path.name) for source in table.sources])
    because = f"{reading.because} and {names} {describes} them ({says})"
    return replace(reading, because=because, labels=labels, match=found)


def _told_apart(readings: list[Reading]) -> list[Reading]:
    """Without readings of the same answer; where one is left there is nothing to choose."""
    distinct = list({reading.value: reading for reading in reversed(readings)}.values())[::-1]
    return [replace(distinct[0], choices=())] if len(distinct) == 1 else distinct[:MAX_OPTIONS]
