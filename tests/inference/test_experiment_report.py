"""What an experiment shows: known answers, other libraries as referees, and how often chance decides."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, recall_score, roc_auc_score

from inference.experiment_report import (
    CHALLENGER,
    CHAMPION,
    DECISIVE_P,
    DECISIVE_QUANTILE,
    OPEN,
    POWER_QUANTILE,
    UNKNOWN,
    Side,
    Task,
    arms_report,
    difference_of_shares,
    kappa,
    paired_difference,
    paired_report,
    paired_sample_size,
    sample_size,
)

LUNGS = Task(("NORMAL", "PNEUMONIA"), 1)
GRADES = Task(("0", "1", "2"), None)


def of_counts(both, only_first, only_second, neither):
    """Who was right on which image, as two masks."""
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return first, second


def studies(count):
    return np.arange(count)


def paired(champion_right, challenger_right, truth=None, **options):
    """A report on positive studies, or those of `truth`, one image each."""
    truth = np.ones(len(champion_right), int) if truth is None else truth
    decided = [np.where(right, truth, 1 - truth) for right in (champion_right, challenger_right)]
    return paired_report(LUNGS, *decided, truth, studies(len(truth)), **options)


def side(right, judged, studies_without_verdict=0):
    """An arm: `right` of `judged` studies, all with a finding, are called right."""
    decided = np.repeat([1, 0, 1], [right, judged - right, studies_without_verdict])
    truth = np.repeat([1, UNKNOWN], [judged, studies_without_verdict])
    return Side(decided, truth, studies(len(truth)))


# -- The formulas


@pytest.mark.parametrize(
    ("counts", "difference", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:2635), table III, method 10.
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),
    ],
)
def test_the_interval_of_a_paired_difference_is_the_published_one(counts, difference, low, high):
    found = paired_difference(*of_counts(*counts))
    assert (found.difference, found.low, found.high) == pytest.approx((difference, low, high), abs=5e-5)


def test_the_interval_of_an_unpaired_difference_is_the_published_one():
    # Newcombe 1998 (Statistics in Medicine 17:873), table II, example (a), method 10.
    found = difference_of_shares(56, 70, 48, 80)
    assert (found.difference, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_the_interval_turns_with_the_sides():
    found, turned = difference_of_shares(9, 10, 3, 10), difference_of_shares(3, 10, 9, 10)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize("counts", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (5, 0, 0, 5)])
def test_extreme_tables_have_intervals_within_what_is_possible(counts):
    found = paired_difference(*of_counts(*counts))
    assert -1 <= found.low <= found.difference <= found.high <= 1
    assert found.low < found.high


def test_without_images_there_is_no_difference():
    assert paired_difference([], []).to_json() == {"difference": None, "low": None, "high": None}
    assert difference_of_shares(0, 0, 3, 4).difference is None


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(7)
    covered = [0, 0]
    for _ in range(1500):
        first = rng.random(60) < 0.85
        second = np.where(rng.random(60) < 0.7, first, rng.random(60) < 0.75)
        true = 0.85 - (0.7 * 0.85 + 0.3 * 0.75)
        found = paired_difference(first, second)
        covered[0] += found.low <= true <= found.high
        one, other = rng.binomial(40, 0.9), rng.binomial(25, 0.8)
        apart = difference_of_shares(one, 40, other, 25)
        covered[1] += apart.low <= 0.1 <= apart.high
    # Newcombe's method is a little on the safe side for correlated answers.
    assert 0.94 < covered[0] / 1500 < 0.99
    assert 0.93 < covered[1] / 1500 < 0.98


def test_kappa_is_that_of_another_library():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    second[:120] = first[:120]
    assert kappa(confusion_matrix(first, second)) == pytest.approx(cohen_kappa_score(first, second))
    assert kappa([[0, 0], [0, 0]]) is None and kappa([[9, 0], [0, 0]]) is None


def test_the_constants_are_quantiles_of_the_normal_distribution():
    assert pytest.approx(stats.norm.ppf(1 - DECISIVE_P / 2)) == DECISIVE_QUANTILE
    assert pytest.approx(stats.norm.ppf(0.8)) == POWER_QUANTILE


def test_as_many_pairs_as_are_foretold_find_the_difference_four_times_out_of_five():
    discordance, difference = 0.2, 0.1
    count = paired_sample_size(discordance, difference)
    rng = np.random.default_rng(3)
    only = rng.multinomial(
        count, [(discordance - difference) / 2, (discordance + difference) / 2, 1 - discordance], 4000
    )
    z = (only[:, 1] - only[:, 0]) / np.sqrt(only[:, 0] + only[:, 1])
    assert (z > DECISIVE_QUANTILE).mean() == pytest.approx(0.8, abs=0.03)


def test_the_number_of_pairs_is_the_one_of_connors_formula_worked_by_hand():
    # (1.96 sqrt(0.2) + 0.8416 sqrt(0.19))^2 / 0.01 = (0.87654 + 0.36685)^2 / 0.01 = 154.6
    assert paired_sample_size(0.2, 0.1, 1.96) == 155


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_as_many_verdicts_as_are_foretold_find_a_difference_between_arms(share):
    total = sample_size(0.80, 0.92, 0.12, share)
    rng = np.random.default_rng(5)
    others, own = round(total * (1 - share)), round(total * share)
    champion, challenger = rng.binomial(others, 0.80, 4000) / others, rng.binomial(own, 0.92, 4000) / own
    error = np.sqrt(champion * (1 - champion) / others + challenger * (1 - challenger) / own)
    assert ((challenger - champion) / error > DECISIVE_QUANTILE).mean() == pytest.approx(0.8, abs=0.04)


# -- Shadow


def test_figures_are_those_of_another_library():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 300)
    scores = [np.clip(truth * 0.3 + rng.random(300) * 0.7, 0, 1) for _ in range(2)]
    decided = [(score >= 0.5).astype(int) for score in scores]
    report = paired_report(LUNGS, *decided, truth, studies(300), tuple(scores))
    for name, said, score in zip((CHAMPION, CHALLENGER), decided, scores, strict=True):
        figures = report[name]
        assert figures["accuracy"]["value"] == pytest.approx(accuracy_score(truth, said))
        assert figures["sensitivity"]["value"] == pytest.approx(recall_score(truth, said))
        assert figures["specificity"]["value"] == pytest.approx(recall_score(truth, said, pos_label=0))
        interval = stats.binomtest(int((truth == said).sum()), 300).proportion_ci(method="wilson")
        assert (figures["accuracy"]["low"], figures["accuracy"]["high"]) == pytest.approx(tuple(interval))
        assert report["auc"][name] == pytest.approx(roc_auc_score(truth, score))
    assert report["table"] == confusion_matrix(*decided).tolist()
    assert report["agreement"]["value"] == pytest.approx((decided[0] == decided[1]).mean())
    assert report["auc"]["difference"] == pytest.approx(report["auc"]["challenger"] - report["auc"]["champion"])


def test_the_test_of_the_decisions_is_exact_where_they_differ_seldom():
    report = paired(*of_counts(40, 3, 11, 6))
    assert (report["mcnemar"]["only_first"], report["mcnemar"]["only_second"]) == (3, 11)
    assert report["mcnemar"]["p"] == pytest.approx(stats.binomtest(3, 14).pvalue)
    # The challenger's share less the champion's.
    assert report["difference"]["difference"] == pytest.approx(8 / 60)


def test_only_answers_with_a_verdict_count_and_it_is_said_how_many():
    truth = np.array([1, UNKNOWN, 0, UNKNOWN])
    report = paired_report(LUNGS, [1, 1, 1, 0], [1, 0, 0, 0], truth, studies(4))
    assert (report["answers"], report["studies"], report["judged"]) == (4, 4, 2)
    assert report["champion"]["accuracy"]["value"] == 0.5
    assert report["challenger"]["accuracy"]["value"] == 1
    assert report["agreement"]["value"] == 0.5


def test_a_study_counts_once_with_its_first_judged_answer():
    subjects = np.array([0, 0, 0, 1])
    truth = np.array([UNKNOWN, 1, 0, 0])
    report = paired_report(LUNGS, [0, 1, 1, 0], [0, 0, 1, 1], truth, subjects)
    assert (report["answers"], report["studies"], report["judged"]) == (4, 2, 2)
    # Of study 0 the second answer (the champion is right), of study 1 its only one.
    assert report["champion"]["accuracy"]["value"] == 1
    assert report["challenger"]["accuracy"]["value"] == 0
    assert np.sum(report["table"]) == 2


def test_copies_of_one_answer_are_no_evidence():
    one = paired_report(LUNGS, [0], [1], [1], [0])
    many = paired_report(LUNGS, [0] * 500, [1] * 500, [1] * 500, [0] * 500)
    assert many["mcnemar"] == one["mcnemar"] and many["decision"]["for"] == OPEN


def test_of_several_classes_there_are_shares_of_right_answers_but_no_sensitivity():
    report = paired_report(GRADES, [0, 1, 2], [0, 1, 1], [0, 1, 2], studies(3))
    assert report["champion"]["sensitivity"] is None and report["auc"] is None
    assert report["table"] == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_an_experiment_without_answers_has_a_report():
    report = paired_report(LUNGS, [], [], [], [], ([], []))
    assert (report["judged"], report["decision"]["for"], report["decision"]["more"]) == (0, OPEN, None)
    assert report["agreement"]["value"] is None and report["auc"]["difference"] is None
    empty = arms_report(LUNGS, side(0, 0), side(0, 0), 0.5)
    assert (empty["judged"], empty["decision"]["for"]) == (0, OPEN)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        paired_report(LUNGS, [0, 1], [0, 1], [1], [0])


# -- Deciding


def test_a_clear_winner_is_named_on_either_side():
    assert paired(*of_counts(60, 2, 25, 5))["decision"]["for"] == CHALLENGER
    assert paired(*of_counts(60, 25, 2, 5))["decision"]["for"] == CHAMPION
    assert arms_report(LUNGS, side(60, 100), side(95, 100), 0.5)["decision"]["for"] == CHALLENGER
    assert arms_report(LUNGS, side(95, 100), side(60, 100), 0.5)["decision"]["for"] == CHAMPION


def test_a_difference_that_one_look_would_believe_does_not_decide():
    report = paired(*of_counts(60, 5, 16, 5))
    assert 0.01 < report["mcnemar"]["p"] < 0.05
    assert report["decision"]["for"] == OPEN
    arms = arms_report(LUNGS, side(80, 100), side(92, 100), 0.5)
    assert arms["difference"]["low"] > 0
    assert arms["decision"]["for"] == OPEN


def test_while_it_is_open_it_is_said_how_many_verdicts_it_takes():
    report = paired(*of_counts(60, 5, 15, 20))
    assert report["decision"]["judged_needed"] == paired_sample_size(0.2, 0.1)
    assert report["decision"]["more"] == paired_sample_size(0.2, 0.1) - 100
    assert report["decision"]["sought"] == pytest.approx(0.1)
    few = paired(*of_counts(10, 1, 3, 2))
    assert few["decision"]["more"] is None


def test_where_both_are_alike_the_smallest_difference_that_matters_is_sought():
    report = paired(*of_counts(180, 10, 10, 0))
    assert report["decision"]["sought"] == 0.02
    assert report["decision"]["more"] == paired_sample_size(0.1, 0.02) - 200
    same = paired(*of_counts(100, 0, 0, 0))
    assert same["decision"]["more"] > 0


def test_the_smaller_arm_needs_verdicts_too():
    report = arms_report(LUNGS, side(90, 100), side(9, 10), 0.1)
    assert report["decision"]["more"] is None
    enough = arms_report(LUNGS, side(180, 200), side(18, 20), 0.1)
    assert enough["decision"]["more"] > 1000


def test_each_arm_says_its_volume_and_how_much_of_it_was_judged():
    report = arms_report(LUNGS, side(40, 50, 150), side(9, 10, 40), 0.2)
    assert (report["champion"]["studies"], report["challenger"]["studies"]) == (200, 50)
    assert (report["champion"]["judged"], report["challenger"]["judged"]) == (50, 10)
    assert (report["studies"], report["judged"]) == (250, 60)


def test_looking_every_day_seldom_takes_chance_for_a_difference():
    """A hundred looks at experiments without a difference, with the very rule of the page."""
    rng = np.random.default_rng(11)
    wrong = {"decisive": 0, "naive": 0}
    for _ in range(300):
        only_challenger = rng.random(600) < 0.5
        p_values = [stats.binomtest(int(only_challenger[:count].sum()), count).pvalue for count in range(6, 601, 6)]
        wrong["decisive"] += min(p_values) < DECISIVE_P
        wrong["naive"] += min(p_values) < 0.05
    assert wrong["decisive"] / 300 < 0.05
    assert wrong["naive"] / 300 > 0.2


def test_a_thousand_answers_take_no_time():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 20_000)
    report = paired_report(LUNGS, truth, truth, truth, studies(20_000), (truth, truth))
    assert report["champion"]["accuracy"]["value"] == 1
    assert math.isclose(report["kappa"], 1)
