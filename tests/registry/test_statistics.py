"""The figures of a classifier agree with scikit-learn, and undefined ones are None and said in words."""

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from registry.statistics import (
    average_precision,
    choose_threshold,
    classification_metrics,
    decide,
    decide_indices,
    matthews_correlation,
    quadratic_kappa,
    roc_auc,
)

EXACT = {"rel": 0, "abs": 1e-12}
GRADES = ("0", "1", "2", "3", "4")


def random_case(seed: int, count: int, classes: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and informative probabilities, rounded so that many are equal."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    scores = random.random((count, classes)) + 0.7 * np.eye(classes)[labels]
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    rounded = probabilities.round(decimals)
    rounded[:, -1] = 1 - rounded[:, :-1].sum(axis=1)
    return labels, rounded


@pytest.mark.parametrize("decimals", [1, 2, 12])
@pytest.mark.parametrize("seed", range(5))
def test_binary_figures_agree_with_scikit_learn(seed, decimals):
    labels, probabilities = random_case(seed, 200, 2, decimals)
    result = classification_metrics(labels, probabilities, ("NORMAL", "PNEUMONIA"), "PNEUMONIA", 0.55)
    scores = probabilities[:, 1]
    called = (scores >= 0.55).astype(int)
    expected = {
        "accuracy": reference.accuracy_score(labels, called),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, called),
        "precision": reference.precision_score(labels, called),
        "recall": reference.recall_score(labels, called),
        "sensitivity": reference.recall_score(labels, called),
        "specificity": reference.recall_score(1 - labels, 1 - called),
        "f1": reference.f1_score(labels, called),
        "auc": reference.roc_auc_score(labels, scores),
        "average_precision": reference.average_precision_score(labels, scores),
        "mcc": reference.matthews_corrcoef(labels, called),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, **EXACT)
    assert result["confusion_matrix"] == reference.confusion_matrix(labels, called).tolist()
    assert result["n"] == 200 and result["threshold"] == 0.55


@pytest.mark.parametrize("seed", range(5))
def test_figures_of_several_classes_are_macro_means_as_in_scikit_learn(seed):
    labels, probabilities = random_case(seed, 300, 5, 2)
    result = classification_metrics(labels, probabilities, GRADES, ordinal=True)
    called = probabilities.argmax(axis=1)
    truth = np.eye(5)[labels]
    expected = {
        "accuracy": reference.accuracy_score(labels, called),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, called),
        "precision": reference.precision_score(labels, called, average="macro"),
        "recall": reference.recall_score(labels, called, average="macro"),
        "f1": reference.f1_score(labels, called, average="macro"),
        "auc": reference.roc_auc_score(truth, probabilities, average="macro"),
        "average_precision": reference.average_precision_score(truth, probabilities, average="macro"),
        "mcc": reference.matthews_corrcoef(labels, called),
        "quadratic_kappa": reference.cohen_kappa_score(labels, called, weights="quadratic"),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, **EXACT)
    assert result["positive_class"] is None and result["threshold"] is None


def test_figures_of_each_class_agree_with_scikit_learn():
    labels, probabilities = random_case(1, 300, 5, 2)
    rows = classification_metrics(labels, probabilities, GRADES)["per_class"]
    report = reference.classification_report(labels, probabilities.argmax(axis=1), output_dict=True)
    for row in rows:
        expected = report[row["class"]]
        assert [row["precision"], row["recall"], row["f1"], row["n"]] == pytest.approx(
            [expected["precision"], expected["recall"], expected["f1-score"], expected["support"]], **EXACT
        )


def test_specificity_of_several_classes_is_the_mean_over_classes():
    labels, probabilities = random_case(2, 100, 3, 2)
    called = probabilities.argmax(axis=1)
    result = classification_metrics(labels, probabilities, ("a", "b", "c"))
    by_hand = np.mean([((called != c) & (labels != c)).sum() / (labels != c).sum() for c in range(3)])
    assert result["specificity"] == pytest.approx(by_hand, **EXACT)


def test_equal_scores_count_half_in_the_area_under_the_curve():
    assert roc_auc([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5]) == 0.5
    assert roc_auc([1, 0, 0], [0.7, 0.7, 0.1]) == 0.75


def test_the_first_class_can_be_the_positive_one():
    probabilities = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
    result = classification_metrics([0, 1, 1], probabilities, ("Fractured", "Non_fractured"), "Fractured", 0.7)
    assert (result["sensitivity"], result["specificity"], result["auc"]) == (1.0, 1.0, 1.0)
    assert result["confusion_matrix"] == [[1, 0], [0, 2]]


def test_a_probability_equal_to_the_threshold_is_positive():
    assert decide([[0.4, 0.6], [0.41, 0.59]], ("no", "yes"), "yes", 0.6) == ["yes", "no"]


def test_without_a_positive_class_the_most_probable_class_is_decided():
    assert decide([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]], ("a", "b", "c")) == ["b", "a"]
    assert decide_indices([[0.2, 0.5, 0.3]], ("a", "b", "c"), "a", 0.1).tolist() == [1]


@pytest.mark.parametrize("seed", range(10))
def test_no_other_threshold_has_a_larger_youden_index(seed):
    labels, probabilities = random_case(seed, 60, 2, 2)
    scores = probabilities[:, 1]
    chosen = choose_threshold(labels, scores)

    def youden(threshold: float) -> float:
        called = scores >= threshold
        return called[labels == 1].mean() - called[labels == 0].mean()

    assert youden(chosen) == pytest.approx(max(youden(cut) for cut in np.linspace(0, 1.01, 1001)), abs=1e-12)


def test_the_threshold_lies_midway_between_separated_classes():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]) == pytest.approx(0.5)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_one_class_alone_gives_the_neutral_threshold(labels):
    assert choose_threshold(labels, [0.1, 0.5, 0.9][: len(labels)]) == 0.5


def test_scores_that_rank_backwards_give_the_neutral_threshold():
    assert choose_threshold([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]) == 0.5


def test_no_images_give_none_and_a_warning():
    result = classification_metrics([], np.zeros((0, 2)), ("a", "b"), "b", 0.5)
    assert result["n"] == 0
    assert all(result[name] is None for name in ("accuracy", "balanced_accuracy", "precision", "auc", "f1"))
    assert result["warnings"] == ["There are no images to evaluate on."]


def test_a_missing_class_is_named_and_its_figures_are_none():
    result = classification_metrics([1, 1], [[0.2, 0.8], [0.6, 0.4]], ("NORMAL", "PNEUMONIA"), "PNEUMONIA")
    assert result["auc"] is None and result["specificity"] is None
    assert result["recall"] == 0.5
    assert "no images of class NORMAL" in result["warnings"][0]


def test_a_class_that_is_never_called_has_no_precision_but_an_f1_of_zero():
    result = classification_metrics([0, 1, 2], np.eye(3)[[0, 1, 1]], ("a", "b", "c"))
    assert (result["per_class"][2]["precision"], result["per_class"][2]["f1"]) == (None, 0.0)
    assert result["precision"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_a_collapsed_model_is_called_so():
    labels = [0, 1] * 20
    result = classification_metrics(labels, [[0.9, 0.1]] * 40, ("NORMAL", "PNEUMONIA"), "PNEUMONIA", 0.5)
    assert result["warnings"][0] == "Collapsed to one class: every image was called NORMAL."
    assert result["warnings"][1].startswith("Did not learn")


def test_an_area_that_luck_explains_is_called_did_not_learn_and_a_clear_one_is_not():
    answers = [[0.8, 0.2], [0.4, 0.6]] * 20
    guess = classification_metrics([0, 1] * 40, answers + answers[::-1], ("a", "b"), "b")
    assert guess["auc"] == 0.5
    assert guess["warnings"] == [
        "Did not learn: an area under the ROC curve of 0.50 is not much better than guessing (0.50)."
    ]
    labels, probabilities = random_case(0, 200, 2, 12)
    assert classification_metrics(labels, probabilities, ("a", "b"), "b")["warnings"] == []


def test_an_area_far_below_one_half_is_called_worse_than_guessing_where_luck_does_not_explain_it():
    labels, probabilities = random_case(0, 200, 2, 12)
    turned = classification_metrics(labels, probabilities[:, ::-1], ("a", "b"), "b")
    (warning,) = turned["warnings"]
    assert warning.startswith(f"Worse than guessing: an area under the ROC curve of {turned['auc']:.2f}")
    few = classification_metrics([0, 1, 1], [[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]], ("a", "b"), "b")
    assert few["auc"] == 0 and few["warnings"][0].startswith("Did not learn")


def test_a_threshold_between_two_neighbouring_numbers_moves_no_image():
    low = 0.9
    high = np.nextafter(low, 1)
    threshold = choose_threshold([False, True], [low, high])
    assert low < threshold <= high


@pytest.mark.parametrize(
    ("labels", "positive", "auc"), [([0, 0, 1, 1], [0.2, 0.6, 0.5, 0.7], 0.75), ([0, 1, 1], [0.1, 0.8, 0.9], 1.0)]
)
def test_a_good_area_on_a_few_images_is_called_too_few_images_and_not_did_not_learn(labels, positive, auc):
    result = classification_metrics(labels, [[1 - p, p] for p in positive], ("a", "b"), "b")
    assert result["auc"] == auc
    (warning,) = result["warnings"]
    assert warning.startswith(f"Too few test images ({len(labels)}) to tell the model from guessing")
    assert f"{auc:.2f}" in warning


def test_figures_are_plain_json():
    labels, probabilities = random_case(3, 50, 3, 2)
    result = classification_metrics(labels, probabilities, ("a", "b", "c"), ordinal=True)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_kappa_of_one_single_grade_is_undefined():
    assert quadratic_kappa([[5, 0], [0, 0]]) is None


@pytest.mark.parametrize("confusion", [[[5, 3], [0, 0]], [[5, 0], [3, 0]], [[0, 0], [0, 0]]])
def test_the_correlation_is_undefined_when_truth_or_answer_never_varies(confusion):
    assert matthews_correlation(confusion) is None


def test_average_precision_without_positives_is_undefined():
    assert average_precision([0, 0], [0.1, 0.2]) is None


@pytest.mark.parametrize(
    ("labels", "probabilities", "reason"),
    [
        ([0, 1], [[0.5, 0.5]], "do not fit"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "outside"),
        ([0, 1], [[0.5, 0.5], [float("nan"), 0.5]], "not a finite number"),
    ],
)
def test_figures_of_impossible_input_are_refused(labels, probabilities, reason):
    with pytest.raises(ValueError, match=reason):
        classification_metrics(labels, probabilities, ("a", "b"))
