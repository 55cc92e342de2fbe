"""The whole report of one evaluation, from labels and probabilities to JSON: figures with intervals, curves,
calibration, subgroups and warnings in words. Plain numpy.

A figure is {"value", "low", "high", "undefined"}: the value with its 95 % interval (percentile bootstrap over patients;
reflected for the calibration error), or None three times and in `undefined` the reason in words. There is no NaN
anywhere in a report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry import calibration, curves, resampling
from registry.statistics import classification_metrics, decide_indices

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Figure = dict[str, Any]

FORMAT = 1
FEW_PATIENTS = 10
MOST_GROUPS = 30
METRICS = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "sensitivity",
    "specificity",
    "f1",
    "mcc",
    "auc",
    "average_precision",
    "brier",
    "ece",
    "log_loss",
)
PER_CLASS = ("precision", "sensitivity", "specificity", "f1", "auc", "average_precision")
IN_SUBGROUPS = ("accuracy", "sensitivity", "specificity", "f1", "auc")

_PREFIX = "subgroup_"


@dataclass(frozen=True)
class Question:
    """What is asked of the images. positive_class: None or "" unless there are two classes. threshold: None means 0.5.

    temperature: what the probabilities are scaled with before anything else. ordinal: classes are grades in order.
    Raises ValueError when the positive class is none of the two.
    """

    classes: tuple[str, ...]
    positive_class: str | None = None
    threshold: float | None = None
    temperature: float = 1.0
    ordinal: bool = False

    def __post_init__(self) -> None:
        if len(self.classes) == 2 and self.positive_class and self.positive_class not in self.classes:
            raise ValueError(f"The positive class {self.positive_class} is neither of {' and '.join(self.classes)}.")

    @property
    def positive(self) -> int | None:
        """Index of the positive class of two; None otherwise, and then figures are means over the classes."""
        if len(self.classes) != 2 or not self.positive_class:
            return None
        return self.classes.index(self.positive_class)


@dataclass(frozen=True)
class EvaluatedImages:
    """A version's answers about labelled images.

    labels int64 (N,): index of the class. probabilities float64 (N, C) as the network gave them, before temperature.
    groups int64 (N,): the patient. digests (N,): 64 hex characters, the SHA-256 of the decoded pixels. rows int64 (N,):
    the row of the preparation. subgroups: for each attribute the group of each image (N,), "" where it is not known.
    Raises ValueError when the lengths differ.
    """

    labels: Labels
    probabilities: Probabilities
    groups: Labels
    digests: NDArray[np.str_]
    rows: Labels
    subgroups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = (self.probabilities, self.groups, self.digests, self.rows, *self.subgroups.values())
        if any(len(column) != len(self.labels) for column in columns):
            raise ValueError(f"{len(self.labels)} labels do not fit columns of {[len(column) for column in columns]}.")

    def in_order(self) -> "EvaluatedImages":
        """The same images sorted by digest (then label and row), patients numbered as they appear.

        Two evaluations of the same images have the same order and so the same resamples, however they came.
        """
        ordered = self.where(np.lexsort((self.rows, self.labels, self.digests)))
        _, first, inverse = np.unique(ordered.groups, return_index=True, return_inverse=True)
        numbers = np.argsort(np.argsort(first))
        return EvaluatedImages(**{**vars(ordered), "groups": np.asarray(numbers[inverse], np.int64)})

    def where(self, chosen: NDArray[Any]) -> "EvaluatedImages":
        """The chosen images, by a mask (N,) or by indices."""
        return EvaluatedImages(
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
            groups=self.groups[chosen],
            digests=self.digests[chosen],
            rows=self.rows[chosen],
            subgroups={name: groups[chosen] for name, groups in self.subgroups.items()},
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Flat and without objects, for an npz file that is read without pickle."""
        return {
            "labels": self.labels,
            "probabilities": self.probabilities,
            "groups": self.groups,
            "digests": self.digests,
            "rows": self.rows,
            "attributes": np.array(list(self.subgroups), np.str_),
            **{f"{_PREFIX}{index}": groups for index, groups in enumerate(self.subgroups.values())},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "EvaluatedImages":
        """The reverse of `to_arrays`. Raises KeyError when an array is missing."""
        return cls(
            labels=np.asarray(arrays["labels"], np.int64),
            probabilities=np.asarray(arrays["probabilities"], np.float64),
            groups=np.asarray(arrays["groups"], np.int64),
            digests=np.asarray(arrays["digests"], np.str_),
            rows=np.asarray(arrays["rows"], np.int64),
            subgroups={
                str(name): np.asarray(arrays[f"{_PREFIX}{index}"], np.str_)
                for index, name in enumerate(arrays["attributes"])
            },
        )


def make(images: EvaluatedImages, question: Question) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """The report, ready for JSON, and the bootstrap replicates (B,) of each metric that is defined.

    The order of the images and the numbers of the patients make no difference. A replicate is NaN where its resample
    leaves the figure undefined. Raises ValueError when shapes, labels or probabilities are impossible, as
    `statistics.classification_metrics` does.
    """
    images = images.in_order()
    whole = _Decided.of(images, question)
    point = whole.figures(question)
    subgroups = _known_subgroups(images)
    parts = [whole.where(subgroup.images) for subgroup in subgroups]
    replicated, *replicated_parts = resampling.replicates(
        [whole.sample(question), *(part.sample(question, brief=True) for part in parts)], whole.patients
    )
    names = METRICS + (("quadratic_kappa",) if question.ordinal else ())
    report = {
        "format": FORMAT,
        "n": len(whole.labels),
        "patients": whole.patients,
        "classes": list(question.classes),
        "positive_class": point["positive_class"],
        "threshold": point["threshold"],
        "temperature": question.temperature,
        "ordinal": question.ordinal,
        "metrics": {name: _summary_figure(name, point, replicated, whole, question) for name in names},
        "per_class": _per_class(point, replicated, whole, question),
        "confusion_matrix": point["confusion_matrix"],
        "roc": _roc(whole, question),
        "pr": _pr(whole, question),
        "calibration": {
            "temperature": question.temperature,
            "before": _calibration(images.labels, images.probabilities, question),
            "after": _calibration(whole.labels, whole.probabilities, question),
        },
        "subgroups": _subgroups(subgroups, parts, replicated_parts, question),
        "warnings": [
            *point["warnings"],
            *_few_patients(whole, question),
            *_perfect(whole, question),
            *_left_out(images),
        ],
        "bootstrap": {"resamples": resampling.RESAMPLES, "seed": resampling.SEED, "unit": "patient"},
    }
    kept = {name: replicated[name].astype(np.float32) for name in names if point[name] is not None}
    return report, kept


@dataclass(frozen=True)
class _Decided:
    """Labels, probabilities after temperature, decided classes and patients of some images."""

    labels: Labels
    probabilities: Probabilities
    predicted: Labels
    groups: Labels

    @classmethod
    def of(cls, images: EvaluatedImages, question: Question) -> "_Decided":
        if images.probabilities.shape[1:] != (len(question.classes),):
            raise ValueError(
                f"Probabilities of shape {images.probabilities.shape} do not fit {len(question.classes)} classes."
            )
        probabilities = calibration.with_temperature(images.probabilities, question.temperature)
        predicted = decide_indices(probabilities, question.classes, question.positive_class, question.threshold)
        return cls(images.labels, probabilities, predicted, images.groups)

    @property
    def patients(self) -> int:
        return len(np.unique(self.groups))

    def where(self, chosen: NDArray[np.bool_]) -> "_Decided":
        return _Decided(self.labels[chosen], self.probabilities[chosen], self.predicted[chosen], self.groups[chosen])

    def sample(self, question: Question, *, brief: bool = False) -> resampling.Sample:
        return resampling.Sample(self.labels, self.predicted, self.probabilities, self.groups, question.positive, brief)

    def figures(self, question: Question) -> dict[str, Any]:
        """The figures without intervals."""
        return {
            **classification_metrics(
                self.labels,
                self.probabilities,
                question.classes,
                question.positive_class,
                question.threshold,
                ordinal=question.ordinal,
            ),
            "ece": calibration.expected_calibration_error(self.labels, self.probabilities, question.positive),
            "brier": calibration.brier(self.labels, self.probabilities),
            "log_loss": calibration.log_loss(self.labels, self.probabilities),
        }


@dataclass(frozen=True)
class _Subgroup:
    """images (N,): mask of the images whose attribute has this value."""

    attribute: str
    name: str
    images: NDArray[np.bool_]


def _known_subgroups(images: EvaluatedImages) -> list[_Subgroup]:
    """Those of attributes with at least two known groups, the largest MOST_GROUPS of each, by name."""
    found = []
    for attribute, groups in images.subgroups.items():
        names = _largest(groups)
        if len(names) > 1:
            found += [_Subgroup(attribute, name, groups == name) for name in sorted(names)]
    return found


def _largest(groups: NDArray[np.str_]) -> list[str]:
    names, counts = np.unique(groups[groups != ""], return_counts=True)
    return [str(name) for name in names[np.argsort(-counts, kind="stable")][:MOST_GROUPS]]


def _subgroups(
    subgroups: Sequence[_Subgroup],
    parts: Sequence[_Decided],
    replicated: Sequence[resampling.Replicates],
    question: Question,
) -> list[dict[str, Any]]:
    attributes: dict[str, list[dict[str, Any]]] = {}
    for subgroup, part, replicates in zip(subgroups, parts, replicated, strict=True):
        point = part.figures(question)
        missing = len(np.unique(part.labels)) < len(question.classes)
        row = {
            "name": subgroup.name,
            "n": len(part.labels),
            "patients": part.patients,
            "metrics": {name: _summary_figure(name, point, replicates, part, question) for name in IN_SUBGROUPS},
            "few": missing or part.patients < FEW_PATIENTS,
        }
        attributes.setdefault(subgroup.attribute, []).append(row)
    return [{"attribute": attribute, "groups": rows} for attribute, rows in attributes.items()]


def _per_class(
    point: dict[str, Any], replicated: resampling.Replicates, whole: _Decided, question: Question
) -> list[dict[str, Any]]:
    patients = _patients_of_classes(whole, question)
    return [
        {
            "class": row["class"],
            "n": row["n"],
            "patients": patients[index],
            **{
                name: _figure(
                    row[name], replicated[f"class_{name}"][:, index], _why_undefined(name, whole, question, index)
                )
                for name in PER_CLASS
            },
        }
        for index, row in enumerate(point["per_class"])
    ]


def _summary_figure(
    name: str, point: dict[str, Any], replicated: resampling.Replicates, images: _Decided, question: Question
) -> Figure:
    interval = resampling.reflected_interval if name == "ece" else resampling.interval
    return _figure(point[name], replicated[name], _why_undefined(name, images, question, question.positive), interval)


def _figure(
    value: float | None,
    replicated: NDArray[np.float64],
    undefined: str,
    interval: Callable[[float, NDArray[np.float64]], tuple[float, float]] = resampling.interval,
) -> Figure:
    if value is None:
        return {"value": None, "low": None, "high": None, "undefined": undefined}
    low, high = interval(value, replicated)
    return {"value": value, "low": low, "high": high, "undefined": ""}


def _why_undefined(name: str, images: _Decided, question: Question, index: int | None) -> str:
    """Why this figure would be undefined here. index: the class it is about, None for a mean over the classes."""
    if not len(images.labels):
        return "There are no images."
    if name == "mcc":
        return "All images have one class, or all were called one class; there is nothing to correlate."
    if name == "quadratic_kappa":
        return "All images have one grade and were called that grade, so that chance alone agrees completely."
    if index is None:
        return "All images have one class, so that there is no other to tell it from."
    named = question.classes[index]
    if name == "precision":
        return f"No image was called {named}."
    if (images.labels == index).all():
        return f"All images are {named}; this figure needs images of another class."
    return f"There are no images of class {named}."


def _roc(images: _Decided, question: Question) -> list[dict[str, Any]]:
    """Classes without images, or without images of others, have no curve and are left out."""
    found = [
        (question.classes[index], curve)
        for index in _drawn_classes(question)
        if (curve := curves.roc_curve(images.labels == index, images.probabilities[:, index]))
    ]
    if question.positive is None and found:
        found.append(("", curves.mean_roc([curve for _, curve in found])))
    return [
        {
            "class": name,
            "auc": curve.area,
            "false_positive_rate": _points(curve.x),
            "true_positive_rate": _points(curve.y),
            "thresholds": _points(curve.thresholds),
        }
        for name, curve in ((name, curve.thinned()) for name, curve in found)
    ]


def _pr(images: _Decided, question: Question) -> list[dict[str, Any]]:
    """Classes without images have no curve and are left out. The prevalence is the precision of guessing."""
    found = [
        (question.classes[index], curve, float((images.labels == index).mean()))
        for index in _drawn_classes(question)
        if (curve := curves.pr_curve(images.labels == index, images.probabilities[:, index]))
    ]
    if question.positive is None and found:
        prevalence = float(np.mean([share for _, _, share in found]))
        found.append(("", curves.mean_pr([curve for _, curve, _ in found]), prevalence))
    return [
        {
            "class": name,
            "area": curve.area,
            "prevalence": prevalence,
            "recall": _points(curve.x),
            "precision": _points(curve.y),
        }
        for name, curve, prevalence in ((name, curve.thinned(), prevalence) for name, curve, prevalence in found)
    ]


def _drawn_classes(question: Question) -> Sequence[int]:
    return range(len(question.classes)) if question.positive is None else (question.positive,)


def _points(values: NDArray[np.float64]) -> list[float | None]:
    """Rounded to what a chart shows; None for the threshold that nothing reaches."""
    return [float(value) if np.isfinite(value) else None for value in values.round(6)]


def _calibration(labels: Labels, probabilities: Probabilities, question: Question) -> dict[str, Any]:
    return {
        "ece": calibration.expected_calibration_error(labels, probabilities, question.positive),
        "brier": calibration.brier(labels, probabilities),
        "log_loss": calibration.log_loss(labels, probabilities),
        "bins": calibration.reliability_bins(labels, probabilities, question.positive),
    }


def _few_patients(images: _Decided, question: Question) -> list[str]:
    return [
        f"Images of class {name} come from {count} {'patient' if count == 1 else 'patients'} only: the figures that "
        "need them would be different with other patients, by more than their intervals say."
        for name, count in zip(question.classes, _patients_of_classes(images, question), strict=True)
        if 0 < count < FEW_PATIENTS
    ]


def _perfect(images: _Decided, question: Question) -> list[str]:
    """Where nothing went wrong no resample goes wrong either. The bound is that of Hanley and Lippman-Hand (1983):
    no error among n patients is still as likely as 5 % when errors are as frequent as 1 - 0.05^(1/n), about 3 / n.
    """
    wrong = np.bincount(images.labels[images.labels != images.predicted], minlength=len(question.classes))
    return [
        f"Every image of class {name} was recognised, so that the interval of this figure has no width. With {count} "
        f"patients, a model that misses up to {1 - 0.05 ** (1 / count):.1%} of them can still do so by luck."
        for name, count, errors in zip(question.classes, _patients_of_classes(images, question), wrong, strict=True)
        if count >= FEW_PATIENTS and not errors
    ]


def _patients_of_classes(images: _Decided, question: Question) -> list[int]:
    return [len(np.unique(images.groups[images.labels == index])) for index in range(len(question.classes))]


def _left_out(images: EvaluatedImages) -> list[str]:
    totals = {attribute: len(np.unique(groups[groups != ""])) for attribute, groups in images.subgroups.items()}
    return [
        f"There are {total} groups by {attribute}; the results of the {MOST_GROUPS} largest are shown."
        for attribute, total in totals.items()
        if total > MOST_GROUPS
    ]
