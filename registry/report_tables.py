"""What a person reads of a report: each figure in words, and tables that say what the charts show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEPS = tuple(step / 20 for step in range(21))
_ROUNDED = 1e-9


@dataclass(frozen=True)
class Words:
    """The name of a figure, whether it is a share of 1 to show in percent, and what it says."""

    name: str
    is_share: bool
    meaning: str


FIGURES = {
    "auc": Words("AUC", False, "How surely probabilities tell the classes apart: 0.5 is guessing, 1 is perfect."),
    "accuracy": Words("Accuracy", True, "Share of the images that were called right."),
    "balanced_accuracy": Words("Balanced accuracy", True, "Accuracy if every class had as many images as the others."),
    "sensitivity": Words(
        "Sensitivity (recall)", True, "Of the images that have the finding, the share that was found."
    ),
    "specificity": Words("Specificity", True, "Of the images without the finding, the share that was called so."),
    "precision": Words("Precision", True, "Of the images that were called positive, the share that is."),
    "f1": Words("F1", True, "Harmonic mean of precision and sensitivity."),
    "mcc": Words("MCC", False, "Correlation of decision and truth (Matthews): 0 is guessing, 1 is perfect."),
    "average_precision": Words("Average precision", False, "Area under the precision-recall curve."),
    "quadratic_kappa": Words("Quadratic kappa", False, "Agreement of the grades beyond chance; far misses weigh more."),
    "brier": Words("Brier score", False, "Mean squared error of the probabilities: lower is better."),
    "ece": Words("Calibration error (ECE)", False, "Mean distance of probability and observed share: lower is better."),
    "log_loss": Words("Log loss", False, "Mean surprise at the truth: lower is better."),
}


@dataclass(frozen=True)
class Line:
    """One row of a table of curves: where along the x-axis, and the height of each curve there."""

    at: float
    heights: tuple[float, ...]


def figure_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures of a report in the order of `FIGURES`, each with its key and words."""
    return [{"key": key, "words": FIGURES[key], "figure": metrics[key]} for key in FIGURES if key in metrics]


def roc_lines(curves: Sequence[Mapping[str, Any]]) -> list[Line]:
    """For false positive rates from 0 to 1: the highest true positive rate that each curve reaches with no more."""
    return [
        Line(
            step,
            tuple(_highest(curve, "false_positive_rate", "true_positive_rate", step, up_to=True) for curve in curves),
        )
        for step in STEPS
    ]


def pr_lines(curves: Sequence[Mapping[str, Any]]) -> list[Line]:
    """For recalls from 0 to 1: the highest precision that each curve has with at least that recall."""
    return [
        Line(step, tuple(_highest(curve, "recall", "precision", step, up_to=False) for curve in curves))
        for step in STEPS
    ]


def reliability_lines(calibration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bins of the calibration curve, before and after the temperature; bins that are empty in both are left out."""
    pairs = zip(calibration["before"]["bins"], calibration["after"]["bins"], strict=True)
    return [{"before": before, "after": after} for before, after in pairs if before["n"] or after["n"]]


def reasons(metrics: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Why figures are missing, each reason once."""
    found = (figure["undefined"] for row in metrics for figure in row.values())
    return list(dict.fromkeys(reason for reason in found if reason))


def _highest(curve: Mapping[str, Any], x: str, y: str, step: float, *, up_to: bool) -> float:
    sign = 1 if up_to else -1
    # Points are rounded when they are stored.
    inside: list[float] = [
        height for place, height in zip(curve[x], curve[y], strict=True) if sign * (place - step) <= _ROUNDED
    ]
    return max(inside)
