"""Judge all images of a dataset after a scan, and tell what was found: the quality report."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from django.conf import settings
from django.db import models, transaction
from numpy.typing import NDArray

from . import duplicates, patterns, quality
from .models import ABOUT_LABELS, COPIES, Dataset, DatasetImage, Decision, Finding

BATCH = 500
EXAMPLES = 12
JUDGING = "Judging the images"
# Thresholds change by as much when other pairs of the same pictures are drawn for them (0.003 with chests, 0.008 where
# pictures are very alike); within it the earlier ones hold.
THRESHOLD_DRIFT = 0.01
PATIENTS_UNCOUNTED = quality.Hint(
    "hint",
    "patients-uncounted",
    "The pattern of patients in file names was changed: the next scan that finds something new counts them.",
)
COLUMNS = (*quality.MEASURES, "colour", "burned_in")


Say = Callable[[str], None]
Item = TypeVar("Item")


def refresh(dataset: Dataset, say: Say = lambda message: None) -> None:
    """Write the findings of a dataset anew and its figures into `dataset.quality`; does not save the dataset.

    say: told what is going on, several times a second; what it raises (a cancelled job) passes through, and another
    refresh can begin anew. Not called in transactions, in which a job could not renew its lease.
    """
    columns = _Columns(dataset)
    settings.MODEL_ROOT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.MODEL_ROOT) as file:
        columns.read(file, say)
        distributions = quality.distributions(columns.measures)
        clusters = _write_clusters(dataset, columns, say)
        judged = _telling(say, quality.judge(columns.measures, distributions))
        found = [(columns.keys[row], finding) for row, finding in judged]
    found += _telling(say, _exact_duplicates(dataset))
    found += _telling(say, _near_duplicates(dataset, clusters.several))
    with transaction.atomic():
        dataset.lock("class_choices")
        dataset.findings.exclude(code__in=ABOUT_LABELS).delete()
        _save(dataset, found)
    say(JUDGING)
    dataset.write_conflicts()
    exclusions = _exclusions(dataset)
    dataset.quality = {
        "distributions": {name: distribution.to_json() for name, distribution in distributions.items()},
        **_patient_figures(dataset),
        "exclusions": exclusions,
        "pattern": dataset.pattern,
        "near_duplicates": clusters.to_json(dataset),
    }


def _telling(say: Say, items: Iterable[Item]) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number % BATCH == 0:
            say(JUDGING)
        yield item


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

    def read(self, file: Any, say: Say) -> None:
        count = len(self.keys)
        if not count:
            return
        self.fingerprints = np.memmap(file, np.uint8, "w+", shape=(count, duplicates.FINGERPRINT_BYTES))
        rows = self.dataset.images.order_by("pk").values_list(
            "pk", "cluster", "width", "height", "measures", "fingerprint"
        )
        told = _telling(say, rows.iterator(2000))
        for row, (pk, cluster, width, height, measures, fingerprint) in enumerate(told):
            self.keys[row], self.clusters[row] = pk, cluster or 0
            self.measures["width"][row], self.measures["height"][row] = width, height
            for name in COLUMNS:
                if name in measures:
                    self.measures[name][row] = measures[name]
            if len(fingerprint) == duplicates.FINGERPRINT_BYTES:
                self.fingerprints[row] = np.frombuffer(bytes(fingerprint), np.uint8)
                self.with_fingerprint[row] = True


@dataclass(frozen=True)
class _Clusters:
    """Near-duplicates as they were stored. several: numbers of the images, by that of the first, where these are more
    than one; limits: similarities from which on they were joined."""

    several: dict[int, list[int]]
    limits: tuple[float, float]

    def to_json(self, dataset: Dataset) -> dict[str, Any]:
        """What the next run has to know to add to this one, see `_earlier_limits`."""
        bridged = _bridged([len(group) for group in self.several.values()])
        return {"limits": self.limits, "bridged": bridged, "read_with": dataset.read_with}


def _write_clusters(dataset: Dataset, columns: _Columns, say: Say) -> _Clusters:
    """Find near-duplicates and store each image's cluster where it changed: the number of its first image.

    An image without near-duplicates has its own number. One that was read since the last run has none; only such
    images are compared with all others, if what is known of these still holds.
    """
    rows = np.flatnonzero(columns.with_fingerprint)
    fingerprints = columns.fingerprints if len(rows) == len(columns.keys) else columns.fingerprints[rows]
    stored = columns.clusters[rows]
    limits = duplicates.thresholds(fingerprints)
    earlier = _earlier_limits(dataset, stored, limits)
    numbers = duplicates.clusters(
        fingerprints,
        known=np.where(stored > 0, stored, -1),
        fresh=np.ones(len(rows), bool) if earlier is None else stored == 0,
        limits=earlier or limits,
        progress=lambda share: say(f"Looking for near-duplicates, {100 * share:.0f} %"),
    )
    _, first, sizes = np.unique(numbers, return_index=True, return_counts=True)
    wanted = np.zeros(len(columns.keys), np.int64)
    wanted[rows] = columns.keys[rows[first]][numbers]
    _store_clusters(dataset, columns, wanted, say)
    several: dict[int, list[int]] = {}
    for row in rows[sizes[numbers] > 1].tolist():
        several.setdefault(int(wanted[row]), []).append(int(columns.keys[row]))
    return _Clusters(several, earlier or limits)


def _earlier_limits(
    dataset: Dataset, stored: NDArray[np.int64], limits: tuple[float, float]
) -> tuple[float, float] | None:
    """Those of the last run if its clusters hold, but for images that have none; None if all must be found anew.

    They do not hold when fingerprints were made in another way, when pictures are now more or less alike than they
    were, and when an image is gone, or was read again, that may have been what joined others.
    """
    judged = dataset.quality.get("near_duplicates")
    if not judged or judged["read_with"] != dataset.read_with:
        return None
    # Between two runs clusters lose images but never gain some; of two images the one left is alone, as it should be.
    if judged["bridged"] != _bridged(np.unique(stored[stored > 0], return_counts=True)[1].tolist()):
        return None
    whole, content = judged["limits"]
    drift = max(abs(whole - limits[0]), abs(content - limits[1]))
    return (whole, content) if drift <= THRESHOLD_DRIFT else None


def _bridged(sizes: Iterable[int]) -> int:
    """Images in clusters of three and more, in which two may be joined only through a third."""
    return sum(size for size in sizes if size > 2)


def _store_clusters(dataset: Dataset, columns: _Columns, wanted: NDArray[np.int64], say: Say) -> None:
    changed = np.flatnonzero(columns.clusters != wanted)
    if not len(changed):
        return
    # If this stops half-way, rows of two runs lie side by side, and the next run must not add to them.
    without = {name: told for name, told in dataset.quality.items() if name != "near_duplicates"}
    Dataset.objects.filter(pk=dataset.pk).update(quality=without)
    alone = wanted[changed] == columns.keys[changed]
    own = columns.keys[changed[alone]].tolist()
    for start in range(0, len(own), BATCH):
        say(JUDGING)
        DatasetImage.objects.filter(pk__in=own[start : start + BATCH]).update(cluster=models.F("pk"))
    others = [
        DatasetImage(pk=int(columns.keys[row]), cluster=int(wanted[row]) or None) for row in changed[~alone].tolist()
    ]
    for start in range(0, len(others), BATCH):
        say(JUDGING)
        DatasetImage.objects.bulk_update(others[start : start + BATCH], ["cluster"])


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


def _exclusions(dataset: Dataset) -> list[Any]:
    """How many images a person left out, and when last: whatever is decided or taken back changes one of them."""
    told = dataset.decisions.filter(action=Decision.Action.EXCLUDE).aggregate(
        number=models.Count("pk"), last=models.Max("decided_at")
    )
    return [told["number"], told["last"].isoformat() if told["last"] else ""]


def _patient_figures(dataset: Dataset) -> dict[str, Any]:
    """Hints and figures of the patients. Hints of the classes follow from their counts: a team may rename or merge
    classes between two scans."""
    per_patient = _images_per_patient(dataset)
    hints = quality.dataset_hints({}, list(per_patient.values()))
    return {"hints": [hint.to_json() for hint in hints], "patients": _patients_json(per_patient)}


def _images_per_patient(dataset: Dataset) -> dict[str, int]:
    """Images in use of each patient, as far as DICOM files, a CSV column, folders or file names tell one."""
    images = dataset.images.included()
    known = images.exclude(patient_key="").order_by()
    counted = dict(known.values_list("patient_key").annotate(models.Count("pk")))
    paths = images.filter(patient_key="").order_by("path").values_list("path", flat=True)
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
    def is_about_copies(self) -> bool:
        return self.code in COPIES

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
    """excluded: images that a person left out; classes: images in use of each class, without these."""

    dataset: Dataset
    excluded: int
    classes: dict[str, int]
    hints: list[dict[str, str]]
    kinds: list[KindReport]
    measures: list[MeasureReport]
    patients: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.pk,
            "name": self.dataset.name,
            "images": self.dataset.images_count,
            "excluded": self.excluded,
            "classes": self.classes,
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
    excluded, classes = _counts_in_use(dataset)
    figures = dataset.quality | _patients_in_use(dataset)
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
    hints = [hint.to_json() for hint in quality.dataset_hints(classes, [])] + figures.get("hints", [])
    return Report(dataset, excluded, classes, hints, kinds, measures, patients)


def _patients_in_use(dataset: Dataset) -> dict[str, Any]:
    """What is to be told of the patients instead of what the last scan counted; empty where that holds."""
    figures = dataset.quality
    if figures.get("pattern", "") != dataset.pattern:
        return {"hints": [PATIENTS_UNCOUNTED.to_json()], "patients": {}}
    if figures.get("exclusions", [0, ""]) != _exclusions(dataset):
        # Somebody left images out, or took them back, since then.
        return _patient_figures(dataset)
    return {}


def _counts_in_use(dataset: Dataset) -> tuple[int, dict[str, int]]:
    """Images that a person left out, and the images of each class without them."""
    if not _exclusions(dataset)[0]:
        return 0, dataset.counts
    left_out = dataset.images.with_exclusion().filter(excluded=True).order_by()
    by_class = dict(left_out.values_list("class_name").annotate(models.Count("pk")))
    used = Counter(dataset.counts)
    for name, count in by_class.items():
        if dataset.label_of(name) in used:
            used[dataset.label_of(name)] -= count
    return sum(by_class.values()), dict(used)


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
