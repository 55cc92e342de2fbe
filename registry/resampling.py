"""How far would these figures move with other patients? Bootstrap over patients, in plain numpy.

Whole patients are drawn with replacement, as many as there are, so that images of one patient stay together (Efron and
Tibshirani 1993, chapter 8; the cluster bootstrap of Field and Welsh 2007). The same number of patients, resamples and
seed gives the same draws: for two versions on the same images in the same order, differences of replicates are the
paired bootstrap.

A replicate is NaN, and nothing else is, where its resample leaves a figure undefined (a rare class was not drawn).
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry import calibration

Labels = NDArray[np.int64]
Values = NDArray[np.float64]
Counts = NDArray[np.uint16]
Replicates = dict[str, Values]

RESAMPLES = 2000
SEED = 20_517
LOW, HIGH = 2.5, 97.5

# Resamples drawn by one generator and worked on at a time: part of what the seed means, and small enough for the cache.
_BLOCK = 50
_MOST_THREADS = 4


@dataclass(frozen=True)
class Sample:
    """Images to resample: the test set, or one of its subgroups.

    labels, predicted (N,): index of the true and of the decided class. probabilities (N, C). groups (N,): the patient
    of each image, 0 to `patients` - 1 of the whole set. positive: index of the positive class of two, or None.
    brief: only what comes from decisions, and the AUC of the positive class or the mean one; the rest is left out.
    """

    labels: Labels
    predicted: Labels
    probabilities: Values
    groups: Labels
    positive: int | None
    brief: bool = False


def replicates(
    samples: Sequence[Sample], patients: int, resamples: int = RESAMPLES, seed: int = SEED
) -> list[Replicates]:
    """The figures of each sample in every resample, all samples from the same draws.

    For each sample, by name: (B,) accuracy, balanced_accuracy, precision, sensitivity, specificity, f1, mcc,
    quadratic_kappa, auc, average_precision, brier, ece, log_loss as `statistics.classification_metrics` and
    `calibration` define them, and (B, C) under "class_" + name for the six that each class has against the rest. In
    brief samples what would need more than AUC and decisions is NaN.
    """
    plans = [_Plan(sample) for sample in samples]
    results = [_Totals.empty(resamples, plan.classes) for plan in plans]

    def work(block: slice) -> None:
        counts = draw(patients, block, seed)
        for plan, totals in zip(plans, results, strict=True):
            plan.fill(totals, block, counts)

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        list(threads.map(work, _blocks(resamples)))
    return [plan.figures(totals) for plan, totals in zip(plans, results, strict=True)]


def draw(patients: int, block: slice, seed: int) -> Counts:
    """How often each patient is in each resample of one block of `replicates`: (rows, patients), rows sum to patients.

    A block has its own generator, seeded by the seed and its first resample.
    """
    generator = np.random.default_rng([seed, block.start])
    counts = np.zeros((block.stop - block.start, patients), np.uint16)
    for row in counts if patients else ():
        row[:] = np.bincount(generator.integers(0, patients, patients), minlength=patients)
    return counts


def interval(value: float, replicated: Values) -> tuple[float, float]:
    """The 95 % percentile interval of a figure (Efron 1981) from its replicates (B,), those that are NaN left out.

    An interval must contain its estimate. The percentile interval of a biased figure or of one at its bound may not;
    it is then widened to end at the estimate.
    """
    low, high = _percentiles(value, replicated)
    return min(low, value), max(high, value)


def reflected_interval(value: float, replicated: Values) -> tuple[float, float]:
    """The 95 % basic bootstrap interval (Davison and Hinkley 1997, section 5.2.1) of a figure that is never negative.

    For the calibration error. Chance gaps add to it, in the test set and once more in every resample, so that its
    percentile interval lies too high by twice that much; percentiles reflected in the estimate take the second out
    twice. It is widened to contain the estimate. Of a model without any error it still begins a little above 0.
    """
    low, high = _percentiles(value, replicated)
    return min(max(2 * value - high, 0.0), value), max(2 * value - low, value)


def _percentiles(value: float, replicated: Values) -> tuple[float, float]:
    known = replicated[~np.isnan(replicated)]
    if not len(known):
        return value, value
    low, high = np.percentile(known, (LOW, HIGH))
    return float(low), float(high)


def _blocks(resamples: int) -> Iterator[slice]:
    for start in range(0, resamples, _BLOCK):
        yield slice(start, min(start + _BLOCK, resamples))


@dataclass(frozen=True)
class _Totals:
    """What is found in each resample: confusion (B, C, C), areas (2, B, C): AUC and average precision, and sums over
    images: gaps (B, bins) between stated and observed, scores (B, 2): Brier score and log loss.
    """

    confusion: Values
    areas: Values
    gaps: Values
    scores: Values

    @classmethod
    def empty(cls, resamples: int, classes: int) -> "_Totals":
        return cls(
            np.zeros((resamples, classes, classes)),
            np.full((2, resamples, classes), np.nan),
            np.full((resamples, calibration.BINS), np.nan),
            np.full((resamples, 2), np.nan),
        )


class _Plan:
    """What of a sample does not change between resamples: the images sorted into cells, and by scores."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.classes = sample.probabilities.shape[1]
        pairs = sample.labels * self.classes + sample.predicted
        self.pairs = _Cells.of(pairs, sample.groups)
        needed = range(self.classes) if sample.positive is None or not sample.brief else (sample.positive,)
        self.rankings = {
            index: _Ranking.of(sample.labels == index, sample.probabilities[:, index], sample.groups)
            for index in needed
        }
        if not sample.brief:
            stated, observed = calibration.stated_and_observed(sample.labels, sample.probabilities, sample.positive)
            self.bins = _Cells.of(calibration.bin_of(stated), sample.groups)
            self.gaps = (stated - observed)[self.bins.order]
            each = calibration.brier_of_each, calibration.log_loss_of_each
            self.scores = np.stack([of(sample.labels, sample.probabilities)[self.bins.order] for of in each])

    def fill(self, totals: _Totals, block: slice, counts: Counts) -> None:
        pairs = totals.confusion.reshape(-1, self.classes**2)
        pairs[block, self.pairs.found] = self.pairs.sums(counts.take(self.pairs.patients, axis=1))
        for index, ranking in self.rankings.items():
            totals.areas[:, block, index] = ranking.areas(counts)
        if not self.sample.brief:
            weights = counts.take(self.bins.patients, axis=1).astype(np.float64)
            # Not a matrix product: the threads of that library would wait for those of `replicates`.
            totals.scores[block] = np.einsum("rn,kn->rk", weights, self.scores)
            totals.gaps[block] = 0
            totals.gaps[block, self.bins.found] = self.bins.sums(weights * self.gaps)

    def figures(self, totals: _Totals) -> Replicates:
        of_classes = _of_classes(totals.confusion, totals.areas)
        if self.sample.positive is None:
            summary = _macro(of_classes, totals.confusion.sum(axis=2) > 0)
        else:
            summary = {name: values[:, self.sample.positive] for name, values in of_classes.items()}
        images = totals.confusion.sum(axis=(1, 2))
        return {
            **summary,
            **_of_matrix(totals.confusion),
            "ece": _ratio(np.abs(totals.gaps).sum(axis=1), images),
            "brier": _ratio(totals.scores[:, 0], images),
            "log_loss": _ratio(totals.scores[:, 1], images),
            **{f"class_{name}": values for name, values in of_classes.items()},
        }


@dataclass(frozen=True)
class _Cells:
    """Images sorted into cells. order, patients (N,): of the images cell by cell. found, starts (F,): the cells that
    have images, and where each begins.
    """

    order: Labels
    patients: Labels
    found: Labels
    starts: Labels

    @classmethod
    def of(cls, cells: Labels, groups: Labels) -> "_Cells":
        order = np.argsort(cells, kind="stable")
        found, starts = np.unique(cells[order], return_index=True)
        return cls(order, groups[order], found, starts)

    def sums(self, values: NDArray[Any]) -> Values:
        """Sums of values (R, N), images in `order`, over each cell found: (R, F)."""
        return np.add.reduceat(values, self.starts, axis=1, dtype=np.float64)


@dataclass(frozen=True)
class _Ranking:
    """One class against the rest, from the highest score down; equal scores are one step of the curves.

    patients (N,): of each image. positives (P,): places of the positive images. Only steps with positives matter:
    ends (K,) is the last of each in `positives`, first and last (K,) are its first and last image.
    """

    patients: Labels
    positives: Labels
    ends: Labels
    first: Labels
    last: Labels

    @classmethod
    def of(cls, positive: NDArray[np.bool_], scores: Values, groups: Labels) -> "_Ranking":
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        step = np.cumsum(np.diff(falling, prepend=falling[:1]) != 0)
        positives = np.flatnonzero(positive[order])
        steps = np.unique(step[positives])
        return cls(
            groups[order],
            positives,
            np.searchsorted(step[positives], steps, side="right") - 1,
            np.searchsorted(step, steps),
            np.searchsorted(step, steps, side="right") - 1,
        )

    def areas(self, counts: Counts) -> tuple[Values, Values]:
        """The area under the ROC curve and the average precision of each row of counts (R, patients): two of (R,).

        A positive wins against the negatives below its step, and half against those in it. With a and b images before
        a step and through it, h hits through it, g of them in it, n negatives and p positives of all, it beats
        n - (a + b - 2 h + g) / 2 negatives; g (2 h - g) summed over the steps is p squared.
        """
        if not len(self.positives):
            return np.full(len(counts), np.nan), np.full(len(counts), np.nan)
        weights = counts.take(self.patients, axis=1)
        seen = weights.cumsum(axis=1, dtype=np.int32)
        hits = weights.take(self.positives, axis=1).cumsum(axis=1, dtype=np.int32).take(self.ends, axis=1)
        gained = hits.astype(np.float64)
        gained[:, 1:] -= hits[:, :-1]
        through = seen.take(self.last, axis=1)
        before = seen.take(np.maximum(self.first - 1, 0), axis=1)
        before[:, self.first == 0] = 0
        positives = hits[:, -1].astype(np.float64)
        negatives = seen[:, -1] - positives
        lost = np.einsum("rk,rk->r", gained, before + through) - positives**2
        precisions = np.einsum("rk,rk->r", gained, hits / np.maximum(through, 1))
        return 1 - _ratio(lost, 2 * positives * negatives), _ratio(precisions, positives)


def _of_classes(confusion: Values, areas: Values) -> Replicates:
    """Each class against the rest, (B, C)."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    actual, called = confusion.sum(axis=2), confusion.sum(axis=1)
    total = confusion.sum(axis=(1, 2))[:, None]
    return {
        "precision": _ratio(hits, called),
        "sensitivity": _ratio(hits, actual),
        "specificity": _ratio(total - actual - called + hits, total - actual),
        "f1": _ratio(2 * hits, actual + called),
        "auc": areas[0],
        "average_precision": areas[1],
    }


def _macro(of_classes: Replicates, present: NDArray[np.bool_]) -> Replicates:
    """Means over the classes with images. A class never called counts with precision 0."""
    precision = np.nan_to_num(of_classes["precision"])
    return {name: _mean(values, present) for name, values in {**of_classes, "precision": precision}.items()}


def _of_matrix(confusion: Values) -> Replicates:
    """Figures of the whole confusion matrix, (B,)."""
    hits = np.trace(confusion, axis1=1, axis2=2)
    actual, called, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    recall = _ratio(np.diagonal(confusion, axis1=1, axis2=2), actual)
    spread = (total**2 - (actual**2).sum(axis=1)) * (total**2 - (called**2).sum(axis=1))
    grades = np.arange(confusion.shape[1])
    distance = ((grades[:, None] - grades) ** 2).astype(np.float64)
    disagreement = np.einsum("bij,ij->b", confusion, distance)
    by_chance = np.einsum("bi,ij,bj->b", actual, distance, called, optimize=True)
    return {
        "accuracy": _ratio(hits, total),
        "balanced_accuracy": _mean(recall, actual > 0),
        "mcc": _ratio(hits * total - (actual * called).sum(axis=1), np.sqrt(spread)),
        "quadratic_kappa": 1 - _ratio(disagreement * total, by_chance),
    }


def _ratio(part: Values, whole: Values) -> Values:
    """Part / whole, NaN where whole is 0."""
    undefined = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    return np.asarray(np.divide(part, whole, out=undefined, where=whole != 0), np.float64)


def _mean(values: Values, present: NDArray[np.bool_]) -> Values:
    """Mean over the present classes whose figure is known, (B, C) -> (B,); NaN when there is none."""
    known = present & ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1))
