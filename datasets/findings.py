"""Judge all images of a dataset after a scan, and tell what was found: the quality report."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.conf import settings
from django.db import models, transaction
from numpy.typing import NDArray

from . import duplicates, patterns, quality
from .models import CHECK_LABEL, Dataset, DatasetImage, Decision, Finding

BATCH = 500
EXAMPLES = 12
PATIENTS_UNCOUNTED = quality.Hint(
    "hint",
    "patients-uncounted",
    "The pattern of patients in file names was changed: the next scan that finds something new counts them.",
)
COLUMNS = (*quality.MEASURES, "colour", "burned_in")


def refresh(dataset: Dataset) -> None:
    """Write the findings of a dataset anew and its figures into `dataset.quality`; does not save the dataset."""
    columns = _Columns(dataset)
    settings.MODEL_ROOT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.MODEL_ROOT) as file:
        columns.read(file)
        distributions = quality.distributions(columns.measures)
        clusters = _write_clusters(dataset, columns)
        found = [(columns.keys[row], finding) for row, finding in quality.judge(columns.measures, distributions)]
    found += _exact_duplicates(dataset)
    found += _near_duplicates(dataset, clusters)
    with transaction.atomic():
        dataset.findings.exclude(code=CHECK_LABEL).delete()
        _save(dataset, found)
    # Judging takes its time, and somebody may have merged classes meanwhile.
    dataset.refresh_from_db(fields=["class_choices"])
    dataset.findings.write_conflicts(dataset)
    per_patient = _images_per_patient(dataset)
    # Without those of the classes, which follow from the counts: a team may rename or merge classes between two scans.
    hints = quality.dataset_hints({}, list(per_patient.values()))
    dataset.quality = {
        "distributions": {name: distribution.to_json() for name, distribution in distributions.items()},
        "hints": [hint.to_json() for hint in hints],
        "patients": _patients_json(per_patient),
        "pattern": dataset.pattern,
    }


class _Columns:
    """What is known of each image, as arrays; fingerprints in a file, because a million of them are large."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        count = dataset.images.count()
        self.keys = np.zeros(count, np.int64)
        self.clusters = np.zeros(count, np.int64)
        self.measures = {name: np.full(count, np.nan) for name in (*COLUMNS, "width", "height")}
        self.fingerprints: NDArray[np.uint8] = np.zeros((0, duplicates.FINGERPRINT_BYTES), np.uint8)
        self.with_fingerprint = np.zeros(count, bool)

    def read(self, file: Any) -> None:
        count = len(self.keys)
        if not count:
            return
        self.fingerprints = np.memmap(file, np.uint8, "w+", shape=(count, duplicates.FINGERPRINT_BYTES))
        rows = self.dataset.images.order_by("pk").values_list(
            "pk", "cluster", "width", "height", "measures", "fingerprint"
        )
        for row, (pk, cluster, width, height, measures, fingerprint) in enumerate(rows.iterator(2000)):
            self.keys[row], self.clusters[row] = pk, cluster or 0
            self.measures["width"][row], self.measures["height"][row] = width, height
            for name in COLUMNS:
                if name in measures:
                    self.measures[name][row] = measures[name]
            if len(fingerprint) == duplicates.FINGERPRINT_BYTES:
                self.fingerprints[row] = np.frombuffer(bytes(fingerprint), np.uint8)
                self.with_fingerprint[row] = True


def _write_clusters(dataset: Dataset, columns: _Columns) -> dict[int, list[int]]:
    """Find near-duplicates, store each image's cluster where it changed, and return those with several images."""
    rows = np.flatnonzero(columns.with_fingerprint)
    numbers = duplicates.clusters(
        columns.fingerprints if len(rows) == len(columns.keys) else columns.fingerprints[rows]
    )
    members: dict[int, list[int]] = {}
    for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
        members.setdefault(number, []).append(row)
    groups = {int(columns.keys[group[0]]): [int(columns.keys[row]) for row in group] for group in members.values()}
    several = {first: group for first, group in groups.items() if len(group) > 1}
    wanted = {key: first for first, group in several.items() for key in group}
    changed = [
        DatasetImage(pk=key, cluster=wanted.get(key))
        for key, cluster in zip(columns.keys.tolist(), columns.clusters.tolist(), strict=True)
        if cluster != (wanted.get(key) or 0)
    ]
    DatasetImage.objects.bulk_update(changed, ["cluster"], batch_size=BATCH)
    return several


def _exact_duplicates(dataset: Dataset) -> Iterator[tuple[int, quality.Finding]]:
    for group in dataset.images.repeated_pixels().values():
        paths = {pk: path for pk, path, _ in group}
        for pk, path in paths.items():
            other = min(name for name in paths.values() if name != path)
            more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
            yield pk, quality.Finding("exact-duplicate", float(len(paths)), f"The same pixels as {other}{more}.")


def _near_duplicates(dataset: Dataset, clusters: dict[int, list[int]]) -> Iterator[tuple[int, quality.Finding]]:
    """Only where pixels differ: equal ones are told as such."""
    pictures = dataset.images.filter(cluster__isnull=False).order_by().values("cluster")
    differing = pictures.annotate(n=models.Count("digest", distinct=True)).filter(n__gt=1)
    for first in differing.values_list("cluster", flat=True):
        group = clusters[first]
        text = f"One of {len(group)} versions of one picture (turned, cropped, brightened or saved again)."
        yield from ((key, quality.Finding("near-duplicate", float(len(group)), text)) for key in group)


def _save(dataset: Dataset, found: list[tuple[int, quality.Finding]]) -> None:
    for start in range(0, len(found), BATCH):
        Finding.objects.bulk_create(
            [
                Finding(
                    dataset=dataset,
                    image_id=int(key),
                    code=finding.code,
                    value=finding.value,
                    detail=finding.detail[:400],
                )
                for key, finding in found[start : start + BATCH]
            ]
        )


def _images_per_patient(dataset: Dataset) -> dict[str, int]:
    """Images of each patient, as far as DICOM files, a CSV column, folders or file names tell one."""
    known = dataset.images.exclude(patient_key="").order_by()
    counted = dict(known.values_list("patient_key").annotate(models.Count("pk")))
    paths = dataset.images.filter(patient_key="").order_by("path").values_list("path", flat=True)
    names = list(paths.iterator(2000))
    try:
        for named in patterns.patients(dataset.pattern, names):
            if named is not None:
                counted[f"name:{named.key}"] = counted.get(f"name:{named.key}", 0) + 1
    except patterns.PatternError:
        pass  # told where the pattern is edited, and by the preparation
    return counted


def _patients_json(per_patient: dict[str, int]) -> dict[str, Any]:
    sizes = sorted(per_patient.values())
    if not sizes:
        return {}
    return {"patients": len(sizes), "images": sum(sizes), "median": sizes[len(sizes) // 2], "largest": sizes[-1]}


# -- The report


@dataclass(frozen=True)
class KindReport:
    """The findings of one kind. open: nobody has decided yet; examples: undecided ones first, strongest first."""

    code: str
    kind: quality.Kind
    count: int
    excluded: int
    kept: int
    examples: list[Finding]

    @property
    def open(self) -> int:
        return self.count - self.excluded - self.kept


@dataclass(frozen=True)
class MeasureReport:
    """One measure's distribution over the dataset, ready for chart and table."""

    name: str
    label: str
    distribution: dict[str, Any]

    @property
    def count(self) -> int:
        return int(self.distribution["count"])

    @property
    def quantiles(self) -> list[tuple[str, str]]:
        return [(name, f"{value:.3g}") for name, value in self.distribution["quantiles"].items()]

    @property
    def thresholds(self) -> bool:
        return any(self.distribution[name] is not None for name in ("low", "high"))

    @property
    def limits(self) -> str:
        low, high = self.distribution["low"], self.distribution["high"]
        parts = [f"below {low:.3g}" if low is not None else "", f"above {high:.3g}" if high is not None else ""]
        return " or ".join(part for part in parts if part)

    @property
    def counts_json(self) -> str:
        return json.dumps(self.distribution["histogram"])

    @property
    def edges_json(self) -> str:
        return json.dumps(self.distribution["edges"])

    @property
    def thresholds_json(self) -> str:
        return json.dumps({name: self.distribution[name] for name in ("low", "high")})


@dataclass(frozen=True)
class Report:
    dataset: Dataset
    hints: list[dict[str, str]]
    kinds: list[KindReport]
    measures: list[MeasureReport]
    patients: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.pk,
            "name": self.dataset.name,
            "images": self.dataset.images_count,
            "classes": self.dataset.counts,
            "hints": self.hints,
            "patients": self.patients,
            "findings": {
                group.code: {
                    "title": group.kind.title,
                    "images": group.count,
                    "open": group.open,
                    "excluded": group.excluded,
                    "kept": group.kept,
                }
                for group in self.kinds
            },
            "measures": {measure.name: measure.distribution for measure in self.measures},
        }


def report(dataset: Dataset) -> Report:
    """The quality report of a dataset as it stands."""
    decided = dataset.findings.with_decision()
    counted: dict[str, dict[str | None, int]] = {}
    for code, action, count in (
        decided.order_by().values("code", "action").annotate(n=models.Count("pk")).values_list("code", "action", "n")
    ):
        counted.setdefault(code, {})[action] = count
    kinds = [_kind_report(dataset, code, kind, counted.get(code, {})) for code, kind in quality.CODES.items()]
    figures = dataset.quality
    if figures.get("pattern", "") != dataset.pattern:
        figures = figures | {"hints": [PATIENTS_UNCOUNTED.to_json()], "patients": {}}
    measures = [
        MeasureReport(name, quality.LABELS[name], distribution)
        for name, distribution in figures.get("distributions", {}).items()
        # Where all images are alike there is nothing to draw.
        if distribution["count"] and distribution["quantiles"]["min"] < distribution["quantiles"]["max"]
    ]
    patients = dict(figures.get("patients", {}))
    if patients:
        patients["text"] = (
            f"{patients['patients']:,} patients are known for {patients['images']:,} images: {patients['median']} "
            f"image{'' if patients['median'] == 1 else 's'} a patient in the middle, at most {patients['largest']}."
        )
    hints = [hint.to_json() for hint in quality.dataset_hints(dataset.counts, [])] + figures.get("hints", [])
    return Report(dataset, hints, kinds, measures, patients)


def _kind_report(dataset: Dataset, code: str, kind: quality.Kind, counted: dict[str | None, int]) -> KindReport:
    examples = []
    if counted:
        findings = dataset.findings.filter(code=code).with_decision().select_related("image__dataset")
        examples = list(
            findings.defer("image__fingerprint").order_by(models.F("action").asc(nulls_first=True), "-value", "pk")[
                :EXAMPLES
            ]
        )
    return KindReport(
        code=code,
        kind=kind,
        count=sum(counted.values()),
        excluded=counted.get(Decision.Action.EXCLUDE, 0),
        kept=counted.get(Decision.Action.KEEP, 0),
        examples=examples,
    )
