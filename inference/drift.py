"""Have the images or the answers become others than those a version was validated on? Figures and tests, in numpy.

A reference is a `measures.Distribution`: the values of one number on validation, or quantiles of them. All tests here
take images as independent of each other. Where patients come with several images, chance differences are larger than
is said, so that nothing should be decided by a p value just below 0.05; see `DECISIVE_P`.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .measures import KEPT_VALUES, Distribution

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BINS: Final = 10
# Images on either side below which nothing is said.
FEW: Final = 50
# Answers or verdicts below which no share is judged.
FEW_FOR_SHARES: Final = 20
# Whoever looks again and again finds a chance difference sooner or later: what is told needs a p value, corrected for
# the number of figures, below this one (Haybittle 1971; Peto et al. 1976). Of 52 weeks without any drift a chance
# difference is then told in at most one year of twenty.
DECISIVE_P: Final = 0.001
# Probabilities of a few images lie below any that a larger sample has; half an image is added to each bin.
HALF: Final = 0.5
DIGITS: Final = 6
RESAMPLED: Final = 500
SEED: Final = 20_260_101
# Pairs of sample sizes up to this product have an exact p value: the loop over the paths stays short.
EXACT_UP_TO: Final = 4000
TERMS: Final = 100


@dataclass(frozen=True)
class Stability:
    """The population stability index of a sample against a reference.

    low, high: bootstrap interval of 95 %, less the bias, not below 0. by_chance: what one sample in twenty without any
    drift exceeds. p: the chance of so large an index without drift. shares, expected (B,): of the sample and of the
    reference in each bin. edges (B - 1,): between the bins; each belongs to the bin on its left.
    """

    value: float
    low: float
    high: float
    by_chance: float
    p: float
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    expected: tuple[float, ...]


@dataclass(frozen=True)
class Distance:
    """The largest distance of two cumulative distributions, 0..1 (Kolmogorov and Smirnov).

    low, high: interval of 95 % by the inequality of Dvoretzky, Kiefer and Wolfowitz. exact: how p was found.
    """

    value: float
    low: float
    high: float
    p: float
    exact: bool


@dataclass(frozen=True)
class Comparison:
    """A sample against its reference. stability, distance: None where `too_few`."""

    count: int
    reference_count: int
    stability: Stability | None = None
    distance: Distance | None = None

    @property
    def too_few(self) -> bool:
        return self.stability is None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"count": self.count, "reference_count": self.reference_count, "psi": None, "ks": None}
        if self.stability is not None and self.distance is not None:
            found["psi"] = {name: _plain(value) for name, value in vars(self.stability).items()}
            found["ks"] = dict(vars(self.distance))
        return found


def compare(reference: Distribution | None, sample: ArrayLike) -> Comparison:
    """sample (N,): what is not finite is left out. Fewer than FEW images on a side are not compared."""
    values = np.asarray(sample, np.float64).reshape(-1)
    values = significant(values[np.isfinite(values)])
    known = 0 if reference is None else reference.count
    if reference is None or min(known, len(values)) < FEW:
        return Comparison(len(values), known)
    return Comparison(len(values), known, stability(reference, values), distance(reference, values))


def significant(values: Floats) -> Floats:
    """Rounded to the digits that a `Distribution` has, so that equal values of both fall into one bin."""
    magnitude = np.zeros_like(values)
    filled = values != 0
    magnitude[filled] = np.floor(np.log10(np.abs(values[filled])))
    # 10^22 is the largest power of ten that is exact; smaller values than that leaves are one bin in any case.
    factor = 10.0 ** np.clip(DIGITS - 1 - magnitude, -22, 22)
    return np.asarray(np.round(values * factor) / factor, np.float64)


# --- Population stability index --------------------------------------------------------------------------------------


def stability(reference: Distribution, sample: Floats) -> Stability:
    """PSI = sum over the bins of (p - q) ln(p / q), p and q the shares of the sample and of the reference.

    This is the symmetric divergence of Kullback and Leibler (1951) of the binned values. The bins are those between the
    deciles of the reference; a value that is a decile several times gets a bin of its own. Half an image is added to
    each bin of both, because the index of an empty bin is infinite. Without drift PSI / (1 / n + 1 / m) follows nearly
    a chi-square distribution with B - 1 degrees of freedom (Yurdakul and Naranjo 2020), from which p and what chance
    reaches; the interval is that of percentiles of RESAMPLED draws of both sides with a fixed seed, less (B - 1)
    (1 / n + 1 / m), by which drawing again makes the index larger. sample (N,), not empty.
    """
    known = np.asarray(reference.values, np.float64)
    edges = decile_edges(known)
    counts, expected = binned(sample, edges), _scaled(binned(known, edges), reference.count)
    bins, unit = len(counts), 1 / len(sample) + 1 / reference.count
    value = float(_index(counts, expected))
    low, high = _resampled(counts, expected, (bins - 1) * unit)
    return Stability(
        value,
        min(low, value),
        max(high, value),
        unit * chi_square_quantile(0.95, bins - 1),
        chi_square_tail(value / unit, bins - 1),
        tuple(edges.tolist()),
        tuple((counts / counts.sum()).tolist()),
        tuple((expected / expected.sum()).tolist()),
    )


def decile_edges(values: Floats, bins: int = BINS) -> Floats:
    """Inner edges, rising: quantiles of `values` at 1 / bins, 2 / bins, ...; each belongs to the bin on its left.

    An edge that is several quantiles at once is a value that many images have: it gets a bin for itself.
    """
    quantiles = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    edges, times = np.unique(quantiles, return_counts=True)
    below = np.nextafter(edges[times > 1], -np.inf)
    return np.unique(np.concatenate([edges, below]))


def binned(values: Floats, edges: Floats) -> Counts:
    """How many values lie in each of the len(edges) + 1 bins, the outer ones open."""
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)


def _scaled(counts: Counts, total: int) -> Floats:
    """Counts of quantiles as those of all the images that they stand for."""
    return np.asarray(counts * (total / counts.sum()), np.float64)


def _index(counts: ArrayLike, expected: ArrayLike) -> Any:
    """PSI of counts (..., B) of both sides: float64 (...)."""
    p, q = _shares(counts), _shares(expected)
    return ((p - q) * np.log(p / q)).sum(axis=-1)


def _shares(counts: ArrayLike) -> Floats:
    filled = np.asarray(counts, np.float64) + HALF
    return np.asarray(filled / filled.sum(axis=-1, keepdims=True), np.float64)


def _resampled(counts: Counts, expected: Floats, bias: float) -> tuple[float, float]:
    random = np.random.default_rng(SEED)
    total, known = int(counts.sum()), round(float(expected.sum()))
    drawn = random.multinomial(total, counts / total, RESAMPLED)
    drawn_expected = random.multinomial(known, expected / expected.sum(), RESAMPLED)
    low, high = np.quantile(_index(drawn, drawn_expected) - bias, [0.025, 0.975])
    return max(0.0, float(low)), max(0.0, float(high))


def chi_square_tail(value: float, freedom: int) -> float:
    """The chance that a chi-square variable exceeds `value` (Abramowitz and Stegun 26.4.4 and 26.4.5)."""
    half = value / 2
    if half <= 0 or freedom < 1:
        return 1.0
    is_odd = freedom % 2
    tail = math.erfc(math.sqrt(half)) if is_odd else math.exp(-half)
    for count in range(1 if is_odd else 2, freedom, 2):
        tail += math.exp(count / 2 * math.log(half) - half - math.lgamma(count / 2 + 1))
    return min(1.0, tail)


@cache
def chi_square_quantile(share: float, freedom: int) -> float:
    """The value that a chi-square variable does not exceed with this chance, by bisection; 0 without freedom."""
    if freedom < 1:
        return 0.0
    low, high = 0.0, 10.0 * freedom + 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - chi_square_tail(middle, freedom) < share else (low, middle)
    return high


# --- Kolmogorov and Smirnov ------------------------------------------------------------------------------------------


def distance(reference: Distribution, sample: Floats) -> Distance:
    """sup |F - G| of the sample (N,) and the reference.

    p: exact (Hodges 1958) for a small sample against a small reference of which every value is kept; else Kolmogorov's
    limit distribution with the correction of Stephens (1970). With ties both are careful: too large rather than too
    small. The interval: each cumulative distribution is known within sqrt(ln(2 / a) / (2 n)) with chance 1 - a
    (Dvoretzky, Kiefer and Wolfowitz 1956; Massart 1990), here 2.5 % for each side, plus what quantiles leave open.
    """
    known = np.asarray(reference.values, np.float64)
    value = _largest_gap(known, sample)
    first, second = reference.count, len(sample)
    kept_all = len(known) == first
    open_by = _band(first) + _band(second) + (0.0 if kept_all else 1 / KEPT_VALUES)
    exact = kept_all and first * second <= EXACT_UP_TO
    p = exact_tail(value, first, second) if exact else limit_tail(value, first, second)
    return Distance(value, max(0.0, value - open_by), min(1.0, value + open_by), p, exact)


def _largest_gap(first: Floats, second: Floats) -> float:
    every = np.concatenate([first, second])
    below_first = np.searchsorted(np.sort(first), every, side="right") / len(first)
    below_second = np.searchsorted(np.sort(second), every, side="right") / len(second)
    return float(np.abs(below_first - below_second).max())


def _band(count: int, error: float = 0.025) -> float:
    return math.sqrt(math.log(2 / error) / (2 * count))


def limit_tail(value: float, first: int, second: int) -> float:
    """Kolmogorov's limit 2 sum (-1)^(j - 1) exp(-2 j^2 x^2), x = D (r + 0.12 + 0.11 / r), r = sqrt(nm / (n + m))."""
    root = math.sqrt(first * second / (first + second))
    scaled = value * (root + 0.12 + 0.11 / root)
    if scaled < 0.2:
        # The series converges slowly there, and the chance differs from 1 by less than 1e-11.
        return 1.0
    terms = np.arange(1, TERMS)
    total = 2 * float((np.where(terms % 2, 1.0, -1.0) * np.exp(-2.0 * (terms * scaled) ** 2)).sum())
    return min(1.0, max(0.0, total))


def exact_tail(value: float, first: int, second: int) -> float:
    """The chance of a distance of at least `value` between samples of these sizes from one continuous distribution.

    The share of all ways of mixing both samples in which it is reached (Hodges 1958, as lattice paths).
    """
    most = value * first * second - 0.5
    ways = np.zeros(second + 1)
    ways[0] = 1.0
    across = np.arange(second + 1)
    for row in range(first + 1):
        inside = np.abs(row * second - across * first) < most
        for column in range(second + 1):
            # The chance that a random mixture is at (row, column) and was inside until there.
            from_left = ways[column - 1] * column / (row + column) if column else 0.0
            from_below = ways[column] * row / (row + column) if row else 0.0
            start = 1.0 if row == column == 0 else 0.0
            ways[column] = (start + from_left + from_below) if inside[column] else 0.0
    return float(min(1.0, max(0.0, 1 - ways[second])))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
