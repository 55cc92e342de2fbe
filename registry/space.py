"""The space that versions take on the disk, and which of them could give theirs back."""

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models.functions import Coalesce
from django.utils import timezone

from xrayplatform.conditions import Condition

from .models import DeletedVersion, Evaluation, ModelVersion, StateChange
from .models.evaluation import file_of
from .references import references

DAYS = 90
MAX_DAYS = 36_500


@dataclass(frozen=True)
class Space:
    """Bytes: the version's own files, its backup, and the answers behind its evaluations."""

    files: int = 0
    backup: int = 0
    evaluations: int = 0

    @property
    def total(self) -> int:
        return self.files + self.backup + self.evaluations

    def __add__(self, other: "Space") -> "Space":
        return Space(self.files + other.files, self.backup + other.backup, self.evaluations + other.evaluations)

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


class Step(models.TextChoices):
    """What is proposed for a version; deleting one takes both, one after the other."""

    ARCHIVE = "archive", "Archive"
    DELETE = "delete", "Delete"


@dataclass(frozen=True)
class Proposal:
    """A version that nothing refers to; why: in words. frees: bytes, as soon as it is deleted."""

    version: ModelVersion
    step: Step
    why: str
    frees: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version.pk,
            "condition": self.version.condition.slug,
            "number": self.version.number,
            "step": self.step.value,
            "why": self.why,
            "frees": self.frees,
        }


def of(versions: models.QuerySet) -> dict[int, Space]:
    """The space of each of the versions, by primary key."""
    rows = list(versions.order_by().values_list("pk", "condition__slug", "number", "size"))
    copies = _backups({slug for _, slug, _, _ in rows})
    answers = _evaluations(versions)
    return {pk: Space(size, copies.get((slug, number), 0), answers.get(pk, 0)) for pk, slug, number, size in rows}


def proposals(versions: models.QuerySet, days: int, *, spaces: dict[int, Space] | None = None) -> list[Proposal]:
    """What could go of the versions, the largest first: archived longer than `days`, and old candidates to archive.

    A candidate stays when it is the best of its condition by AUC or by accuracy, among all that are not archived, or
    has no figure to tell; an approved version stays. Nothing is proposed that anything refers to.
    """
    before = timezone.now() - timedelta(days=min(max(days, 0), MAX_DAYS))
    changes = StateChange.objects.filter(version=models.OuterRef("pk")).order_by("-pk").values("at")[:1]
    old = versions.annotate(since=Coalesce(models.Subquery(changes), "created_at")).filter(since__lt=before)
    old = old.exclude(state=ModelVersion.State.APPROVED).select_related("condition")
    # There may be thousands, and the columns with JSON are what takes time.
    old = old.only("number", "state", "auc", "accuracy", "condition__slug", "condition__name")
    free = _unneeded(old)
    best = _Best({row.condition_id for row in free})
    found = [proposal for row in free if (proposal := _proposal(row, best))]
    sizes = spaces if spaces is not None else of(versions.filter(pk__in=[one.version.pk for one in found]))
    # One that was made since the spaces were measured is proposed the next time.
    found = [replace(one, frees=sizes[one.version.pk].total) for one in found if one.version.pk in sizes]
    return sorted(found, key=lambda one: (-one.frees, one.version.pk))


def _unneeded(versions: models.QuerySet) -> list[ModelVersion]:
    needed = references(versions.values("pk"))
    return [row for row in versions if not needed.get(row.pk)]


def _proposal(version: ModelVersion, best: "_Best") -> Proposal | None:
    if version.state == ModelVersion.State.ARCHIVED:
        return Proposal(version, Step.DELETE, f"Archived since {version.since:%Y-%m-%d}; nothing refers to it.")
    better = best.instead_of(version)
    if not better:
        return None
    why = f"A candidate since {version.since:%Y-%m-%d} that nothing refers to: {better}."
    return Proposal(version, Step.ARCHIVE, why)


class _Best:
    """The best versions of each condition by each figure, among those that are not archived."""

    FIGURES = {"auc": "AUC", "accuracy": "accuracy"}

    def __init__(self, conditions: Iterable[int]) -> None:
        rows = ModelVersion.objects.filter(condition__in=list(conditions)).exclude(state=ModelVersion.State.ARCHIVED)
        self.best: dict[tuple[int, str], tuple[float, int]] = {}
        for condition, number, auc, accuracy in rows.order_by("pk").values_list(
            "condition", "number", "auc", "accuracy"
        ):
            for name, value in (("auc", auc), ("accuracy", accuracy)):
                if value is not None and value > self.best.get((condition, name), (-1.0, 0))[0]:
                    self.best[condition, name] = value, number

    def instead_of(self, version: ModelVersion) -> str:
        """Which version is better, in words; empty when none is by every figure, or none can be told to be."""
        found = []
        for name, title in self.FIGURES.items():
            value, (best, number) = getattr(version, name), self.best.get((version.condition_id, name), (0.0, 0))
            if value is None:
                continue
            if value >= best:
                return ""
            found.append(f"{title} {value:.3f} against {best:.3f} of v{number}")
        return ", ".join(found)


@dataclass(frozen=True)
class Total:
    """What the versions of a condition take together."""

    condition: Condition
    versions: int
    space: Space

    def to_json(self) -> dict[str, Any]:
        return {"condition": self.condition.slug, "versions": self.versions, **self.space.to_json()}


def totals(versions: models.QuerySet, spaces: dict[int, Space]) -> list[Total]:
    """Of each condition, the largest first. What was made since the spaces were measured counts the next time."""
    members: dict[int, list[Space]] = defaultdict(list)
    for pk, condition in versions.order_by().values_list("pk", "condition"):
        if pk in spaces:
            members[condition].append(spaces[pk])
    conditions = Condition.objects.in_bulk(members)
    found = [Total(conditions[pk], len(of_it), sum(of_it, Space())) for pk, of_it in members.items()]
    return sorted(found, key=lambda total: -total.space.total)


def history(user: Any) -> models.QuerySet:
    """The versions that were deleted, as far as the user (None: the command line) may know of them; newest first."""
    return DeletedVersion.objects.seen_by(user).select_related("condition", "by")


def bytes_of(path: Path) -> int:
    """Of a file, or of all files below a folder. What somebody removes meanwhile counts nothing."""
    if not path.is_dir():
        return _bytes_of_file(path)
    return sum(_bytes_of_file(Path(parent, name)) for parent, _, names in os.walk(path) for name in names)


def _bytes_of_file(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _backups(slugs: Iterable[str]) -> dict[tuple[str, int], int]:
    sizes = {}
    for slug in slugs:
        folder = Path(settings.MODEL_ROOT) / "backups" / slug
        for path in folder.iterdir() if folder.is_dir() else []:
            if path.name.isdecimal():
                sizes[slug, int(path.name)] = bytes_of(path)
    return sizes


def _evaluations(versions: models.QuerySet) -> dict[int, int]:
    rows = Evaluation.objects.filter(version__in=versions.order_by().values("pk"))
    sizes: dict[int, int] = defaultdict(int)
    for pk, key in rows.order_by().values_list("version", "key"):
        sizes[pk] += _bytes_of_file(file_of(key))
    return sizes
