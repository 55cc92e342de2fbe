"""Measuring several versions on the same images, so that they can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from registry.models import Evaluation, ModelVersion
from xrayplatform.jobs import JobError

from . import offers
from .models import EvaluationRun

Measurement = dict[str, Any]


@dataclass(frozen=True)
class CommonOffer:
    """Images that all of the versions could be measured on. measured: those that have been already.

    problems: of the versions that cannot be measured there, each with its reason; the images are no choice then.
    """

    offer: offers.Offer
    measured: tuple[ModelVersion, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """What became of the wish to measure versions. refused: sentences."""

    runs: tuple[EvaluationRun, ...]
    measured: tuple[ModelVersion, ...]
    refused: tuple[str, ...]


def common_offers(versions: Sequence[ModelVersion], user: Any) -> list[CommonOffer]:
    """Test parts and whole datasets, those that all versions can be measured on first."""
    datasets = list(offers.datasets_of(user))
    by_value: dict[str, list[offers.Offer]] = {}
    for version in versions:
        for offered in offers.offers_of(version, user, datasets):
            for offer in offered.offers:
                # The validation part means something to the versions of one division alone.
                if offer.part != EvaluationRun.Part.VALIDATION:
                    by_value.setdefault(offer.value, []).append(offer)
    measurements = _measurements(versions)
    common = [_common(versions, members, measurements) for members in by_value.values()]
    return sorted(common, key=lambda one: bool(one.problems))


def _common(
    versions: Sequence[ModelVersion], members: Sequence[offers.Offer], measurements: Sequence[Measurement]
) -> CommonOffer:
    problems = [
        f"v{version.number}: {offer.problem}" for version, offer in zip(versions, members, strict=True) if offer.problem
    ]
    measured = () if problems else _measured_on(versions, members[0], measurements)
    return CommonOffer(members[0], tuple(measured), tuple(problems))


def _measurements(versions: Sequence[ModelVersion]) -> list[Measurement]:
    """Of all evaluations of the versions but those on validation parts, which images they are about."""
    rows = Evaluation.objects.filter(version__in=versions).exclude(kind=Evaluation.Kind.VALIDATION).order_by()
    return list(rows.values("version", "split_digest", "dataset_digest", "run__dataset", "run__preparation"))


def _measured_on(
    versions: Sequence[ModelVersion], offer: offers.Offer, measurements: Sequence[Measurement]
) -> list[ModelVersion]:
    """The versions that have an evaluation on these images as they are now."""
    known = {row["version"] for row in measurements if _is_on(row, offer)}
    return [version for version in versions if version.pk in known]


def _is_on(row: Measurement, offer: offers.Offer) -> bool:
    if offer.preparation is not None:
        return bool(row["split_digest"] == offer.preparation.split_digest)
    whole = row["run__dataset"] == offer.dataset.pk and row["run__preparation"] is None
    return whole and bool(row["dataset_digest"] == offer.dataset.digest)


def start(versions: Sequence[ModelVersion], offer: offers.Offer, user: Any) -> Started:
    """Enqueue an evaluation of every version that has none on these images; each with its own audit entry."""
    measured = _measured_on(versions, offer, _measurements(versions))
    runs, refused = [], []
    for version in versions:
        if version in measured:
            continue
        try:
            with transaction.atomic():
                run = EvaluationRun.create(version, offer.dataset, user, preparation=offer.preparation, part=offer.part)
                run.enqueue()
            runs.append(run)
        except JobError as error:
            refused.append(f"{error} {error.hint}")
    return Started(tuple(runs), tuple(measured), tuple(refused))
