"""ROC and precision-recall curves agree with scikit-learn, and thinning does not change their shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from registry.curves import mean_pr, mean_roc, pr_curve, roc_curve

EXACT = {"rel": 0, "abs": 1e-12}


def case(seed: int, count: int = 200, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    positive = random.random(count) < 0.4
    return positive, (random.normal(size=count) + positive).round(decimals)


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("seed", range(3))
def test_roc_points_agree_with_scikit_learn(seed, decimals):
    positive, scores = case(seed, decimals=decimals)
    curve = roc_curve(positive, scores)
    false_rate, true_rate, thresholds = reference.roc_curve(positive, scores, drop_intermediate=False)
    assert curve.x == pytest.approx(false_rate, **EXACT)
    assert curve.y == pytest.approx(true_rate, **EXACT)
    assert curve.thresholds.tolist() == thresholds.tolist()
    assert curve.area == pytest.approx(reference.auc(false_rate, true_rate), **EXACT)


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_points_agree_with_scikit_learn(seed, decimals):
    positive, scores = case(seed, decimals=decimals)
    curve = pr_curve(positive, scores)
    precision, recall, thresholds = reference.precision_recall_curve(positive, scores)
    assert curve.x[::-1] == pytest.approx(recall, **EXACT)
    assert curve.y[::-1] == pytest.approx(precision, **EXACT)
    assert curve.thresholds[:0:-1].tolist() == thresholds.tolist()
    assert curve.area == pytest.approx(reference.average_precision_score(positive, scores), **EXACT)


@pytest.mark.parametrize("positive", [[], [True, True], [False, False]])
def test_a_roc_curve_needs_both_sides(positive):
    assert roc_curve(positive, np.zeros(len(positive))) is None


def test_a_precision_recall_curve_needs_positives():
    assert pr_curve([False], [0.5]) is None
    assert pr_curve([True], [0.5]).y.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("draw", [roc_curve, pr_curve])
def test_a_thinned_curve_has_few_points_and_passes_close_to_every_one_left_out(draw):
    curve = draw(*case(0, count=10_000, decimals=12))
    thin = curve.thinned(200)
    assert 100 < len(thin.x) <= 200 == max(200, len(thin.y), len(thin.thresholds))
    assert (thin.x[0], thin.y[0], thin.x[-1], thin.y[-1]) == (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1])
    assert thin.area == curve.area
    length = (np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y))).sum()
    away = np.abs(curve.x[:, None] - thin.x) + np.abs(curve.y[:, None] - thin.y)
    assert away.min(axis=1).max() <= length / 199 + 1e-9 < 0.05


def test_a_short_curve_is_not_thinned():
    curve = roc_curve(*case(0, count=50))
    assert curve.thinned(200) is curve


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40), st.integers(2, 10))
def test_curves_stay_in_the_unit_square_and_roc_never_falls(rows, points):
    positive, scores = [truth for truth, _ in rows], [score for _, score in rows]
    roc, pr = roc_curve(positive, scores), pr_curve(positive, scores)
    for curve in filter(None, (roc, pr)):
        thin = curve.thinned(points)
        assert all(((values >= 0) & (values <= 1)).all() for values in (thin.x, thin.y))
        assert (np.diff(thin.x) >= 0).all() and len(thin.x) <= max(points, 2)
    if roc:
        assert (np.diff(roc.thinned(points).y) >= 0).all()


def test_the_mean_of_one_curve_is_that_curve():
    positive, scores = case(1, count=2000, decimals=12)
    roc, pr = roc_curve(positive, scores), pr_curve(positive, scores)
    mean = mean_roc([roc])
    assert mean.area == roc.area
    assert np.trapezoid(mean.y, mean.x) == pytest.approx(roc.area, abs=2e-3)
    assert np.mean(mean_pr([pr, pr]).y) == pytest.approx(pr.area, abs=1e-2)


def test_the_mean_roc_curve_starts_at_the_corner_and_averages_heights():
    perfect, guess = roc_curve([1, 0], [0.9, 0.1]), roc_curve([1, 0], [0.5, 0.5])
    mean = mean_roc([perfect, guess])
    assert (mean.x[0], mean.y[0], mean.x[-1], mean.y[-1]) == (0, 0, 1, 1)
    assert mean.y[1] == 0.5 and mean.y[101] == pytest.approx(0.75)
    assert mean.area == 0.75 and len(mean.thresholds) == 0
