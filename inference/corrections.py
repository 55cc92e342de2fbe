"""What readers said, as a dataset to train on: a new folder of kept radiographs, sorted by the readers' labels.

Verdicts are no sample of all images: readers saw the answer before they judged, and they judge what catches their eye.
A version that learned from them has to be measured on other images.
"""

import contextlib
import csv
import shutil
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from datasets.models import Dataset, DatasetImage, Scan
from datasets.models.upload import checked_class_folder, checked_name, why_closed
from datasets.names import MAX_DATASET_NAME
from registry.models import Deployment, ModelVersion
from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.jobs import JobError
from xrayplatform.system import GIB, NotEnoughDisk, require_disk

from . import radiographs
from .models import Verdict

# The newest ones where there are more: they are copied while somebody waits.
MOST: Final = 5000
CHUNK: Final = 5000
LISTED: Final = 50
MARK: Final = "-corrections-"
NAMES_TRIED: Final = 100
STAGING: Final = ".corrections-"
LEFT_BEHIND_SECONDS: Final = 86_400.0
TABLE: Final = "patients.csv"
_JPEG: Final = b"\xff\xd8"

CONFLICT, OTHER_CLASS, KNOWN, GONE, TOO_MANY = "conflict", "other class", "known", "not kept", "too many"
REASONS: Final = {
    CONFLICT: "readers disagree",
    OTHER_CLASS: "the label is no class of this version, or cannot be the name of a folder",
    KNOWN: "already in a dataset that this version, or one that it started from, was made with",
    GONE: "the pixels are not kept any more, or never were",
    TOO_MANY: f"beyond the newest {MOST:,}, which are taken",
}
BIAS: Final = (
    "Readers saw the answer before they judged, and judge what catches their eye: these images are no fair sample. "
    "Measure a version that was trained on them on other images before you believe its figures."
)


@dataclass(frozen=True)
class Judged:
    """An image that readers judged. patient: keyed digest, "" where nothing is known. corrected: not as answered."""

    digest: str
    label: str
    patient: str
    corrected: bool


@dataclass(frozen=True)
class Conflict:
    """An image about which readers disagree. prediction: key of its newest answer."""

    prediction: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a dataset of corrections would hold. version: the one to train on from.

    left_out: images by the keys of REASONS. known_patients: taken images of patients whose other images the version
    was made with. unchecked: versions whose own datasets are not here, so that nobody can tell what is in them.
    """

    version: ModelVersion
    taken: list[Judged]
    left_out: dict[str, int]
    conflicts: list[Conflict]
    known_patients: int = 0
    unchecked: list[str] = field(default_factory=list)

    @property
    def by_class(self) -> dict[str, int]:
        counts = Counter(one.label for one in self.taken)
        return {name: counts[name] for name in self.version.classes}

    @property
    def corrected(self) -> int:
        return sum(one.corrected for one in self.taken)

    @property
    def patients(self) -> int:
        return len({one.patient for one in self.taken if one.patient})

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Why images are left out, in words, with their number."""
        return [(words, self.left_out[reason]) for reason, words in REASONS.items() if self.left_out.get(reason)]

    @property
    def obstacle(self) -> str:
        """Why no dataset can be made of it, "" when one can."""
        if not self.taken:
            return "There is no image that a reader judged and whose pixels are kept."
        if sum(count > 0 for count in self.by_class.values()) < 2:
            return f"Readers called all of these images {self.taken[0].label}; a training needs images of two classes."
        return ""

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version.number,
            "images": len(self.taken),
            "by_class": self.by_class,
            "corrected": self.corrected,
            "patients": self.patients,
            "left_out": [{"reason": words, "images": count} for words, count in self.reasons],
            "conflicts": [{"prediction": one.prediction, "labels": list(one.labels)} for one in self.conflicts],
            "known_patients": self.known_patients,
            "unchecked": self.unchecked,
            "obstacle": self.obstacle,
            "note": BIAS,
        }


@dataclass(frozen=True)
class Made:
    """The new dataset. scan: what looks at it; None when another scan was under way."""

    plan: Plan
    dataset: Dataset
    scan: Scan | None

    @property
    def text(self) -> str:
        then = (
            "A scan has been started; prepare the dataset when it has finished."
            if self.scan
            else "A scan is running already and may miss it: scan again when that has finished."
        )
        return f"{len(self.plan.taken):,} images are in {self.dataset}. {then}"

    def to_json(self) -> dict[str, Any]:
        return {
            **self.plan.to_json(),
            "dataset": {"id": self.dataset.pk, "name": self.dataset.name},
            "scan": self.scan.pk if self.scan else None,
            "text": self.text,
        }


def base_of(condition: Condition) -> ModelVersion:
    """The version to train on from: the one in service, else the newest that was judged. Raises JobError."""
    deployment = Deployment.objects.select_related("active__condition").filter(condition=condition).first()
    if deployment is not None and deployment.active is not None:
        return deployment.active
    verdict = Verdict.objects.filter(prediction__version__condition=condition).first()
    if verdict is None:
        raise JobError(f"No reader has judged an answer for {condition} yet.", "Verdicts are given below each answer.")
    return ModelVersion.objects.select_related("condition").get(predictions=verdict.prediction_id)


def plan(condition: Condition, version: ModelVersion) -> Plan:
    """What would be taken and left out, and why. Nothing is changed."""
    judged, conflicts = _judged(condition)
    known = _Known(version)
    sorted_out: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        sorted_out[_reason_against(one, version, known)].append(one)
    taken = sorted_out.pop("", [])
    left_out = {reason: len(images) for reason, images in sorted_out.items()}
    left_out |= {CONFLICT: len(conflicts), TOO_MANY: max(0, len(taken) - MOST)}
    taken = taken[-MOST:]
    return Plan(
        version,
        taken,
        {reason: count for reason, count in left_out.items() if count},
        conflicts[-LISTED:],
        sum(one.patient in known.patients for one in taken if one.patient),
        known.unchecked,
    )


def make(condition: Condition, version: ModelVersion, *, by: Any) -> Made:
    """Write the folder, with the dataset's row, its audit entry and a scan. Raises JobError.

    The row comes first: a folder that no row names would get a condition, and so a team, of its own by the next scan.
    """
    closed = why_closed(None)
    if closed:
        raise closed
    planned = plan(condition, version)
    if planned.obstacle:
        raise JobError(planned.obstacle, "Judge more answers first, on the pages of the results.")
    _require_room(planned)
    name = _free_name(condition)
    with _staging() as folder:
        written = _write(folder, planned)
        try:
            dataset = _row(name, condition, version, written, planned, by)
        except IntegrityError as error:
            raise JobError(f"Somebody else made {name} at the same moment.", "Look at what is in it first.") from error
        try:
            folder.rename(dataset.folder)
        except OSError as error:
            _take_back(dataset, by)
            raise _not_written(error) from error
    return Made(planned, dataset, _scan(by))


def made_before(condition: Condition) -> Any:
    """The datasets that were made of corrections for this condition, the newest first."""
    return Dataset.objects.filter(condition=condition, name__startswith=f"{condition.slug}{MARK}").order_by("-pk")


# -- What readers said


def _judged(condition: Condition) -> tuple[list[Judged], list[Conflict]]:
    """Each image once, the one with the oldest verdict first; and those about which readers disagree."""
    rows = Verdict.objects.filter(prediction__version__condition=condition, prediction__shown=True).order_by("pk")
    said: dict[str, dict[int, str]] = defaultdict(dict)
    about: dict[str, tuple[str, str, str]] = {}
    for digest, reader, label, prediction, patient, decision in rows.values_list(
        "prediction__image_digest",
        "by_id",
        "label",
        "prediction_id",
        "prediction__patient_key",
        "prediction__decision",
    ).iterator(CHUNK):
        # Of one reader the newest word counts.
        said[digest][reader] = label
        about[digest] = (str(prediction), patient or about.get(digest, ("", "", ""))[1], decision)
    judged, conflicts = [], []
    for digest, labels in said.items():
        prediction, patient, decision = about[digest]
        different = sorted(set(labels.values()))
        if len(different) > 1:
            conflicts.append(Conflict(prediction, tuple(different)))
        else:
            judged.append(Judged(digest, different[0], patient, different[0] != decision))
    return judged, conflicts


class _Known:
    """What the version, and those whose weights it started from, were made with."""

    def __init__(self, version: ModelVersion) -> None:
        lineage = list(version.lineage)
        names = {one.dataset_name for one in lineage}
        present = set(Dataset.objects.filter(name__in=names).values_list("name", flat=True))
        self.unchecked = [_named(one, version) for one in lineage if one.dataset_name not in present]
        images = DatasetImage.objects.filter(dataset__name__in=present).order_by()
        self.digests = set(images.values_list("digest", flat=True).iterator(CHUNK))
        self.patients = set(images.exclude(patient_key="").values_list("patient_key", flat=True).distinct())


def _named(ancestor: ModelVersion, version: ModelVersion) -> str:
    """A version of another team is not named to who sees this one."""
    team = ancestor.condition.team_id
    return str(ancestor) if team in (None, version.condition.team_id) else "a version of another team"


def _reason_against(one: Judged, version: ModelVersion, known: _Known) -> str:
    if one.label not in version.classes or not _is_folder_name(one.label):
        return OTHER_CLASS
    if one.digest in known.digests:
        return KNOWN
    return "" if radiographs.file_of(one.digest).is_file() else GONE


def _is_folder_name(label: str) -> bool:
    try:
        return "/" not in label and checked_class_folder(label) == label
    except JobError:
        return False


# -- The folder


def _free_name(condition: Condition) -> str:
    base = f"{condition.slug}{MARK}{timezone.localdate():%Y-%m-%d}"[: MAX_DATASET_NAME - 4]
    refusal: JobError | None = None
    for number in range(1, NAMES_TRIED):
        try:
            return checked_name(base if number == 1 else f"{base}-{number}")
        except JobError as error:
            refusal = error
    raise refusal or JobError("No name is free for the dataset.")


def _require_room(planned: Plan) -> None:
    needed = sum(radiographs.file_of(one.digest).stat().st_size for one in planned.taken)
    free = shutil.disk_usage(settings.DATASET_ROOT).free - settings.MIN_FREE_DISK_GB * GIB
    try:
        require_disk(needed)
    except NotEnoughDisk as error:
        raise JobError(str(error), "Ask an administrator to free some space.") from error
    if needed > free:
        raise JobError(
            f"The images have {needed / GIB:.2f} GB, more than may be written where datasets are kept.",
            "Ask an administrator to free some space.",
        )


@contextlib.contextmanager
def _staging() -> Iterator[Path]:
    """A hidden folder, which no scan looks at; gone afterwards unless it was renamed."""
    root = Path(settings.DATASET_ROOT)
    for old in root.glob(f"{STAGING}*"):
        if old.stat().st_mtime < time.time() - LEFT_BEHIND_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{STAGING}{uuid.uuid4().hex}"
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise _not_written(error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, planned: Plan) -> int:
    """The images in folders of their classes, and who they are of where that is known. Returns how many there are."""
    patients: list[tuple[str, str, str]] = []
    for one in planned.taken:
        content = radiographs.file_of(one.digest).read_bytes()
        name = f"{one.label}/{uuid.uuid4()}.{'jpg' if content.startswith(_JPEG) else 'png'}"
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        # An image of nobody known is a patient of its own.
        patients.append((name, one.label, one.patient or path.stem))
    if planned.patients:
        _write_patients(folder / TABLE, patients)
    return len(patients)


def _write_patients(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Keyed digests, not numbers of patients: a scan makes keys of them again, so that each patient stays together."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "patient"])
        writer.writerows(rows)


def _row(name: str, condition: Condition, version: ModelVersion, images: int, planned: Plan, by: Any) -> Dataset:
    with transaction.atomic():
        dataset = Dataset.objects.create(
            name=name,
            condition=condition,
            positive_choice=version.positive_class,
            ordinal_choice=version.question.ordinal or None,
        )
        after = {"version": str(version), "images": images, "by_class": planned.by_class, "left_out": planned.left_out}
        audit.record("dataset.make_of_corrections", dataset, actor=by, after=after)
    return dataset


def _take_back(dataset: Dataset, by: Any) -> None:
    with transaction.atomic():
        audit.record("dataset.make_of_corrections", dataset, actor=by, outcome=audit.AuditEntry.Outcome.FAILED)
        dataset.delete()


def _scan(by: Any) -> Scan | None:
    try:
        with transaction.atomic():
            scan = Scan.create(by)
            scan.enqueue()
    except JobError:
        return None
    return scan


def _not_written(error: OSError) -> JobError:
    # The text of an OSError names the path, which is nobody's business but the administrator's.
    return JobError(
        f"The images could not be written: {error.strerror or 'the disk does not answer'}.",
        "Tell an administrator; the disk may be full. No dataset was made.",
    )
