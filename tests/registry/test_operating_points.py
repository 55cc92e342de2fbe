"""A threshold does what its criterion asks for, and an impossible wish is answered with what can be reached."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.operating_points import (
    COST,
    CRITERIA,
    MOST_POINTS,
    SENSITIVITY,
    SPECIFICITY,
    YOUDEN,
    at,
    choose,
    curve,
    predictive_values,
    wilson,
)
from registry.statistics import choose_threshold

LABELS = [0, 0, 0, 0, 1, 0, 1, 1, 1, 1]
SCORES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]

images = st.lists(st.tuples(st.booleans(), st.integers(0, 20).map(lambda step: step / 20)), max_size=40).map(
    lambda drawn: [*drawn, (True, 0.9), (False, 0.1)]
)


def columns(drawn: list[tuple[bool, float]]) -> tuple[list[bool], list[float]]:
    return [label for label, _ in drawn], [score for _, score in drawn]


# --- Choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "target", "threshold", "sensitivity", "specificity"),
    [
        (YOUDEN, None, 0.55, 0.8, 1.0),
        (SENSITIVITY, 0.8, 0.55, 0.8, 1.0),
        (SENSITIVITY, 0.81, 0.35, 1.0, 0.8),
        (SPECIFICITY, 0.8, 0.35, 1.0, 0.8),
        (SPECIFICITY, 1.0, 0.55, 0.8, 1.0),
        (COST, 1, 0.55, 0.8, 1.0),
        (COST, 10, 0.35, 1.0, 0.8),
    ],
)
def test_each_criterion_chooses_its_threshold_midway_between_two_probabilities(
    criterion, target, threshold, sensitivity, specificity
):
    point = choose(LABELS, SCORES, criterion, target)
    assert point.threshold == pytest.approx(threshold)
    assert (point.sensitivity, point.specificity) == (sensitivity, specificity)


def test_a_rare_finding_moves_the_cheapest_threshold_up():
    assert choose(LABELS, SCORES, COST, 3, prevalence=0.5).threshold == pytest.approx(0.35)
    assert choose(LABELS, SCORES, COST, 3, prevalence=0.05).threshold == pytest.approx(0.55)


@pytest.mark.parametrize("seed", range(20))
def test_youdens_threshold_is_the_one_that_a_training_stores(seed):
    random = np.random.default_rng(seed)
    labels = np.r_[0, 1, random.integers(0, 2, 60)]
    scores = (0.5 * random.random(62) + 0.4 * labels).round(2)
    assert choose(labels, scores, YOUDEN).threshold == choose_threshold(labels, scores)


@given(images, st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
def test_no_other_threshold_reaches_the_sensitivity_with_a_better_specificity(drawn, target):
    labels, scores = columns(drawn)
    others = [point for point in curve(labels, scores, most=1000) if point.sensitivity >= target]
    try:
        chosen = choose(labels, scores, SENSITIVITY, target)
    except ValueError:
        assert max(point.specificity for point in others) == 0
        return
    assert chosen.sensitivity >= target
    assert chosen.specificity == max(point.specificity for point in others)
    assert chosen == at(labels, scores, chosen.threshold)


@given(images, st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
def test_no_other_threshold_reaches_the_specificity_with_a_better_sensitivity(drawn, target):
    labels, scores = columns(drawn)
    others = [point for point in curve(labels, scores, most=1000) if point.specificity >= target]
    try:
        chosen = choose(labels, scores, SPECIFICITY, target)
    except ValueError:
        assert max(point.sensitivity for point in others) == 0
        return
    assert chosen.specificity >= target
    assert chosen.sensitivity == max(point.sensitivity for point in others)


@given(images, st.sampled_from([0.2, 1, 5, 50]), st.sampled_from([None, 0.02, 0.3]))
def test_no_other_threshold_costs_less(drawn, worth, prevalence):
    labels, scores = columns(drawn)
    share = np.mean(labels) if prevalence is None else prevalence

    def cost(point) -> float:
        return worth * share * (1 - point.sensitivity) + (1 - share) * (1 - point.specificity)

    least = min(cost(point) for point in curve(labels, scores, most=1000))
    try:
        chosen = choose(labels, scores, COST, worth, prevalence)
    except ValueError:
        assert least == pytest.approx(min(worth * share, 1 - share))
        return
    assert cost(chosen) == pytest.approx(least)


@given(images, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(drawn, random):
    shuffled = random.sample(drawn, len(drawn))
    assert curve(*columns(drawn)) == curve(*columns(shuffled))


def test_neighbouring_floating_point_numbers_are_still_told_apart():
    low = 0.7
    high = float(np.nextafter(low, 1))
    point = choose([0, 1], [low, high], YOUDEN)
    assert (point.sensitivity, point.specificity) == (1, 1)
    assert at([0, 1], [low, high], point.threshold) == point


# --- What cannot be had ----------------------------------------------------------------------------------------------


def test_a_sensitivity_that_only_calling_everything_positive_reaches_is_refused_with_the_best_possible_one():
    labels, scores = [1, 0, 1, 1, 1, 0], [0.1, 0.2, 0.5, 0.6, 0.7, 0.3]
    with pytest.raises(ValueError, match=r"sensitivity of 90\.0% cannot be reached .* is 75\.0%\."):
        choose(labels, scores, SENSITIVITY, 0.9)


def test_a_specificity_that_only_calling_everything_negative_reaches_is_refused_with_the_best_possible_one():
    labels, scores = [0, 0, 0, 1, 1, 0], [0.1, 0.2, 0.3, 0.5, 0.6, 0.9]
    with pytest.raises(ValueError, match=r"specificity of 90\.0% cannot be reached .* is 75\.0%\."):
        choose(labels, scores, SPECIFICITY, 0.9)


@pytest.mark.parametrize(("worth", "prevalence", "answer"), [(1, 0.0001, "negative"), (100000, 0.5, "positive")])
def test_costs_at_which_the_model_does_not_help_are_refused(worth, prevalence, answer):
    labels, scores = [1, 0, 1, 1, 0, 0], [0.1, 0.2, 0.4, 0.6, 0.3, 0.9]
    with pytest.raises(ValueError, match=f"call every image {answer}, without looking at it"):
        choose(labels, scores, COST, worth, prevalence)


@pytest.mark.parametrize(
    ("labels", "scores", "criterion", "target", "prevalence", "reason"),
    [
        ([0, 0], [0.1, 0.2], YOUDEN, None, None, "no images with the finding"),
        ([1, 1], [0.1, 0.2], YOUDEN, None, None, "no images without the finding"),
        ([], [], YOUDEN, None, None, "no images with the finding"),
        ([0, 1], [0.9, 0.1], YOUDEN, None, None, "better than guessing"),
        ([0, 1], [0.5, 0.5], COST, 1, None, "without looking at it"),
        ([0, 1], [0.1, 0.9], SENSITIVITY, None, None, "Say which sensitivity"),
        ([0, 1], [0.1, 0.9], SENSITIVITY, 95, None, "must lie between 0 and 1; 95 does not"),
        ([0, 1], [0.1, 0.9], COST, 0, None, "number above 0"),
        ([0, 1], [0.1, 0.9], COST, 1, 1, "prevalence must lie between"),
        ([0, 1], [0.1, 0.9], "accuracy", None, None, "Choose one of youden, sensitivity"),
        ([0, 1], [0.1], YOUDEN, None, None, "do not fit"),
        ([0, 1], [0.1, float("nan")], YOUDEN, None, None, "does not lie between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(labels, scores, criterion, target, prevalence, reason):
    with pytest.raises(ValueError, match=reason):
        choose(labels, scores, criterion, target, prevalence)


def test_every_criterion_has_words():
    assert list(CRITERIA) == [YOUDEN, SENSITIVITY, SPECIFICITY, COST]


# --- On other images -------------------------------------------------------------------------------------------------


def test_a_probability_equal_to_the_threshold_is_positive():
    assert at([0, 1], [0.4, 0.6], 0.6).hits == 1


def test_a_missing_class_has_no_rate():
    point = at([0, 0], [0.1, 0.9], 0.5)
    assert (point.sensitivity, point.specificity) == (None, 0.5)
    assert point.to_json()["sensitivity"] == {"value": None, "low": None, "high": None}


# --- The slider ------------------------------------------------------------------------------------------------------


@given(images)
def test_the_curve_goes_from_calling_nothing_to_calling_everything_positive(drawn):
    points = curve(*columns(drawn))
    assert (points[0].hits, points[0].alarms) == (0, 0)
    assert (points[-1].sensitivity, points[-1].specificity) == (1, 0)
    assert [point.threshold for point in points] == sorted((point.threshold for point in points), reverse=True)
    assert [at(*columns(drawn), point.threshold) for point in points] == points


def test_a_long_curve_is_thinned_without_changing_its_shape():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 10_000)
    scores = (random.normal(size=10_000) + labels - 0.5) / 12 + 0.5
    points = curve(labels, scores)
    assert len(points) <= MOST_POINTS
    assert choose(labels, scores, YOUDEN).hits in [point.hits for point in points]
    steps = [abs(b.hits - a.hits) + abs(b.alarms - a.alarms) for a, b in itertools.pairwise(points)]
    assert max(steps) < 110
    assert json.loads(json.dumps([point.to_json() for point in points], allow_nan=False))[3]["negatives"] < 5200


# --- Bayes and Wilson ------------------------------------------------------------------------------------------------


def test_predictive_values_agree_with_the_textbook_case_of_screening():
    """Sensitivity 90 %, specificity 91 %, prevalence 1 %: of 1,000 women 9 of 98 with a positive mammogram are ill."""
    values = predictive_values(0.9, 0.91, 0.01)
    assert values.positive == pytest.approx(0.009 / (0.009 + 0.0891))
    assert values.positive == pytest.approx(0.0917, abs=0.0001)
    assert values.negative == pytest.approx(0.9009 / (0.9009 + 0.001))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_predictive_values_are_shares_or_undefined(sensitivity, specificity, prevalence):
    values = predictive_values(sensitivity, specificity, prevalence)
    for value in (values.positive, values.negative):
        assert value is None or 0 <= value <= 1


def test_without_any_positive_answer_there_is_no_positive_predictive_value():
    values = predictive_values(0, 1, 0.3)
    assert values.positive is None and values.negative == pytest.approx(0.7)


def test_the_prevalence_of_the_images_gives_back_the_counts_of_the_images():
    point = choose(LABELS, SCORES, SENSITIVITY, 1.0)
    values = predictive_values(point.sensitivity, point.specificity, 0.5)
    assert values.positive == pytest.approx(point.hits / (point.hits + point.alarms))


@pytest.mark.parametrize("arguments", [(1.1, 0.5, 0.5), (0.5, -0.1, 0.5), (0.5, 0.5, float("nan"))])
def test_predictive_values_of_numbers_that_are_no_shares_are_refused(arguments):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        predictive_values(*arguments)


def test_wilsons_interval_agrees_with_the_example_of_newcombe():
    """Newcombe (1998), table I: 81 of 263 and 0 of 20."""
    found = wilson(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=0.00005)
    assert (wilson(0, 20).low, wilson(0, 20).high) == pytest.approx((0, 0.1611), abs=0.00005)


@given(st.integers(1, 500), st.integers(0, 500))
def test_wilsons_interval_covers_its_share_and_stays_between_0_and_1(total, hits):
    found = wilson(min(hits, total), total)
    assert 0 <= found.low <= found.value <= found.high <= 1
