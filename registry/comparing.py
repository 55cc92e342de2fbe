"""Which of these versions is better, by how much, and is that more than chance? Two to ten evaluations side by side.

Everything is paired: versions are only tested against each other on the same images with the same labels, where a hard
image is hard for all of them. A difference is always that of the second version minus the first.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry import calibration, paired, resampling
from registry.reports import FEW_PATIENTS, EvaluatedImages, Question
from registry.statistics import decide_indices

LEAST, MOST = 2, 10
SIGNIFICANT = 0.05

METRICS = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "mcc": "MCC",
    "average_precision": "average precision",
    "quadratic_kappa": "quadratic kappa",
    "brier": "Brier score",
    "ece": "calibration error",
    "log_loss": "log loss",
}
LOWER_IS_BETTER = {"brier", "ece", "log_loss"}
# Metrics of every pair, besides the area under the ROC curve.
RESAMPLED = ("accuracy", "balanced_accuracy", "f1", "mcc")

DELONG = "DeLong"
BOOTSTRAP = "paired bootstrap over patients"
# Below this a difference is the rounding error of two equal figures.
NO_DIFFERENCE = 1e-9


@dataclass(frozen=True)
class Contender:
    """One evaluation of a comparison. label: the version in words ("v3"), different for each.

    report, replicates: what `reports.make` returned for these images and this question.
    """

    label: str
    report: Mapping[str, Any]
    images: EvaluatedImages
    question: Question
    replicates: Mapping[str, NDArray[np.float32]]

    def value(self, metric: str) -> float | None:
        figure = self.report["metrics"].get(metric)
        return figure["value"] if figure else None

    @cached_property
    def few_patients(self) -> str:
        """Which class comes from too few patients for intervals and tests of differences, in a sentence; or ""."""
        images = self.images
        for index, name in enumerate(self.question.classes):
            count = len(np.unique(images.groups[images.labels == index]))
            if 0 < count < FEW_PATIENTS:
                return (
                    f"Images of class {name} come from {count} patient{'' if count == 1 else 's'} only: too few to "
                    "tell a difference from chance."
                )
        return ""


@dataclass(frozen=True)
class Difference:
    """Second version minus first: the value, its 95 % interval and where a test was made its two-sided p value.

    p_corrected: for the number of pairs (Holm). All figures are None where `undefined` says why, or all but the
    difference where only its spread is not known.
    """

    difference: float | None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    method: str = ""
    undefined: str = ""

    @property
    def is_more_than_chance(self) -> bool:
        """False as well where no test was made."""
        return self.p_corrected is not None and self.p_corrected < SIGNIFICANT

    def reversed(self) -> "Difference":
        """First minus second."""
        return replace(self, difference=_minus(self.difference), low=_minus(self.high), high=_minus(self.low))


@dataclass(frozen=True)
class Decided:
    """On how many images only one of the two is right, and McNemar's p value. method: which form of the test."""

    only_first: int
    only_second: int
    p: float
    p_corrected: float
    method: str


@dataclass(frozen=True)
class Pair:
    """Two versions on the same images. metrics: by name, from RESAMPLED. better: the label of the one whose AUC is
    larger by more than chance, or "".
    """

    first: str
    second: str
    auc: Difference
    decisions: Decided
    metrics: dict[str, Difference]
    better: str
    conclusion: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Placing:
    """The place of one version by a metric. place: None where it cannot be ranked. shared: with another version.

    best: it is first, and better than each of the others by more than chance.
    """

    label: str
    value: float | None
    place: int | None = None
    shared: bool = False
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """The versions, every pair that can be tested, and in words what cannot and why.

    same_images: whether all were tested on the same pictures. obstacles: one sentence for each reason that keeps
    versions apart, empty when every pair is tested. notes: how to read the figures.
    """

    contenders: tuple[Contender, ...]
    same_images: bool
    obstacles: tuple[str, ...]
    notes: tuple[str, ...]
    pairs: tuple[Pair, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": [contender.label for contender in self.contenders],
            "same_images": self.same_images,
            "obstacles": list(self.obstacles),
            "notes": list(self.notes),
            "pairs": [pair.to_json() for pair in self.pairs],
        }

    def ranking(self, metric: str) -> list[Placing]:
        """All versions, the best by `metric` first; those that the data cannot tell from the leader share its place.

        The leader of a place is its best version; another shares the place unless it differs from that leader by more
        than chance, also after correction for the number of pairs (without it, of ten equally good versions some one
        would lead more often than not). The first that differs leads the next place. Places are counted as in sports:
        after two firsts comes the third. Nothing has a place where `obstacles` keep versions apart, nor a version
        without that figure. Raises ValueError for an unknown metric.
        """
        if metric not in METRICS:
            raise ValueError(f"There is no metric {metric!r}. Choose one of {', '.join(METRICS)}.")
        known = [contender for contender in self.contenders if contender.value(metric) is not None]
        known.sort(key=lambda contender: _goodness(contender, metric), reverse=True)
        unknown = [contender for contender in self.contenders if contender.value(metric) is None]
        placed = [Placing(contender.label, contender.value(metric)) for contender in known]
        if not self.obstacles:
            placed = _placed(placed, self._told_apart(metric))
        return placed + [Placing(contender.label, None) for contender in unknown]

    def _told_apart(self, metric: str) -> set[frozenset[str]]:
        """The pairs of labels whose figures differ by more than chance."""
        if metric == "auc":
            corrected = [pair.auc.p_corrected for pair in self.pairs]
        elif metric in RESAMPLED:
            corrected = [pair.metrics[metric].p_corrected for pair in self.pairs]
        else:
            known = {contender.label: contender for contender in self.contenders}
            corrected = paired.holm([_p_value(known[pair.first], known[pair.second], metric) for pair in self.pairs])
        return {
            frozenset((pair.first, pair.second))
            for pair, p in zip(self.pairs, corrected, strict=True)
            if p is not None and p < SIGNIFICANT
        }


def _placed(ordered: Sequence[Placing], told_apart: set[frozenset[str]]) -> list[Placing]:
    places: list[int] = []
    leader, place = 0, 1
    for index, placing in enumerate(ordered):
        if index and frozenset((ordered[leader].label, placing.label)) in told_apart:
            leader, place = index, index + 1
        places.append(place)
    first, *others = [placing.label for placing in ordered] or [""]
    best = bool(others) and all(frozenset((first, other)) in told_apart for other in others)
    return [
        replace(placing, place=place, shared=places.count(place) > 1, best=best and placing.label == first)
        for placing, place in zip(ordered, places, strict=True)
    ]


def compare(contenders: Sequence[Contender]) -> Comparison:
    """Compare two to ten evaluations. Raises ValueError for fewer or more, or for two with the same label.

    Of two classes the areas under the ROC curve are compared by DeLong's method, of several the mean area over classes
    by the paired bootstrap. Decisions are compared by McNemar's test and other figures by the paired bootstrap.
    P values of each test are corrected for the number of pairs by Holm's method. Where a class comes from fewer than
    FEW_PATIENTS patients only decisions are tested: two equally good versions would be told apart far too often.
    """
    if not LEAST <= len(contenders) <= MOST:
        raise ValueError(f"Choose {LEAST} to {MOST} versions to compare; {len(contenders)} were chosen.")
    if len({contender.label for contender in contenders}) < len(contenders):
        raise ValueError("Two versions of the comparison have the same label.")
    ordered = [replace(contender, images=_in_order(contender.images)) for contender in contenders]
    sets, obstacles = _comparable_sets(ordered)
    measured = [pair for members in sets for pair in _measured_pairs(members)]
    position = {contender.label: index for index, contender in enumerate(ordered)}
    measured.sort(key=lambda pair: (position[pair.first.label], position[pair.second.label]))
    return Comparison(
        contenders=tuple(ordered),
        same_images=len(sets) == 1 or all(_same_digests(ordered[0], other) for other in ordered[1:]),
        obstacles=tuple(obstacles),
        notes=tuple(_notes(ordered)),
        pairs=tuple(_corrected(measured)),
    )


# --- Who can be compared ---------------------------------------------------------------------------------------------


def _in_order(images: EvaluatedImages) -> EvaluatedImages:
    """`images.in_order()`, which stored evaluations are in already, and sorting is the slowest step of a comparison."""
    seen = np.maximum.accumulate(np.append(-1, images.groups))[:-1]
    ordered = bool((images.digests[:-1] < images.digests[1:]).all()) and bool((images.groups <= seen + 1).all())
    return images if ordered else images.in_order()


def _comparable_sets(contenders: Sequence[Contender]) -> tuple[list[list[Contender]], list[str]]:
    """The versions in sets that can be compared among themselves, and what keeps the sets apart, in sentences."""
    sets: list[list[Contender]] = []
    obstacles: list[str] = []
    for contender in contenders:
        reasons = []
        for members in sets:
            reason = _obstacle(members[0], contender)
            if not reason:
                members.append(contender)
                break
            reasons.append(reason)
        else:
            sets.append([contender])
            obstacles += reasons[:1]
    return sets, obstacles


def _obstacle(first: Contender, second: Contender) -> str:
    """Why two versions cannot be compared image by image, in a sentence; "" when they can."""
    names = f"{first.label} and {second.label}"
    if first.question.classes != second.question.classes:
        classes = " and ".join(f"({', '.join(each.question.classes)})" for each in (first, second))
        return f"{names} answer with different classes {classes}, so they are not tested against each other."
    if (first.question.positive_class or "") != (second.question.positive_class or ""):
        return f"{names} do not call the same class positive, so their figures do not mean the same."
    if not _same_digests(first, second):
        return _different_images(first, second)
    relabelled = int((first.images.labels != second.images.labels).sum())
    if relabelled:
        return (
            f"{names} were tested on the same images, but {_images(relabelled)} had another label then: labels were "
            "corrected in between. Evaluate both again on the newer labels to compare them."
        )
    if not np.array_equal(first.images.groups, second.images.groups) or (
        first.report["bootstrap"] != second.report["bootstrap"]
    ):
        return (
            f"{names} were tested on the same images, but the images were assigned to patients differently. Evaluate "
            "both again to compare them."
        )
    return ""


def _same_digests(first: Contender, second: Contender) -> bool:
    return np.array_equal(first.images.digests, second.images.digests)


def _different_images(first: Contender, second: Contender) -> str:
    shared = len(set(first.images.digests.tolist()) & set(second.images.digests.tolist()))
    counts = [_images(len(each.images.labels)) for each in (first, second)]
    return (
        f"{first.label} and {second.label} were not tested on the same images: {first.label} on {counts[0]}, "
        f"{second.label} on {counts[1]}, of which {shared:,} are the same. "
        "A difference between them may come from the images and not from the models, so it is not tested. Evaluate "
        "both on the same images to compare them."
    )


def _notes(contenders: Sequence[Contender]) -> list[str]:
    notes = []
    if any(len(contender.question.classes) > 2 for contender in contenders):
        notes.append(
            "With several classes the AUC is the mean over the classes, each against the rest. DeLong's method is for "
            "two classes, so these areas are compared by the paired bootstrap over patients."
        )
    if any(contender.report["patients"] < contender.report["n"] for contender in contenders):
        notes.append("Images of one patient resemble each other; all tests count patients, not images.")
    return notes


# --- Pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """A pair before its p values are corrected for the number of pairs."""

    first: Contender
    second: Contender
    auc: Difference
    discordance: paired.Discordance
    metrics: dict[str, Difference]


def _measured_pairs(members: Sequence[Contender]) -> list[_Measured]:
    """All pairs of versions on the same images; what needs one version alone is computed once for each."""
    images = members[0].images
    decided = paired.decisions(np.stack([_right(member) for member in members]), images.groups)
    areas = _areas(members)
    return [
        _Measured(
            members[i],
            members[j],
            _auc_difference(members, areas, i, j),
            paired.discordance(decided, i, j),
            {name: _resampled(members[i], members[j], name) for name in RESAMPLED},
        )
        for i, j in itertools.combinations(range(len(members)), 2)
    ]


def _right(contender: Contender) -> NDArray[np.bool_]:
    """(N,): where the version decided correctly."""
    question = contender.question
    probabilities = calibration.with_temperature(contender.images.probabilities, question.temperature)
    decided = decide_indices(probabilities, question.classes, question.positive_class, question.threshold)
    return np.equal(decided, contender.images.labels)


def _areas(members: Sequence[Contender]) -> paired.Areas | None:
    """Of two classes; a temperature does not change their order, and so neither the area."""
    question, images = members[0].question, members[0].images
    if len(question.classes) != 2:
        return None
    positive = 1 if question.positive is None else question.positive
    scores = np.stack([member.images.probabilities[:, positive] for member in members])
    return paired.delong(images.labels == positive, scores, images.groups)


def _auc_difference(members: Sequence[Contender], areas: paired.Areas | None, first: int, second: int) -> Difference:
    if len(members[0].question.classes) != 2:
        return _resampled(members[first], members[second], "auc")
    found = paired.area_difference(areas, first, second)
    few = members[first].few_patients
    if found.difference is None or few:
        return Difference(
            found.difference, method=DELONG, undefined=found.undefined if found.difference is None else few
        )
    return Difference(
        found.difference,
        found.low,
        found.high,
        found.standard_error,
        found.p,
        method=DELONG,
        undefined=found.undefined,
    )


def _resampled(first: Contender, second: Contender, metric: str) -> Difference:
    """The difference of a metric with its interval and p value by the paired bootstrap."""
    values = first.value(metric), second.value(metric)
    replicated = _differences(first, second, metric)
    if values[0] is None or values[1] is None or replicated is None:
        return Difference(None, method=BOOTSTRAP, undefined=_why_undefined(first, second, metric))
    difference = values[1] - values[0]
    if first.few_patients:
        return Difference(difference, method=BOOTSTRAP, undefined=first.few_patients)
    low, high = resampling.interval(difference, replicated)
    p = _bootstrap_p(replicated)
    return Difference(difference, low, high, float(replicated.std()), p, method=BOOTSTRAP)


def _differences(first: Contender, second: Contender, metric: str) -> NDArray[np.float64] | None:
    """Of the resamples in which the metric is defined for both; None without any."""
    if metric not in first.replicates or metric not in second.replicates:
        return None
    replicated = second.replicates[metric].astype(np.float64) - first.replicates[metric]
    known = replicated[~np.isnan(replicated)]
    return known if len(known) else None


def _p_value(first: Contender, second: Contender, metric: str) -> float | None:
    """Of the difference of a metric, by the paired bootstrap; None where `_resampled` has none."""
    replicated = _differences(first, second, metric)
    undefined = first.value(metric) is None or second.value(metric) is None or first.few_patients
    return None if replicated is None or undefined else _bootstrap_p(replicated)


def _bootstrap_p(replicated: NDArray[np.float64]) -> float:
    """Two-sided: twice the share of resamples in which the difference has the other sign."""
    tail = min(int((replicated <= 0).sum()), int((replicated >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(replicated) + 1))


def _why_undefined(first: Contender, second: Contender, metric: str) -> str:
    figures = [(each.label, each.report["metrics"].get(metric)) for each in (first, second)]
    for label, figure in figures:
        if figure is None:
            return f"{label} was not measured by {METRICS[metric]}."
        if figure["value"] is None:
            return f"{label}: {figure['undefined']}"
    return "No resample of the patients has this figure for both versions."


def _with_corrected_p(differences: Sequence[Difference]) -> list[Difference]:
    corrected = paired.holm([difference.p for difference in differences])
    return [replace(each, p_corrected=p) for each, p in zip(differences, corrected, strict=True)]


def _corrected(measured: Sequence[_Measured]) -> list[Pair]:
    of_areas = _with_corrected_p([pair.auc for pair in measured])
    of_metrics = {name: _with_corrected_p([pair.metrics[name] for pair in measured]) for name in RESAMPLED}
    of_decisions = paired.holm([pair.discordance.p for pair in measured])
    tested = sum(auc.p is not None for auc in of_areas)
    return [
        _pair(
            replace(pair, auc=of_areas[index], metrics={name: found[index] for name, found in of_metrics.items()}),
            1.0 if (decision := of_decisions[index]) is None else decision,
            tested,
            len(measured),
        )
        for index, pair in enumerate(measured)
    ]


def _pair(measured: _Measured, p_decisions: float, areas_tested: int, pairs: int) -> Pair:
    auc, found = measured.auc, measured.discordance
    first, second = measured.first.label, measured.second.label
    decisions = Decided(found.only_first, found.only_second, found.p, p_decisions, found.method)
    better = _better(first, second, auc)
    several = len(measured.first.question.classes) > 2
    words = [
        _words_of_areas(first, second, better, auc, "mean AUC" if several else "AUC", areas_tested),
        _words_of_decisions(first, second, decisions, len(measured.first.images.labels), pairs),
    ]
    return Pair(first, second, auc, decisions, measured.metrics, better, " ".join(words))


def _better(first: str, second: str, auc: Difference) -> str:
    if auc.difference is None or not auc.is_more_than_chance:
        return ""
    return second if auc.difference > 0 else first


# --- Words -----------------------------------------------------------------------------------------------------------


def _words_of_areas(first: str, second: str, better: str, auc: Difference, name: str, tested: int) -> str:
    if auc.difference is None or auc.low is None or auc.high is None or auc.p_corrected is None or auc.p is None:
        return f"The areas under the ROC curve of {first} and {second} cannot be compared. {auc.undefined}"
    apart = f"The data cannot tell {first} and {second} apart"
    if not auc.difference and auc.low == auc.high:
        return f"{apart}: their {name} is the same."
    if abs(auc.difference) < NO_DIFFERENCE:
        interval = f"95 % interval of the difference {_number(auc.low)} to {_number(auc.high)}"
        return f"{apart}: their {name} is the same ({interval})."
    towards = auc if auc.difference > 0 else auc.reversed()
    interval = f"95 % interval {_number(towards.low)} to {_number(towards.high)}, {_p(auc.p_corrected, tested)}"
    amount = _number(towards.difference)
    if better:
        other = first if better == second else second
        return f"{better} is better than {other} by {amount} {name} ({interval})."
    leading = second if auc.difference > 0 else first
    words = f"{apart}: {leading} is ahead by {amount} {name} ({interval}), which may be chance."
    if auc.p < SIGNIFICANT:
        words += f" Tested alone it would count as a difference; among {tested} comparisons one like it is no surprise."
    return words


def _words_of_decisions(first: str, second: str, decisions: Decided, images: int, pairs: int) -> str:
    if not decisions.only_first + decisions.only_second:
        return f"Both decide rightly on the same of {_images(images)}."
    verdict = "more than chance" if decisions.p_corrected < SIGNIFICANT else "no more than chance may bring"
    return (
        f"Of {_images(images)} only {first} is right on {decisions.only_first:,} and only {second} on "
        f"{decisions.only_second:,}: {verdict} ({_p(decisions.p_corrected, pairs)})."
    )


def _p(value: float, comparisons: int) -> str:
    correction = f" after correction for {comparisons} comparisons" if comparisons > 1 else ""
    if value < 0.001:
        return f"p < 0.001{correction}"
    digits = 2
    # What is on one side of the limit is not written as if it were on it.
    while (float(f"{value:.{digits}g}") < SIGNIFICANT) != (value < SIGNIFICANT):
        digits += 1
    return f"p = {value:.{digits}g}{correction}"


def _number(value: float | None) -> str:
    """Three decimals, or as many more as a small number needs to be seen."""
    if value is None or abs(value) < NO_DIFFERENCE:
        return f"{0.0:.3f}"
    return f"{value:.{max(3, math.ceil(-math.log10(abs(value))))}f}"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _goodness(contender: Contender, metric: str) -> float:
    value = contender.value(metric) or 0.0
    return -value if metric in LOWER_IS_BETTER else value
