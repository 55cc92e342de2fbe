"""ROC and precision-recall curves as points to draw, in plain numpy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from registry.statistics import average_precision, hits_and_alarms, roc_auc

Points = NDArray[np.float64]

DRAWN = 200
_GRID = np.linspace(0.0, 1.0, DRAWN + 1)


@dataclass(frozen=True)
class Curve:
    """Points (K,) from the highest threshold down, and the area under all of them.

    ROC: x the false and y the true positive rate. Precision-recall: x the recall and y the precision. `thresholds`
    (K,) begins with infinity, where nothing is called positive; it is empty for a mean of several curves.
    """

    x: Points
    y: Points
    thresholds: Points
    area: float

    def thinned(self, points: int = DRAWN) -> "Curve":
        """At most `points` points that keep the shape.

        They lie at equal steps along the curve, so that no left-out point is further from the drawn line than the
        length of the curve (|dx| + |dy|, 2 for a ROC curve) divided by `points`. The area stays that of all points.
        """
        if len(self.x) <= points:
            return self
        steps = np.abs(np.diff(self.x)) + np.abs(np.diff(self.y))
        along = np.concatenate(([0.0], steps.cumsum()))
        kept = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], points)))
        return Curve(self.x[kept], self.y[kept], self.thresholds[kept] if len(self.thresholds) else _NONE, self.area)


_NONE: Points = np.empty(0)


def roc_curve(positive: ArrayLike, scores: ArrayLike) -> Curve | None:
    """Sensitivity against 1 - specificity at every distinct score as threshold (`score >= threshold`), from (0, 0).

    positive (N,): true where positive. scores (N,). The area is `statistics.roc_auc`. None when either side is empty.
    """
    truth, values = np.asarray(positive).astype(bool), np.asarray(scores, np.float64)
    area = roc_auc(truth, values)
    if area is None:
        return None
    hits, alarms, thresholds = hits_and_alarms(truth, values)
    return Curve(
        np.concatenate(([0.0], alarms / alarms[-1])),
        np.concatenate(([0.0], hits / hits[-1])),
        np.concatenate(([np.inf], thresholds)),
        area,
    )


def pr_curve(positive: ArrayLike, scores: ArrayLike) -> Curve | None:
    """Precision against recall at every distinct score as threshold, from recall 0, where the precision is set to 1.

    Arguments as in `roc_curve`. The area is `statistics.average_precision`, steps without interpolation (Davis and
    Goadrich 2006 show why straight lines would flatter). None without positives.
    """
    truth, values = np.asarray(positive).astype(bool), np.asarray(scores, np.float64)
    area = average_precision(truth, values)
    if area is None:
        return None
    hits, alarms, thresholds = hits_and_alarms(truth, values)
    return Curve(
        np.concatenate(([0.0], hits / hits[-1])),
        np.concatenate(([1.0], hits / (hits + alarms))),
        np.concatenate(([np.inf], thresholds)),
        area,
    )


def mean_roc(curves: Sequence[Curve]) -> Curve:
    """The macro ROC curve: mean true positive rate at each false positive rate (Fawcett 2006), area the mean area."""
    heights = [np.interp(_GRID, curve.x, curve.y) for curve in curves]
    # A ROC curve rises straight up from (0, 0); interpolation at 0 finds the top of that rise.
    return Curve(
        np.concatenate(([0.0], _GRID)),
        np.concatenate(([0.0], np.mean(heights, axis=0))),
        _NONE,
        float(np.mean([curve.area for curve in curves])),
    )


def mean_pr(curves: Sequence[Curve]) -> Curve:
    """The macro precision-recall curve: mean precision at each recall, by the steps that make the area; mean area."""
    heights = [curve.y[np.searchsorted(curve.x, _GRID)] for curve in curves]
    return Curve(_GRID, np.mean(heights, axis=0), _NONE, float(np.mean([curve.area for curve in curves])))
