"""Weeks of use without a model: many answers at any time, with what was measured of their images."""

from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

import numpy as np
from django.utils import timezone

from inference.measures import Distributions
from inference.models import Prediction, ServingReference, Unanswered, Verdict
from inference.monitoring import begins, this_week
from registry.models import ModelVersion
from tests.factories import PredictionFactory


def noon(weeks_ago: int = 0, day: int = 0) -> datetime:
    """Noon of a day of a week; without a day its Monday, which may be yet to come where the week is the running one."""
    return begins(this_week() - timedelta(weeks=weeks_ago) + timedelta(days=day)) + timedelta(hours=12)


def at(when: datetime) -> Any:
    """Rows that are made within are made then."""
    return patch("django.utils.timezone.now", return_value=when)


def answered(
    version: ModelVersion, when: datetime, probabilities: Any, brightness: Any = None, **fields: Any
) -> list[Prediction]:
    """An answer for each probability of the second class, about an image of its own."""
    grey = np.full(len(probabilities), 0.5) if brightness is None else brightness
    first, second = version.classes
    digests = fields.pop("digests", None) or [f"{timezone.now().timestamp()}-{when}-{n}"[:64] for n in range(len(grey))]
    rows = [
        PredictionFactory.build(
            version=version,
            probabilities={first: 1 - float(p), second: float(p)},
            decision=second if p >= 0.5 else first,
            image_digest=digest,
            measures={"mean": float(f"{bright:.6g}")},
            **fields,
        )
        for p, bright, digest in zip(probabilities, grey, digests, strict=True)
    ]
    with at(when):
        return Prediction.objects.bulk_create(rows)


def unanswered(condition: Any, when: datetime, kind: str, count: int = 1, **fields: Any) -> None:
    rows = [Unanswered(condition=condition, kind=kind, text="no", channel="web", **fields) for _ in range(count)]
    with at(when):
        Unanswered.objects.bulk_create(rows)


def judged(prediction: Prediction, label: str, by: Any) -> Verdict:
    return Verdict.objects.create(prediction=prediction, agrees=label == prediction.decision, label=label, by=by)


def referenced(version: ModelVersion, seed: int = 0, count: int = 200) -> Distributions:
    """What was usual on validation: probabilities and brightness evenly spread."""
    random = np.random.default_rng(seed)
    second = random.random(count)
    usual = Distributions.of(
        [{"mean": float(value)} for value in random.random(count)],
        {version.classes[0]: 1 - second, version.classes[1]: second},
    )
    ServingReference.objects.create(version=version, distributions=usual.to_json(), images_count=count)
    return usual
