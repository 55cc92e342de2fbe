"""Where to draw the line: the threshold from which on a probability means the finding, and what follows from it.

A threshold is chosen on validation images and reported on test images. Every one lies midway between two neighbouring
probabilities, so that rounding does not move an image across it.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .paired import QUANTILE
from .statistics import hits_and_alarms

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_POINTS = 200
TOLERANCE = 1e-12
# The threshold that no probability reaches.
ABOVE_ALL = math.nextafter(1.0, 2.0)

YOUDEN, SENSITIVITY, SPECIFICITY, COST = "youden", "sensitivity", "specificity", "cost"
CRITERIA = {
    YOUDEN: "Largest sum of sensitivity and specificity (Youden)",
    SENSITIVITY: "A sensitivity to reach, with the best specificity",
    SPECIFICITY: "A specificity to reach, with the best sensitivity",
    COST: "Least cost of missed findings and false alarms",
}


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval; all None where there is nothing to take a share of."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it does on some images: `p >= threshold` is called positive.

    hits of `positives` images with the finding and alarms of `negatives` images without it are called positive.
    """

    threshold: float
    positives: int
    negatives: int
    hits: int
    alarms: int

    @property
    def sensitivity(self) -> float | None:
        return self.hits / self.positives if self.positives else None

    @property
    def specificity(self) -> float | None:
        return (self.negatives - self.alarms) / self.negatives if self.negatives else None

    def to_json(self) -> dict[str, Any]:
        """With the intervals of sensitivity and specificity (Wilson), which take each image as a case of its own."""
        return {
            "threshold": self.threshold,
            "sensitivity": asdict(wilson(self.hits, self.positives)),
            "specificity": asdict(wilson(self.negatives - self.alarms, self.negatives)),
            "positives": self.positives,
            "negatives": self.negatives,
            "hits": self.hits,
            "alarms": self.alarms,
        }


@dataclass(frozen=True)
class PredictiveValues:
    """The chance that an image called positive (negative) is so; None where no image would be called that."""

    positive: float | None
    negative: float | None


def choose(
    labels: ArrayLike,
    scores: ArrayLike,
    criterion: str,
    target: float | None = None,
    prevalence: float | None = None,
) -> OperatingPoint:
    """The threshold that a criterion asks for, on validation images.

    labels (N,): true where positive. scores (N,): probabilities of the positive class, after temperature.
    criterion, one of CRITERIA: "youden" takes no target. "sensitivity": of the thresholds that reach `target` (0..1)
    the one with the best specificity; "specificity" the other way round. "cost": the least expected cost an image
    (Zweig and Campbell 1993), where a missed positive costs `target` times as much as a false alarm and `prevalence`
    is the share of positives where the model will be used (that of these images when None).
    Of equally good thresholds the one nearest to 0.5 is taken. Raises ValueError, saying in words what can be reached,
    when a class is missing, a number lies outside its range, or only calling all images the same would do.
    """
    if criterion not in _CHOICES:
        raise ValueError(f"There is no criterion {criterion!r}. Choose one of {', '.join(CRITERIA)}.")
    candidates = _Candidates.of(labels, scores)
    candidates.need_both_classes()
    return candidates.point(_CHOICES[criterion](candidates, target, prevalence))


def at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> OperatingPoint:
    """What a threshold that was chosen elsewhere does on these images. A class may be missing."""
    truth, values = _checked(labels, scores)
    called = values >= threshold
    positives = int(truth.sum())
    return OperatingPoint(
        float(threshold), positives, len(truth) - positives, int((called & truth).sum()), int((called & ~truth).sum())
    )


def curve(labels: ArrayLike, scores: ArrayLike, most: int = MOST_POINTS) -> list[OperatingPoint]:
    """The thresholds for a slider, from the one that calls no image positive to the one that calls all so.

    At most `most` (at least 3) of them: evenly spread along the ROC curve, and always the one of Youden.
    """
    candidates = _Candidates.of(labels, scores)
    candidates.need_both_classes()
    count = len(candidates.thresholds)
    if count <= most:
        return [candidates.point(index) for index in range(count)]
    way = candidates.alarm_rate + candidates.hit_rate
    spread = np.searchsorted(way, np.linspace(0, 2, most - 1))
    kept = np.unique(np.append(spread, candidates.youden.argmax()))
    return [candidates.point(index) for index in kept.tolist()]


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> PredictiveValues:
    """What a positive and a negative answer are worth where `prevalence` (0..1) of the images have the finding.

    Bayes' theorem; all numbers are shares 0..1. Raises ValueError for any that is not.
    """
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity), ("prevalence", prevalence)):
        _need_share(name, value)
    found, missed = sensitivity * prevalence, (1 - sensitivity) * prevalence
    cleared, alarmed = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
    return PredictiveValues(_share(found, found + alarmed), _share(cleared, cleared + missed))


def wilson(hits: int, total: int) -> Rate:
    """hits / total with its 95 % interval (Wilson 1927), which stays within 0..1 and is not empty at 0 or 1."""
    if not total:
        return Rate(None, None, None)
    share = hits / total
    spread = QUANTILE**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return Rate(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


@dataclass(frozen=True)
class _Candidates:
    """Every threshold that makes a difference, from the one above all probabilities down to one below all of them."""

    thresholds: Floats
    hits: Integers
    alarms: Integers

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike) -> "_Candidates":
        truth, values = _checked(labels, scores)
        hits, alarms, upper = hits_and_alarms(truth, values)
        lower = np.append(upper, 0.0)[1:]
        middles = (upper + lower) / 2
        # Between two neighbours of floating point arithmetic there is no middle.
        cuts = np.where(middles > lower, middles, upper)
        start = np.zeros(1, np.int64)
        return cls(np.append(ABOVE_ALL, cuts), np.append(start, hits), np.append(start, alarms))

    @property
    def positives(self) -> int:
        return int(self.hits[-1])

    @property
    def negatives(self) -> int:
        return int(self.alarms[-1])

    @property
    def hit_rate(self) -> Floats:
        return self.hits / self.positives

    @property
    def alarm_rate(self) -> Floats:
        return self.alarms / self.negatives

    @property
    def specificity(self) -> Floats:
        return (self.negatives - self.alarms) / self.negatives

    @property
    def youden(self) -> Floats:
        return self.hit_rate - self.alarm_rate

    def point(self, index: int) -> OperatingPoint:
        return OperatingPoint(
            float(self.thresholds[index]),
            self.positives,
            self.negatives,
            int(self.hits[index]),
            int(self.alarms[index]),
        )

    def need_both_classes(self) -> None:
        for count, kind in ((self.positives, "with"), (self.negatives, "without")):
            if not count:
                raise ValueError(
                    f"There are no images {kind} the finding, so that no threshold can be chosen on them. Choose it "
                    "on a validation part that has images of both classes."
                )

    def best(self, values: Floats) -> int:
        """Index of the candidate with the largest value; of equals, the one whose threshold is nearest to 0.5."""
        best = np.flatnonzero(values >= values.max() - TOLERANCE)
        return int(best[np.abs(self.thresholds[best] - 0.5).argmin()])


def _youden(candidates: _Candidates, target: float | None, prevalence: float | None) -> int:
    if candidates.youden.max() <= TOLERANCE:
        raise ValueError(
            "No threshold is better than guessing on these images: at each of them sensitivity and specificity add up "
            "to 1 or less. This model has not learned to tell the classes apart."
        )
    return candidates.best(candidates.youden)


def _target_sensitivity(candidates: _Candidates, target: float | None, prevalence: float | None) -> int:
    return _reaching(candidates, "sensitivity", candidates.hit_rate, "specificity", candidates.specificity, target)


def _target_specificity(candidates: _Candidates, target: float | None, prevalence: float | None) -> int:
    return _reaching(candidates, "specificity", candidates.specificity, "sensitivity", candidates.hit_rate, target)


def _reaching(
    candidates: _Candidates, name: str, rate: Floats, other_name: str, other: Floats, target: float | None
) -> int:
    """Of the candidates whose `rate` reaches the target, the one with the best other rate, then the best rate."""
    if target is None:
        raise ValueError(f"Say which {name} is to be reached, as a share between 0 and 1.")
    _need_share(name, target)
    useful = other > 0
    reaching = useful & (rate >= target - TOLERANCE)
    if not reaching.any():
        raise ValueError(
            f"A {name} of {target:.1%} cannot be reached on these images, unless every image is given the same answer "
            f"(a {other_name} of 0). The highest that can be reached is {rate[useful].max():.1%}."
        )
    return int(np.lexsort((rate, other, reaching))[-1])


def _least_cost(candidates: _Candidates, target: float | None, prevalence: float | None) -> int:
    if target is None or not target > 0 or not math.isfinite(target):
        raise ValueError("Say how many false alarms a missed finding is worth, as a number above 0.")
    share = candidates.positives / (candidates.positives + candidates.negatives) if prevalence is None else prevalence
    if not 0 < share < 1:
        raise ValueError(f"The prevalence must lie between 0 and 1, both excluded; {share:g} does not.")
    cost = target * share * (1 - candidates.hit_rate) + (1 - share) * candidates.alarm_rate
    looking = cost[1:-1].min(initial=math.inf)
    if looking > min(cost[0], cost[-1]) + TOLERANCE:
        answer = "negative" if cost[0] <= cost[-1] else "positive"
        raise ValueError(
            f"With a prevalence of {share:.2%} and a missed finding worth {target:g} false alarms it would cost least "
            f"to call every image {answer}, without looking at it. Check both numbers; if they are right, this model "
            "is not good enough to help."
        )
    cost[[0, -1]] = math.inf
    return candidates.best(-cost)


_CHOICES: dict[str, Callable[[_Candidates, float | None, float | None], int]] = {
    YOUDEN: _youden,
    SENSITIVITY: _target_sensitivity,
    SPECIFICITY: _target_specificity,
    COST: _least_cost,
}


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    truth = np.asarray(labels).astype(bool).reshape(-1)
    values = np.asarray(scores, np.float64).reshape(-1)
    if truth.shape != values.shape:
        raise ValueError(f"{len(truth)} labels do not fit {len(values)} probabilities.")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("A probability does not lie between 0 and 1.")
    return truth, values


def _need_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"The {name} must lie between 0 and 1; {value:g} does not.")


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
