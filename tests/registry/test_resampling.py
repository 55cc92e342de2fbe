"""The bootstrap over patients: every replicate is the plain figure of the drawn images, and the intervals cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from registry import calibration
from registry.resampling import Sample, draw, interval, reflected_interval, replicates
from registry.statistics import classification_metrics, decide_indices

EXACT = {"rel": 0, "abs": 1e-12}
CLASSES = ("A", "B", "C", "D", "E")
ONE_CLASS = ("precision", "sensitivity", "specificity", "f1", "auc", "average_precision")
SUMMARY = (*ONE_CLASS, "accuracy", "balanced_accuracy", "mcc", "quadratic_kappa", "ece", "brier", "log_loss")


def sample(seed: int, count: int, classes: int, *, decimals: int = 1, patients: int = 0, brief: bool = False) -> Sample:
    """Informative answers, rounded so that many are equal; with `patients`, images shared among so many of them."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    scores = random.random((count, classes)) + 0.4 * np.eye(classes)[labels]
    probabilities = (scores / scores.sum(axis=1, keepdims=True)).round(decimals)
    probabilities[:, -1] = 1 - probabilities[:, :-1].sum(axis=1)
    groups = random.integers(0, patients, count) if patients else np.arange(count)
    positive = 1 if classes == 2 else None
    predicted = decide_indices(probabilities, CLASSES[:classes], "B" if classes == 2 else None)
    return Sample(labels, predicted, probabilities.clip(0, 1), groups, positive, brief)


def plain(images: Sample, chosen: np.ndarray) -> dict:
    """The figures of these images (indices, repeated as often as drawn), without any bootstrap."""
    labels, probabilities = images.labels[chosen], images.probabilities[chosen]
    classes = CLASSES[: probabilities.shape[1]]
    positive = None if images.positive is None else classes[images.positive]
    return {
        **classification_metrics(labels, probabilities, classes, positive, ordinal=True),
        "ece": calibration.expected_calibration_error(labels, probabilities, images.positive),
        "brier": calibration.brier(labels, probabilities),
        "log_loss": calibration.log_loss(labels, probabilities),
    }


def agrees(replicate: float, figure: float | None) -> bool:
    return bool(np.isnan(replicate)) if figure is None else replicate == pytest.approx(figure, **EXACT)


@pytest.mark.parametrize("decimals", [1, 12], ids=["many ties", "no ties"])
@pytest.mark.parametrize(("classes", "patients"), [(2, 0), (2, 30), (5, 0), (5, 30), (3, 4)])
def test_every_replicate_is_the_plain_figure_of_the_images_drawn(classes, patients, decimals):
    images = sample(0, 80, classes, decimals=decimals, patients=patients)
    number = patients or 80
    (found,) = replicates([images], number, resamples=70, seed=5)
    counts = np.concatenate([draw(number, slice(0, 50), 5), draw(number, slice(50, 70), 5)])
    for row, times in enumerate(counts):
        expected = plain(images, np.repeat(np.arange(80), times[images.groups]))
        for name in SUMMARY:
            assert agrees(found[name][row], expected[name]), (name, row)
        for index, one in enumerate(expected["per_class"]):
            for name in ONE_CLASS:
                assert agrees(found[f"class_{name}"][row, index], one[name]), (name, row, index)


def test_a_class_with_images_that_is_never_called_counts_with_precision_zero():
    labels, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 0, 1])
    images = Sample(labels, predicted, np.eye(3)[predicted], np.arange(6), None)
    (found,) = replicates([images], 6, resamples=50, seed=3)
    for row, times in enumerate(draw(6, slice(0, 50), 3)):
        assert agrees(found["precision"][row], plain(images, np.repeat(np.arange(6), times))["precision"])


def test_replicates_agree_with_the_weighted_figures_of_scikit_learn():
    images = sample(1, 100, 2)
    (found,) = replicates([images], 100, resamples=20, seed=1)
    scores = images.probabilities[:, 1]
    for row, weights in enumerate(draw(100, slice(0, 20), 1)):
        weighted = {"sample_weight": weights}
        expected = {
            "accuracy": reference.accuracy_score(images.labels, images.predicted, **weighted),
            "balanced_accuracy": reference.balanced_accuracy_score(images.labels, images.predicted, **weighted),
            "precision": reference.precision_score(images.labels, images.predicted, **weighted),
            "sensitivity": reference.recall_score(images.labels, images.predicted, **weighted),
            "f1": reference.f1_score(images.labels, images.predicted, **weighted),
            "mcc": reference.matthews_corrcoef(images.labels, images.predicted, **weighted),
            "auc": reference.roc_auc_score(images.labels, scores, **weighted),
            "average_precision": reference.average_precision_score(images.labels, scores, **weighted),
            "brier": reference.brier_score_loss(images.labels, scores, **weighted),
            "log_loss": reference.log_loss(images.labels, images.probabilities, **weighted),
        }
        assert {name: found[name][row] for name in expected} == pytest.approx(expected, **EXACT)


def test_a_subgroup_is_measured_in_the_same_draws_and_only_briefly():
    whole = sample(2, 100, 2, patients=40)
    chosen = np.arange(100) % 3 == 0
    columns = (whole.labels, whole.predicted, whole.probabilities, whole.groups)
    part = Sample(*(column[chosen] for column in columns), whole.positive, brief=True)
    _, found = replicates([whole, part], 40, resamples=50, seed=2)
    for row, times in enumerate(draw(40, slice(0, 50), 2)):
        expected = plain(part, np.repeat(np.arange(len(part.labels)), times[part.groups]))
        for name in ("accuracy", "sensitivity", "specificity", "f1", "auc"):
            assert agrees(found[name][row], expected[name])
    assert np.isnan(found["brier"]).all()


def test_whole_patients_are_drawn_as_many_as_there_are():
    counts = draw(40, slice(0, 50), 0)
    assert counts.shape == (50, 40) and (counts.sum(axis=1) == 40).all()
    assert counts.std() == pytest.approx(1, abs=0.1)


def test_no_block_of_resamples_repeats_another():
    first, second = draw(40, slice(0, 50), 0), draw(40, slice(50, 100), 0)
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 100


def test_the_same_seed_draws_the_same_and_another_differently():
    images = sample(3, 60, 2)
    first, again, other = (replicates([images], 60, 100, seed)[0]["auc"] for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() and first.tobytes() != other.tobytes()


def test_more_resamples_begin_with_the_same_ones():
    images = sample(3, 60, 2)
    few, many = (replicates([images], 60, number, 1)[0]["f1"] for number in (75, 200))
    assert few.tolist() == many[:75].tolist()


def test_replicates_of_two_models_on_the_same_images_are_paired():
    one, other = sample(4, 200, 2, decimals=12), sample(4, 200, 2, decimals=2)
    first, second = replicates([one], 200)[0], replicates([other], 200)[0]
    assert (first["auc"] - second["auc"]).std() < 0.2 * first["auc"].std()


def test_images_of_one_patient_together_make_intervals_wider():
    alone = sample(5, 400, 2)
    groups = np.argsort(np.argsort(alone.labels * 10 + (alone.labels == alone.predicted), kind="stable")) // 20
    shared = Sample(alone.labels, alone.predicted, alone.probabilities, groups, alone.positive)
    assert replicates([shared], 20)[0]["accuracy"].std() > 2 * replicates([alone], 400)[0]["accuracy"].std()


def test_a_resample_without_a_class_has_no_figure_of_it():
    images = Sample(np.array([0, 0, 1]), np.array([0, 0, 1]), np.eye(2)[[0, 0, 1]], np.arange(3), 1)
    (found,) = replicates([images], 3, 50)
    drawn = draw(3, slice(0, 50), 20_517)[:, 2] > 0
    assert (np.isnan(found["sensitivity"]) == ~drawn).all() and 0 < drawn.sum() < 50


def test_the_interval_is_the_middle_95_percent_without_undefined_replicates():
    values = np.append(np.arange(1001.0), [np.nan] * 100)
    assert interval(500.0, values) == (25.0, 975.0)


@pytest.mark.parametrize(
    ("value", "expected"), [(5.0, (1.0, 5.0)), (0.5, (0.5, 1.0))], ids=["above its replicates", "below them"]
)
def test_an_interval_is_widened_to_its_estimate(value, expected):
    assert interval(value, np.ones(100)) == expected


def test_a_reflected_interval_takes_the_bias_of_resampling_out_and_contains_its_estimate():
    assert reflected_interval(1.0, np.linspace(0.9, 1.5, 1001)) == pytest.approx((1 - 0.485, 1.085))
    assert reflected_interval(1.0, np.full(10, 3.0)) == (0.0, 1.0)
    assert reflected_interval(1.0, np.full(10, np.nan)) == (1.0, 1.0)


def test_a_figure_without_replicates_has_an_interval_of_itself():
    assert interval(0.5, np.full(10, np.nan)) == (0.5, 0.5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 4)), max_size=12),
    st.sampled_from([2, 3]),
)
def test_replicates_of_any_images_are_figures_or_undefined_but_never_infinite(rows, classes):
    labels = np.array([label % classes for label, _, _ in rows], np.int64)
    predicted = np.array([called % classes for _, called, _ in rows], np.int64)
    _, groups = np.unique(np.array([patient for _, _, patient in rows], np.int64), return_inverse=True)
    images = Sample(labels, predicted, np.eye(classes)[predicted], groups, 0 if classes == 2 else None)
    (found,) = replicates([images], len(np.unique(groups)), 60)
    assert not any(np.isinf(values).any() for values in found.values())
    assert np.isnan(found["accuracy"]).all() == (not rows)


@pytest.mark.slow
@pytest.mark.parametrize("images_each", [1, 4], ids=["one image each", "four alike images each"])
def test_95_percent_intervals_hold_the_true_figure_about_95_times_in_100(images_each):
    """300 test sets of 150 patients from a known population; an interval that ignored patients would cover far less.

    The images of a patient share their case, so that only patients are independent. Of 300 intervals that cover with
    95 %, 270 to 300 do (4 standard deviations). The calibration error, biased in small sets, may fall a little short.
    """
    true = plain(population(np.random.default_rng(0), 200_000, 1), np.arange(200_000))
    names = ("accuracy", "sensitivity", "specificity", "f1", "auc", "average_precision", "mcc", "brier")
    covered, calibration_covered = dict.fromkeys(names, 0), 0
    for repeat in range(300):
        images = population(np.random.default_rng([1, repeat]), 150, images_each)
        estimate = plain(images, np.arange(len(images.labels)))
        (found,) = replicates([images], 150, resamples=600)
        for name in names:
            low, high = interval(estimate[name], found[name])
            covered[name] += low <= true[name] <= high
        low, high = reflected_interval(estimate["ece"], found["ece"])
        calibration_covered += low <= true["ece"] <= high
    assert min(covered.values()) >= 270, covered
    assert calibration_covered >= 255


def population(random: np.random.Generator, patients: int, images_each: int) -> Sample:
    """Patients, 40 % of them positive, whose score is 1.5 standard deviations higher; their images are nearly alike."""
    labels = np.repeat((random.random(patients) < 0.4).astype(np.int64), images_each)
    case = np.repeat(random.normal(size=patients), images_each) + 0.01 * random.normal(size=patients * images_each)
    positive = 1 / (1 + np.exp(-(1.5 * labels + case - 0.75)))
    probabilities = np.stack([1 - positive, positive], axis=1)
    groups = np.repeat(np.arange(patients), images_each)
    return Sample(labels, decide_indices(probabilities, ("A", "B"), "B"), probabilities, groups, 1)
