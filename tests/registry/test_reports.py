"""The report of an evaluation: complete, in plain JSON, the same for any order, and every undefined figure says why."""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from registry import calibration, reports
from registry.reports import EvaluatedImages, Question, make

EXACT = {"rel": 0, "abs": 1e-12}
TWO = Question(("NORMAL", "PNEUMONIA"), "PNEUMONIA", 0.4)
GRADES = Question(("0", "1", "2", "3", "4"), ordinal=True)


def evaluated(labels: list[int], probabilities: list[list[float]], groups: list[int] | None = None, **subgroups):
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(labels))]
    return EvaluatedImages(
        labels=np.array(labels, np.int64),
        probabilities=np.array(probabilities, np.float64),
        groups=np.array(range(len(labels)) if groups is None else groups, np.int64),
        digests=np.array(digests, np.str_),
        rows=np.arange(len(labels)),
        subgroups={name: np.array(values, np.str_) for name, values in subgroups.items()},
    )


def random_images(seed: int, count: int, classes: int, patients: int = 0, **subgroups) -> EvaluatedImages:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    scores = random.random((count, classes)) + 0.5 * np.eye(classes)[labels]
    groups = random.integers(0, patients, count) if patients else np.arange(count)
    return evaluated(labels, scores / scores.sum(axis=1, keepdims=True), groups, **subgroups)


def figures(report: dict) -> Iterator[tuple[str, dict]]:
    """Every figure with an interval anywhere in a report, with its name."""
    yield from report["metrics"].items()
    for row in report["per_class"]:
        yield from ((name, row[name]) for name in reports.PER_CLASS)
    for attribute in report["subgroups"]:
        for group in attribute["groups"]:
            yield from group["metrics"].items()


def test_the_figures_of_two_classes_agree_with_scikit_learn():
    images = random_images(0, 150, 2)
    report, _ = make(images, TWO)
    labels, scores = images.labels, images.probabilities[:, 1]
    called = (scores >= 0.4).astype(int)
    assert {name: figure["value"] for name, figure in report["metrics"].items()} == pytest.approx(
        {
            "accuracy": reference.accuracy_score(labels, called),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, called),
            "precision": reference.precision_score(labels, called),
            "sensitivity": reference.recall_score(labels, called),
            "specificity": reference.recall_score(1 - labels, 1 - called),
            "f1": reference.f1_score(labels, called),
            "mcc": reference.matthews_corrcoef(labels, called),
            "auc": reference.roc_auc_score(labels, scores),
            "average_precision": reference.average_precision_score(labels, scores),
            "brier": reference.brier_score_loss(labels, scores),
            "ece": calibration.expected_calibration_error(labels, images.probabilities, 1),
            "log_loss": reference.log_loss(labels, images.probabilities),
        },
        **EXACT,
    )
    assert (report["positive_class"], report["threshold"], report["n"], report["patients"]) == (
        "PNEUMONIA",
        0.4,
        150,
        150,
    )
    assert report["confusion_matrix"] == reference.confusion_matrix(labels, called).tolist()


def test_several_ordinal_classes_have_macro_figures_kappa_and_curves_of_each_class_and_their_mean():
    images = random_images(1, 300, 5)
    report, replicates = make(images, GRADES)
    truth, called = np.eye(5)[images.labels], images.probabilities.argmax(axis=1)
    metrics = {name: figure["value"] for name, figure in report["metrics"].items()}
    assert metrics["auc"] == pytest.approx(reference.roc_auc_score(truth, images.probabilities), **EXACT)
    assert metrics["quadratic_kappa"] == pytest.approx(
        reference.cohen_kappa_score(images.labels, called, weights="quadratic"), **EXACT
    )
    assert [row["class"] for row in report["roc"]] == [row["class"] for row in report["pr"]] == [*"01234", ""]
    assert report["roc"][-1]["auc"] == pytest.approx(metrics["auc"], **EXACT)
    assert report["pr"][-1]["area"] == pytest.approx(metrics["average_precision"], **EXACT)
    assert [row["auc"]["value"] for row in report["per_class"]] == [row["auc"] for row in report["roc"][:-1]]
    assert (report["positive_class"], report["threshold"], report["ordinal"]) == (None, None, True)
    assert set(replicates) == set(metrics)


def test_per_class_figures_are_the_classification_report():
    images = random_images(1, 300, 5)
    report, _ = make(images, GRADES)
    expected = reference.classification_report(images.labels, images.probabilities.argmax(axis=1), output_dict=True)
    for row in report["per_class"]:
        one = expected[row["class"]]
        values = [row[name]["value"] for name in ("precision", "sensitivity", "f1")]
        assert values == pytest.approx([one["precision"], one["recall"], one["f1-score"]], **EXACT)
        assert row["n"] == one["support"]


def test_two_classes_with_a_positive_one_have_only_its_curves():
    report, _ = make(random_images(0, 600, 2), TWO)
    (roc,), (pr,) = report["roc"], report["pr"]
    assert roc["class"] == pr["class"] == "PNEUMONIA"
    assert len(roc["thresholds"]) == len(roc["true_positive_rate"]) <= 200 and roc["thresholds"][0] is None
    assert roc["auc"] == report["metrics"]["auc"]["value"]
    assert pr["prevalence"] == pytest.approx(report["per_class"][1]["n"] / 600)


def test_intervals_come_from_the_replicates_and_narrow_with_more_images():
    widths = []
    for count in (100, 1600):
        report, replicates = make(random_images(2, count, 2), TWO)
        auc = report["metrics"]["auc"]
        assert [auc["low"], auc["high"]] == pytest.approx(np.percentile(replicates["auc"], [2.5, 97.5]), abs=1e-6)
        assert replicates["auc"].shape == (2000,) and replicates["auc"].dtype == np.float32
        widths.append(auc["high"] - auc["low"])
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.3)
    assert report["bootstrap"] == {"resamples": 2000, "seed": reports.resampling.SEED, "unit": "patient"}


def test_temperature_comes_before_everything_and_both_calibrations_are_reported():
    images = random_images(3, 300, 5)
    report, _ = make(images, replace(GRADES, temperature=0.4))
    scaled = calibration.with_temperature(images.probabilities, 0.4)
    found = report["calibration"]
    assert found["temperature"] == report["temperature"] == 0.4
    assert found["before"]["log_loss"] == pytest.approx(calibration.log_loss(images.labels, images.probabilities))
    assert found["after"]["log_loss"] == pytest.approx(calibration.log_loss(images.labels, scaled))
    assert report["metrics"]["ece"]["value"] == found["after"]["ece"] != found["before"]["ece"]
    assert sum(row["n"] for row in found["after"]["bins"]) == 300


def test_subgroups_are_measured_and_small_ones_marked():
    sex = ["M"] * 60 + ["F"] * 55 + ["O"] * 5 + [""] * 30
    images = random_images(4, 150, 2, sex=sex, source=["one folder"] * 150)
    report, _ = make(images, TWO)
    (attribute,) = report["subgroups"]
    assert attribute["attribute"] == "sex"
    assert [(row["name"], row["n"], row["few"]) for row in attribute["groups"]] == [
        ("F", 55, False), ("M", 60, False), ("O", 5, True),
    ]  # fmt: skip
    women = slice(60, 115)
    auc = attribute["groups"][0]["metrics"]["auc"]
    assert auc["value"] == pytest.approx(
        reference.roc_auc_score(images.labels[women], images.probabilities[women, 1]), **EXACT
    )
    assert auc["low"] < auc["value"] < auc["high"]


def test_a_subgroup_without_one_of_the_classes_is_marked_and_its_figures_say_why():
    labels = [0, 1] * 20 + [1] * 20
    images = evaluated(labels, [[0.3, 0.7]] * 60, site=["north"] * 40 + ["south"] * 20)
    report, _ = make(images, TWO)
    south = report["subgroups"][0]["groups"][1]
    assert (south["name"], south["few"], south["metrics"]["sensitivity"]["value"]) == ("south", True, 1.0)
    assert south["metrics"]["auc"] == {
        "value": None, "low": None, "high": None,
        "undefined": "All images are PNEUMONIA; this figure needs images of another class.",
    }  # fmt: skip


def test_of_very_many_groups_the_largest_are_shown_and_the_report_says_so():
    images = random_images(5, 400, 2, folder=[f"{min(number // 8, 40)}" for number in range(400)])
    report, _ = make(images, TWO)
    shown = [row["name"] for row in report["subgroups"][0]["groups"]]
    assert len(shown) == 30 and "40" in shown and shown == sorted(shown)
    assert report["warnings"] == ["There are 41 groups by folder; the results of the 30 largest are shown."]


def test_few_patients_are_warned_of_by_class():
    images = evaluated([0] * 40 + [1] * 40, [[0.8, 0.2]] * 30 + [[0.2, 0.8]] * 50, [*range(40)] + [40, 41, 42, 43] * 10)
    report, _ = make(images, TWO)
    assert [row["patients"] for row in report["per_class"]] == [40, 4]
    (warning,) = report["warnings"]
    assert warning.startswith("Images of class PNEUMONIA come from 4 patients only")


def test_a_class_without_any_error_says_how_many_errors_luck_could_hide():
    images = evaluated([0] * 30 + [1] * 30, [[0.8, 0.2]] * 25 + [[0.2, 0.8]] * 35)
    report, _ = make(images, TWO)
    assert report["metrics"]["sensitivity"] == {"value": 1.0, "low": 1.0, "high": 1.0, "undefined": ""}
    (warning,) = report["warnings"]
    # 3 / 30 by the rule of three, 1 - 0.05 ** (1 / 30) exactly.
    assert "class PNEUMONIA was recognised" in warning and "30 patients" in warning and "up to 9.5%" in warning


@pytest.mark.parametrize(
    ("labels", "probabilities", "undefined"),
    [
        ([], [], {"accuracy": "There are no images.", "auc": "There are no images.", "brier": "There are no images."}),
        (
            [0, 0],
            [[0.9, 0.1], [0.8, 0.2]],
            {
                "sensitivity": "There are no images of class PNEUMONIA.",
                "auc": "There are no images of class PNEUMONIA.",
                "precision": "No image was called PNEUMONIA.",
                "mcc": "All images have one class, or all were called one class; there is nothing to correlate.",
            },
        ),
        (
            [1, 1],
            [[0.9, 0.1], [0.2, 0.8]],
            {"specificity": "All images are PNEUMONIA; this figure needs images of another class."},
        ),
    ],
    ids=["no images", "no positives", "no negatives"],
)
def test_an_undefined_figure_is_none_and_says_why(labels, probabilities, undefined):
    images = evaluated(labels, np.array(probabilities).reshape(len(labels), 2))
    report, replicates = make(images, TWO)
    for name, why in undefined.items():
        assert report["metrics"][name] == {"value": None, "low": None, "high": None, "undefined": why}
        assert name not in replicates
    assert report["warnings"]


def test_one_single_grade_has_no_kappa_and_no_mean_area():
    report, _ = make(evaluated([2, 2], np.eye(5)[[2, 2]]), GRADES)
    assert "one grade" in report["metrics"]["quadratic_kappa"]["undefined"]
    assert "All images have one class" in report["metrics"]["auc"]["undefined"]
    assert report["roc"] == [] and [row["class"] for row in report["pr"]] == ["2", ""]


@st.composite
def any_evaluation(draw: st.DrawFn) -> tuple[EvaluatedImages, Question]:
    """Up to 12 images of up to 4 patients, often without one class, with ties and certain answers."""
    classes = draw(st.sampled_from([2, 3]))
    count = draw(st.integers(0, 12))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    sites = draw(st.lists(st.sampled_from(["", "north", "south"]), min_size=count, max_size=count))
    scores = draw(
        st.lists(
            st.lists(st.integers(0, 3), min_size=classes, max_size=classes).filter(any), min_size=count, max_size=count
        )
    )
    values = np.array(scores, np.float64).reshape(count, classes)
    images = evaluated(labels, values / values.sum(axis=1, keepdims=True), groups, site=sites)
    names = ("a", "b", "c")[:classes]
    positive = draw(st.sampled_from([None, "", "a", "b"])) if classes == 2 else None
    return images, Question(
        names, positive, draw(st.sampled_from([None, 0.3])), draw(st.sampled_from([1.0, 2.5])), True
    )


@settings(max_examples=25, deadline=None)
@given(any_evaluation(), st.randoms(use_true_random=False))
def test_the_order_of_images_and_the_numbers_of_patients_make_no_difference(evaluation, random):
    images, question = evaluation
    order = list(range(len(images.labels)))
    random.shuffle(order)
    shuffled = images.where(np.array(order, np.int64))
    renumbered = replace(shuffled, groups=1000 - 7 * shuffled.groups)
    (report, replicates), (again, replicates_again) = make(images, question), make(renumbered, question)
    assert report == again
    assert {name: values.tobytes() for name, values in replicates.items()} == {
        name: values.tobytes() for name, values in replicates_again.items()
    }


@settings(max_examples=25, deadline=None)
@given(any_evaluation())
def test_every_figure_lies_in_its_interval_or_is_undefined_in_words_and_nothing_is_nan(evaluation):
    report, replicates = make(*evaluation)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for name, figure in figures(report):
        if figure["value"] is None:
            assert figure["low"] is None and figure["high"] is None and figure["undefined"].endswith("."), name
        else:
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["undefined"] == "", name
    assert set(replicates) == {name for name, figure in report["metrics"].items() if figure["value"] is not None}


def test_images_survive_a_file_without_pickle():
    images = random_images(6, 20, 3, 5, site=["north", "süd"] * 10, sex=["", "F"] * 10)
    file = io.BytesIO()
    np.savez_compressed(file, **images.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = EvaluatedImages.from_arrays(arrays)
    for name in ("labels", "probabilities", "groups", "digests", "rows"):
        assert getattr(again, name).tolist() == getattr(images, name).tolist()
    assert {name: values.tolist() for name, values in again.subgroups.items()} == {
        name: values.tolist() for name, values in images.subgroups.items()
    }


def test_images_in_order_are_sorted_by_digest_with_patients_numbered_as_they_appear():
    images = replace(evaluated([0, 1, 0], np.eye(2)[[0, 1, 0]], [9, 4, 9]), digests=np.array(["cc", "aa", "bb"]))
    ordered = images.in_order()
    assert ordered.digests.tolist() == ["aa", "bb", "cc"]
    assert ordered.groups.tolist() == [0, 1, 1] and ordered.rows.tolist() == [1, 2, 0]


def test_columns_of_different_lengths_are_refused():
    images = random_images(7, 4, 2)
    with pytest.raises(ValueError, match="4 labels do not fit"):
        replace(images, rows=np.arange(3))


def test_a_question_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit 5 classes"):
        make(random_images(8, 4, 2), GRADES)
    with pytest.raises(ValueError, match="neither of a and b"):
        Question(("a", "b"), "c")
