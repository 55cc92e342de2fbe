"""What an experiment has shown so far, and whether that is enough to decide: figures and tests on arrays, in numpy.

A study counts once, with its first answer (of those with a verdict, the first that has one), so that the images of one
study do not pass for independent evidence. Differences are the challenger's figure less the champion's.

Whoever looks at running figures again and again finds a chance difference sooner or later. A decision therefore needs
p < 0.001 at whichever look (Haybittle 1971; Peto et al. 1976). Of experiments without a difference that are looked at a
hundred times, evenly spread, between 1 and 2 in 100 are then decided wrongly; with p < 0.05 it would be 38.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from registry.operating_points import wilson
from registry.paired import QUANTILE, area_difference, delong, mcnemar
from registry.statistics import confusion_matrix

Integers = NDArray[np.int64]

# The label of an answer that no reader has judged.
UNKNOWN = -1
DECISIVE_P = 0.001
# Quantiles of the standard normal distribution: of 1 - DECISIVE_P / 2, and of the power of 80 %.
DECISIVE_QUANTILE = 3.290526731491926
POWER_QUANTILE = 0.8416212335729143
# Verdicts below which nothing is foretold from them.
FEW = 20
# A smaller difference than this, in shares, is taken for none when the verdicts still needed are foretold.
RELEVANT = 0.02

CHALLENGER, CHAMPION, OPEN = "challenger", "champion", "open"


@dataclass(frozen=True)
class Task:
    """classes: their names. positive: index of the finding among two classes, None otherwise."""

    classes: tuple[str, ...]
    positive: int | None


@dataclass(frozen=True)
class Interval:
    """A difference with its interval; all None where a side has no verdict."""

    difference: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        return {"difference": self.difference, "low": self.low, "high": self.high}


# --- Shadow: both answered the same images ---------------------------------------------------------------------------


def paired_report(
    task: Task,
    champion: ArrayLike,
    challenger: ArrayLike,
    truth: ArrayLike,
    subjects: ArrayLike,
    scores: tuple[ArrayLike, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Two versions on the same answers, the oldest first, ready for JSON.

    champion, challenger (N,): index of the class each decided for. truth (N,): index of the class that the reader saw,
    UNKNOWN without a verdict. subjects (N,): which study. scores: of each the probabilities (N,) of the positive class.
    Raises ValueError when the shapes do not fit.
    """
    decided = np.stack([_indices(champion), _indices(challenger)])
    labels, studies = _indices(truth), _indices(subjects)
    if decided.shape[1:] != labels.shape or labels.shape != studies.shape:
        raise ValueError(f"Decisions of {decided.shape} do not fit {labels.shape} labels and {studies.shape} studies.")
    once = _first_of_each(studies)
    table = confusion_matrix(decided[0, once], decided[1, once], len(task.classes))
    judged = _first_judged(labels, studies)
    right = decided[:, judged] == labels[judged]
    test = mcnemar(right[0], right[1])
    return {
        "answers": len(labels),
        "studies": len(once),
        "judged": len(judged),
        "agreement": vars(wilson(int(np.trace(table)), int(table.sum()))),
        "kappa": kappa(table),
        "table": table.tolist(),
        "champion": figures(task, decided[0, judged], labels[judged]),
        "challenger": figures(task, decided[1, judged], labels[judged]),
        "difference": paired_difference(right[1], right[0]).to_json(),
        "mcnemar": test.to_json(),
        "auc": _areas(task, labels, judged, scores),
        "decision": _decide_paired(len(judged), test.only_first, test.only_second, test.p),
    }


def kappa(table: ArrayLike) -> float | None:
    """Agreement beyond chance (Cohen 1960) from a table of counts (C, C); None where chance explains all or nothing."""
    counts = np.asarray(table, np.float64)
    total = counts.sum()
    if not total:
        return None
    expected = float(counts.sum(axis=0) @ counts.sum(axis=1)) / float(total) ** 2
    return None if expected == 1 else (float(np.trace(counts)) / float(total) - expected) / (1 - expected)


def paired_difference(first: ArrayLike, second: ArrayLike, quantile: float = QUANTILE) -> Interval:
    """Share of rights of `first` less that of `second`, both (N,), on the same images.

    Interval of square-and-add limits from Wilson's scores with a corrected correlation (Newcombe 1998, Statistics in
    Medicine 17:2635-2650, method 10).
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    total = len(one)
    if not total:
        return Interval(None)
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    correlation = _correlation(both, only_one, only_other, neither)
    ends = [_wilson_ends(hits, total, quantile) for hits in (both + only_one, both + only_other)]
    return _squared_and_added((both + only_one) / total, (both + only_other) / total, ends, correlation)


def _correlation(both: int, only_one: int, only_other: int, neither: int) -> float:
    margins = (both + only_one) * (only_other + neither) * (both + only_other) * (only_one + neither)
    if not margins:
        return 0.0
    covariance: float = both * neither - only_one * only_other
    if covariance > 0:
        covariance = max(covariance - (both + only_one + only_other + neither) / 2, 0.0)
    return covariance / math.sqrt(margins)


def _areas(
    task: Task, labels: Integers, judged: Integers, scores: tuple[ArrayLike, ArrayLike] | None
) -> dict[str, Any] | None:
    """Areas under the ROC curve of both and their difference (DeLong 1988); None but for two classes."""
    if task.positive is None or scores is None:
        return None
    values = np.stack([np.asarray(side, np.float64)[judged] for side in scores])
    areas = delong(labels[judged] == task.positive, values)
    known = areas.values.tolist() if areas is not None else [None, None]
    return {"champion": known[0], "challenger": known[1], **area_difference(areas, 0, 1).to_json()}


def _decide_paired(judged: int, only_champion: int, only_challenger: int, p: float) -> dict[str, Any]:
    if judged and p < DECISIVE_P:
        return _decided(CHALLENGER if only_challenger > only_champion else CHAMPION)
    if judged < FEW:
        return _open(judged, None, None)
    difference, discordance = abs(only_challenger - only_champion) / judged, (only_champion + only_challenger) / judged
    sought = difference if difference >= RELEVANT else RELEVANT
    return _open(judged, sought, paired_sample_size(max(discordance, sought), sought))


def paired_sample_size(discordance: float, difference: float, quantile: float = DECISIVE_QUANTILE) -> int:
    """Pairs with which McNemar's test finds a difference with a power of 80 % (Connor 1987, Biometrics 43:207-211).

    discordance: share of pairs on which only one is right, between the difference and 1. difference: of the shares of
    pairs on which only the one and only the other is right, above 0.
    """
    spread = quantile * math.sqrt(discordance) + POWER_QUANTILE * math.sqrt(discordance - difference**2)
    return math.ceil((spread / difference) ** 2)


# --- A/B: each answered its own studies ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """The answers of one side, the oldest first: decided, truth and subjects (N,) as in `paired_report`."""

    decided: Integers
    truth: Integers
    subjects: Integers


def arms_report(task: Task, champion: Side, challenger: Side, share: float) -> dict[str, Any]:
    """Two versions on studies of their own, ready for JSON. share: of the studies that the challenger gets, 0..1."""
    sides = {CHAMPION: champion, CHALLENGER: challenger}
    judged = {name: _first_judged(side.truth, side.subjects) for name, side in sides.items()}
    right = {name: side.decided[judged[name]] == side.truth[judged[name]] for name, side in sides.items()}
    hits = {name: (int(found.sum()), len(found)) for name, found in right.items()}
    return {
        "answers": sum(len(side.decided) for side in sides.values()),
        "studies": sum(len(np.unique(side.subjects)) for side in sides.values()),
        "judged": sum(map(len, judged.values())),
        **{name: _of_side(task, side, judged[name]) for name, side in sides.items()},
        "difference": difference_of_shares(*hits[CHALLENGER], *hits[CHAMPION]).to_json(),
        "decision": _decide_arms(hits[CHAMPION], hits[CHALLENGER], share),
    }


def _of_side(task: Task, side: Side, judged: Integers) -> dict[str, Any]:
    return {
        "answers": len(side.decided),
        "studies": len(np.unique(side.subjects)),
        **figures(task, side.decided[judged], side.truth[judged]),
    }


def difference_of_shares(
    hits: int, total: int, other_hits: int, other_total: int, quantile: float = QUANTILE
) -> Interval:
    """hits / total less other_hits / other_total, of independent samples.

    Interval of square-and-add limits from Wilson's scores (Newcombe 1998, Statistics in Medicine 17:873-890,
    method 10).
    """
    if not total or not other_total:
        return Interval(None)
    ends = [_wilson_ends(hits, total, quantile), _wilson_ends(other_hits, other_total, quantile)]
    return _squared_and_added(hits / total, other_hits / other_total, ends, 0.0)


def _decide_arms(champion: tuple[int, int], challenger: tuple[int, int], share: float) -> dict[str, Any]:
    found = difference_of_shares(*challenger, *champion, quantile=DECISIVE_QUANTILE)
    judged = champion[1] + challenger[1]
    if found.low is not None and found.low > 0:
        return _decided(CHALLENGER)
    if found.high is not None and found.high < 0:
        return _decided(CHAMPION)
    if min(champion[1], challenger[1]) < FEW:
        return _open(judged, None, None)
    # One more of each kind, so that a side without an error is not taken for one that never errs.
    one, other = ((hits + 1) / (total + 2) for hits, total in (champion, challenger))
    difference = abs(champion[0] / champion[1] - challenger[0] / challenger[1])
    sought = difference if difference >= RELEVANT else RELEVANT
    return _open(judged, sought, sample_size(one, other, sought, share))


def sample_size(
    champion: float, challenger: float, difference: float, share: float, quantile: float = DECISIVE_QUANTILE
) -> int:
    """Verdicts in all with which a difference of two independent shares is found with a power of 80 %.

    champion, challenger: their shares of right answers. share: of the verdicts that are about the challenger. The
    normal approximation with unequal groups (Chow, Shao and Wang 2008, Sample Size Calculations in Clinical Research,
    4.2).
    """
    spread = champion * (1 - champion) / (1 - share) + challenger * (1 - challenger) / share
    return math.ceil(((quantile + POWER_QUANTILE) / difference) ** 2 * spread)


# --- Both ------------------------------------------------------------------------------------------------------------


def figures(task: Task, decided: Integers, truth: Integers) -> dict[str, Any]:
    """Shares of right answers of one version, with Wilson's 95 % intervals; truth knows no UNKNOWN here.

    Sensitivity and specificity are None but for two classes.
    """
    right = decided == truth
    result: dict[str, Any] = {"judged": len(truth), "accuracy": _share(right), "sensitivity": None, "specificity": None}
    if task.positive is not None:
        found = truth == task.positive
        result |= {"sensitivity": _share(right[found]), "specificity": _share(right[~found])}
    return result


def _share(right: NDArray[np.bool_]) -> dict[str, float | None]:
    return vars(wilson(int(right.sum()), len(right)))


def _decided(side: str) -> dict[str, Any]:
    return {"for": side, "judged_needed": None, "more": None, "sought": None}


def _open(judged: int, sought: float | None, needed: int | None) -> dict[str, Any]:
    """sought: the difference that `needed` verdicts in all would find; None while nothing can be foretold."""
    more = max(needed - judged, 1) if needed is not None else None
    return {"for": OPEN, "judged_needed": needed, "more": more, "sought": sought}


def _wilson_ends(hits: int, total: int, quantile: float) -> tuple[float, float]:
    """Ends of Wilson's interval (1927) for hits / total."""
    share, spread = hits / total, quantile**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _squared_and_added(one: float, other: float, ends: Sequence[tuple[float, float]], correlation: float) -> Interval:
    (low_one, high_one), (low_other, high_other) = ends
    return Interval(
        one - other,
        one - other - _length(one - low_one, high_other - other, correlation),
        one - other + _length(high_one - one, other - low_other, correlation),
    )


def _length(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))


def _indices(values: ArrayLike) -> Integers:
    return np.asarray(values, np.int64).reshape(-1)


def _first_of_each(subjects: Integers) -> Integers:
    return np.sort(np.unique(subjects, return_index=True)[1]).astype(np.int64)


def _first_judged(truth: Integers, subjects: Integers) -> Integers:
    judged = np.flatnonzero(truth != UNKNOWN)
    return judged[_first_of_each(subjects[judged])]
