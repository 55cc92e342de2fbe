"""Which labelled images a version is measured on: those of a preparation, of a scanned dataset, or of a folder.

Images that the version learned from or was tuned on are left out, and so are near-duplicates of them and other images
of the same patients where patients are known: figures on them would be too good.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from django.db.models import QuerySet
from numpy.typing import NDArray

from datasets import copies, patterns, splitting
from datasets.models import Dataset, DatasetImage, Preparation, PreparedImage
from registry.models import Evaluation, ModelVersion
from xrayplatform.jobs import JobError

ALL = "all"
_COLUMNS = ("paths", "digests", "labels", "groups", "rows", "patients")


@dataclass(frozen=True)
class Chosen:
    """The images to measure on; the lists run along each other.

    paths: relative to the folder of the dataset. labels: index of the version's class. groups: number of the patient,
    or of the next best key. rows: numbers in the preparation, or in the list. patients: pseudonym of the patient, ""
    where it is not known. notes: what is to be said with the figures.
    """

    paths: list[str]
    digests: list[str]
    labels: list[int]
    groups: list[int]
    rows: list[int]
    patients: list[str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def only(self, kept: NDArray[np.int64], *notes: str) -> "Chosen":
        """Those at the positions `kept`; the notes say why the others are not here."""
        lists = {name: [getattr(self, name)[index] for index in kept.tolist()] for name in _COLUMNS}
        return replace(self, **lists, notes=(*self.notes, *notes))


def of_preparation(preparation: Preparation, part: str, classes: Sequence[str]) -> Chosen:
    """A part of a preparation, or "all" of it. Raises JobError where the version does not know a class."""
    manifest = preparation.manifest.order_by("row")
    if part != ALL:
        manifest = manifest.filter(split=part)
    rows = list(manifest.values_list("path", "digest", "class_name", "group", "row"))
    labels = class_numbers([row[2] for row in rows], classes)
    keyed = preparation.dataset.images.exclude(patient_key="").order_by()
    patients = dict(keyed.values_list("digest", "patient_key"))
    paths, digests, _, groups, numbers = ([row[index] for row in rows] for index in range(5))
    return Chosen(paths, digests, labels, groups, numbers, [patients.get(digest, "") for digest in digests])


def of_dataset(dataset: Dataset, classes: Sequence[str]) -> Chosen:
    """All images in use of a dataset; patients are told apart as a preparation does it. Raises JobError."""
    conflicting = dataset.conflicting_images()
    columns = ("pk", "path", "digest", "class_name", "patient_key", "patient_source", "cluster")
    found = dataset.images.included().in_byte_order().values_list(*columns)
    used = [row for row in found.iterator(2000) if dataset.label_of(row[3]) and row[0] not in conflicting]
    labels = class_numbers([dataset.label_of(row[3]) for row in used], classes)
    rows = [splitting.Row(path, digest, key or None, source, near) for _, path, digest, _, key, source, near in used]
    return of_rows(rows, labels, dataset.pattern)


def of_rows(rows: Sequence[splitting.Row], labels: list[int], pattern: str = "") -> Chosen:
    """Images that no preparation has grouped by patients. Raises JobError for a pattern that cannot be used."""
    try:
        keys = splitting.group_keys(rows, pattern).keys
    except patterns.PatternError as error:
        raise JobError(str(error), "Correct the dataset's pattern for file names.") from error
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return Chosen(
        paths=[row.relative for row in rows],
        digests=[row.digest for row in rows],
        labels=labels,
        groups=[numbers[key] for key in keys],
        rows=list(range(len(rows))),
        patients=[row.patient_key or "" for row in rows],
    )


def has_pixels_for(preparation: Preparation, version: ModelVersion) -> bool:
    """Whether the preparation has its images decoded as the version sees them, so that the files are not needed."""
    same_size = preparation.image_size == version.image_size
    return same_size and preparation.pipeline == version.preprocessing and preparation.is_ready


# -- Classes


def unknown_classes(names: Iterable[str], classes: Iterable[str]) -> list[str]:
    """Those of the names that are none of the classes, whatever their case."""
    known = {name.casefold() for name in classes}
    return sorted({name for name in names if name.casefold() not in known})


def class_problem(names: Iterable[str], classes: Sequence[str]) -> str:
    """Why images with these class names cannot be measured by a version with these classes; empty when they can."""
    unknown = unknown_classes(names, classes)
    if not unknown:
        return ""
    named = f"class {unknown[0]}, which" if len(unknown) == 1 else f"classes {', '.join(unknown)}, which"
    return f"It has images of {named} this version does not know. The version tells apart {', '.join(classes)}."


CLASS_ADVICE = (
    "Under Classes and patients of the dataset, rename such a class to the version's own name where both mean the "
    "same, or leave it out. A part of a preparation keeps the names it had: prepare the dataset again after that."
)


def class_numbers(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The index of each class name, whatever its case. Raises JobError naming the classes that the version lacks."""
    problem = class_problem(names, classes)
    if problem:
        raise JobError(problem, CLASS_ADVICE)
    numbers = {name.casefold(): number for number, name in enumerate(classes)}
    return [numbers[name.casefold()] for name in names]


# -- What the version knows


def without_known(
    version: ModelVersion,
    chosen: Chosen,
    kind: str,
    pictures: copies.Pictures,
    progress: copies.Progress | None = None,
) -> Chosen:
    """Without the images that the version knows, their near-duplicates, and others of the same patients or groups.

    kind: of the evaluation. The version is always measured on images it did not learn from; but for the validation part
    of its own division, also on none by which its epoch and threshold were chosen. Near-duplicates share a side of a
    division, so that parts of the own one are compared only with what earlier versions learned from in other ones.
    pictures: with the fingerprints of the chosen images. progress: see `copies.among`. Raises JobError if none is left.
    """
    # Of the images that the version, and those it started from, were trained with.
    divisions = [one.split_digest for one in version.lineage if one.split_digest]
    parts = ("train",) if kind == Evaluation.Kind.VALIDATION else ("train", "validation")
    digests = set(_seen(divisions, parts).values_list("digest", flat=True).iterator(2000))
    if not digests and kind == Evaluation.Kind.EXTERNAL:
        return chosen.only(
            np.arange(len(chosen)),
            f"It is not known here which images {version} learned from. If some of these were among them, the figures "
            "are too good.",
        )
    patients = _patients_of(divisions, parts)
    pairs = zip(chosen.digests, chosen.patients, strict=True)
    known = _whole_groups(chosen, [digest in digests or patient in patients for digest, patient in pairs])
    others = divisions
    if kind != Evaluation.Kind.EXTERNAL:
        others = [division for division in divisions if division != version.split_digest]
    asked = {chosen.digests[index] for index in np.flatnonzero(~known).tolist()}
    found = copies.among(pictures, asked, _seen(others, parts), progress)
    near = _whole_groups(chosen, [digest in found.digests for digest in chosen.digests]) & ~known
    return _kept(chosen, known, near, _not_compared(found))


def _seen(divisions: Sequence[str], parts: Sequence[str]) -> QuerySet:
    return PreparedImage.objects.filter(preparation__split_digest__in=divisions, split__in=parts).order_by()


def _whole_groups(chosen: Chosen, known: Sequence[bool]) -> NDArray[np.bool_]:
    """A group with one known image is known as a whole."""
    groups = np.asarray(chosen.groups)
    return np.isin(groups, np.unique(groups[np.array(known, bool)]))


def _kept(chosen: Chosen, known: NDArray[np.bool_], near: NDArray[np.bool_], notes: Sequence[str]) -> Chosen:
    kept = np.flatnonzero(~(known | near))
    left_out = len(chosen) - len(kept)
    if not left_out:
        return chosen.only(kept, *notes)
    told = _told_by(int(known.sum()), int(near.sum()))
    if not len(kept):
        raise JobError(
            "This version learned from all of these images, from copies of them or from other images of their "
            f"patients. {told}",
            "Choose the test part of its own division, or images it has never seen.",
        )
    were = "image was" if left_out == 1 else "images were"
    return chosen.only(
        kept,
        f"{left_out:,} of {len(chosen):,} {were} left out, because the version learned from them or was tuned on them, "
        f"or on copies of them or other images of the same patients. {told}",
        *notes,
    )


def _told_by(known: int, near: int) -> str:
    """How so many were recognised, in words."""
    ways = []
    if known:
        ways.append(f"{known:,} by equal pixels, patient or group")
    if near:
        ways.append(
            f"{near:,} as near-duplicates (the same radiographs resized, turned, mirrored or saved again, and the rest "
            "of their groups)"
        )
    return f"Recognised: {'; '.join(ways)}."


def _not_compared(found: copies.Copies) -> list[str]:
    """What is to be said where near-duplicates could not be looked for."""
    notes = []
    if found.unread_known:
        images = "1 image" if found.unread_known == 1 else f"{found.unread_known:,} images"
        notes.append(
            f"Of {images} that the version learned from or was tuned on, only copies with equal pixels are recognised, "
            "because no dataset has a fingerprint of them any more. If some of the images here were made from them, "
            "the figures are too good."
        )
    if found.unread:
        images = "1 of the images" if found.unread == 1 else f"{found.unread:,} of the images"
        notes.append(
            f"{images} here could be compared with those that the version learned from by equal pixels only, because "
            "the dataset has no fingerprint of them. Scan it again for a closer look."
        )
    return notes


def _patients_of(divisions: Sequence[str], parts: Sequence[str]) -> set[str]:
    """Pseudonyms of the patients in these parts, as far as files, a CSV column or folders name patients."""
    preparations = Preparation.objects.filter(split_digest__in=divisions)
    seen = PreparedImage.objects.filter(preparation__in=preparations, split__in=parts)
    keyed = DatasetImage.objects.filter(dataset__in=preparations.values("dataset")).exclude(patient_key="").order_by()
    patients = keyed.filter(digest__in=seen.values("digest")).values_list("patient_key", flat=True)
    return set(patients.distinct())
