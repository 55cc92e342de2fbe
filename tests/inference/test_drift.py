"""Drift: the figures agree with scipy, and alarms without drift are as rare, and with drift as frequent, as is said."""

import math

import numpy as np
import pytest
from scipy import special, stats

from inference import drift
from inference.measures import Distribution


def reference(values):
    return Distribution.of(np.asarray(values, np.float64))


def test_the_index_is_that_of_the_formula():
    """Ten bins of 10 images each; the sample has 30 in the first and none in two: with half an image added to each."""
    known = reference(np.arange(100.0))
    sample = np.concatenate([np.full(30, 5.0), np.arange(10.0, 80.0)])
    found = drift.stability(known, sample)
    p = (np.array([30, *[10] * 7, 0, 0]) + 0.5) / 105
    q = np.full(10, 0.1)
    assert found.value == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert found.shares == pytest.approx([0.3, *[0.1] * 7, 0, 0])
    assert found.expected == pytest.approx([0.1] * 10)
    assert found.low < found.value < found.high


def test_the_same_images_have_no_drift_and_an_empty_bin_is_not_infinite():
    values = np.random.default_rng(1).normal(size=400)
    same = drift.compare(reference(values), values)
    assert same.stability.value == pytest.approx(0, abs=1e-6)
    assert same.distance.value < 0.01
    other = drift.compare(reference(values), values + 100)
    assert math.isfinite(other.stability.value) and other.stability.value > 5
    assert other.distance.value == 1.0


def test_a_value_that_most_images_have_gets_a_bin_of_its_own():
    """The width of every image of a scanner, say: smaller ones are noticed as well as larger ones."""
    known = reference(np.full(200, 1024.0))
    assert drift.compare(known, np.full(100, 1024.0)).stability.value == pytest.approx(0, abs=0.01)
    assert drift.compare(known, np.full(100, 512.0)).stability.value > 1
    assert drift.compare(known, np.full(100, 2048.0)).stability.value > 1


def test_probabilities_are_rounded_as_those_of_the_reference():
    """A network that is sure says 0.9999999, and the reference kept 1."""
    assert drift.significant(np.array([0.99999994, 0.1234567, 0.0, -1234567.0, 3e-9])).tolist() == [
        1.0,
        0.123457,
        0.0,
        -1234570.0,
        3e-9,
    ]
    known = reference(np.full(100, 0.99999994))
    assert drift.compare(known, np.full(100, 0.99999991)).stability.value == pytest.approx(0, abs=0.01)


def test_few_images_are_not_compared_and_numbers_that_are_none_are_left_out():
    known = reference(np.arange(100.0))
    few = drift.compare(known, np.arange(drift.FEW - 1.0))
    assert few.too_few and few.to_json() == {"count": drift.FEW - 1, "reference_count": 100, "psi": None, "ks": None}
    assert drift.compare(None, np.arange(100.0)).too_few
    assert drift.compare(reference(np.arange(10.0)), np.arange(100.0)).too_few
    assert drift.compare(known, [*np.arange(60.0), math.nan, math.inf]).count == 60


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 10, 25])
@pytest.mark.parametrize("value", [0.01, 1.0, 9.0, 40.0, 200.0])
def test_the_chi_square_tail_is_scipys(value, freedom):
    assert drift.chi_square_tail(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom), rel=1e-9, abs=1e-300)


def test_the_chi_square_quantile_is_scipys():
    for freedom in (1, 4, 9, 18):
        assert drift.chi_square_quantile(0.95, freedom) == pytest.approx(stats.chi2.ppf(0.95, freedom), rel=1e-9)


@pytest.mark.parametrize("sizes", [(50, 50), (60, 55), (30, 80)])
def test_the_distance_and_its_exact_p_value_are_scipys(sizes):
    random = np.random.default_rng(sum(sizes))
    for shift in (0.0, 0.4, 1.0):
        first, second = random.normal(size=sizes[0]), random.normal(shift, size=sizes[1])
        found = drift.distance(Distribution(len(first), tuple(sorted(first))), second)
        known = stats.ks_2samp(first, second, method="exact")
        assert found.exact
        assert found.value == pytest.approx(known.statistic)
        assert found.p == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)


def test_the_p_value_of_many_images_is_near_the_exact_one():
    random = np.random.default_rng(3)
    first = random.normal(size=400)
    for shift in (0.0, 0.1, 0.2):
        second = random.normal(shift, size=300)
        found = drift.distance(reference(first), second)
        known = stats.ks_2samp(first, second, method="exact")
        assert not found.exact
        assert found.p == pytest.approx(known.pvalue, rel=0.12, abs=1e-4)


def test_kolmogorovs_limit_is_scipys():
    for value in (0.05, 0.1, 0.2):
        root = math.sqrt(200 * 300 / 500)
        scaled = value * (root + 0.12 + 0.11 / root)
        assert drift.limit_tail(value, 200, 300) == pytest.approx(special.kolmogorov(scaled), rel=1e-9)
    assert drift.limit_tail(0.0, 200, 300) == 1.0


def test_quantiles_of_a_large_reference_serve_as_well_as_all_of_it():
    random = np.random.default_rng(4)
    values, sample = random.normal(size=20_000), random.normal(0.3, size=500)
    known = reference(values)
    assert len(known.values) == 1000
    found = drift.distance(known, sample)
    assert found.value == pytest.approx(stats.ks_2samp(values, sample).statistic, abs=0.002)
    assert drift.stability(known, sample).value == pytest.approx(
        float(drift._index(*_counts(values, sample))), abs=0.01
    )


def _counts(values, sample):
    edges = np.quantile(values, np.arange(1, 10) / 10)
    return drift.binned(sample, edges), drift.binned(values, edges)


@pytest.mark.parametrize(("known", "seen"), [(60, 50), (200, 100), (1000, 400)])
def test_alarms_without_drift_are_as_rare_as_is_said(known, seen):
    """Of 400 weeks without drift one in twenty lies beyond `by_chance`; the tests are not below 0.05 more often."""
    random = np.random.default_rng(known)
    beyond = psi = ks = covered = 0
    weeks = 400
    for _ in range(weeks):
        found = drift.compare(reference(random.gamma(2, size=known)), random.gamma(2, size=seen))
        beyond += found.stability.value > found.stability.by_chance
        psi += found.stability.p < 0.05
        ks += found.distance.p < 0.05
        covered += found.distance.low == 0
    # Two and a half standard errors of a share of 0.05.
    most = 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / weeks)
    assert beyond / weeks <= most and psi / weeks <= most and ks / weeks <= most
    assert beyond == psi
    assert covered / weeks >= 0.95


def test_decisive_alarms_without_drift_hardly_ever_come():
    random = np.random.default_rng(8)
    weeks, alarms = 1000, 0
    for _ in range(weeks):
        counts = random.multinomial(120, [0.1] * 10)
        expected = random.multinomial(300, [0.1] * 10)
        value = float(drift._index(counts, expected)) / (1 / 120 + 1 / 300)
        alarms += drift.chi_square_tail(value, 9) < drift.DECISIVE_P
    assert alarms <= 5


@pytest.mark.parametrize(("shift", "least"), [(0.5, 0.8), (1.0, 0.999)])
def test_a_real_shift_is_found(shift, least):
    """Of half a standard deviation, with 150 images a week against 300 of validation, at the decisive p value."""
    random = np.random.default_rng(9)
    weeks, found = 200, 0
    for _ in range(weeks):
        comparison = drift.compare(reference(random.normal(size=300)), random.normal(shift, size=150))
        found += comparison.distance.p < drift.DECISIVE_P
    assert found / weeks >= least


def test_the_interval_of_the_index_holds_the_true_one():
    """Two distributions over ten bins whose index is known; of 300 weeks at least nine in ten intervals hold it."""
    random = np.random.default_rng(10)
    q = np.full(10, 0.1)
    p = np.array([0.2, 0.16, 0.12, 0.1, 0.1, 0.08, 0.08, 0.06, 0.05, 0.05])
    true = float(((p - q) * np.log(p / q)).sum())
    held = 0
    for _ in range(300):
        known = reference(np.repeat(np.arange(10.0), 60))
        sample = random.choice(10, 300, p=p).astype(float)
        found = drift.stability(known, sample)
        held += found.low <= true <= found.high
    assert held / 300 >= 0.9


def test_the_same_week_gives_the_same_interval():
    random = np.random.default_rng(11)
    known, sample = reference(random.normal(size=200)), random.normal(size=100)
    assert drift.compare(known, sample) == drift.compare(known, sample)
