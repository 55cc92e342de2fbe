"""Two to ten versions are compared on the same images, and the conclusion is said in words that the data bear out."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from registry import comparing, paired, reports
from registry.comparing import Contender, compare
from registry.statistics import classification_metrics

COUNT = 300
TWO = ("NORMAL", "PNEUMONIA")
THREE = ("NORMAL", "BACTERIA", "VIRUS")


def contender(
    label: str,
    strength: float,
    *,
    seed: int = 1,
    count: int = COUNT,
    classes: tuple[str, ...] = TWO,
    noise: int = 0,
    each: int = 1,
    **question: object,
) -> Contender:
    """A version that tells the classes apart by `strength`, on the images of `seed`. each: images of a patient.

    noise: seed of what only this version sees; versions with the same noise and strength are the same.
    """
    random = np.random.default_rng(seed)
    labels = np.r_[np.arange(len(classes)), random.integers(0, len(classes), count - len(classes))]
    seen = random.normal(size=(count, len(classes))) + 0.5 * np.random.default_rng(noise).normal(
        size=(count, len(classes))
    )
    powers = np.exp(seen + strength * np.eye(len(classes))[labels])
    images = reports.EvaluatedImages(
        labels=labels,
        probabilities=powers / powers.sum(axis=1, keepdims=True),
        groups=np.arange(count) // each,
        digests=np.array([f"{seed * 100_000 + index:064x}" for index in range(count)]),
        rows=np.arange(count),
    )
    positive = classes[1] if len(classes) == 2 else None
    return made(label, images, reports.Question(classes, **{"positive_class": positive, **question}))


def made(label: str, images: reports.EvaluatedImages, question: reports.Question) -> Contender:
    report, replicates = reports.make(images, question)
    return Contender(label, report, images, question, replicates)


def changed(original: Contender, **columns: np.ndarray) -> Contender:
    return made(original.label, replace(original.images, **columns), original.question)


# --- Two versions ----------------------------------------------------------------------------------------------------


def test_a_better_version_is_called_better_with_its_interval():
    (pair,) = compare([contender("v1", 0.5), contender("v2", 2.0, noise=2)]).pairs
    auc = pair.auc
    assert pair.better == "v2" and auc.method == comparing.DELONG
    assert pair.conclusion.startswith(
        f"v2 is better than v1 by {auc.difference:.3f} AUC (95 % interval {auc.low:.3f} to {auc.high:.3f}, p < 0.001). "
    )
    assert f"only v1 is right on {pair.decisions.only_first}" in pair.conclusion
    assert "more than chance" in pair.conclusion


def test_the_order_of_the_two_turns_the_signs_and_keeps_the_words():
    worse, better = contender("v1", 0.5), contender("v2", 2.0, noise=2)
    (pair,), (turned,) = compare([worse, better]).pairs, compare([better, worse]).pairs
    assert turned.auc.difference == pytest.approx(-pair.auc.difference)
    assert turned.metrics["f1"].low == pytest.approx(-pair.metrics["f1"].high)
    assert turned.conclusion.split(" Of ")[0] == pair.conclusion.split(" Of ")[0]


def test_two_versions_that_are_about_as_good_cannot_be_told_apart():
    (pair,) = compare([contender("v1", 1.0), contender("v2", 1.0, noise=2)]).pairs
    assert pair.better == ""
    assert pair.auc.low < 0 < pair.auc.high
    assert pair.conclusion.startswith("The data cannot tell v1 and v2 apart: ")
    assert "which may be chance." in pair.conclusion
    assert "no more than chance may bring" in pair.conclusion


def test_the_same_answers_are_the_same():
    (pair,) = compare([contender("v1", 1.0), contender("v2", 1.0)]).pairs
    assert (pair.auc.difference, pair.auc.p, pair.decisions.p) == (0, 1, 1)
    assert pair.conclusion == (
        "The data cannot tell v1 and v2 apart: their AUC is the same. Both decide rightly on the same of 300 images."
    )
    assert all(found.difference == found.low == found.high == 0 for found in pair.metrics.values())


def test_figures_of_a_pair_are_those_of_the_methods_alone():
    first, second = contender("v1", 1.0, threshold=0.4, temperature=1.5), contender("v2", 1.5, noise=2, threshold=0.6)
    (pair,) = compare([first, second]).pairs
    truth = first.images.labels
    scores = [each.images.probabilities[:, 1] for each in (first, second)]
    alone = paired.delong_test(truth == 1, *scores)
    assert (pair.auc.difference, pair.auc.standard_error, pair.auc.p) == pytest.approx(
        (alone.difference, alone.standard_error, alone.p), rel=1e-9
    )
    for name, found in pair.metrics.items():
        figures = [each.report["metrics"][name]["value"] for each in (first, second)]
        replicates = second.replicates[name] - first.replicates[name]
        assert found.difference == pytest.approx(figures[1] - figures[0])
        assert (found.low, found.high) == pytest.approx(np.percentile(replicates, [2.5, 97.5]), abs=1e-6)
        assert found.method == comparing.BOOTSTRAP


def test_decisions_are_those_of_each_versions_own_threshold_and_temperature():
    first, second = contender("v1", 1.0, threshold=0.3, temperature=2.0), contender("v2", 1.0, threshold=0.7)
    (pair,) = compare([first, second]).pairs
    accuracies = [
        classification_metrics(
            each.images.labels,
            comparing.calibration.with_temperature(each.images.probabilities, each.question.temperature),
            TWO,
            "PNEUMONIA",
            each.question.threshold,
        )["accuracy"]
        for each in (first, second)
    ]
    only_second_more = pair.decisions.only_second - pair.decisions.only_first
    assert only_second_more == round(COUNT * (accuracies[1] - accuracies[0])) != 0


def test_patients_with_several_images_are_counted_as_patients():
    one = [contender("v1", 1.0), contender("v2", 1.3, noise=2)]
    several = [contender("v1", 1.0, each=10), contender("v2", 1.3, noise=2, each=10)]
    comparison = compare(several)
    assert comparison.notes == ("Images of one patient resemble each other; all tests count patients, not images.",)
    assert comparison.pairs[0].decisions.method in (paired.SIGNS_OF_PATIENTS, paired.CHI_SQUARE_OF_PATIENTS)
    assert compare(one).notes == ()


# --- Several classes -------------------------------------------------------------------------------------------------


def test_several_classes_are_compared_by_the_mean_area_and_the_bootstrap_and_this_is_said():
    comparison = compare([contender("v1", 0.5, classes=THREE), contender("v2", 2.0, classes=THREE, noise=2)])
    (pair,) = comparison.pairs
    assert pair.auc.method == comparing.BOOTSTRAP and pair.better == "v2"
    assert pair.auc.low <= pair.auc.difference <= pair.auc.high
    assert pair.auc.p == pytest.approx(2 / 2001)
    assert "mean AUC" in pair.conclusion
    assert "DeLong's method is for two classes" in comparison.notes[0]


def test_a_bootstrap_of_equally_good_versions_has_a_large_p_value():
    (pair,) = compare(
        [contender("v1", 1.0, classes=THREE, noise=3), contender("v2", 1.0, classes=THREE, noise=2)]
    ).pairs
    assert pair.better == "" and pair.auc.p > 0.05
    assert pair.auc.low <= 0 <= pair.auc.high


# --- Many versions ---------------------------------------------------------------------------------------------------


def test_p_values_are_corrected_for_all_pairs():
    versions = [contender(f"v{number}", strength, noise=number) for number, strength in enumerate((1.0, 1.2, 2.0), 1)]
    comparison = compare(versions)
    assert [(pair.first, pair.second) for pair in comparison.pairs] == [("v1", "v2"), ("v1", "v3"), ("v2", "v3")]
    assert [pair.auc.p_corrected for pair in comparison.pairs] == paired.holm([p.auc.p for p in comparison.pairs])
    corrected = paired.holm([pair.decisions.p for pair in comparison.pairs])
    assert [pair.decisions.p_corrected for pair in comparison.pairs] == corrected
    assert "after correction for 3 comparisons" in comparison.pairs[0].conclusion


def test_a_difference_that_only_counts_alone_is_not_called_one_among_many():
    difference = comparing.Difference(0.02, 0.001, 0.039, 0.01, 0.04, 0.12)
    assert comparing._better("v1", "v2", difference) == ""
    words = comparing._words_of_areas("v1", "v2", "", difference, "AUC", 3)
    assert words == (
        "The data cannot tell v1 and v2 apart: v2 is ahead by 0.020 AUC (95 % interval 0.001 to 0.039, p = 0.12 after "
        "correction for 3 comparisons), which may be chance. Tested alone it would count as a difference; among 3 "
        "comparisons one like it is no surprise."
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0302, "p = 0.03"), (0.0497, "p = 0.0497"), (0.04996, "p = 0.04996"), (0.28, "p = 0.28"), (0.0002, "p < 0.001")],
)
def test_a_p_value_is_rounded_without_crossing_the_limit(value, words):
    assert comparing._p(value, 1) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0211, "0.021"), (0.0, "0.000"), (-0.0082, "-0.008"), (0.00042, "0.0004"), (1.0, "1.000"), (-1e-17, "0.000")],
)
def test_a_small_difference_is_still_seen(value, words):
    assert comparing._number(value) == words


@pytest.mark.parametrize("noise", [0.0, 1e-17])
def test_equal_areas_of_different_answers_are_not_called_ahead(noise):
    difference = comparing.Difference(noise, -0.05, 0.05, 0.025, 1.0, 1.0)
    assert comparing._words_of_areas("v1", "v2", "", difference, "AUC", 1) == (
        "The data cannot tell v1 and v2 apart: their AUC is the same (95 % interval of the difference -0.050 to 0.050)."
    )


def test_the_bootstrap_of_other_figures_is_corrected_for_all_pairs_too():
    comparison = compare([contender(f"v{number}", 1 + number / 3, noise=number) for number in range(3)])
    for metric in comparing.RESAMPLED:
        found = [pair.metrics[metric] for pair in comparison.pairs]
        assert all(0 < each.p <= 1 for each in found)
        assert [each.p_corrected for each in found] == paired.holm([each.p for each in found])


def test_a_comparison_is_plain_json():
    comparison = compare([contender("v1", 1.0), contender("v2", 1.5, noise=2), contender("v3", 1.5, seed=2)])
    told = comparison.to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["labels"] == ["v1", "v2", "v3"] and len(told["pairs"]) == 1


@pytest.mark.parametrize("count", [0, 1, 11])
def test_fewer_than_two_or_more_than_ten_are_refused(count):
    one = contender("v1", 1.0)
    with pytest.raises(ValueError, match=f"2 to 10 versions to compare; {count} were chosen"):
        compare([replace(one, label=f"v{number}") for number in range(count)])


def test_two_versions_with_one_label_are_refused():
    with pytest.raises(ValueError, match="same label"):
        compare([contender("v1", 1.0), contender("v1", 2.0)])


def test_ten_versions_on_ten_thousand_images_are_compared_in_a_fifth_of_a_second():
    random = np.random.default_rng(0)
    labels, patients = random.integers(0, 2, 10_000), np.arange(10_000) // 3
    digests = np.array([f"{index:064x}" for index in range(10_000)])
    figures = {name: {"value": 0.5, "low": 0.4, "high": 0.6, "undefined": ""} for name in reports.METRICS}
    report = {"n": 10_000, "patients": 3334, "metrics": figures, "bootstrap": {"seed": 1}}
    versions = []
    for number in range(10):
        positive = random.random(10_000)
        answers = np.stack([1 - positive, positive], axis=1)
        images = reports.EvaluatedImages(labels, answers, patients, digests.copy(), np.arange(10_000))
        replicates = {name: random.random(2000).astype(np.float32) for name in reports.METRICS}
        question = reports.Question(TWO, "PNEUMONIA", 0.5, 1.3)
        versions.append(Contender(f"v{number}", report, images, question, replicates))
    needed = []
    for _ in range(3):
        # Time of this process, so that whatever else the machine does makes no difference.
        start = time.process_time()
        assert len(compare(versions).pairs) == 45
        needed.append(time.process_time() - start)
    assert min(needed) < 0.2, needed


# --- Different images ------------------------------------------------------------------------------------------------


def test_the_order_in_which_images_came_makes_no_difference():
    first, second = contender("v1", 1.0, each=3), contender("v2", 1.6, noise=2, each=3)
    order = np.random.default_rng(0).permutation(COUNT)
    shuffled = made("v2", second.images.where(order), second.question)
    assert compare([first, shuffled]).to_json() == compare([first, second]).to_json()


def test_different_images_are_said_and_not_tested():
    first, second, elsewhere = contender("v1", 1.0), contender("v2", 1.5, noise=2), contender("v3", 1.5, seed=2)
    half = made("v4", first.images.where(np.arange(COUNT // 2)), first.question)
    comparison = compare([first, elsewhere, second, half])
    assert not comparison.same_images
    assert [(pair.first, pair.second) for pair in comparison.pairs] == [("v1", "v2")]
    assert comparison.obstacles[0].startswith(
        "v1 and v3 were not tested on the same images: v1 on 300 images, v3 on 300 images, of which 0 are the same. "
    )
    assert "v4 on 150 images, of which 150 are the same" in comparison.obstacles[1]
    assert all("Evaluate both on the same images" in obstacle for obstacle in comparison.obstacles)
    assert [placing.place for placing in comparison.ranking("auc")] == [None] * 4


def test_corrected_labels_and_other_patients_are_noticed_on_the_same_images():
    first, second = contender("v1", 1.0), contender("v2", 1.5, noise=2)
    labels = second.images.labels.copy()
    labels[5] = 1 - labels[5]
    relabelled = compare([first, changed(second, labels=labels)])
    assert relabelled.same_images and not relabelled.pairs
    assert "but 1 image had another label then" in relabelled.obstacles[0]
    regrouped = compare([first, changed(second, groups=np.arange(COUNT) // 2)])
    assert "assigned to patients differently" in regrouped.obstacles[0]


def test_other_classes_and_another_positive_class_are_noticed():
    first = contender("v1", 1.0)
    other = made("v2", first.images, replace(first.question, positive_class="NORMAL"))
    assert "do not call the same class positive" in compare([first, other]).obstacles[0]
    renamed = made("v2", first.images, reports.Question(("NORMAL", "VIRUS"), "VIRUS"))
    assert "(NORMAL, PNEUMONIA) and (NORMAL, VIRUS)" in compare([first, renamed]).obstacles[0]


def test_a_missing_class_leaves_the_areas_out_and_compares_the_decisions():
    versions = [contender("v1", 0.5), contender("v2", 2.0, noise=2)]
    only = [made(each.label, each.images.where(each.images.labels == 1), each.question) for each in versions]
    (pair,) = compare(only).pairs
    assert pair.auc.difference is None and pair.auc.undefined == paired.ONE_CLASS
    assert pair.conclusion.startswith("The areas under the ROC curve of v1 and v2 cannot be compared. ")
    assert "only v2 on" in pair.conclusion
    assert pair.metrics["accuracy"].difference > 0
    json.dumps(pair.to_json(), allow_nan=False)


@pytest.mark.parametrize("classes", [TWO, THREE])
@pytest.mark.parametrize(("patients", "tested"), [(1, False), (9, False), (10, True)])
def test_of_a_few_patients_nothing_is_called_better_however_many_images_they_have(classes, patients, tested):
    versions = [contender("v1", 0.2, classes=classes), contender("v2", 3.0, classes=classes, noise=2)]
    few = [changed(each, groups=np.arange(COUNT) % patients) for each in versions]
    comparison = compare(few)
    (pair,) = comparison.pairs
    assert pair.auc.difference > 0.1 and (pair.better == "v2") is tested
    assert all((found.low is not None) is tested for found in (pair.auc, *pair.metrics.values()))
    assert [placing.shared for placing in comparison.ranking("f1")] == [not tested] * 2
    if not tested:
        assert "Images of class NORMAL come from " in pair.conclusion and "cannot be compared" in pair.conclusion
    json.dumps(pair.to_json(), allow_nan=False)


# --- Ranking ---------------------------------------------------------------------------------------------------------


def places(comparison: comparing.Comparison, metric: str) -> list[tuple[str, int | None, bool]]:
    return [(placing.label, placing.place, placing.shared) for placing in comparison.ranking(metric)]


def test_versions_that_cannot_be_told_from_the_leader_share_its_place():
    strengths = {"v1": 0.2, "v2": 2.0, "v3": 2.0, "v4": 0.2}
    comparison = compare(
        [contender(label, strength, noise=int(label[1]) + 100) for label, strength in strengths.items()]
    )
    for metric in ("auc", "accuracy", "sensitivity", "log_loss"):
        found = places(comparison, metric)
        assert {found[0][0], found[1][0]} == {"v2", "v3"}, metric
        assert [(place, shared) for _, place, shared in found] == [(1, True), (1, True), (3, True), (3, True)], metric


def ranked(values: dict[str, float], apart: set[frozenset[str]]) -> list[tuple[str, int | None, bool, bool]]:
    placed = comparing._placed([comparing.Placing(label, value) for label, value in values.items()], apart)
    return [(one.label, one.place, one.shared, one.best) for one in placed]


def test_the_first_is_the_best_only_where_it_differs_from_each_of_the_others():
    values = {"v1": 0.9, "v2": 0.8, "v3": 0.79}
    # v3 cannot be told from v2, which leads the second place, but neither from v1.
    some = {frozenset(("v1", "v2"))}
    assert ranked(values, some) == [("v1", 1, False, False), ("v2", 2, True, False), ("v3", 2, True, False)]
    every = some | {frozenset(("v1", "v3"))}
    assert ranked(values, every) == [("v1", 1, False, True), ("v2", 2, True, False), ("v3", 2, True, False)]


def test_one_version_alone_is_not_the_best():
    assert ranked({"v1": 0.9}, set()) == [("v1", 1, False, False)]
    assert ranked({}, set()) == []


def test_of_ten_equally_good_versions_none_is_ahead():
    # Their differences cross the limit one by one, as some of so many do by luck: without the correction v3 would lead.
    versions = [contender(f"v{number}", 1.2, noise=number + 30) for number in range(10)]
    comparison = compare(versions)
    alone = [pair.auc.p for pair in comparison.pairs]
    assert min(alone) < comparing.SIGNIFICANT
    for metric in ("auc", "accuracy", "brier"):
        assert {placing.place for placing in comparison.ranking(metric)} == {1}, metric


def test_the_smaller_is_the_better_for_errors():
    comparison = compare([contender("v1", 0.2), contender("v2", 2.0, noise=2)])
    for metric in sorted(comparing.LOWER_IS_BETTER - {"ece"}):
        assert places(comparison, metric) == [("v2", 1, False), ("v1", 2, False)]
    values = [placing.value for placing in comparison.ranking("ece")]
    assert values == sorted(values)


def test_a_version_without_the_figure_has_no_place_and_comes_last():
    comparison = compare([contender("v1", 1.0), contender("v2", 1.2, noise=2, ordinal=True)])
    assert places(comparison, "quadratic_kappa") == [("v2", 1, False), ("v1", None, False)]


def test_every_metric_of_a_report_can_be_ranked_by_and_others_are_refused():
    comparison = compare([contender("v1", 1.0), contender("v2", 1.2, noise=2)])
    assert set(reports.METRICS) <= set(comparing.METRICS)
    for metric in reports.METRICS:
        assert len(comparison.ranking(metric)) == 2
    with pytest.raises(ValueError, match="Choose one of auc, accuracy"):
        comparison.ranking("speed")
