"""What not to believe about a version's figures: warnings in words, each with what to do about it.

The rules look at the report of the test images (`reports.make`), and where they are known at the figures on the
validation images, at the epochs of the training and at how often the test images have been used. They are meant to be
heeded, so they speak up only where an experienced reader of such reports would.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from registry.statistics import WEAK_AUC

Report = Mapping[str, Any]
Row = Mapping[str, Any]

FEW_PATIENTS = 50
FEW_PATIENTS_OF_A_CLASS = 20
# Distance between training and validation from which on a model knows its training images by heart.
OVER_FITTED = {"auc": 0.1, "accuracy": 0.15}
# Distance between validation and test that matters in practice, besides lying outside the intervals.
FAR_ABOVE = 0.03
PERFECT = 0.999
# With fewer images a perfect score is no surprise.
IMAGES_FOR_SUSPICION = 50

NAMES = {"auc": "area under the ROC curve", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True)
class Caution:
    """One warning. text: what is the matter. advice: what to do."""

    code: str
    text: str
    advice: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class _Figure:
    value: float
    low: float | None
    high: float | None


def cautions(
    report: Report,
    *,
    validation: Report | None = None,
    history: Sequence[Row] = (),
    test_uses: int | None = None,
) -> list[Caution]:
    """The warnings about a version, the gravest first.

    report: of the test images. validation: the report of the validation images, or plain figures by name. history:
    one row an epoch with loss, accuracy, auc, val_loss, val_accuracy and val_auc, any of them None or missing.
    test_uses: how many versions were measured on these test images, this one included.
    """
    if not report["n"]:
        return [
            Caution(
                "no-images",
                "There were no images to test on, so nothing is known about how good this version is.",
                "Evaluate it on images with known labels before using it.",
            )
        ]
    return [
        *_missing_classes(report),
        *_collapsed(report),
        *_not_learned(report),
        *_perfect(report),
        *_over_fitted(history),
        *_validation_above(report, validation),
        *_few_patients(report),
        *_used_up(test_uses),
    ]


def _missing_classes(report: Report) -> Iterator[Caution]:
    missing = [row["class"] for row in report["per_class"] if not row["n"]]
    if missing:
        yield Caution(
            "class-missing",
            f"The test images contain none of {_listed(missing)}. How the model reads such images is not known, and "
            "figures that need them are left out.",
            "Add images of every class, or prepare the dataset again so that each part has some, and evaluate again.",
        )


def _collapsed(report: Report) -> Iterator[Caution]:
    classes = report["classes"]
    called = [
        name for name, column in zip(classes, zip(*report["confusion_matrix"], strict=True), strict=True) if any(column)
    ]
    if len(called) == 1 and sum(row["n"] > 0 for row in report["per_class"]) > 1:
        yield Caution(
            "collapsed",
            f"Collapsed to one class: every test image was called {called[0]}, whatever it shows. The accuracy is then "
            "only the share of that class.",
            "Do not use it as it is. If the area under the ROC curve is good, choose another threshold; otherwise "
            "train again with class weights or balanced sampling and a smaller learning rate.",
        )


def _not_learned(report: Report) -> Iterator[Caution]:
    auc = _figure(report, "auc")
    if auc is None:
        return
    if auc.value < 1 - WEAK_AUC and auc.high is not None and auc.high < 0.5:
        yield Caution(
            "worse-than-guessing",
            f"Worse than guessing: an area under the ROC curve of {auc.value:.2f}. The more surely the model names a "
            "class, the less often it is that class, as if the classes were exchanged.",
            "Do not use it. Check that the classes of these images mean what those of the training meant.",
        )
    elif auc.value < WEAK_AUC:
        yield Caution(
            "did-not-learn",
            f"Did not learn: an area under the ROC curve of {auc.value:.2f} is not much better than guessing (0.50).",
            "Do not use it. Check the labels in the dataset's quality report, then train longer, with pretrained "
            "weights or with another architecture.",
        )
    elif auc.low is not None and auc.low <= 0.5:
        yield Caution(
            "may-be-guessing",
            f"The area under the ROC curve is {auc.value:.2f}, but its 95 % interval begins at {auc.low:.2f}: with so "
            "few test images this cannot be told from guessing (0.50).",
            "Evaluate it on more images before believing any of its figures.",
        )


def _perfect(report: Report) -> Iterator[Caution]:
    figures = [(name, _figure(report, name)) for name in ("auc", "accuracy")]
    perfect = [f"{NAMES[name]} of {figure.value:.4g}" for name, figure in figures if figure and figure.value >= PERFECT]
    if perfect and report["n"] >= IMAGES_FOR_SUSPICION:
        yield Caution(
            "suspiciously-perfect",
            f"Suspiciously perfect: an {' and an '.join(perfect)} on {report['n']:,} images. Radiographs are seldom "
            "that easy; more often the same pictures or patients are on both sides of the split, or something in the "
            "pictures gives the class away (a marker, a border, another scanner).",
            "Look for duplicates and shared patients in the dataset's quality report, look at the class activation "
            "maps, and evaluate the version on images from another source.",
        )


def _over_fitted(history: Sequence[Row]) -> Iterator[Caution]:
    """At the epoch whose weights were kept: the one with the lowest validation loss, or the last."""
    if not history:
        return
    losses = [(loss, index) for index, row in enumerate(history) if (loss := _number(row.get("val_loss"))) is not None]
    kept = history[min(losses)[1] if losses else -1]
    for name, limit in OVER_FITTED.items():
        training, validation = _number(kept.get(name)), _number(kept.get(f"val_{name}"))
        if training is not None and validation is not None and training - validation > limit:
            yield Caution(
                "over-fitted",
                f"Over-fitted: in the epoch whose weights were kept, the {NAMES[name]} was {training:.2f} on the "
                f"training images and {validation:.2f} on the validation images. The model has learned its training "
                "images by heart more than what they have in common.",
                "Train on images of more patients, with stronger augmentation or more dropout, or with a smaller "
                "architecture.",
            )
            return


def _validation_above(report: Report, validation: Report | None) -> Iterator[Caution]:
    if validation is None:
        return
    found = [
        f"{NAMES[name]} {before.value:.3f} there and {after.value:.3f}{_interval(after)} here"
        for name in NAMES
        if (before := _figure(validation, name)) and (after := _figure(report, name)) and _far_above(before, after)
    ]
    if found:
        yield Caution(
            "validation-above-test",
            f"Far better on the validation images than on the test images: {'; '.join(found)}. Chance alone "
            "hardly explains the difference. The model may have been chosen so often on the same validation images "
            "that it suits them, or the test images may be of another kind.",
            "Expect the test figures in use, or worse. Compare the sources of the two parts, and divide the dataset "
            "anew if they differ.",
        )


def _far_above(before: _Figure, after: _Figure) -> bool:
    """Whether zero lies outside the 95 % interval of the difference of two independent figures (Zou and Donner 2008).

    Validation figures without an interval are taken to be as uncertain as those of the test.
    """
    difference = before.value - after.value
    if after.high is None or difference < FAR_ABOVE:
        return False
    upwards = after.high - after.value
    downwards = upwards if before.low is None else before.value - before.low
    return difference > math.hypot(downwards, upwards)


def _few_patients(report: Report) -> Iterator[Caution]:
    patients = report["patients"]
    small = [row for row in report["per_class"] if 0 < _patients_of(row) < FEW_PATIENTS_OF_A_CLASS]
    if patients >= FEW_PATIENTS and not small:
        return
    classes = [f"{_patients_of(row):,} of {row['class']}" for row in small]
    yield Caution(
        "few-patients",
        f"Too few patients to be sure: the test images come from {_counted(patients, 'patient')}"
        f"{', with only ' + _listed(classes) if classes else ''}."
        f"{_spread(_figure(report, 'accuracy'), patients)}",
        f"Test it on images of at least {FEW_PATIENTS} patients, and {FEW_PATIENTS_OF_A_CLASS} of each class, before "
        "relying on the figures, better on some hundreds.",
    )


def _spread(accuracy: _Figure | None, patients: int) -> str:
    """How far the accuracy may be off, as a sentence after a blank; "" where its interval says nothing about that."""
    if accuracy is None or accuracy.low is None or accuracy.high is None:
        return ""
    if accuracy.value == 1 and patients:
        # Resamples of patients without an error have none either, so that the interval is a point. What n patients
        # without an error leave possible is exact: 1 - 0.05 ** (1 / n), about 3 / n (Hanley and Lippman-Hand 1983).
        return (
            " Every image was read rightly, for one, and still the version might misread up to "
            f"{100 * (1 - 0.05 ** (1 / patients)):.0f} % of other patients (95 % confidence)."
        )
    low, high = f"{accuracy.low:.2f}", f"{accuracy.high:.2f}"
    if low == high:
        return ""
    return (
        f" The accuracy of {accuracy.value:.2f}, for one, could be anything from {low} to {high} with other patients "
        "(95 % interval)."
    )


def _patients_of(row: Row) -> int:
    """Of a class. A report of an earlier release knows only the images, which are at least as many."""
    return int(row.get("patients", row["n"]))


VALIDATION_PART = Caution(
    "validation-part",
    "These are the validation images of its own training: epoch, temperature and threshold were chosen on them, so "
    "that the figures look better than new images will show.",
    "Judge the version by the report of its test part.",
)


def _used_up(test_uses: int | None) -> Iterator[Caution]:
    if test_uses is not None and test_uses > 1:
        yield Caution(
            "test-reused",
            f"The test images have been used {test_uses:,} times, once for each version measured on them. The best of "
            f"{test_uses:,} is partly the luckiest, so its figures look better than new images will show.",
            "Choose between versions by their validation figures, and confirm the choice on images that no version "
            "has been measured on.",
        )


def _figure(report: Report, name: str) -> _Figure | None:
    """A figure of a report, or of plain figures by name, which have no interval."""
    found = report.get("metrics", report).get(name)
    if not isinstance(found, Mapping):
        found = {"value": found}
    value = _number(found["value"])
    return None if value is None else _Figure(value, _number(found.get("low")), _number(found.get("high")))


def _number(value: Any) -> float | None:
    """As a finite float; a training may have stored something else for a figure that it could not compute."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _interval(figure: _Figure) -> str:
    return "" if figure.low is None or figure.high is None else f" ({figure.low:.3f} to {figure.high:.3f})"


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
