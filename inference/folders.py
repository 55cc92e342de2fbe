"""Class folders outside of the datasets: measured where they lie, nothing of them is kept but the answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets import copies, duplicates, imaging, splitting
from datasets.models import SEXES, patient_key, site_pseudonym
from datasets.scanning import map_ahead
from registry.models import Evaluation, Measured, ModelVersion
from registry.reports import EvaluatedImages
from xrayplatform.jobs import JobError

from . import choosing
from .engine import LoadedModel

BATCH = 16
Problem = dict[str, str]


@dataclass(frozen=True)
class _Film:
    """A readable file of a folder, with what is known of it; pixels uint8 (S, S) as the version sees them.

    fingerprint: see `duplicates.fingerprint`.
    """

    row: splitting.Row
    label: int
    groups: dict[str, str]
    pixels: NDArray[np.uint8]
    fingerprint: bytes


@dataclass
class _Read:
    """What was read so far; the lists run along each other. prints: fingerprints by digest."""

    rows: list[splitting.Row] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[dict[str, str]] = field(default_factory=list)
    answers: list[NDArray[np.float64]] = field(default_factory=list)
    prints: dict[str, bytes] = field(default_factory=dict)

    def add(self, batch: list[_Film], answers: NDArray[np.float64]) -> None:
        self.rows += [film.row for film in batch]
        self.labels += [film.label for film in batch]
        self.groups += [film.groups for film in batch]
        self.answers.append(answers)
        self.prints |= {film.row.digest: film.fingerprint for film in batch}


def measure(version: ModelVersion, model: LoadedModel, folder: Path) -> tuple[Measured, list[Problem]]:
    """Measure a version on class folders; also what could not be used and why. Raises JobError.

    Images that the version knows and near-duplicates of them are left out, as everywhere; of the folder only its own
    name is kept.
    """
    files, problems = _labelled_files(folder, version.classes)
    read = _Read()
    for batch in _batches(_readable(files, version, problems)):
        read.add(batch, model.predict(np.stack([film.pixels for film in batch])))
    if not read.rows:
        raise JobError("Not one radiograph could be read in the class folders.", "Look at what is in them.")
    kind = str(Evaluation.Kind.EXTERNAL)
    pictures = copies.Pictures.of_files(read.prints)
    chosen = choosing.without_known(version, choosing.of_rows(read.rows, read.labels), kind, pictures)
    kept = np.asarray(chosen.rows, np.int64)
    images = EvaluatedImages(
        labels=np.asarray(chosen.labels, np.int64),
        probabilities=np.concatenate(read.answers)[kept],
        groups=np.asarray(chosen.groups, np.int64),
        digests=np.asarray(chosen.digests),
        rows=kept,
        subgroups=_subgroups([read.groups[index] for index in kept.tolist()]),
    )
    # A path may name people and places.
    measured = Measured.of(kind, images, version.question, dataset_name=folder.resolve().name[:400])
    measured.report["warnings"] += chosen.notes
    return measured, problems


def _subgroups(groups: list[dict[str, str]]) -> dict[str, NDArray[np.str_]]:
    return {name: np.array([group[name] for group in groups], np.str_) for name in ("sex", "age", "format", "site")}


def _labelled_files(folder: Path, classes: list[str]) -> tuple[list[tuple[Path, int]], list[Problem]]:
    """Files with the index of their class; folders that are no class of the version are problems."""
    if not folder.is_dir():
        raise JobError(f"{folder} is not a folder.")
    numbers = {name.casefold(): number for number, name in enumerate(classes)}
    files: list[tuple[Path, int]] = []
    problems: list[Problem] = []
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        number = numbers.get(sub.name.casefold())
        if number is None:
            problems.append({"path": sub.name, "reason": f"Not a class of this version ({', '.join(classes)})."})
            continue
        files += [(path, number) for path in sorted(sub.iterdir()) if not path.name.startswith(".")]
    if not files:
        raise JobError(f"{folder} has no files in folders named {', '.join(classes)}.")
    return files, problems


def _readable(files: list[tuple[Path, int]], version: ModelVersion, problems: list[Problem]) -> Iterator[_Film]:
    read = partial(_film, version=version)
    decoded = map_ahead(read, files)
    for (path, _), film in zip(files, decoded, strict=True):
        if isinstance(film, imaging.ImageError):
            problems.append({"path": f"{path.parent.name}/{path.name}", "reason": str(film)})
        else:
            yield film


def _film(file: tuple[Path, int], version: ModelVersion) -> _Film | imaging.ImageError:
    path, label = file
    treatment = version.preprocessing
    try:
        found = imaging.read(path)
        pixels = imaging.model_input(found, version.image_size, treatment["fit"], treatment.get("steps", ()))
    except imaging.ImageError as error:
        return error
    patient = patient_key(found.patient) if found.patient else None
    groups = {
        "sex": SEXES.get(found.sex, ""),
        "age": found.age,
        "format": found.format,
        "site": site_pseudonym(found.institution) if found.institution else "",
    }
    row = splitting.Row(f"{path.parent.name}/{path.name}", found.digest, patient, "dicom" if patient else "")
    return _Film(row, label, groups, pixels, duplicates.fingerprint(found.grey))


def _batches(films: Iterator[_Film]) -> Iterator[list[_Film]]:
    batch = []
    for film in films:
        batch.append(film)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
