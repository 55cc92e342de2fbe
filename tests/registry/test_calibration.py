"""Temperature scaling and the figures of calibration: as published, as in scikit-learn, and defined for every input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from registry.calibration import (
    brier,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    reliability_bins,
    with_temperature,
)

EXACT = {"rel": 0, "abs": 1e-12}


def answers(seed: int, count: int, classes: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from calibrated probabilities, and those probabilities made sharper (overconfident) or blunter."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, classes))
    calibrated = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (random.random((count, 1)) > calibrated.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    powers = np.exp(logits * sharpness)
    return labels, powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("sharpness", "classes"), [(3.0, 2), (0.5, 2), (2.0, 5)])
def test_the_fitted_temperature_undoes_overconfidence_and_its_reverse(sharpness, classes):
    labels, probabilities = answers(0, 20_000, classes, sharpness)
    temperature = fit_temperature(labels, probabilities)
    assert temperature == pytest.approx(sharpness, rel=0.05)
    after = with_temperature(probabilities, temperature)
    assert expected_calibration_error(labels, after) < 0.02 < expected_calibration_error(labels, probabilities)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_temperature_has_a_smaller_log_loss(seed):
    labels, probabilities = answers(seed, 100, 3, 2.0)
    best = log_loss(labels, with_temperature(probabilities, fit_temperature(labels, probabilities)))
    others = [log_loss(labels, with_temperature(probabilities, t)) for t in np.geomspace(0.05, 20, 200)]
    assert best <= min(others) + 1e-12


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        ([], np.zeros((0, 2))),
        ([1, 1], [[0.4, 0.6], [0.7, 0.3]]),
        ([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]]),
    ],
    ids=["no images", "one class", "all right, which no temperature makes certain enough", "all alike"],
)
def test_a_temperature_that_cannot_be_fitted_is_one(labels, probabilities):
    assert fit_temperature(labels, probabilities) == 1.0


def test_the_temperature_stays_within_its_bounds():
    backwards = [[0.1, 0.9], [0.9, 0.1]] * 10
    assert fit_temperature([0, 1] * 10, backwards) == pytest.approx(20)
    timid = np.array([[0.5001, 0.4999], [0.4999, 0.5001]] * 10 + [[0.5001, 0.4999]])
    assert fit_temperature([0, 1] * 10 + [1], timid) == pytest.approx(0.05)


def test_temperature_one_changes_nothing_at_all():
    _, probabilities = answers(0, 50, 3)
    assert with_temperature(probabilities, 1.0).tobytes() == probabilities.tobytes()


def test_a_temperature_divides_the_logits():
    logits = np.array([[2.0, -1.0, 0.5]])
    halved = np.exp(logits / 2) / np.exp(logits / 2).sum()
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert with_temperature(softmax, 2.0) == pytest.approx(halved, **EXACT)


def test_a_certain_answer_becomes_less_certain_and_stays_finite():
    softened = with_temperature([[1.0, 0.0], [0.0, 1.0]], 20.0)
    assert np.isfinite(softened).all() and 0 < softened[0, 1] < 0.5
    assert softened.sum(axis=1) == pytest.approx([1, 1], **EXACT)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="positive number"):
        with_temperature([[0.5, 0.5]], temperature)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(any), min_size=1, max_size=20),
    st.floats(0.05, 20),
)
def test_every_temperature_gives_probabilities_and_keeps_the_decision(rows, temperature):
    probabilities = np.array(rows) / np.sum(rows, axis=1, keepdims=True)
    scaled = with_temperature(probabilities, temperature)
    assert np.isfinite(scaled).all()
    assert scaled.sum(axis=1) == pytest.approx(np.ones(len(rows)), **EXACT)
    decided = probabilities.argmax(axis=1)
    assert scaled[np.arange(len(rows)), decided] == pytest.approx(scaled.max(axis=1), **EXACT)


@pytest.mark.parametrize("classes", [2, 5])
def test_brier_score_and_log_loss_agree_with_scikit_learn(classes):
    labels, probabilities = answers(1, 300, classes, 2.0)
    names = list(range(classes))
    assert log_loss(labels, probabilities) == pytest.approx(
        reference.log_loss(labels, probabilities, labels=names), **EXACT
    )
    assert brier(labels, probabilities) == pytest.approx(
        reference.brier_score_loss(labels, probabilities, labels=names), **EXACT
    )


def test_a_certain_error_does_not_make_the_log_loss_infinite():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert log_loss([1, 1], certain) == pytest.approx(reference.log_loss([1, 1], certain, labels=[0, 1]), **EXACT)


@pytest.mark.parametrize("decimals", [1, 12], ids=["all on the edges of bins", "none"])
def test_the_curve_of_the_positive_class_agrees_with_scikit_learn(decimals):
    labels, probabilities = answers(2, 500, 2)
    probabilities = probabilities.round(decimals)
    bins = [row for row in reliability_bins(labels, probabilities, 1) if row["n"]]
    observed, stated = calibration_curve(labels, probabilities[:, 1], n_bins=10)
    assert [row["observed"] for row in bins] == pytest.approx(observed, **EXACT)
    assert [row["confidence"] for row in bins] == pytest.approx(stated, **EXACT)


def test_the_calibration_error_is_the_gap_of_the_bins_weighted_by_their_images():
    labels, probabilities = answers(3, 200, 4, 2.0)
    bins = [row for row in reliability_bins(labels, probabilities) if row["n"]]
    gaps = sum(row["n"] * abs(row["confidence"] - row["observed"]) for row in bins) / 200
    assert expected_calibration_error(labels, probabilities) == pytest.approx(gaps, **EXACT)


def test_the_calibration_error_by_hand():
    # Two images at 0.8 of which one is right, one at 0.6 that is right: (2 * 0.3 + 1 * 0.4) / 3.
    probabilities = [[0.8, 0.2], [0.8, 0.2], [0.6, 0.4]]
    assert expected_calibration_error([0, 1, 0], probabilities) == pytest.approx(1 / 3)


def test_bins_cover_zero_to_one_and_empty_ones_have_no_means():
    bins = reliability_bins([0, 1], [[1.0, 0.0], [0.0, 1.0]], 1)
    assert [row["n"] for row in bins] == [1] + 8 * [0] + [1]
    assert bins[4] == {"low": 0.4, "high": 0.5, "n": 0, "confidence": None, "observed": None}


def test_no_images_give_none():
    nothing = np.zeros((0, 2))
    assert expected_calibration_error([], nothing) is None
    assert brier([], nothing) is None and log_loss([], nothing) is None
    assert [row["n"] for row in reliability_bins([], nothing, 1)] == 10 * [0]
