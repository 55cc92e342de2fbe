"""What a version was measured on: the figures with their intervals, and the answers behind them."""

import hashlib
import io
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from django.conf import settings
from django.db import models
from django.urls import reverse
from numpy.typing import NDArray

from xrayplatform import audit
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

from .. import artifacts, drops, reports
from ..cautions import VALIDATION_PART, Caution, cautions
from .state_change import GONE_WITH_ITS_VERSION

# What the file holds besides the answers: the bootstrap replicates of each figure.
_REPLICATES = "replicates_"


class EvaluationUnusable(Exception):
    """The answers behind an evaluation cannot be read. The message says why and what to do."""


@dataclass(frozen=True)
class Measured:
    """A version's answers about labelled images, with their report: what becomes an Evaluation.

    preparation: number of the preparation that the rows count in; None for images that were not prepared.
    """

    kind: str
    images: reports.EvaluatedImages
    report: dict[str, Any]
    replicates: dict[str, NDArray[np.float32]]
    dataset_name: str
    preparation: int | None = None
    dataset_digest: str = ""
    split_digest: str = ""

    @classmethod
    def of(cls, kind: str, images: reports.EvaluatedImages, question: reports.Question, **about: Any) -> Self:
        """Compute the report, about a second for 10,000 images. about: the fields that say which images these are."""
        images = images.in_order()
        report, replicates = reports.make(images, question)
        return cls(kind=kind, images=images, report=report, replicates=replicates, **about)


class EvaluationQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"

    def store(self, version: Any, measured: Measured, *, by: Any) -> "Evaluation":
        """Write the answers to a file, then the row with its audit entry; call it inside a transaction.

        A crash between the two leaves a file that no row names, which `remove_orphans` finds.
        """
        key = uuid.uuid4()
        content = _packed(measured)
        _write(file_of(key), content)
        evaluation = self.create(
            key=key,
            version=version,
            kind=measured.kind,
            dataset_name=measured.dataset_name,
            preparation=measured.preparation,
            dataset_digest=measured.dataset_digest,
            split_digest=measured.split_digest,
            images_digest=images_digest(measured.images),
            images_count=len(measured.images.labels),
            patients_count=len(np.unique(measured.images.groups)),
            report=measured.report,
            sha256=hashlib.sha256(content).hexdigest(),
            created_by=by,
        )
        after = {"evaluation": evaluation.pk, "kind": measured.kind, "dataset": measured.dataset_name}
        audit.record("version.evaluate", version, actor=by, after={**after, "images": evaluation.images_count})
        return evaluation

    def internal_test(self) -> "EvaluationQuerySet":
        return self.filter(kind=Evaluation.Kind.TEST)

    def newest(self, version: Any, kind: str) -> "Evaluation | None":
        return self.filter(version=version, kind=kind).order_by("pk").last()

    def chosen(self, version: Any, kind: str, number: int | None = None) -> "Evaluation":
        """The one of that number, or without one the newest of the kind. Raises DoesNotExist, in words."""
        found = self.newest(version, kind) if number is None else version.evaluations.filter(pk=number).first()
        if found is None:
            known = ", ".join(f"{row.pk} ({row.kind})" for row in version.evaluations.defer("report")) or "none"
            wanted = f"evaluation of kind {kind}" if number is None else f"evaluation {number}"
            raise Evaluation.DoesNotExist(f"{version} has no {wanted}. Its evaluations: {known}. `evaluate` makes one.")
        return found

    def with_figures(self) -> "EvaluationQuerySet":
        """For lists: `figures` holds what `metrics` would, and the report with all its curves stays in the database."""
        return self.defer("report").annotate(figures=models.F("report__metrics"))

    def on_the_images_of(self, evaluation: "Evaluation") -> "EvaluationQuerySet":
        return self.filter(images_digest=evaluation.images_digest)


class Evaluation(Immutable):
    """The figures of one version on one set of images. Rows are only ever added."""

    class Kind(models.TextChoices):
        TEST = "test", "Test part of its own division"
        VALIDATION = "validation", "Validation part of its own division"
        EXTERNAL = "external", "Other images"

    deletable_when = GONE_WITH_ITS_VERSION

    key = models.UUIDField(unique=True, editable=False, help_text="names the file with the answers")
    version = models.ForeignKey("registry.ModelVersion", models.PROTECT, related_name="evaluations")
    kind = models.CharField(max_length=10, choices=Kind)
    dataset_name = models.CharField(max_length=400)
    # A number and no key: the registry does not know datasets, and figures outlive what they were computed on.
    preparation = models.PositiveBigIntegerField(null=True, help_text="number of the preparation of the images")
    dataset_digest = models.CharField(max_length=64, blank=True)
    split_digest = models.CharField(max_length=64, blank=True)
    images_digest = models.CharField(max_length=64, db_index=True, help_text="equal for the same images and labels")
    images_count = models.PositiveIntegerField()
    patients_count = models.PositiveIntegerField()
    report = models.JSONField()
    sha256 = models.CharField(max_length=64, help_text="of the file with the answers")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = EvaluationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.version} on {self.dataset_name}"

    def get_absolute_url(self) -> str:
        return reverse("registry:evaluation-detail", args=[self.pk])

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Each figure of the report with its interval, by name."""
        figures: dict[str, dict[str, Any]] = self.report["metrics"]
        return figures

    @property
    def versions_measured(self) -> int:
        """How many versions, of all teams, were measured on these images: each look at them is a chance to choose."""
        return Evaluation.objects.on_the_images_of(self).values("version").distinct().count()

    @property
    def cautions(self) -> list[Caution]:
        """What not to believe of the report. On other images training and validation say nothing about the figures."""
        if self.kind == self.Kind.VALIDATION:
            return [VALIDATION_PART, *cautions(self.report)]
        if self.kind == self.Kind.EXTERNAL:
            return cautions(self.report, test_uses=self.versions_measured)
        measured = Evaluation.objects.with_figures().newest(self.version, self.Kind.VALIDATION)
        return cautions(
            self.report,
            validation=measured.figures if measured else self.version.validation_metrics or None,
            history=self.version.history,
            test_uses=self.versions_measured,
        )

    @cached_property
    def _internal(self) -> dict[str, Any] | None:
        """The figures on the version's own test part; None where these are not other images, or it has none."""
        if self.kind != self.Kind.EXTERNAL:
            return None
        internal = Evaluation.objects.with_figures().newest(self.version, self.Kind.TEST)
        return internal.figures if internal else None

    @property
    def drop(self) -> list[str]:
        """In sentences, how much less well the version does on other images than on its own test part."""
        return drops.sentences(self._internal, self.metrics) if self._internal else []

    @property
    def drop_by_figure(self) -> dict[str, float | None]:
        return drops.differences(self._internal, self.metrics) if self._internal else {}

    @property
    def question(self) -> reports.Question:
        report = self.report
        return reports.Question(
            classes=tuple(report["classes"]),
            positive_class=report["positive_class"],
            threshold=report["threshold"],
            temperature=report["temperature"],
            ordinal=report["ordinal"],
        )

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        try:
            content = file_of(self.key).read_bytes()
        except OSError as error:
            raise EvaluationUnusable(
                f"The answers behind the evaluation of {self} are missing. Evaluate the version again."
            ) from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise EvaluationUnusable(
                f"The answers behind the evaluation of {self} were changed. Restore them, or evaluate again."
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    @property
    def images(self) -> reports.EvaluatedImages:
        """The answers, verified. Raises EvaluationUnusable."""
        arrays = {name: array for name, array in self._arrays.items() if not name.startswith(_REPLICATES)}
        return reports.EvaluatedImages.from_arrays(arrays)

    @property
    def replicates(self) -> dict[str, NDArray[np.float32]]:
        """The bootstrap replicates of each figure, verified. Raises EvaluationUnusable."""
        return {
            name.removeprefix(_REPLICATES): array
            for name, array in self._arrays.items()
            if name.startswith(_REPLICATES)
        }


def folder() -> Path:
    return Path(settings.MODEL_ROOT) / "evaluations"


def file_of(key: uuid.UUID) -> Path:
    return folder() / f"{key}.npz"


def images_digest(images: reports.EvaluatedImages) -> str:
    """Hex SHA-256 of the images in order with their labels: equal where two evaluations can be paired."""
    content = hashlib.sha256()
    for digest, label in zip(images.digests.tolist(), images.labels.tolist(), strict=True):
        content.update(f"{digest} {label}\n".encode())
    return content.hexdigest()


def orphans(older_than: float) -> list[Path]:
    """The files that no row names and that were last changed before `older_than` (seconds since 1970)."""
    files = [path for path in folder().glob("*") if _changed_at(path) < older_than]
    # Asked after the files were listed: a row is written after its file.
    named = {file_of(key).name for key in Evaluation.objects.order_by().values_list("key", flat=True)}
    return [path for path in files if path.name not in named]


def remove_orphans(older_than: float) -> int:
    """Remove the files that no row names and that were last changed before `older_than` (seconds since 1970)."""
    found = orphans(older_than)
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def _changed_at(path: Path) -> float:
    """Seconds since 1970; of a file that somebody renamed or removed since it was listed: never too long ago."""
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _packed(measured: Measured) -> bytes:
    buffer = io.BytesIO()
    replicates = {f"{_REPLICATES}{name}": values for name, values in measured.replicates.items()}
    np.savez_compressed(buffer, allow_pickle=False, **measured.images.to_arrays(), **replicates)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    artifacts.sync(part)
    part.rename(path)
    artifacts.sync(path.parent)
