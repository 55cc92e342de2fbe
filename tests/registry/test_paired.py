"""Tests for paired results agree with published examples, with brute force and with chance itself."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from registry import paired
from registry.paired import delong, delong_test, delong_variance, holm, mcnemar, two_sided_p
from registry.statistics import roc_auc

# Albumin, total protein and Krebs-Goplerud score of 43 patients with ovarian cancer, and their outcome (1 or 0):
# the example of DeLong, DeLong and Clarke-Pearson (1988), without the six patients who miss a value.
OVARIAN_CANCER = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def ovarian_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Outcome (43,) and the three scores (3, 43), the last turned round as in the example."""
    rows = np.array(OVARIAN_CANCER.split(), float).reshape(-1, 4)
    return rows[:, 3], np.stack([rows[:, 0], rows[:, 1], 10 - rows[:, 2]])


def random_case(seed: int, count: int = 60, classifiers: int = 3, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels and related scores, rounded so that many are equal."""
    random = np.random.default_rng(seed)
    labels = np.r_[1, 1, 0, 0, random.integers(0, 2, count - 4)]
    common = random.normal(size=count) + labels
    return labels, (common + random.normal(size=(classifiers, count))).round(decimals)


def naive_covariance(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """As the paper writes it: every positive against every negative."""
    positives, negatives = scores[:, labels == 1], scores[:, labels == 0]
    wins = (positives[:, :, None] > negatives[:, None, :]) + 0.5 * (positives[:, :, None] == negatives[:, None, :])
    of_positives, of_negatives = wins.mean(axis=2), wins.mean(axis=1)
    return np.cov(of_positives) / positives.shape[1] + np.cov(of_negatives) / negatives.shape[1]


# --- DeLong ----------------------------------------------------------------------------------------------------------


def test_areas_and_standard_errors_are_those_published_for_the_example_of_delong():
    areas = delong(*ovarian_cancer())
    assert areas.values.round(4).tolist() == [0.7366, 0.6478, 0.7258]
    assert np.sqrt(np.diag(areas.covariance)).round(4).tolist() == [0.0927, 0.1000, 0.1028]


@pytest.mark.parametrize(
    ("first", "second", "published"),
    [(2, 0, (0.0108, 0.0953, -0.1761, 0.1976, 0.9102)), (2, 1, (-0.0780, 0.1046, -0.2830, 0.1271, 0.4561))],
)
def test_differences_are_those_published_for_the_example_of_delong(first, second, published):
    labels, scores = ovarian_cancer()
    found = delong_test(labels, scores[first], scores[second])
    assert (found.difference, found.standard_error, found.low, found.high, found.p) == pytest.approx(
        published, abs=0.00005
    )


def test_the_joint_test_of_the_example_of_delong_is_the_published_one():
    areas = delong(*ovarian_cancer())
    contrast = np.array([[1, 0, -1], [0, 1, -1]])
    difference = contrast @ areas.values
    statistic = difference @ np.linalg.inv(contrast @ areas.covariance @ contrast.T) @ difference
    assert statistic == pytest.approx(2.5340, abs=0.00005)


@pytest.mark.parametrize("seed", range(10))
def test_covariances_are_those_of_comparing_every_positive_with_every_negative(seed):
    labels, scores = random_case(seed)
    areas = delong(labels, scores)
    assert areas.covariance == pytest.approx(naive_covariance(labels, scores), abs=1e-14)
    assert areas.values == pytest.approx([roc_auc(labels, row) for row in scores], abs=1e-14)
    assert delong_variance(labels, scores[0]) == pytest.approx(areas.covariance[0, 0], abs=1e-16)


def test_the_standard_error_is_that_of_the_bootstrap():
    labels, scores = random_case(5, count=400, classifiers=2, decimals=3)
    found = delong_test(labels, scores[0], scores[1])
    random = np.random.default_rng(0)
    draws = random.integers(0, len(labels), (2000, len(labels)))
    replicates = [roc_auc(labels[d], scores[1, d]) - roc_auc(labels[d], scores[0, d]) for d in draws]
    assert found.standard_error == pytest.approx(np.std(replicates), rel=0.08)


def test_several_images_of_a_patient_count_as_one_observation():
    labels, scores = random_case(3, count=80, classifiers=2)
    once = delong_test(labels, scores[0], scores[1])
    twice = delong_test(np.tile(labels, 3), np.tile(scores[0], 3), np.tile(scores[1], 3), np.tile(np.arange(80), 3))
    assert (twice.difference, twice.standard_error) == pytest.approx((once.difference, once.standard_error), rel=1e-12)
    pretended = delong_test(np.tile(labels, 3), np.tile(scores[0], 3), np.tile(scores[1], 3))
    assert pretended.standard_error < 0.6 * once.standard_error


def test_patients_with_images_of_both_classes_have_the_standard_error_of_the_bootstrap_over_patients():
    random = np.random.default_rng(11)
    patients = np.repeat(np.arange(150), 4)
    labels = random.integers(0, 2, 600)
    of_patient = random.normal(size=150)[patients]
    scores = (labels + random.normal(size=600), labels + of_patient + random.normal(size=600))
    found = delong_test(labels, *scores, patients)
    replicates = []
    for _ in range(1500):
        drawn = (random.integers(0, 150, 150)[:, None] * 4 + np.arange(4)).reshape(-1)
        replicates.append(roc_auc(labels[drawn], scores[1][drawn]) - roc_auc(labels[drawn], scores[0][drawn]))
    assert found.standard_error == pytest.approx(np.std(replicates), rel=0.1)


def test_a_classifier_does_not_differ_from_itself():
    labels, scores = random_case(1)
    found = delong_test(labels, scores[0], scores[0])
    assert (found.difference, found.standard_error, found.p, found.undefined) == (0.0, 0.0, 1.0, "")


def test_the_order_of_images_does_not_matter_and_swapping_the_classifiers_turns_the_sign():
    labels, scores = random_case(2)
    order = np.random.default_rng(0).permutation(len(labels))
    found = delong_test(labels, scores[0], scores[1])
    shuffled = delong_test(labels[order], scores[0][order], scores[1][order])
    swapped = delong_test(labels, scores[1], scores[0])
    assert (shuffled.difference, shuffled.p) == pytest.approx((found.difference, found.p), abs=1e-12)
    assert (swapped.difference, swapped.p) == pytest.approx((-found.difference, found.p), abs=1e-12)


def test_undefined_areas_are_said_in_words():
    assert delong_test([1, 1], [0.1, 0.2], [0.2, 0.1]) == paired.AreaDifference(None, undefined=paired.ONE_CLASS)
    few = delong_test([1, 0, 0], [0.9, 0.2, 0.1], [0.1, 0.2, 0.1])
    assert few.difference == -0.75 and few.p is None and few.undefined == paired.TOO_FEW
    opposite = delong_test([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1], [0.1, 0.2, 0.8, 0.9])
    assert opposite.difference == -1 and opposite.p is None and opposite.undefined == paired.NO_SPREAD
    assert delong_variance([1, 1], [0.1, 0.2]) is None


@pytest.mark.parametrize(
    ("labels", "scores", "groups", "reason"),
    [
        ([1, 0], [[0.1]], None, "do not fit"),
        ([1, 0], [[0.1, 0.2]], [0], "do not fit"),
        ([1, 0], [[0.1, float("nan")]], None, "finite"),
    ],
)
def test_scores_that_do_not_fit_are_refused(labels, scores, groups, reason):
    with pytest.raises(ValueError, match=reason):
        delong(labels, scores, groups)


@pytest.mark.slow
def test_two_equally_good_classifiers_are_called_different_in_one_of_twenty_cases():
    called = 0
    for seed in range(2000):
        labels, scores = random_case(seed, count=150, classifiers=2, decimals=3)
        called += delong_test(labels, scores[0], scores[1]).p < 0.05
    assert 0.035 < called / 2000 < 0.065


def test_the_normal_distribution_is_that_of_scipy():
    for z in (0.0, 0.5, 1.96, -3.0, 8.0):
        assert two_sided_p(z) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-12)
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-15) == paired.QUANTILE


# --- McNemar ---------------------------------------------------------------------------------------------------------


def right(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Decisions of two classifiers, counted as in a two-by-two table."""
    counts = [both, only_first, only_second, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def test_mcnemars_test_agrees_with_the_approval_ratings_of_agresti():
    """Agresti, Categorical Data Analysis, chapter 10: 1,600 voters; with continuity correction as R prints it."""
    found = mcnemar(*right(794, 150, 86, 570))
    assert (found.only_first, found.only_second, found.method) == (150, 86, paired.CHI_SQUARE)
    assert found.statistic == pytest.approx(63**2 / 236) == pytest.approx(16.818, abs=0.0005)
    assert found.p == pytest.approx(4.115e-05, abs=0.0005e-05)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 5), (1, 7), (3, 3), (8, 4), (0, 0)])
def test_few_discordant_images_are_counted_out_exactly(only_first, only_second):
    found = mcnemar(*right(20, only_first, only_second, 5))
    discordant = only_first + only_second
    tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=discordant)]
    as_far = [abs(2 * heads - discordant) >= abs(only_first - only_second) for heads in tosses]
    assert found.method == paired.EXACT
    assert found.p == pytest.approx(np.mean(as_far), abs=1e-12)


def test_the_exact_test_agrees_with_scipy_and_the_approximation_begins_at_25():
    assert mcnemar(*right(10, 17, 7, 3)).p == pytest.approx(stats.binomtest(7, 24).pvalue, rel=1e-12)
    assert mcnemar(*right(10, 17, 8, 3)).method == paired.CHI_SQUARE
    assert mcnemar(*right(10, 17, 8, 3)).p == pytest.approx(stats.chi2.sf(64 / 25, 1), rel=1e-9)


def test_equally_many_discordant_images_are_no_difference():
    assert mcnemar(*right(10, 30, 30, 3)).p == 1.0


def test_copies_of_the_images_of_a_patient_do_not_make_a_difference_more_certain():
    first, second = right(100, 40, 22, 10)
    patients = np.arange(len(first))
    copies = [np.tile(values, 4) for values in (first, second, patients)]
    found = mcnemar(*copies)
    assert (found.only_first, found.only_second) == (160, 88)
    assert found.method == paired.CHI_SQUARE_OF_PATIENTS
    assert found.p == pytest.approx(stats.chi2.sf(18**2 / 62, 1), rel=1e-9)
    assert mcnemar(copies[0], copies[1]).p < 0.0001


def test_few_patients_are_compared_by_signs():
    first, second = right(30, 9, 1, 0)
    patients = np.r_[np.arange(30) // 2, np.repeat([50, 51, 52], 3), 53]
    found = mcnemar(first, second, patients)
    assert found.method == paired.SIGNS_OF_PATIENTS
    assert found.p == pytest.approx(2 * (1 + 4) / 2**4)


def test_no_images_are_no_difference():
    assert mcnemar([], []).p == 1.0


def test_decisions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        mcnemar([1, 0], [1, 1], [0])


# --- Holm ------------------------------------------------------------------------------------------------------------


def test_holms_correction_agrees_with_worked_examples():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])


def test_an_undefined_p_value_is_not_counted_as_a_comparison():
    assert holm([0.02, None, 0.03]) == pytest.approx([0.04, None, 0.04])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_corrected_values_keep_the_order_and_are_between_the_value_and_bonferronis(p_values):
    corrected = holm(p_values)
    for p, value in zip(p_values, corrected, strict=True):
        assert p <= value <= min(1.0, p * len(p_values)) or math.isclose(p, value)
    assert [corrected[i] for i in np.argsort(p_values, kind="stable")] == sorted(corrected)
