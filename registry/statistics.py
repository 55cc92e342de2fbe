"""How good are these probabilities? Figures of a classifier from labels and probabilities, in plain numpy.

Every function gives None where a figure is undefined (a class without images, no prediction of a class), never NaN.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]

WEAK_AUC = 0.6


def decide(
    probabilities: ArrayLike, classes: Sequence[str], positive_class: str | None = None, threshold: float | None = None
) -> list[str]:
    """The class each row of probabilities (N, C) stands for: the one decision rule of the platform.

    Two classes with a positive one: positive if its probability is at least `threshold` (0.5 when None). Otherwise
    the most probable class, the first of equals.
    """
    return [classes[index] for index in decide_indices(probabilities, classes, positive_class, threshold)]


def decide_indices(
    probabilities: ArrayLike, classes: Sequence[str], positive_class: str | None = None, threshold: float | None = None
) -> Labels:
    """`decide` as indices into `classes`: int64 (N,)."""
    values = np.asarray(probabilities, np.float64).reshape(-1, len(classes))
    positive = _positive_index(classes, positive_class)
    if positive is None:
        return np.asarray(values.argmax(axis=1), np.int64)
    cut = 0.5 if threshold is None else threshold
    return np.where(values[:, positive] >= cut, positive, 1 - positive).astype(np.int64)


def choose_threshold(labels: ArrayLike, probabilities_positive: ArrayLike) -> float:
    """The operating threshold with the largest sensitivity + specificity - 1 (Youden 1950), for `p >= threshold`.

    labels (N,): true where positive. The threshold lies midway between two neighbouring probabilities; among equally
    good ones the nearest to 0.5 is taken. 0.5 when a class is missing or no threshold beats guessing.
    """
    positive = np.asarray(labels).astype(bool)
    scores = np.asarray(probabilities_positive, np.float64)
    hits, alarms, values = hits_and_alarms(positive, scores)
    if not positive.any() or positive.all():
        return 0.5
    youden = hits / positive.sum() - alarms / (~positive).sum()
    best = np.flatnonzero(youden >= youden.max() - 1e-12)
    if youden.max() <= 1e-12:
        return 0.5
    below = np.append(values[1:], 0.0)[best]
    middles = (values[best] + below) / 2
    # Between two neighbours of floating point arithmetic there is no middle.
    cuts = np.where(middles > below, middles, values[best])
    return float(cuts[np.abs(cuts - 0.5).argmin()])


def hits_and_alarms(
    positive: NDArray[np.bool_], scores: Probabilities
) -> tuple[NDArray[np.int64], NDArray[np.int64], Probabilities]:
    """True positives, false positives and the threshold at each distinct score (all (K,)), from the highest down."""
    values, inverse = np.unique(scores, return_inverse=True)
    hits = np.bincount(inverse[positive], minlength=len(values))[::-1].cumsum()
    alarms = np.bincount(inverse[~positive], minlength=len(values))[::-1].cumsum()
    return hits, alarms, values[::-1]


def roc_auc(positive: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    By mid-ranks (Mann and Whitney 1947; Hanley and McNeil 1982). None when either side is empty.
    """
    truth = np.asarray(positive).astype(bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    rank_sum = float(_mid_ranks(np.asarray(scores, np.float64))[truth].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def average_precision(positive: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the precision-recall curve as a sum of steps, without interpolation. None without positives."""
    truth = np.asarray(positive).astype(bool)
    if not truth.any():
        return None
    hits, alarms, _ = hits_and_alarms(truth, np.asarray(scores, np.float64))
    precision = hits / (hits + alarms)
    return float((np.diff(hits, prepend=0) / truth.sum() * precision).sum())


def quadratic_kappa(confusion: ArrayLike) -> float | None:
    """Cohen's kappa with quadratic weights (Cohen 1968) from a confusion matrix (C, C) of ordinal grades.

    None when all images have one grade and all are called that grade (chance agreement is then complete).
    """
    observed = np.asarray(confusion, np.float64)
    total = observed.sum()
    if not total:
        return None
    grades = np.arange(len(observed))
    weights = (grades[:, None] - grades[None, :]) ** 2
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / total
    disagreement_by_chance = float((weights * expected).sum())
    if not disagreement_by_chance:
        return None
    return 1 - float((weights * observed).sum()) / disagreement_by_chance


def matthews_correlation(confusion: ArrayLike) -> float | None:
    """Matthews' correlation coefficient (1975), for any number of classes (R_K of Gorodkin 2004), from a matrix (C, C).

    None when all images have one class or all are called one class: what does not vary correlates with nothing.
    """
    counts = np.asarray(confusion, np.float64)
    actual, called, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    spread = (total**2 - (actual**2).sum()) * (total**2 - (called**2).sum())
    if not spread:
        return None
    return float((np.trace(counts) * total - (actual * called).sum()) / np.sqrt(spread))


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts (C, C): rows are the true class, columns the predicted one."""
    pairs = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def classification_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    positive_class: str | None = None,
    threshold: float | None = None,
    *,
    ordinal: bool = False,
) -> dict[str, Any]:
    """Every figure of a classifier on one set of images, ready for JSON.

    labels (N,): index into `classes`. probabilities (N, C), rows summing to 1. Two classes with a positive one: the
    figures are those of the positive class at `threshold` (0.5 when None). Otherwise they are means over the
    classes that have images (macro), each class against the rest. `warnings` says in words what not to celebrate.
    Raises ValueError when the shapes do not fit or a probability is not finite.
    """
    truth, values = _checked(labels, probabilities, classes)
    positive = _positive_index(classes, positive_class)
    cut = (0.5 if threshold is None else float(threshold)) if positive is not None else None
    predicted = decide_indices(values, classes, positive_class, cut)
    confusion = confusion_matrix(truth, predicted, len(classes))
    per_class = [{"class": name, **_one_class(index, truth, values, confusion)} for index, name in enumerate(classes)]
    summary = per_class[positive] if positive is not None else _macro(per_class)
    present = [row["recall"] for row in per_class if row["n"]]
    result: dict[str, Any] = {
        "n": len(truth),
        "accuracy": _ratio(int(np.trace(confusion)), len(truth)),
        "balanced_accuracy": _mean(present),
        **{name: summary[name] for name in _SUMMARY},
        "mcc": matthews_correlation(confusion),
        "confusion_matrix": confusion.tolist(),
        "classes": list(classes),
        "positive_class": classes[positive] if positive is not None else None,
        "threshold": cut,
        "per_class": [{name: row[name] for name in _PER_CLASS} for row in per_class],
    }
    if ordinal:
        result["quadratic_kappa"] = quadratic_kappa(confusion)
    result["warnings"] = _warnings(result, np.unique(predicted))
    return result


_SUMMARY = ("precision", "recall", "sensitivity", "specificity", "f1", "auc", "average_precision")
_PER_CLASS = ("class", "n", *_SUMMARY)


def _checked(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]) -> tuple[Labels, Probabilities]:
    truth = np.asarray(labels, np.int64).reshape(-1)
    values = np.asarray(probabilities, np.float64)
    if values.shape != (len(truth), len(classes)):
        raise ValueError(f"{len(truth)} labels and {len(classes)} classes do not fit probabilities of {values.shape}.")
    if len(truth) and not 0 <= truth.min() <= truth.max() < len(classes):
        raise ValueError(f"A label lies outside the {len(classes)} classes.")
    if not np.isfinite(values).all():
        raise ValueError("A probability is not a finite number.")
    return truth, values


def _positive_index(classes: Sequence[str], positive_class: str | None) -> int | None:
    if len(classes) != 2 or not positive_class:
        return None
    return list(classes).index(positive_class)


def _one_class(index: int, truth: Labels, values: Probabilities, confusion: NDArray[np.int64]) -> dict[str, Any]:
    hits = int(confusion[index, index])
    actual, called, total = int(confusion[index].sum()), int(confusion[:, index].sum()), int(confusion.sum())
    recall = _ratio(hits, actual)
    return {
        "n": actual,
        "precision": _ratio(hits, called),
        "recall": recall,
        "sensitivity": recall,
        "specificity": _ratio(total - actual - called + hits, total - actual),
        "f1": _ratio(2 * hits, actual + called),
        "auc": roc_auc(truth == index, values[:, index]),
        "average_precision": average_precision(truth == index, values[:, index]),
    }


def _macro(per_class: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the classes with images. A class never called counts with precision 0."""
    present = [{**row, "precision": row["precision"] or 0.0} for row in per_class if row["n"]]
    return {name: _mean([row[name] for row in present]) for name in _SUMMARY}


def _warnings(result: dict[str, Any], called: NDArray[np.int64]) -> list[str]:
    if not result["n"]:
        return ["There are no images to evaluate on."]
    warnings = [
        f"There are no images of class {row['class']} in this set; figures that need it are left out."
        for row in result["per_class"]
        if not row["n"]
    ]
    if len(called) == 1:
        warnings.append(f"Collapsed to one class: every image was called {result['classes'][called[0]]}.")
    return warnings + _learning_warnings(result)


def _learning_warnings(result: dict[str, Any]) -> list[str]:
    auc = result["auc"]
    if auc is None:
        return []
    margin = _chance_margin(result["per_class"], result["n"])
    if auc < min(1 - WEAK_AUC, 0.5 - margin):
        return [f"Worse than guessing: an area under the ROC curve of {auc:.2f}, as if the classes were exchanged."]
    if auc < WEAK_AUC:
        return [f"Did not learn: an area under the ROC curve of {auc:.2f} is not much better than guessing (0.50)."]
    if auc < 0.5 + margin:
        return [
            f"Too few test images ({result['n']}) to tell the model from guessing: with so few, luck alone reaches an "
            f"area under the ROC curve of {auc:.2f}. Test it on more images."
        ]
    return []


def _chance_margin(per_class: list[dict[str, Any]], total: int) -> float:
    """How far above 0.5 the AUC of pure guessing gets by luck (1.96 standard errors under the null hypothesis).

    Variance (m + n + 1) / (12 m n) of Mann and Whitney, for the smallest class against the rest.
    """
    smallest = min((row["n"] for row in per_class if row["n"]), default=0)
    rest = total - smallest
    if not smallest or not rest:
        return 0.0
    return 1.96 * math.sqrt((total + 1) / (12 * smallest * rest))


def _mid_ranks(scores: Probabilities) -> Probabilities:
    """Ranks from 1; equal scores share the mean of their ranks."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
