"""Divide a dataset into train, validation and test so that no patient is on two sides.

First `group_keys` says which images belong together, then `split` deals whole groups out, keeping the shares of
the classes. `shared_groups` counts, on the result itself, the groups that are on more than one side.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final, TypeVar

from datasets.layouts import patient_folder

SPLITS: Final = ("train", "validation", "test")
MIN_IMAGES: Final = 10
MIN_GROUPS: Final = 3
MIN_VALIDATION_SHARE: Final = 0.05
ATTEMPTS: Final = 20

Label = TypeVar("Label", str, int)


class SplitError(Exception):
    """The dataset cannot be divided; the text says why and what to do."""


@dataclass(frozen=True)
class Row:
    """One image as grouping sees it.

    patient_key: a keyed hash, never the number itself. patient_source: "dicom", "csv", "folder" or "" without a key.
    """

    relative: str
    digest: str
    patient_key: str | None = None
    patient_source: str = ""


@dataclass(frozen=True)
class GroupKeys:
    """Group of each row. name: where most keys come from ("dicom", "csv", "folder", "file-name", "image"),
    description: all of them in words."""

    keys: list[str]
    name: str
    description: str
    warnings: list[str]


@dataclass(frozen=True)
class SplitResult:
    """Split of each row. moved: images that left the split of their folder because their group is also in train."""

    splits: list[str]
    warnings: list[str]
    moved: int = 0


# --- Which images belong together ------------------------------------------------------------------------------------

COPY: Final = re.compile(r"(?:[ _-]+copy(?:[ _-]*\(?\d+\)?)?| \(\d+\))$", re.IGNORECASE)
# Ids before the first of these name the picture that the others were made from.
DERIVED: Final = re.compile(r"^(.+?)(?:[-_](?:rotated|flipped|aug|augmented|crop)\d*)+$", re.IGNORECASE)


@dataclass(frozen=True)
class _Pattern:
    """A way to name files after patients. Group 1 is the patient; example is shown to users."""

    expression: re.Pattern[str]
    example: str


PATTERNS: Final = (
    _Pattern(re.compile(r"^(person\d+)_(?:bacteria|virus)_\d+$", re.IGNORECASE), "person123_bacteria_4"),
    _Pattern(re.compile(r"^((?:NORMAL\d*-)?IM-\d+)-\d+(?:-\d+)?$", re.IGNORECASE), "IM-0115-0001"),
    _Pattern(re.compile(r"^(\d{7})[LR]$", re.IGNORECASE), "9001695L"),
    _Pattern(re.compile(r"^(\d{8})_\d{3}$"), "00000013_005"),
    _Pattern(re.compile(r"^((?:patient|pat|subject|subj)[-_]?\d+)(?:[-_.].*)?$", re.IGNORECASE), "patient12_view1"),
    _Pattern(re.compile(r"^(P\d{3,})[-_].+$"), "P0012_left"),
)


def group_keys(rows: Sequence[Row]) -> GroupKeys:
    """The patient, or the next best thing, of each image.

    The first that exists: DICOM patient, CSV column or patient folder (`patient_key`), file name pattern, patient
    folder (where the patient numbers are of no use), the image itself. Patient numbers and folders that put all images
    into one group tell nothing and are passed over. Images with equal pixels share a group.
    """
    warnings: list[str] = []
    use_patients = _tells_something([row.patient_key for row in rows], warnings)
    sources = _derived_sources(rows)
    folders = [patient_folder(PurePosixPath(row.relative).parts[:-1]) for row in rows]
    use_folders = len(set(folders)) > 1
    found = [
        _key(row, use_patients, folder if use_folders else None, sources)
        for row, folder in zip(rows, folders, strict=True)
    ]
    used = Counter(kind for kind, _, _ in found)
    name = used.most_common(1)[0][0] if used else "image"
    if len(used) > 1 and used["image"]:
        warnings.append(f"For {used['image']} of {len(rows)} images no patient is known; each counts as its own.")
    keys = [key for _, key, _ in found]
    merged = _merge_equal(keys, [row.digest for row in rows])
    joined = len(set(keys)) - len(set(merged))
    if joined:
        warnings.append(f"Images with equal pixels joined {joined} groups to others.")
    return GroupKeys(merged, name, _describe([(kind, example) for kind, _, example in found]), warnings)


def _tells_something(patients: Sequence[str | None], warnings: list[str]) -> bool:
    known = [patient for patient in patients if patient]
    if len(known) > 1 and len(set(known)) == 1:
        warnings.append(
            f"All {len(known)} patient numbers (or patient folders) are the same, so they were not used to keep "
            "patients apart."
        )
        return False
    return bool(known)


def _key(row: Row, use_patients: bool, folder: str | None, sources: frozenset[str]) -> tuple[str, str, str]:
    """(kind, key, example of the pattern) of one image."""
    if use_patients and row.patient_key:
        return row.patient_source or "dicom", f"patient:{row.patient_key}", ""
    path = PurePosixPath(row.relative)
    stem = COPY.sub("", path.stem)
    derived = DERIVED.match(stem)
    if derived or stem in sources:
        return "file-name", f"name:{derived[1] if derived else stem}".casefold(), "97-rotated2"
    for pattern in PATTERNS:
        match = pattern.expression.match(stem)
        if match:
            return "file-name", f"name:{match[1]}".casefold(), pattern.example
    if folder:
        return "folder", f"folder:{folder}", ""
    if stem != path.stem:
        return "file-name", f"file:{path.with_name(stem)}", "name - Copy"
    return "image", f"file:{path.with_suffix('')}", ""


def _derived_sources(rows: Sequence[Row]) -> frozenset[str]:
    """Stems of pictures that others in the dataset were made from, such as 97 of 97-rotated1."""
    matches = (DERIVED.match(COPY.sub("", PurePosixPath(row.relative).stem)) for row in rows)
    return frozenset(match[1] for match in matches if match)


WORDS: Final = {
    "dicom": "patient number of the DICOM file",
    "csv": "patient column of the CSV file",
    "folder": "patient folder",
    "image": "the image itself",
}


def _describe(found: Sequence[tuple[str, str]]) -> str:
    parts = [
        f"{WORDS.get(kind) or f'file name like {example}'}: {count} image{'' if count == 1 else 's'}"
        for (kind, example), count in Counter(found).most_common()
    ]
    return "; ".join(parts)


def _merge_equal(keys: Sequence[str], digests: Sequence[str]) -> list[str]:
    """Join groups that share an image (union-find); the joined group bears its smallest key."""
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    first: dict[str, str] = {}
    for key, digest in zip(keys, digests, strict=True):
        low, high = sorted((root(key), root(first.setdefault(digest, key))))
        parent[high] = low
    return [root(key) for key in keys]


# --- Dealing the groups out ------------------------------------------------------------------------------------------


@dataclass
class _Groups:
    """Images by group and class, and where each group has to go (or "")."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    fixed: dict[str, str] = field(default_factory=dict)


def split(
    labels: Sequence[str],
    groups: Sequence[str],
    source_splits: Sequence[str],
    *,
    seed: int,
    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15),
) -> SplitResult:
    """Train, validation and test with whole groups and the classes' shares kept.

    labels, groups, source_splits: one a row; source_splits says "train", "validation", "test" or "". The result
    depends on the rows and the seed, not on the rows' order. A split that the folders bring is kept where it can be:
    a group on both sides goes into train, a validation part under 5 % is drawn anew. Raises SplitError.
    """
    _check(labels, groups)
    table = _Groups()
    for label, group in zip(labels, groups, strict=True):
        table.counts[group][label] += 1
    warnings: list[str] = []
    moved = _honour_sources(table, groups, source_splits, warnings)
    assigned = _deal(table, sorted(set(labels)), seed, fractions)
    missing = _missing(table, assigned, sorted(set(labels)))
    if missing:
        raise SplitError(
            f"No division was found in which every part has every class (missing: {'; '.join(missing)}). "
            "The patients are too few or share too many images; add images of other patients."
        )
    return SplitResult([assigned[group] for group in groups], warnings, moved)


def shared_groups(splits: Sequence[str], groups: Sequence[str]) -> int:
    """Number of groups with images in more than one split; 0 proves that nothing leaks."""
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for name, group in zip(splits, groups, strict=True):
        seen[group].add(name)
    return sum(len(names) > 1 for names in seen.values())


def class_weights(labels: Sequence[Label]) -> dict[Label, float]:
    """Weights n / (k n_c) of k classes with n_c of n images, so that every class weighs the same in the loss.

    After King and Zeng (2001). The training uses these same weights.
    """
    counts = Counter(labels)
    return {name: len(labels) / (len(counts) * count) for name, count in sorted(counts.items())}


def _check(labels: Sequence[str], groups: Sequence[str]) -> None:
    counts = Counter(labels)
    if len(counts) < 2:
        found = next(iter(counts), "none")
        raise SplitError(f"A classifier needs at least two classes; the dataset has one ({found}).")
    few = [f"{name} has {count}" for name, count in sorted(counts.items()) if count < MIN_IMAGES]
    if few:
        raise SplitError(f"Each class needs at least {MIN_IMAGES} usable images: {', '.join(few)}. Add images.")
    members: defaultdict[str, set[str]] = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        members[label].add(group)
    lonely = [f"{name} has {len(found)}" for name, found in sorted(members.items()) if len(found) < MIN_GROUPS]
    if lonely:
        raise SplitError(
            f"Each class needs images of at least {MIN_GROUPS} patients (or source pictures), one for each of train, "
            f"validation and test: {', '.join(lonely)}. Add images of other patients."
        )


def _honour_sources(table: _Groups, groups: Sequence[str], source_splits: Sequence[str], warnings: list[str]) -> int:
    """Fix the groups whose folder says where they belong; returns how many images had to leave their split."""
    images: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, source in zip(groups, source_splits, strict=True):
        images[group][source if source in SPLITS else "train"] += 1
    if not any(sources["validation"] or sources["test"] for sources in images.values()):
        return 0
    if not any(sources["train"] for sources in images.values()):
        warnings.append("The folders bring no training part, so all images were divided anew.")
        return 0
    straddling = [sources for sources in images.values() if len(+sources) > 1]
    moved = sum(sources["validation"] + sources["test"] for sources in straddling)
    if straddling:
        warnings.append(
            f"{len(straddling)} patients (or source pictures) were in more than one folder part; "
            f"their {moved} validation and test images were moved into train."
        )
    table.fixed = {group: "train" if len(+sources) > 1 else next(iter(+sources)) for group, sources in images.items()}
    for name in ("validation", "test"):
        _redraw_if_unfit(table, name, warnings)
    _open_train(table)
    return moved


def _redraw_if_unfit(table: _Groups, name: str, warnings: list[str]) -> None:
    """Put a part of the folders back into train when it is missing, lacks a class or is too small to steer by."""
    members = [group for group, part in table.fixed.items() if part == name]
    classes = set().union(*table.counts.values())
    total = sum(counts.total() for counts in table.counts.values())
    size = sum(table.counts[group].total() for group in members)
    reason = ""
    if not members:
        reason = "has no images of its own"
    elif classes - set().union(*(table.counts[group] for group in members)):
        reason = "lacks a class"
    elif name == "validation" and size < MIN_VALIDATION_SHARE * total:
        reason = f"has only {size} of {total} images"
    if reason:
        table.fixed.update(dict.fromkeys(members, "train"))
        warnings.append(f"The {name} part of the folders {reason}; it was drawn anew from train.")


def _open_train(table: _Groups) -> None:
    """Free the train groups when something has still to be drawn from them."""
    if {"validation", "test"} - set(table.fixed.values()):
        table.fixed = {group: part for group, part in table.fixed.items() if part != "train"}


def _deal(table: _Groups, classes: Sequence[str], seed: int, fractions: tuple[float, float, float]) -> dict[str, str]:
    """Assign every group. The dealing order is a hash of seed and group, so it does not depend on the rows' order."""
    assigned: dict[str, str] = {}
    for attempt in range(ATTEMPTS):
        assigned = _deal_once(table, classes, f"{seed}/{attempt}", fractions)
        if not _missing(table, assigned, classes):
            break
    return assigned


def _deal_once(
    table: _Groups, classes: Sequence[str], salt: str, fractions: tuple[float, float, float]
) -> dict[str, str]:
    assigned = dict(table.fixed)
    open_splits = [name for name in SPLITS if name not in table.fixed.values()]
    shuffled = sorted(
        (group for group in table.counts if group not in assigned),
        key=lambda group: hashlib.sha256(f"{salt}/{group}".encode("utf-8", "surrogateescape")).digest(),
    )
    if not shuffled:
        return assigned
    share = dict(zip(SPLITS, fractions, strict=True))
    whole = sum(share[name] for name in open_splits)
    pool: Counter[str] = sum((table.counts[group] for group in shuffled), Counter())
    room = {name: {label: pool[label] * share[name] / whole for label in pool} for name in open_splits}
    left = {name: dict(room[name]) for name in open_splits}

    def put(group: str, name: str) -> None:
        assigned[group] = name
        for label, count in table.counts[group].items():
            left[name][label] -= count

    for group, name in _seeds(table, classes, shuffled, open_splits):
        put(group, name)
    rest = sorted(
        (group for group in shuffled if group not in assigned), key=lambda group: -table.counts[group].total()
    )
    for group in rest:
        counts = table.counts[group]
        put(group, max(open_splits, key=lambda name: _fit(counts, left[name], room[name])))
    return assigned


def _fit(counts: Mapping[str, int], left: Mapping[str, float], room: Mapping[str, float]) -> float:
    """How much of its room a split still has, class by class, once it took the group in."""
    return sum(count * (left[label] - count) / room[label] for label, count in counts.items())


def _seeds(
    table: _Groups, classes: Sequence[str], shuffled: Sequence[str], open_splits: Sequence[str]
) -> list[tuple[str, str]]:
    """One small group of every class for every split, rarest class first, so that none ends without the class."""
    chosen: dict[str, str] = {}
    available = {name: [group for group in shuffled if table.counts[group][name]] for name in classes}
    for label in sorted(classes, key=lambda name: len(available[name])):
        has = {chosen[group] for group in available[label] if group in chosen}
        free = sorted((g for g in available[label] if g not in chosen), key=lambda g: table.counts[g].total())
        chosen.update(zip(free, (name for name in reversed(open_splits) if name not in has), strict=False))
    return list(chosen.items())


def _missing(table: _Groups, assigned: Mapping[str, str], classes: Sequence[str]) -> list[str]:
    present = {(assigned[group], label) for group, counts in table.counts.items() for label in counts}
    return [f"{label} in {name}" for name in SPLITS for label in classes if (name, label) not in present]
