"""A version whose figures should not be believed says so in words, and a sound one says nothing."""

import json
import re
from typing import Any

import numpy as np
import pytest

from registry import reports
from registry.cautions import Caution, _validation_above, cautions

TWO = ("NORMAL", "PNEUMONIA")


def report(
    strength: float = 1.5,
    count: int = 400,
    *,
    labels: np.ndarray | None = None,
    each: int = 1,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Of a model that tells the two classes apart by `strength`. each: images of a patient."""
    random = np.random.default_rng(3)
    truth = random.integers(0, 2, count) if labels is None else labels
    positive = 1 / (1 + np.exp(-(random.normal(size=len(truth)) + strength * (2 * truth - 1))))
    images = reports.EvaluatedImages(
        labels=truth,
        probabilities=np.stack([1 - positive, positive], axis=1),
        groups=np.arange(len(truth)) // each,
        digests=np.array([f"{index:064x}" for index in range(len(truth))]),
        rows=np.arange(len(truth)),
    )
    return reports.make(images, reports.Question(TWO, "PNEUMONIA", threshold))[0]


def epoch(**figures: Any) -> dict[str, Any]:
    return {"loss": 0.4, "val_loss": 0.5, "accuracy": 0.85, "val_accuracy": 0.82, "auc": 0.9, "val_auc": 0.88} | figures


def codes(found: list[Caution]) -> list[str]:
    return [caution.code for caution in found]


def test_a_sound_version_has_no_cautions():
    sound = report()
    assert cautions(sound, validation=sound, history=[epoch()] * 3, test_uses=1) == []


def test_a_model_that_guesses_did_not_learn():
    (caution,) = cautions(report(strength=0.02))
    assert caution.code == "did-not-learn"
    assert "is not much better than guessing (0.50)" in caution.text and "Check the labels" in caution.advice


def test_a_model_that_is_always_wrong_does_worse_than_guessing():
    (caution,) = cautions(report(strength=-1.0))
    assert caution.code == "worse-than-guessing" and "as if the classes were exchanged" in caution.text
    # Of a few images luck explains it as well.
    few = report(strength=0.0, count=14)
    assert few["metrics"]["auc"]["value"] < 0.4
    assert codes(cautions(few))[0] == "did-not-learn"


def test_a_good_area_on_a_handful_of_images_may_be_guessing():
    small = report(strength=0.5, count=14)
    assert small["metrics"]["auc"]["value"] >= 0.6 and small["metrics"]["auc"]["low"] <= 0.5
    assert codes(cautions(small)) == ["may-be-guessing", "few-patients"]


def test_a_model_that_gives_one_answer_has_collapsed():
    found = cautions(report(threshold=1.0))
    assert codes(found) == ["collapsed"]
    assert "every test image was called NORMAL" in found[0].text
    assert "choose another threshold" in found[0].advice


def test_a_class_without_test_images_is_named():
    found = cautions(report(labels=np.ones(100, int)))
    assert codes(found)[0] == "class-missing" and "none of NORMAL" in found[0].text
    assert "collapsed" not in codes(cautions(report(strength=6, labels=np.ones(100, int))))


def test_a_perfect_score_points_to_duplicates_and_leaks():
    (caution,) = cautions(report(strength=9))
    assert caution.code == "suspiciously-perfect"
    assert "area under the ROC curve of 1 and an accuracy of 1 on 400 images" in caution.text
    assert "duplicates" in caution.advice


def test_a_perfect_score_on_a_few_images_is_no_surprise_but_they_are_few():
    (caution,) = cautions(report(strength=9, count=40))
    assert caution.code == "few-patients"


def test_an_interval_that_is_a_point_is_told_by_what_it_leaves_possible():
    (caution,) = cautions(report(strength=9, count=40))
    # Exact binomial: 40 patients without an error are seen in 5 % of the cases where 7.2 % are misread.
    assert abs((1 - 0.0722) ** 40 - 0.05) < 0.001
    assert "Every image was read rightly" in caution.text and "misread up to 7 % of other patients" in caution.text
    assert "could be anything" not in caution.text
    wrong = report(strength=-9, count=40)
    (few,) = [one for one in cautions(wrong) if one.code == "few-patients"]
    assert wrong["metrics"]["accuracy"]["value"] == wrong["metrics"]["accuracy"]["high"] == 0
    assert few.text.endswith("of PNEUMONIA.") or few.text.endswith("from 40 patients.")


@pytest.mark.parametrize(
    ("kept", "figure"),
    [
        (epoch(auc=0.99, val_auc=0.8), "0.99 .* 0.80"),
        (epoch(auc=None, accuracy=0.98, val_accuracy=0.7), "0.98 .* 0.70"),
    ],
)
def test_training_figures_far_above_validation_are_over_fitting(kept, figure):
    (caution,) = cautions(report(), history=[epoch(val_loss=0.6), kept, epoch(val_loss=0.7)])
    assert caution.code == "over-fitted"
    assert re.search(figure, caution.text)


def test_over_fitting_after_the_epoch_that_was_kept_does_no_harm():
    history = [epoch(), epoch(val_loss=0.9, auc=1.0, val_auc=0.7)]
    assert cautions(report(), history=history) == []


def test_without_validation_losses_the_last_epoch_counts():
    history = [epoch(val_loss=None), epoch(val_loss=float("nan"), auc=1.0, val_auc=0.7)]
    assert codes(cautions(report(), history=history)) == ["over-fitted"]


def test_epochs_without_figures_say_nothing():
    assert cautions(report(), history=[{"epoch": 1}, {"loss": 0.3, "auc": None}]) == []


def test_validation_far_above_the_test_is_told_with_both_figures():
    found = cautions(report(strength=0.7), validation=report(strength=2.0))
    assert codes(found) == ["validation-above-test"]
    assert "area under the ROC curve 0.9" in found[0].text and " here" in found[0].text


def test_plain_validation_figures_without_intervals_are_enough():
    before = {"auc": 0.99, "accuracy": 0.97, "balanced_accuracy": None}
    assert codes(cautions(report(strength=0.7), validation=before)) == ["validation-above-test"]


def test_a_difference_within_the_interval_of_either_part_is_no_caution():
    tested = report(strength=1.0, count=150)
    auc = tested["metrics"]["auc"]
    assert auc["high"] - auc["value"] > 0.035
    assert cautions(tested, validation={"auc": auc["high"] - 0.002}) == []
    uncertain = {"value": auc["high"] + 0.01, "low": auc["value"] - 0.01, "high": 1.0}
    assert cautions(tested, validation={"metrics": {"auc": uncertain}}) == []
    # Each outside the other's interval, but the difference of both is uncertain by the root of the sum of the squares.
    apart = uncertain | {"low": auc["value"] + 0.01}
    assert cautions(tested, validation={"metrics": {"auc": apart}}) == []
    certain = uncertain | {"low": auc["high"] + 0.005}
    assert codes(cautions(tested, validation={"metrics": {"auc": certain}})) == ["validation-above-test"]


def test_equally_good_parts_are_seldom_called_far_apart():
    random = np.random.default_rng(5)
    found = 0
    for _ in range(2000):
        before, after = random.normal(0.8, 0.03, 2)
        figures = [
            {"metrics": {"auc": {"value": value, "low": value - 1.96 * 0.03, "high": value + 1.96 * 0.03}}}
            for value in (before, after)
        ]
        found += bool(list(_validation_above(figures[1], figures[0])))
    assert found / 2000 < 0.035  # one-sided 2.5 %


def test_images_of_a_few_patients_are_few_however_many_they_are():
    (caution,) = cautions(report(each=10))
    assert caution.code == "few-patients"
    assert "come from 40 patients" in caution.text and "95 % interval" in caution.text


def test_a_class_with_a_few_images_is_named():
    labels = np.r_[np.ones(7, int), np.zeros(300, int)]
    (caution,) = cautions(report(labels=labels, strength=2.5))
    assert "from 307 patients, with only 7 of PNEUMONIA" in caution.text


def test_a_class_from_a_few_patients_is_named_however_many_images_it_has():
    labels = np.r_[np.ones(150, int), np.zeros(150, int)]
    many = report(labels=labels)
    assert cautions(many) == []
    many["per_class"][1]["patients"] = 6
    (caution,) = cautions(many)
    assert "with only 6 of PNEUMONIA" in caution.text
    del many["per_class"][1]["patients"]
    assert cautions(many) == []


@pytest.mark.parametrize("uses", [None, 0, 1])
def test_a_test_part_that_was_used_once_is_a_test(uses):
    assert cautions(report(), test_uses=uses) == []


def test_a_test_part_that_was_used_often_is_none_any_more():
    (caution,) = cautions(report(), test_uses=7)
    assert caution.code == "test-reused" and "used 7 times" in caution.text


def test_without_images_nothing_else_is_said():
    assert codes(cautions(report(count=0), test_uses=5)) == ["no-images"]


def test_cautions_are_full_sentences_and_plain_json():
    found = cautions(
        report(strength=0.02, labels=np.r_[np.ones(7, int), np.zeros(30, int)]), history=[epoch(auc=1.0)], test_uses=3
    )
    assert len(found) >= 3
    for caution in found:
        assert caution.text.endswith(".") and caution.advice.endswith(".")
        assert json.loads(json.dumps(caution.to_json())) == caution.to_json()
