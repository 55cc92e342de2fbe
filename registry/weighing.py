"""Operating points of a version: chosen on its validation part, reported on its test part, saved with a reason."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import calibration, operating_points
from .models import Evaluation, EvaluationUnusable, ModelVersion, ThresholdSet
from .models.threshold_set import ThresholdError
from .operating_points import OperatingPoint

BY_HAND = ThresholdSet.Criterion.BY_HAND.value
# Relative distance within which two thresholds are one that was written down and read again.
SAME = 1e-9


class CriterionError(ThresholdError):
    """The criterion asks for what these images do not allow. The message says what can be reached."""


@dataclass(frozen=True)
class Part:
    """Images on which thresholds are weighed. positive (N,): true where positive; scores (N,): after temperature."""

    positive: NDArray[np.bool_]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Part":
        images, question = evaluation.images, evaluation.question
        probabilities = calibration.with_temperature(images.probabilities, question.temperature)
        return cls(images.labels == question.positive, probabilities[:, question.positive])

    def at(self, threshold: float) -> OperatingPoint:
        return operating_points.at(self.positive, self.scores, threshold)


@dataclass(frozen=True)
class Wish:
    """What somebody asks for: a criterion with its target, or by hand a threshold. Shares are 0..1.

    Raises CriterionError for a prevalence that is no share.
    """

    criterion: str = operating_points.YOUDEN
    target: float | None = None
    prevalence: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.prevalence is not None and not 0 <= self.prevalence <= 1:
            raise CriterionError(f"The prevalence is a share between 0 and 1, and {self.prevalence:g} is not.")


@dataclass(frozen=True)
class Weighing:
    """A version with the answers that its thresholds are weighed by. test: None where it was not measured on one."""

    version: ModelVersion
    validation: Part
    test: Part | None

    @classmethod
    def of(cls, version: ModelVersion) -> "Weighing":
        """From the newest evaluations of its own parts. Raises ThresholdError, in words, when there are none."""
        if len(version.classes) != 2 or not version.positive_class:
            raise ThresholdError(
                f"{version} tells {len(version.classes)} classes apart and calls the most probable one: it has no "
                "threshold to choose. Only a version with a positive and a negative class has one."
            )
        validation = Evaluation.objects.newest(version, Evaluation.Kind.VALIDATION)
        if validation is None:
            raise ThresholdError(
                f"A threshold is chosen on validation images, and the answers of {version} about them were not kept. "
                "Evaluate it on the validation part of its preparation first."
            )
        test = Evaluation.objects.newest(version, Evaluation.Kind.TEST)
        try:
            return cls(version, Part.of(validation), Part.of(test) if test else None)
        except EvaluationUnusable as error:
            raise ThresholdError(str(error)) from error

    @property
    def trained(self) -> float:
        """The threshold of the training."""
        return 0.5 if self.version.threshold is None else float(self.version.threshold)

    @property
    def parts(self) -> dict[str, Part]:
        parts = {"validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def share_of_positives(self) -> float:
        return float(self.validation.positive.mean())

    def threshold(self, wish: Wish) -> float:
        """Raises CriterionError."""
        if wish.criterion == BY_HAND:
            if wish.threshold is None:
                raise CriterionError("Give the threshold, a probability between 0 and 1.")
            return wish.threshold
        try:
            part = self.validation
            point = operating_points.choose(part.positive, part.scores, wish.criterion, wish.target, wish.prevalence)
        except ValueError as error:
            raise CriterionError(str(error)) from error
        return point.threshold

    def figures(self, threshold: float, prevalence: float | None = None) -> dict[str, dict[str, Any]]:
        """What the threshold does on each part, with the predictive values where a prevalence (0..1) is given."""
        return {name: _figures(part.at(threshold), prevalence) for name, part in self.parts.items()}

    def thresholds(self, wanted: Iterable[float] = ()) -> list[float]:
        """Those to look through, ascending: some hundred along the ROC curve of validation, and the wanted ones.

        Raises CriterionError when validation lacks a class.
        """
        try:
            points = operating_points.curve(self.validation.positive, self.validation.scores)
        except ValueError as error:
            raise CriterionError(str(error)) from error
        return sorted({value for value in (*(point.threshold for point in points), *wanted) if 0 < value < 1})

    def save(self, wish: Wish, *, reason: str, by: Any) -> ThresholdSet:
        """Audited; nothing in service changes. Raises ThresholdError.

        A threshold in a wish by criterion is the one that was looked at; what is saved must be that one.
        """
        threshold = self.threshold(wish)
        _check_seen(wish, threshold)
        takes_target = wish.criterion not in (operating_points.YOUDEN, BY_HAND)
        return ThresholdSet.objects.add(
            self.version,
            threshold,
            by=by,
            reason=reason,
            criterion=wish.criterion,
            target=wish.target if takes_target else None,
            prevalence=wish.prevalence,
            **self.figures(threshold, wish.prevalence),
        )


def _check_seen(wish: Wish, threshold: float) -> None:
    if wish.criterion == BY_HAND or wish.threshold is None or math.isclose(threshold, wish.threshold, rel_tol=SAME):
        return
    raise CriterionError(
        f"This criterion now finds the threshold {threshold:g}, not {wish.threshold:g}, which you were looking at: the "
        "answers behind it are newer, or something else was asked for. Look at the figures again, and save once more "
        "if they suit."
    )


def _figures(point: OperatingPoint, prevalence: float | None) -> dict[str, Any]:
    return point.to_json() | {"predictive_values": _predictive_values(point, prevalence)}


def _predictive_values(point: OperatingPoint, prevalence: float | None) -> dict[str, float | None] | None:
    """None where no prevalence is given, or a class is missing."""
    if prevalence is None or point.sensitivity is None or point.specificity is None:
        return None
    return asdict(operating_points.predictive_values(point.sensitivity, point.specificity, prevalence))
