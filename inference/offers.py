"""What a version can be measured on, and what each choice means, in words; said before anything starts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

from datasets.models import Dataset, Preparation, Scan
from registry.models import ModelVersion
from xrayplatform.jobs import Job, JobError

from . import choosing
from .models import EvaluationRun
from .models.evaluation_run import class_names

Part = EvaluationRun.Part


@dataclass(frozen=True)
class Offer:
    """Images that a version could be measured on.

    images: how many there are, before those are left out that the version knows. problem: why it cannot be; the hint
    says what to do. missing: classes of the version that these images do not have.
    """

    dataset: Dataset
    preparation: Preparation | None
    part: str
    images: int
    meaning: str
    missing: list[str]
    problem: str = ""
    hint: str = ""

    @property
    def value(self) -> str:
        """Names the offer in a form."""
        return f"{self.dataset.pk}-{self.preparation.pk if self.preparation else 0}-{self.part}"

    @property
    def title(self) -> str:
        if self.preparation is None:
            return "All images"
        return f"{Part(self.part).label} of preparation {self.preparation.pk}"


@dataclass(frozen=True)
class Offered:
    """A dataset with its offers."""

    dataset: Dataset
    offers: list[Offer]

    @property
    def is_usable(self) -> bool:
        return any(not offer.problem for offer in self.offers)


def datasets_of(user: Any) -> QuerySet:
    return Dataset.objects.visible_to(user).select_related("condition__team").prefetch_related("preparations")


def offers_of(version: ModelVersion, user: Any, datasets: Iterable[Dataset] | None = None) -> list[Offered]:
    """Every dataset that the user may see; that of the training first, then those of the same condition.

    datasets: what `datasets_of` gave, for who asks for several versions.
    """
    datasets = datasets_of(user) if datasets is None else datasets
    scanning = Scan.under_way().exists()
    offered = [Offered(dataset, list(_offers(version, dataset, user, scanning))) for dataset in datasets]
    return sorted(offered, key=lambda one: _distance(version, one.dataset))


def _distance(version: ModelVersion, dataset: Dataset) -> tuple[bool, bool, str]:
    return dataset.name != version.dataset_name, dataset.condition_id != version.condition_id, dataset.name


def _offers(version: ModelVersion, dataset: Dataset, user: Any, scanning: bool) -> Iterator[Offer]:
    for preparation in dataset.preparations.all():
        if preparation.state != Job.State.SUCCEEDED:
            continue
        own = preparation.split_digest == version.split_digest
        for part in (Part.TEST, Part.VALIDATION) if own else (Part.TEST,):
            yield _offer(version, dataset, preparation, part, user, scanning)
    yield _offer(version, dataset, None, Part.ALL, user, scanning)


def _offer(
    version: ModelVersion, dataset: Dataset, preparation: Preparation | None, part: str, user: Any, scanning: bool
) -> Offer:
    names = class_names(dataset, preparation, part)
    images = preparation.split_total(part) if preparation else sum(dataset.counts.values())
    problem = hint = ""
    try:
        EvaluationRun.require_possible(version, dataset, user, preparation=preparation, part=part, scanning=scanning)
    except JobError as error:
        problem, hint = str(error), error.hint
    return Offer(
        dataset=dataset,
        preparation=preparation,
        part=str(part),
        images=images,
        meaning=_meaning(version, dataset, preparation, part),
        missing=choosing.unknown_classes(version.classes, names),
        problem=problem,
        hint=hint,
    )


def _meaning(version: ModelVersion, dataset: Dataset, preparation: Preparation | None, part: str) -> str:
    if preparation is None:
        return (
            "Every image in use, decoded now, without those that the version learned from or was tuned on and without "
            "others of their patients."
        )
    if preparation.split_digest == version.split_digest:
        return (
            "The images that were locked away when this version was trained: the figures of its training once more. "
            "The more often it is used to choose between versions, the less it proves."
            if part == Part.TEST
            else "The images by which the epoch, the temperature and the threshold of this version were chosen. Their "
            "figures are too good to judge it by; use them to choose an operating point."
        )
    if dataset.name == version.dataset_name:
        return (
            "Another division of the images that this version was trained with. What it knows of them is left out, so "
            "that fewer may remain."
        )
    return (
        "Images of another dataset that trainings on it do not see: fair for comparing this version with those that "
        "were trained there."
    )


def chosen(value: str, offered: list[Offered]) -> Offer | None:
    """The offer that a form names; None when there is none like it."""
    return next((offer for one in offered for offer in one.offers if offer.value == value), None)
