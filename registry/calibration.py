"""Do probabilities mean what they say? Temperature scaling, calibration error, Brier score and log loss, plain numpy.

Every figure is None where there are no images, never NaN.
"""

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]

BINS = 10
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
# A float32 softmax rounds to 0 what is below its smallest number; a logarithm needs that number instead.
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
_SMALLEST_IN_LOG_LOSS = float(np.finfo(np.float64).eps)
_HALVINGS = 60


class Bin(TypedDict):
    """Images whose confidence lies in (low, high]; confidence and observed are means, None in an empty bin."""

    low: float
    high: float
    n: int
    confidence: float | None
    observed: float | None


def fit_temperature(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The temperature T that makes softmax(log p / T) most probable: least log loss on validation (Guo et al. 2017).

    labels (N,): index of the class. probabilities (N, C) as the network gave them. The loss is convex in 1 / T, so
    its slope is halved down to the one root, between 0.05 and 20; a bound is returned when the root lies beyond it.
    1.0 when there is nothing to fit: no images, one class only, or a set in which every true class has the largest
    probability (the loss would then fall without end as T falls, and every answer become a certain one).
    """
    truth = np.asarray(labels, np.int64).reshape(-1)
    values = np.asarray(probabilities, np.float64)
    if len(np.unique(truth)) < 2:
        return 1.0
    logits = _logarithms(values)
    logits -= logits.max(axis=1, keepdims=True)
    true_logits = logits[np.arange(len(truth)), truth]
    if not true_logits.any():
        return 1.0
    low, high = np.log(1 / HIGHEST_TEMPERATURE), np.log(1 / LOWEST_TEMPERATURE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _slope(logits, true_logits, float(np.exp(middle))) < 0:
            low = middle
        else:
            high = middle
    return float(np.clip(np.exp(-(low + high) / 2), LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE))


def with_temperature(probabilities: ArrayLike, temperature: float) -> Probabilities:
    """softmax(log p / T) of each row: float64 (N, C). The probabilities themselves, unchanged, when T is 1.

    A larger T makes every answer less certain, a smaller one more so; the most probable class stays. A probability of
    0 counts as the smallest float32 (1.4e-45). Raises ValueError when T is not a positive finite number.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"A temperature must be a positive number, not {temperature}.")
    values = np.asarray(probabilities, np.float64)
    if temperature == 1.0:
        return values
    logits = _logarithms(values) / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float64)


def stated_and_observed(
    labels: ArrayLike, probabilities: ArrayLike, positive: int | None = None
) -> tuple[Probabilities, Probabilities]:
    """What calibration compares for each image: a stated probability and whether (1 or 0) it came true; both (N,).

    `positive` (index of the positive class of two): its probability, and whether the image is positive. Otherwise the
    largest probability, and whether that class is the true one (Guo et al. 2017).
    """
    truth = np.asarray(labels, np.int64).reshape(-1)
    values = np.asarray(probabilities, np.float64)
    if positive is not None:
        return values[:, positive], (truth == positive).astype(np.float64)
    return values.max(axis=1), (values.argmax(axis=1) == truth).astype(np.float64)


def bin_of(stated: ArrayLike, bins: int = BINS) -> Labels:
    """The bin of each stated probability (N,): bins of equal width, open below and closed above; 0 is in the first."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.asarray(np.searchsorted(edges[1:-1], np.asarray(stated, np.float64)), np.int64)


def reliability_bins(
    labels: ArrayLike, probabilities: ArrayLike, positive: int | None = None, bins: int = BINS
) -> list[Bin]:
    """The calibration curve (DeGroot and Fienberg 1983): in each bin, how sure the model was and how often it was so.

    Arguments as in `stated_and_observed`. All `bins` bins are returned, from 0 to 1, the empty ones too.
    """
    stated, observed = stated_and_observed(labels, probabilities, positive)
    inside = bin_of(stated, bins)
    counts = np.bincount(inside, minlength=bins)
    sums = np.bincount(inside, stated, bins), np.bincount(inside, observed, bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    return [
        Bin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            n=int(count),
            confidence=float(sums[0][index] / count) if count else None,
            observed=float(sums[1][index] / count) if count else None,
        )
        for index, count in enumerate(counts)
    ]


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, positive: int | None = None, bins: int = BINS
) -> float | None:
    """ECE: the mean over images of their bin's |confidence - observed| (Naeini et al. 2015). None without images."""
    stated, observed = stated_and_observed(labels, probabilities, positive)
    if not len(stated):
        return None
    gaps = np.bincount(bin_of(stated, bins), stated - observed, bins)
    return float(np.abs(gaps).sum() / len(stated))


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Mean squared distance of the probabilities from the truth (Brier 1950): 0 best. None without images.

    Two classes: half of it, which is the mean of (p - y)² of the positive class, 0 to 1. Several: their sum, 0 to 2.
    """
    return _mean(brier_of_each(labels, probabilities))


def brier_of_each(labels: ArrayLike, probabilities: ArrayLike) -> Probabilities:
    """The Brier score of each image alone: (N,)."""
    truth = np.asarray(labels, np.int64).reshape(-1)
    values = np.asarray(probabilities, np.float64)
    squares = ((values - np.eye(values.shape[1])[truth]) ** 2).sum(axis=1)
    return np.asarray(squares / 2 if values.shape[1] == 2 else squares, np.float64)


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Mean of -log p of the true class, in nats (cross-entropy): 0 best. None without images.

    A probability below 2.2e-16 counts as that, so that one certain error does not make the mean infinite.
    """
    return _mean(log_loss_of_each(labels, probabilities))


def log_loss_of_each(labels: ArrayLike, probabilities: ArrayLike) -> Probabilities:
    """The log loss of each image alone: (N,)."""
    truth = np.asarray(labels, np.int64).reshape(-1)
    chosen = np.asarray(probabilities, np.float64)[np.arange(len(truth)), truth]
    return np.asarray(-np.log(np.clip(chosen, _SMALLEST_IN_LOG_LOSS, 1 - _SMALLEST_IN_LOG_LOSS)), np.float64)


def _logarithms(values: Probabilities) -> Probabilities:
    return np.asarray(np.log(np.maximum(values, _SMALLEST)), np.float64)


def _slope(logits: Probabilities, true_logits: Probabilities, inverse_temperature: float) -> float:
    """Derivative of the log loss by 1 / T: the mean logit the model expects less the true class's."""
    powers = np.exp(logits * inverse_temperature)
    expected = (powers * logits).sum(axis=1) / powers.sum(axis=1)
    return float((expected - true_logits).mean())


def _mean(values: Probabilities) -> float | None:
    return float(values.mean()) if len(values) else None
