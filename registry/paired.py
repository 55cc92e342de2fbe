"""Is the difference between two classifiers on the same images more than chance? Tests for paired results, in numpy.

Images of one patient resemble each other, so where a patient has several images it is the patients who count: every
test here takes the patient of each image, and is the well-known one where each patient has a single image.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

# 97.5 % quantile of the standard normal distribution: half the width of a 95 % interval in standard errors.
QUANTILE = 1.959963984540054
# With fewer discordant pairs the chi-square distribution is too rough, and the binomial distribution is summed up.
FEW_DISCORDANT = 25
# Share of the variances below which the variance of a difference is rounding error.
NO_VARIANCE = 1e-12


# --- Areas under the ROC curve ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Areas:
    """Areas under the ROC curve (K,) of K classifiers on the same images, and their covariances (K, K).

    covariance is None where patients are too few for one: it takes two with a positive and two with a negative image.
    """

    values: Floats
    covariance: Floats | None


@dataclass(frozen=True)
class AreaDifference:
    """The area of the second classifier minus that of the first, with its 95 % interval and two-sided p value.

    All are None where `undefined` says why, or all but the difference where only its standard error is unknown.
    """

    difference: float | None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    undefined: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


ONE_CLASS = "The area under the ROC curve needs images with and without the finding."
TOO_FEW = "A standard error needs at least two patients with and two without the finding."
NO_SPREAD = "Every image speaks for the same difference, so that there is no standard error."


def delong(positive: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None) -> Areas | None:
    """Areas and covariances of K classifiers (DeLong, DeLong and Clarke-Pearson 1988). None where a class is missing.

    positive (N,): true where positive. scores (K, N). groups (N,): integers 0.., the patient of each image; None: each
    image is a patient. Takes O(K N log N) steps, as the algorithm of Sun and Xu (2014). What each image contributes is
    added up by patient (Obuchowski 1997), which changes nothing where each patient has one image.
    Raises ValueError when the shapes do not fit or a score is not finite.
    """
    truth, values, patients = _checked(positive, scores, groups)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    of_positives, of_negatives = _placements(truth, values)
    areas = of_positives.mean(axis=1)
    count = int(patients.max()) + 1
    above = _by_patient(of_positives - areas[:, None], patients[truth], count)
    below = _by_patient(of_negatives - areas[:, None], patients[~truth], count)
    with_positive = len(np.unique(patients[truth]))
    with_negative = len(np.unique(patients[~truth]))
    if with_positive < 2 or with_negative < 2:
        return Areas(areas, None)
    patients_in_all = len(np.unique(patients))
    mixed = above @ below.T * _bessel(patients_in_all) / (positives * negatives)
    covariance = (
        above @ above.T * _bessel(with_positive) / positives**2
        + below @ below.T * _bessel(with_negative) / negatives**2
        + mixed
        + mixed.T
    )
    return Areas(areas, covariance)


def delong_variance(positive: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None) -> float | None:
    """Variance of the area of one classifier, scores (N,). None where it is undefined."""
    areas = delong(positive, np.asarray(scores, np.float64)[None, :], groups)
    return None if areas is None or areas.covariance is None else float(areas.covariance[0, 0])


def delong_test(
    positive: ArrayLike, first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None
) -> AreaDifference:
    """Whether the areas of two classifiers, scores (N,) each, differ on the same images."""
    scores = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    return area_difference(delong(positive, scores, groups), 0, 1)


def area_difference(areas: Areas | None, first: int, second: int) -> AreaDifference:
    """Area of classifier `second` minus that of `first`, both as indices into `areas`."""
    if areas is None:
        return AreaDifference(None, undefined=ONE_CLASS)
    difference = float(areas.values[second] - areas.values[first])
    if areas.covariance is None:
        return AreaDifference(difference, undefined=TOO_FEW)
    alone = float(areas.covariance[first, first] + areas.covariance[second, second])
    variance = alone - 2 * float(areas.covariance[first, second])
    error = math.sqrt(variance) if variance > NO_VARIANCE * alone else 0.0
    if error:
        p = two_sided_p(difference / error)
        return AreaDifference(difference, error, difference - QUANTILE * error, difference + QUANTILE * error, p)
    if abs(difference) > NO_VARIANCE:
        return AreaDifference(difference, undefined=NO_SPREAD)
    return AreaDifference(0.0, 0.0, 0.0, 0.0, 1.0)


def two_sided_p(z: float) -> float:
    """The chance that a standard normal variable lies at least as far from 0 as z."""
    return math.erfc(abs(z) / math.sqrt(2))


def _checked(positive: ArrayLike, scores: ArrayLike, groups: ArrayLike | None) -> tuple[Mask, Floats, Integers]:
    truth = np.asarray(positive).astype(bool).reshape(-1)
    values = np.asarray(scores, np.float64)
    patients = np.arange(len(truth)) if groups is None else np.asarray(groups, np.int64)
    if values.ndim != 2 or values.shape[1] != len(truth) or patients.shape != truth.shape:
        raise ValueError(f"{len(truth)} labels do not fit scores of {values.shape} and groups of {patients.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("A score is not a finite number.")
    return truth, values, patients


def _placements(truth: Mask, scores: Floats) -> tuple[Floats, Floats]:
    """Of each positive the share of negatives below it (K, positives); of each negative the share of positives above.

    Equal scores count half. One sort of each classifier's scores tells both, as the mid-ranks of Sun and Xu do.
    """
    below, above = zip(*(_placements_of_one(truth, row) for row in scores), strict=True)
    return np.stack(below), np.stack(above)


def _placements_of_one(truth: Mask, scores: Floats) -> tuple[Floats, Floats]:
    distinct, inverse = np.unique(scores, return_inverse=True)
    positives = np.bincount(inverse[truth], minlength=len(distinct))
    negatives = np.bincount(inverse[~truth], minlength=len(distinct))
    negatives_below = (negatives.cumsum() - negatives / 2) / negatives.sum()
    positives_above = 1 - (positives.cumsum() - positives / 2) / positives.sum()
    return negatives_below[inverse[truth]], positives_above[inverse[~truth]]


def _by_patient(values: Floats, patients: Integers, count: int) -> Floats:
    """Sums (K, count) of values (K, images) over the images of each patient."""
    return np.stack([np.bincount(patients, row, count) for row in values])


def _bessel(count: int) -> float:
    return count / (count - 1)


# --- Decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Discordance:
    """On how many images only one of two classifiers is right, and the two-sided p value of that being chance.

    method: the test that gave p, in words.
    """

    only_first: int
    only_second: int
    p: float
    method: str
    statistic: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


EXACT = "McNemar's test, exact binomial"
CHI_SQUARE = "McNemar's test, chi-square with continuity correction"
SIGNS_OF_PATIENTS = "exact sign test over patients"
CHI_SQUARE_OF_PATIENTS = "McNemar's test over patients"


@dataclass(frozen=True)
class Decisions:
    """Who is right where, of K classifiers on the same images.

    only_one (K, K): images on which the row's classifier is right and the column's is wrong. right (K, patients): right
    images of each patient. repeated: whether a patient has several images.
    """

    only_one: Integers
    right: Floats
    repeated: bool


def decisions(right: ArrayLike, groups: ArrayLike | None = None) -> Decisions:
    """right (K, N): true where a classifier decided correctly. groups (N,): the patient of each image, as in `delong`.

    Raises ValueError when the shapes do not fit.
    """
    hits = np.asarray(right, bool).astype(np.float64)
    patients = np.arange(hits.shape[-1]) if groups is None else np.asarray(groups, np.int64)
    if hits.ndim != 2 or patients.shape != hits.shape[1:]:
        raise ValueError(f"Decisions of {hits.shape} do not fit groups of {patients.shape}.")
    only_one = np.rint(hits @ (1 - hits).T).astype(np.int64)
    count = int(patients.max(initial=-1)) + 1
    return Decisions(only_one, _by_patient(hits, patients, count), len(np.unique(patients)) < len(patients))


def mcnemar(first_right: ArrayLike, second_right: ArrayLike, groups: ArrayLike | None = None) -> Discordance:
    """Whether two classifiers, decisions (N,) each, are right equally often on the same images."""
    right = np.stack([np.asarray(first_right, bool), np.asarray(second_right, bool)])
    return discordance(decisions(right, groups), 0, 1)


def discordance(decided: Decisions, first: int, second: int) -> Discordance:
    """Whether two classifiers, indices into `decided`, are right equally often (McNemar 1947).

    With fewer than 25 discordant images the binomial distribution is exact; with more the chi-square distribution
    with Edwards' continuity correction (1948) is used. Where patients have several images, each patient counts with
    the difference of right images: Yang, Sun and Hardin (2010), or a sign test where those patients are few.
    """
    only_first, only_second = int(decided.only_one[first, second]), int(decided.only_one[second, first])
    if not decided.repeated:
        return _of_images(only_first, only_second)
    net = decided.right[first] - decided.right[second]
    return _of_patients(only_first, only_second, net[net != 0])


def _of_images(only_first: int, only_second: int) -> Discordance:
    discordant = only_first + only_second
    if discordant < FEW_DISCORDANT:
        return Discordance(only_first, only_second, _binomial_p(only_first, discordant), EXACT)
    # Where both are equal the correction would make a difference out of none.
    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / discordant
    return Discordance(only_first, only_second, two_sided_p(math.sqrt(statistic)), CHI_SQUARE, statistic)


def _of_patients(only_first: int, only_second: int, net: Floats) -> Discordance:
    """net: of each patient on whom the two differ, the right images of the first less those of the second."""
    if len(net) < FEW_DISCORDANT:
        p = _binomial_p(int((net > 0).sum()), len(net))
        return Discordance(only_first, only_second, p, SIGNS_OF_PATIENTS)
    statistic = float(net.sum() ** 2 / (net**2).sum())
    return Discordance(only_first, only_second, two_sided_p(math.sqrt(statistic)), CHI_SQUARE_OF_PATIENTS, statistic)


def _binomial_p(hits: int, trials: int) -> float:
    """Two-sided: the chance of a fair coin to be at least as far from half of the trials."""
    tail = sum(math.comb(trials, k) for k in range(min(hits, trials - hits) + 1))
    return min(1.0, float(2 * tail / 2**trials))


# --- Many comparisons ------------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values corrected for the number of comparisons (Holm 1979), in the order given; None stays and is not counted.

    A corrected value below 0.05 is significant at a chance of at most 5 % that any of all comparisons is so by luck.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected
