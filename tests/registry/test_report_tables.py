"""The tables beside the charts say what the curves say, and drops on other images are put in words."""

import numpy as np
import pytest

from registry import drops, report_tables
from registry.reports import METRICS, Question, make
from tests.registry.evaluations import answered, make_images


@pytest.fixture(scope="module")
def report():
    return make(answered(make_images(2, 30), 2, 0), Question(("NORMAL", "PNEUMONIA"), "PNEUMONIA"))[0]


def figure(value, low=None, high=None, undefined=""):
    return {"value": value, "low": low, "high": high, "undefined": undefined}


def test_every_figure_of_a_report_has_words(report):
    assert {row["key"] for row in report_tables.figure_rows(report["metrics"])} == set(METRICS)
    assert {"quadratic_kappa", *METRICS} == set(report_tables.FIGURES)


def test_a_curve_is_read_off_in_steps_of_five_percent():
    curve = {"false_positive_rate": [0, 0, 0.1, 1], "true_positive_rate": [0, 0.5, 0.8, 1]}
    lines = report_tables.roc_lines([curve])
    assert [line.at for line in lines] == pytest.approx(np.linspace(0, 1, 21))
    assert [line.heights[0] for line in lines] == [0.5, 0.5, *[0.8] * 18, 1]


def test_the_precision_at_a_recall_is_the_best_that_reaches_it():
    curve = {"recall": [0, 0.5, 0.5, 1], "precision": [1, 1, 0.5, 0.6]}
    heights = [line.heights[0] for line in report_tables.pr_lines([curve])]
    assert heights == [*[1] * 11, *[0.6] * 10]


def test_lines_of_a_real_report_never_turn_back(report):
    rates = [line.heights[0] for line in report_tables.roc_lines(report["roc"])]
    precisions = [line.heights[0] for line in report_tables.pr_lines(report["pr"])]
    assert rates == sorted(rates)
    assert precisions == sorted(precisions, reverse=True)
    assert rates[-1] == 1


def test_bins_without_an_image_are_left_out(report):
    lines = report_tables.reliability_lines(report["calibration"])
    assert sum(line["after"]["n"] for line in lines) == report["n"]
    assert all(line["before"]["n"] or line["after"]["n"] for line in lines)


def test_each_reason_for_a_missing_figure_is_said_once():
    rows = [
        {"auc": figure(None, undefined="One class only."), "f1": figure(0.5)},
        {"auc": figure(None, undefined="One class only.")},
    ]
    assert report_tables.reasons(rows) == ["One class only."]


@pytest.mark.parametrize(
    ("external", "said"),
    [
        ((0.80, 0.75, 0.85), "AUC is 0.120 lower than on the test part (0.800 instead of 0.920). The intervals do not"),
        (
            (0.89, 0.84, 0.93),
            "AUC is 0.030 lower than on the test part (0.890 instead of 0.920). The intervals overlap",
        ),
        (
            (0.95, 0.91, 0.97),
            "AUC is 0.030 higher than on the test part (0.950 instead of 0.920). The intervals overlap",
        ),
        ((0.92, 0.90, 0.94), "AUC is the same as on the test part (0.920)."),
    ],
)
def test_a_drop_is_said_with_its_size_and_whether_the_intervals_overlap(external, said):
    internal = {"auc": figure(0.92, 0.88, 0.95), "accuracy": figure(0.9, 0.85, 0.95)}
    sentences = drops.sentences(internal, {"auc": figure(*external), "accuracy": figure(0.9, 0.85, 0.95)})
    assert sentences[0].startswith(said)
    assert sentences[1] == "Accuracy is the same as on the test part (90.0\xa0%)."


def test_the_accuracy_falls_by_percentage_points():
    internal = {"auc": figure(0.92, 0.88, 0.95), "accuracy": figure(0.9, 0.85, 0.95)}
    sentence = drops.sentences(internal, internal | {"accuracy": figure(0.7, 0.6, 0.8)})[1]
    assert sentence.startswith(
        "Accuracy is 20.0 percentage points lower than on the test part (70.0\xa0% instead of 90.0\xa0%)."
    )


@pytest.mark.parametrize("swapped", [False, True])
def test_an_undefined_figure_is_not_compared(swapped):
    known = {"auc": figure(0.92, 0.88, 0.95), "accuracy": figure(0.9, 0.85, 0.95)}
    unknown = known | {"auc": figure(None, undefined="All images have one class.")}
    where = "on the test part" if swapped else "here"
    sentences = drops.sentences(*((unknown, known) if swapped else (known, unknown)))
    assert drops.differences(*((unknown, known) if swapped else (known, unknown)))["auc"] is None
    assert sentences[0] == f"AUC cannot be compared: it is undefined {where}. All images have one class."


def test_a_perfect_figure_on_a_few_images_is_no_evidence_of_a_difference():
    internal = {"auc": figure(0.998, 0.996, 0.999), "accuracy": figure(0.977, 0.961, 0.99)}
    for sentence in drops.sentences(internal, {name: figure(1.0, 1.0, 1.0) for name in internal}):
        assert "higher than on the test part" in sentence
        assert "nobody can tell from them whether this is chance" in sentence
