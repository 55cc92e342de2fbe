"""Divide a dataset into train, validation and test so that no patient is on two sides.

First `group_keys` says which images belong together, then `split` deals whole groups out, keeping the shares of
the classes. `shared_groups` counts, on the result itself, the groups that are on more than one side.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from datasets import patterns
from datasets.layouts import patient_folder

SPLITS: Final = ("train", "validation", "test")
DEFAULT_FRACTIONS: Final = (0.70, 0.15, 0.15)
SMALLEST_PART: Final = 0.05
LARGEST_PART: Final = 0.40
SMALLEST_TRAIN: Final = 0.40
MIN_IMAGES: Final = 10
MIN_GROUPS: Final = 3
# Of the test part of the folders, moved away: from here on its figures are no longer those of the published division.
NOTICEABLE: Final = 0.05
# With fewer patients of a class in a part, its figures say little of other patients.
FEW_GROUPS: Final = 3
MIN_VALIDATION_SHARE: Final = 0.05
# A class may be off its share by one image or this much of the class before the user is told, ...
BOUND: Final = 0.05
# ... and by half an image or this much before another deal is tried.
GOOD_ENOUGH: Final = 0.005
# Deals that are tried for better shares, and at most, as long as a part lacks a class.
TRIES: Final = 8
ATTEMPTS: Final = 100
# Groups that are left over for single decisions; beyond it one deal is good enough, as each group is so small.
FEW_LEFT: Final = 500
# Cost of a class that a part lacks: more than any shares.
ABSENT: Final = 1e4
# Bounds of the search for exchanges: rounds, and numbers looked at in one.
ROUNDS: Final = 100
LOOKED_AT: Final = 60_000

Label = TypeVar("Label", str, int)
Counts = NDArray[np.int32]
Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


class SplitError(Exception):
    """The dataset cannot be divided; the text says why and what to do."""


class FractionError(SplitError):
    """A part that was asked for is too small or too large. field: "train", "validation" or "test"."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Row:
    """One image as grouping sees it.

    patient_key: a keyed hash, never the number itself. patient_source: "dicom", "csv", "folder" or "" without a key.
    cluster: near-duplicates have the same number; None where it is not known.
    """

    relative: str
    digest: str
    patient_key: str | None = None
    patient_source: str = ""
    cluster: int | None = None


@dataclass(frozen=True, slots=True)
class GroupKeys:
    """Group of each row. name: where most keys come from ("dicom", "csv", "folder", "file-name", "near-duplicate",
    "image"), description: all of them in words."""

    keys: list[str]
    name: str
    description: str
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Split of each row. moved: images that left the split of their folder because their group is also in train.

    shares: class -> split -> share of the class's images. deviation: the largest distance of such a share from what it
    should be, over the parts that were dealt out here; 0 when all came with the folders. straddling: for each group in
    several parts of the folders, one row of each of these parts, train first.
    """

    splits: list[str]
    warnings: list[str]
    moved: int
    shares: dict[str, dict[str, float]]
    deviation: float
    straddling: list[list[int]] = field(default_factory=list)


# --- Which images belong together ------------------------------------------------------------------------------------

WORDS: Final = {
    "dicom": "patient number of the DICOM file",
    "csv": "patient column of the CSV file",
    "folder": "patient folder",
    "near-duplicate": "near-duplicates",
    "image": "the image itself",
}


class _Kind(NamedTuple):
    """Where a key comes from. example: of the file name pattern."""

    name: str
    example: str = ""

    def words(self) -> str:
        return WORDS.get(self.name) or f"file name {self.example}"


def group_keys(rows: Sequence[Row], pattern: str = "") -> GroupKeys:
    """The patient, or the next best thing, of each image.

    The first that exists: DICOM patient, CSV column or patient folder (`patient_key`), file name by the user's pattern
    or, where that is empty, by those of well-known collections, patient folder (where the patient numbers are of no
    use), cluster of near-duplicates, the image itself. Patient numbers and folders that put all images into one group
    tell nothing and are passed over. Whatever the key, images with equal pixels and near-duplicates share a group; it
    bears the smallest of their keys. Raises `patterns.PatternError`.
    """
    warnings: list[str] = []
    kinds, keys = _keys(rows, pattern, warnings)
    used = Counter(kinds)
    by_name: Counter[str] = Counter()
    for kind, count in used.items():
        by_name[kind.name] += count
    if len(by_name) > 1 and by_name["image"]:
        warnings.append(f"For {by_name['image']} of {len(rows)} images no patient is known; each counts as its own.")
    if pattern and not by_name["file-name"]:
        warnings.append("The pattern for file names was not used: it found nothing, or every patient is known anyway.")
    name = by_name.most_common(1)[0][0] if by_name else "image"
    return GroupKeys(_join(rows, kinds, keys, warnings), name, _describe(used), warnings)


def _keys(rows: Sequence[Row], pattern: str, warnings: list[str]) -> tuple[list[_Kind], list[str]]:
    """Kind and key of each row, before copies are joined."""
    use_patients = _tells_something(rows, warnings)
    use_folders = len({_patient_folder(row) for row in rows}) > 1
    clusters = Counter(row.cluster for row in rows if row.cluster is not None)
    known: dict[_Kind, _Kind] = {}
    kinds, keys = [], []
    named = patterns.patients(pattern, [row.relative for row in rows])
    for row, name in zip(rows, named, strict=True):
        folder = _patient_folder(row) if use_folders else None
        if use_patients and row.patient_key:
            kind, key = _Kind(row.patient_source or "dicom"), f"patient:{row.patient_key}"
        elif name:
            kind, key = _Kind("file-name", f"like {name.example}" if name.example else f"by {pattern}"), name.key
        elif folder:
            kind, key = _Kind("folder"), f"folder:{folder}"
        else:
            close = row.cluster is not None and clusters[row.cluster] > 1
            kind, key = (
                _Kind("near-duplicate" if close else "image"),
                f"file:{patterns.without_extension(row.relative)}",
            )
        kinds.append(known.setdefault(kind, kind))
        keys.append(key)
    return kinds, keys


def _patient_folder(row: Row) -> str | None:
    return patient_folder(row.relative.split("/")[:-1])


def _tells_something(rows: Sequence[Row], warnings: list[str]) -> bool:
    known = Counter(row.patient_key for row in rows if row.patient_key)
    if known.total() > 1 and len(known) == 1:
        warnings.append(
            f"All {known.total()} patient numbers (or patient folders) are the same, so they were not used to keep "
            "patients apart."
        )
        return False
    return bool(known)


def _describe(used: Counter[_Kind]) -> str:
    return "; ".join(f"{kind.words()}: {count} image{_s(count)}" for kind, count in used.most_common())


def _s(count: int) -> str:
    return "" if count == 1 else "s"


class _Union:
    """Sets of numbers that can be joined (union-find); each bears its smallest number."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))
        self.joined = 0

    def root(self, number: int) -> int:
        parent = self.parent
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def join_equal(self, numbers: Iterable[int], marks: Iterable[Hashable]) -> int:
        """Join the numbers with equal marks, but for the mark None; returns by how many the sets became fewer."""
        first: dict[Hashable, int] = {}
        before = self.joined
        for number, mark in zip(numbers, marks, strict=True):
            if mark is None:
                continue
            low, high = sorted((self.root(number), self.root(first.setdefault(mark, number))))
            self.parent[high] = low
            self.joined += low != high
        return self.joined - before


def _join(rows: Sequence[Row], kinds: Sequence[_Kind], keys: Sequence[str], warnings: list[str]) -> list[str]:
    """The keys with copies and near-duplicates joined."""
    names = sorted(set(keys))
    number = {name: index for index, name in enumerate(names)}
    numbers = [number[key] for key in keys]
    sets = _Union(len(names))
    equal = sets.join_equal(numbers, (row.digest for row in rows))
    if equal:
        warnings.append(f"Images with equal pixels joined {equal} group{_s(equal)} to others.")
    known = [kind.name not in ("near-duplicate", "image") for kind in kinds]
    suspicious = _mixed_clusters(
        rows, [sets.root(number) if of else None for number, of in zip(numbers, known, strict=True)]
    )
    # Where nothing but the cluster is known, it is the key: no join to speak of.
    sets.join_equal(numbers, (None if of else row.cluster for row, of in zip(rows, known, strict=True)))
    close = sets.join_equal(numbers, (row.cluster for row in rows))
    if close:
        warnings.append(f"Near-duplicates joined {close} group{_s(close)} to others.")
    if suspicious:
        warnings.append(
            f"{suspicious} cluster{_s(suspicious)} of near-duplicates with images of different known "
            "patients, which are now kept together. Check whether these are copies of one picture under several "
            "patients."
        )
    merged = [names[sets.root(number)] for number in numbers]
    if equal or close:
        _warn_of_large_group(merged, warnings)
    return merged


def _mixed_clusters(rows: Sequence[Row], patients: Sequence[int | None]) -> int:
    """Clusters with images of more than one known patient."""
    first: dict[int, int] = {}
    mixed = set()
    for row, patient in zip(rows, patients, strict=True):
        if row.cluster is not None and patient is not None and first.setdefault(row.cluster, patient) != patient:
            mixed.add(row.cluster)
    return len(mixed)


def _warn_of_large_group(keys: Sequence[str], warnings: list[str]) -> None:
    largest = Counter(keys).most_common(1)[0][1]
    if largest > MIN_IMAGES and largest > DEFAULT_FRACTIONS[-1] * len(keys):
        warnings.append(
            f"The largest group has {largest} of {len(keys)} images, joined by copies or near-duplicates; the shares "
            "of the parts may be far from what was asked for."
        )


# --- Dealing the groups out ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Table:
    """Images by group and class. groups, classes: sorted names. counts: (groups, classes). part: index in `SPLITS` of
    each group, -1 while it is not dealt out."""

    groups: list[str]
    classes: list[str]
    counts: Counts
    part: Numbers

    def open_parts(self) -> list[int]:
        """Parts that no group belongs to yet."""
        return [part for part in range(len(SPLITS)) if not (self.part == part).any()]

    def in_parts(self, values: NDArray[np.generic]) -> Numbers:
        """Sums of values (groups, classes) over the groups of each part: (parts, classes)."""
        return np.stack([values[self.part == part].sum(axis=0) for part in range(len(SPLITS))])


def split(
    labels: Sequence[str],
    groups: Sequence[str],
    source_splits: Sequence[str],
    *,
    seed: int,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
) -> SplitResult:
    """Train, validation and test with whole groups and the classes' shares kept.

    labels, groups, source_splits: one a row; source_splits says "train", "validation", "test" or "". fractions: of
    train, validation and test, see `check_fractions`. The result depends on the rows and the seed, not on the rows'
    order. A split that the folders bring is kept where it can be: a group on both sides goes into train, a validation
    part under 5 % is drawn anew. Raises SplitError.
    """
    check_fractions(*fractions)
    table, of_row = _tabulate(labels, groups)
    _check(table)
    warnings: list[str] = []
    moved, straddling = _honour_sources(table, of_row, source_splits, warnings)
    targets = _deal(table, seed, fractions)
    if _missing(table) and (moved or len(set(source_splits)) > 1):
        warnings[:] = ["The parts of the folders leave too few patients for the other parts; all was divided anew."]
        moved, straddling, table.part = 0, [], np.full(len(table.groups), -1)
        targets = _deal(table, seed, fractions)
    if missing := _missing(table):
        raise SplitError(
            f"No division was found in which every part has every class (missing: {'; '.join(missing)}). "
            "The patients are too few or share too many images; add images of other patients."
        )
    deviation = _warn_of_shares(table, targets, warnings)
    _warn_of_few_groups(table, warnings)
    splits = [SPLITS[part] for part in table.part[of_row].tolist()]
    return SplitResult(splits, warnings, moved, _shares(table), deviation, straddling)


def check_fractions(train: float, validation: float, test: float) -> None:
    """Raise FractionError unless validation and test are 0.05 to 0.40 each, train at least 0.40, the sum 1."""
    for name, value in (("validation", validation), ("test", test)):
        if not SMALLEST_PART <= value <= LARGEST_PART:
            raise FractionError(
                name,
                f"The {name} share is {_percent(value)}; it has to be between {_percent(SMALLEST_PART)} and "
                f"{_percent(LARGEST_PART)}.",
            )
    if not train >= SMALLEST_TRAIN - 1e-9:
        raise FractionError(
            "train",
            f"The train share is {_percent(train)}, what validation and test leave; it has to be at least "
            f"{_percent(SMALLEST_TRAIN)}. Choose smaller validation and test shares.",
        )
    if not math.isclose(train + validation + test, 1, abs_tol=1e-6):
        raise FractionError(
            "train", f"The train, validation and test shares add up to {_percent(train + validation + test)}."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def shared_groups(splits: Sequence[str], groups: Sequence[Hashable]) -> int:
    """Number of groups with images in more than one split; 0 proves that nothing leaks."""
    first: dict[Hashable, str] = {}
    return len({group for name, group in zip(splits, groups, strict=True) if first.setdefault(group, name) != name})


def class_weights(labels: Sequence[Label]) -> dict[Label, float]:
    """Weights n / (k n_c) of k classes with n_c of n images, so that every class weighs the same in the loss.

    After King and Zeng (2001). The training uses these same weights.
    """
    counts = Counter(labels)
    return {name: len(labels) / (len(counts) * count) for name, count in sorted(counts.items())}


def _tabulate(labels: Sequence[str], groups: Sequence[str]) -> tuple[_Table, Numbers]:
    """The table, and the number of each row's group."""
    names, of_row = _numbered(groups)
    classes, of_label = _numbered(labels)
    counts = np.zeros((len(names), len(classes)), np.int32)
    np.add.at(counts, (of_row, of_label), 1)
    return _Table(names, classes, counts, np.full(len(names), -1)), of_row


def _numbered(values: Sequence[str]) -> tuple[list[str], Numbers]:
    names = sorted(set(values))
    number = {name: index for index, name in enumerate(names)}
    return names, np.fromiter((number[value] for value in values), np.int64, len(values))


def _check(table: _Table) -> None:
    if len(table.classes) < 2:
        found = next(iter(table.classes), "none")
        raise SplitError(f"A classifier needs at least two classes; the dataset has one ({found}).")
    images = zip(table.classes, table.counts.sum(axis=0).tolist(), strict=True)
    few = [f"{name} has {count}" for name, count in images if count < MIN_IMAGES]
    if few:
        raise SplitError(f"Each class needs at least {MIN_IMAGES} usable images: {', '.join(few)}. Add images.")
    members = zip(table.classes, (table.counts > 0).sum(axis=0).tolist(), strict=True)
    lonely = [f"{name} has {count}" for name, count in members if count < MIN_GROUPS]
    if lonely:
        raise SplitError(
            f"Each class needs images of at least {MIN_GROUPS} patients (or source pictures), one for each of train, "
            f"validation and test: {', '.join(lonely)}. Add images of other patients."
        )


def _missing(table: _Table) -> list[str]:
    present = table.in_parts(table.counts) > 0
    return [
        f"{label} in {name}"
        for part, name in enumerate(SPLITS)
        for label, there in zip(table.classes, present[part], strict=True)
        if not there
    ]


def _shares(table: _Table) -> dict[str, dict[str, float]]:
    shares = table.in_parts(table.counts) / table.counts.sum(axis=0)
    return {label: dict(zip(SPLITS, shares[:, c].tolist(), strict=True)) for c, label in enumerate(table.classes)}


def _warn_of_shares(table: _Table, targets: Floats, warnings: list[str]) -> float:
    """Largest deviation of the parts that were dealt out here; what is out of bounds is added to the warnings."""
    dealt = ~np.isnan(targets)
    totals = table.counts.sum(axis=0)
    off = np.where(dealt, np.abs(table.in_parts(table.counts) - targets), 0)
    bad = off > np.maximum(1, BOUND * totals)
    if bad.any():
        have = table.in_parts(table.counts)
        words = [
            f"{SPLITS[part]} has {_percent(have[part, c] / totals[c])} of {table.classes[c]} instead of "
            f"{_percent(targets[part, c] / totals[c])}"
            for part, c in sorted(np.argwhere(bad).tolist(), key=lambda at: -off[at[0], at[1]] / totals[at[1]])
        ]
        more = f" and {len(words) - 3} more" if len(words) > 3 else ""
        warnings.append(
            f"The shares could not be kept, as some patients have many images: {'; '.join(words[:3])}{more}. "
            "Another seed may do better; images of more patients will."
        )
    return float((off / totals).max())


def _warn_of_few_groups(table: _Table, warnings: list[str]) -> None:
    members = table.in_parts(table.counts > 0)
    few = [
        f"{SPLITS[part]} has {members[part, c]} of {table.classes[c]}"
        for part in (1, 2)
        for c in range(len(table.classes))
        if members[part, c] < FEW_GROUPS
    ]
    if few:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        warnings.append(
            f"Very few patients (or source pictures) in a part: {'; '.join(few[:3])}{more}. The figures of these "
            "classes will say little of other patients; add images of more."
        )


# --- Folders that bring their own division


def _honour_sources(
    table: _Table, of_row: Numbers, source_splits: Sequence[str], warnings: list[str]
) -> tuple[int, list[list[int]]]:
    """Fix the groups whose folder says where they belong.

    Returns how many images had to leave their split, and one row of each part for each group that was in several.
    """
    number = {name: part for part, name in enumerate(SPLITS)}
    of_source = np.fromiter((number.get(name, 0) for name in source_splits), np.int64, len(of_row))
    images = np.zeros((len(table.groups), len(SPLITS)), np.int32)
    np.add.at(images, (of_row, of_source), 1)
    train, validation, test = images.sum(axis=0).tolist()
    if not validation and not test:
        return 0, []
    if not train:
        warnings.append("The folders bring no training part, so all images were divided anew.")
        return 0, []
    straddling = (images > 0).sum(axis=1) > 1
    _, from_validation, from_test = images[straddling].sum(axis=0).tolist()
    if straddling.any():
        count = int(straddling.sum())
        warnings.append(
            f"{count} patient{_s(count)} (or source picture{_s(count)}) {'was' if count == 1 else 'were'} in more than "
            f"one folder part. Moved into train: {from_validation} validation and {from_test} test "
            f"image{_s(from_test)}."
        )
    table.part = np.where(straddling, 0, images.argmax(axis=1))
    for part in (1, 2):
        _redraw_if_unfit(table, part, warnings)
    if from_test >= NOTICEABLE * test and (table.part == 2).any():
        warnings.append(
            f"The test part of the folders shrank from {test} to {test - from_test} images, as {from_test} of them "
            f"({_percent(from_test / test)}) were moved into train. Figures of this test part and published ones of "
            "the whole do not compare."
        )
    if table.open_parts():
        table.part[table.part == 0] = -1
    return from_validation + from_test, _one_row_each(of_row, of_source, straddling)


def _one_row_each(of_row: Numbers, of_source: Numbers, wanted: NDArray[np.bool_]) -> list[list[int]]:
    """The first row of each part of the wanted groups."""
    rows = np.flatnonzero(wanted[of_row])
    places = of_row[rows] * len(SPLITS) + of_source[rows]
    _, first = np.unique(places, return_index=True)
    found: dict[int, list[int]] = {}
    for row in rows[first].tolist():
        found.setdefault(int(of_row[row]), []).append(row)
    return list(found.values())


def _redraw_if_unfit(table: _Table, part: int, warnings: list[str]) -> None:
    """Put a part of the folders back into train when it is missing, lacks a class or is too small to steer by."""
    members = table.counts[table.part == part]
    size, total = int(members.sum()), int(table.counts.sum())
    reason = ""
    if not size:
        reason = "has no images of its own"
    elif not members.any(axis=0).all():
        reason = "lacks a class"
    elif SPLITS[part] == "validation" and size < MIN_VALIDATION_SHARE * total:
        reason = f"has only {size} of {total} images"
    if reason:
        table.part[table.part == part] = 0
        warnings.append(f"The {SPLITS[part]} part of the folders {reason}; it was drawn anew from train.")


# --- The deal
#
# Groups of the same composition are interchangeable: each such kind is dealt out by the shares as far as it goes,
# which keeps patients with many images out of no part. What does not come out even is dealt group by group, each to
# the part that needs it most, then single groups and pairs are exchanged as long as the shares get better.


def _deal(table: _Table, seed: int, fractions: tuple[float, float, float]) -> Floats:
    """Give every open group a part. Returns the images wanted (parts, classes), NaN in parts that were settled before.

    The order is a hash of seed and group, so it does not depend on the rows' order.
    """
    targets = np.full((len(SPLITS), len(table.classes)), np.nan)
    parts = table.open_parts()
    pool = np.flatnonzero(table.part < 0)
    if not pool.size:
        return targets
    shares = np.array([fractions[part] for part in parts]) / sum(fractions[part] for part in parts)
    targets[parts] = np.outer(shares, table.counts[pool].sum(axis=0))
    left = _deal_kinds(table, _shuffled(table, pool, f"{seed}"), parts, shares)
    base = np.stack([table.counts[pool[table.part[pool] == part]].sum(axis=0) for part in parts])
    best = _best_deal(table, left, base, targets[parts], f"{seed}")
    table.part[left] = np.array(parts)[best]
    return targets


def _shuffled(table: _Table, members: Numbers, salt: str) -> Numbers:
    names = (f"{salt}/{table.groups[member]}".encode("utf-8", "surrogateescape") for member in members.tolist())
    order = [hashlib.blake2b(name, digest_size=8).digest() for name in names]
    return members[np.argsort(np.frombuffer(b"".join(order), ">u8"), kind="stable")]


def _deal_kinds(table: _Table, pool: Numbers, parts: Sequence[int], shares: Floats) -> Numbers:
    """Deal out the groups of each composition as far as every part gets its whole number; returns the others."""
    _, kind, sizes = np.unique(table.counts[pool], axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(kind.ravel(), kind="stable")
    left = []
    for members in np.split(pool[order], np.cumsum(sizes)[:-1]):
        whole = np.floor(shares * len(members) + 1e-9).astype(int)
        if not whole.all():
            # Dealing by shares alone could leave a part without a class.
            whole[:] = 0
        for part, piece in zip([*parts, -1], np.split(members, np.cumsum(whole)), strict=True):
            table.part[piece] = part
        left.append(members[whole.sum() :])
    return np.concatenate(left)


def _best_deal(table: _Table, left: Numbers, base: Numbers, targets: Floats, salt: str) -> Numbers:
    """The best of some deals of the groups that are left: for each the row of base (parts, classes) it goes to."""
    best, lowest = np.zeros(len(left), int), np.inf
    few = len(left) <= FEW_LEFT
    position = {group: index for index, group in enumerate(left.tolist())}
    for attempt in range(ATTEMPTS if few else TRIES):
        order = _shuffled(table, left, f"{salt}/{attempt}")
        # Exchanges get stuck; every other time they start from chance, to get stuck elsewhere.
        by_need = attempt % 2 == 0
        order = _by_size(table, order) if by_need else order
        deal = _SingleDeal(table.counts[order], base, targets, by_need)
        if deal.cost < lowest:
            lowest = deal.cost
            best[[position[group] for group in order.tolist()]] = deal.part
        if deal.complete and (not few or attempt + 1 >= TRIES or deal.good):
            break
    return best


def _by_size(table: _Table, members: Numbers) -> Numbers:
    """Large groups first, as small ones can level out what these did; of about one size as they come."""
    sizes = np.log2(table.counts[members].sum(axis=1)).astype(int)
    return members[np.argsort(-sizes, kind="stable")]


class _SingleDeal:
    """Groups dealt out one by one, then exchanged.

    groups: (groups, classes) in dealing order. have, targets: images (parts, classes) so far and wanted. part: row of
    `have` each group went to. The cost is, over parts and classes, (have - target)^2 / (target x images of the class),
    so that every class weighs the same, and much more for a class that a part lacks. by_need: begin with giving each
    group to the part where it costs least, else with dealing as many as the shares say in the order they come.
    """

    def __init__(self, groups: Counts, base: Numbers, targets: Floats, by_need: bool) -> None:
        self.groups = groups.astype(np.float64)
        self.have = base.astype(np.float64)
        self.targets = targets
        # A class of none of these groups weighs nothing: there is nothing to decide.
        total = np.maximum(targets.sum(axis=0), 1)
        self.weights = 1 / (np.maximum(targets, 1e-9) * total) * (targets > 0)
        self.part = np.zeros(len(groups), np.int64)
        bounds = np.cumsum(targets.sum(axis=1)) / targets.sum() * len(groups)
        for index, group in enumerate(self.groups):
            if by_need:
                more = self._costs(self.have + group).sum(axis=1) - self._costs(self.have).sum(axis=1)
                self._put(index, int(more.argmin()))
            else:
                self._put(index, int(np.searchsorted(bounds[:-1], index + 0.5)))
        self._improve()

    @property
    def cost(self) -> float:
        return float(self._costs(self.have).sum())

    @property
    def complete(self) -> bool:
        """Whether every part has every class."""
        return bool((self.have[:, self.targets[0] > 0] > 0).all())

    @property
    def good(self) -> bool:
        off = np.abs(self.have - self.targets)
        return bool((off <= np.maximum(0.5, GOOD_ENOUGH * self.targets.sum(axis=0))).all())

    def _costs(self, have: Floats, part: int | slice = slice(None)) -> Floats:
        """Costs of having so many images: (..., classes)."""
        off = have - self.targets[part]
        absent = (have < 0.5) & (self.targets[part] > 0)
        return np.asarray(off * off * self.weights[part] + ABSENT * absent, np.float64)

    def _put(self, index: int, part: int) -> None:
        self.part[index] = part
        self.have[part] += self.groups[index]

    def _improve(self) -> None:
        """Exchange groups, with those of the class that is worst off looked at first, until no class gets better."""
        parts = range(len(self.have))
        idle = 0
        for _ in range(ROUNDS):
            worst = np.argsort(-self._costs(self.have).sum(axis=0), kind="stable")
            exchanged = [self._exchange(a, b, int(worst[idle])) for a in parts for b in parts if a < b]
            idle = 0 if any(exchanged) else idle + 1
            if idle == len(worst):
                return

    def _exchange(self, a: int, b: int, focus: int) -> bool:
        """Do the best of: one group from a to b, one from b to a, both; or nothing. Says whether it did."""
        some_a, some_b = self._candidates(a, focus), self._candidates(b, focus)
        # The last of each side is no group.
        moving = self._images(some_a)[:, None] - self._images(some_b)[None]
        before = self._costs(self.have[a], a).sum() + self._costs(self.have[b], b).sum()
        after = (self._costs(self.have[a] - moving, a) + self._costs(self.have[b] + moving, b)).sum(axis=2)
        first, second = divmod(int(after.argmin()), len(some_b) + 1)
        if after[first, second] > before - 1e-9:
            return False
        for chosen, at, origin, goal in ((some_a, first, a, b), (some_b, second, b, a)):
            if at < len(chosen):
                self.have[origin] -= self.groups[chosen[at]]
                self._put(int(chosen[at]), goal)
        return True

    def _candidates(self, part: int, focus: int) -> Numbers:
        """Groups of a part to look at: as many as can be, those of the class `focus` first."""
        members = np.flatnonzero(self.part == part)
        most = max(8, math.isqrt(LOOKED_AT // self.groups.shape[1]))
        return members[np.argsort(self.groups[members, focus] == 0, kind="stable")][:most]

    def _images(self, chosen: Numbers) -> Floats:
        return np.vstack([self.groups[chosen], np.zeros(self.groups.shape[1])])
