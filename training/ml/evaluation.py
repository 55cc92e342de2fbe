"""Predictions of a trained network on its validation and test images, and the figures they give."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from datasets.cache import PreparedData
from registry import calibration, statistics
from training.ml import pipeline

# Enough to look through in a quarter of an hour.
MOST_DOUBTED: Final = 50


@dataclass(frozen=True)
class SplitPredictions:
    """Rows of the cache and, for each, label, group and what the network answered: probabilities float64 (N, C)."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Figures of validation and test, of probabilities at the temperature and the threshold that validation chose.

    threshold: None for more than two classes.
    """

    validation: SplitPredictions
    test: SplitPredictions
    temperature: float
    threshold: float | None
    metrics: dict[str, dict[str, Any]]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Flat names and arrays, to be stored with a model version."""
        splits = {"validation": self.validation, "test": self.test}
        return {f"{name}_{key}": value for name, split in splits.items() for key, value in vars(split).items()}


def evaluate(model: Any, data: PreparedData, batch_size: int, between: Callable[[float], None]) -> Evaluation:
    """Predict validation and test and compute their figures.

    The test images have no part in any choice: temperature and threshold come from validation. `between` is called
    after each batch with the share done; what it raises ends the evaluation.
    """
    total = len(data.indices("validation")) + len(data.indices("test"))
    validation = _split(model, data, "validation", batch_size, lambda done: between(done / total))
    before = len(validation.rows)
    test = _split(model, data, "test", batch_size, lambda done: between((before + done) / total))
    temperature = calibration.fit_temperature(validation.labels, validation.probabilities)
    threshold = choose_threshold(validation, data, temperature)
    splits = {"validation": validation, "test": test}
    metrics = {name: _metrics(split, data, temperature, threshold) for name, split in splits.items()}
    return Evaluation(validation, test, temperature, threshold, metrics)


@dataclass(frozen=True)
class Doubt:
    """An image whose label the network does not believe. row: of the cache; loss: -ln of the label's probability."""

    row: int
    split: str
    label: str
    predicted: str
    probability: float
    loss: float


def doubts(
    model: Any, data: PreparedData, evaluation: Evaluation, batch_size: int, between: Callable[[float], None]
) -> list[Doubt]:
    """The MOST_DOUBTED images of all splits with the highest loss among those that the network reads differently.

    In validation and test the network has not seen the label; what it contradicts in spite of having learned it, in
    the training part, is more suspicious still.
    """
    auc = evaluation.metrics["validation"]["auc"]
    if auc is not None and auc < statistics.WEAK_AUC:
        return []  # a network that did not learn has no opinion worth a look
    count = max(len(data.indices("train")), 1)
    train = _split(model, data, "train", batch_size, lambda done: between(done / count))
    splits = {"train": train, "validation": evaluation.validation, "test": evaluation.test}
    calibrated = {
        name: replace(split, probabilities=calibration.with_temperature(split.probabilities, evaluation.temperature))
        for name, split in splits.items()
    }
    found = [doubt for name, split in calibrated.items() for doubt in _doubts_of(name, split, data.classes)]
    return sorted(found, key=lambda doubt: (-doubt.loss, doubt.row))[:MOST_DOUBTED]


def _doubts_of(name: str, split: SplitPredictions, classes: tuple[str, ...]) -> list[Doubt]:
    if not len(split.rows):
        return []
    predicted = split.probabilities.argmax(axis=1)
    own = np.take_along_axis(split.probabilities, split.labels[:, None], axis=1)[:, 0]
    losses = -np.log(np.clip(own, 1e-12, 1))
    return [
        Doubt(
            row=int(split.rows[index]),
            split=name,
            label=classes[int(split.labels[index])],
            predicted=classes[int(predicted[index])],
            probability=float(split.probabilities[index, predicted[index]]),
            loss=float(losses[index]),
        )
        for index in np.flatnonzero(predicted != split.labels)
    ]


def choose_threshold(validation: SplitPredictions, data: PreparedData, temperature: float) -> float | None:
    """The threshold for the positive class of two, chosen on validation; None for more classes."""
    if len(data.classes) != 2:
        return None
    positive = data.classes.index(data.positive_class)
    probabilities = calibration.with_temperature(validation.probabilities, temperature)
    return statistics.choose_threshold(validation.labels == positive, probabilities[:, positive])


def predict(
    model: Any, batches: Iterable[NDArray[np.float32]], between: Callable[[int], None] | None = None
) -> NDArray[np.float64]:
    """Probabilities float64 (N, C), rows summing to 1. `between` is called after each batch with the images done."""
    parts = [np.zeros((0, model.output_shape[-1]))]
    done = 0
    for batch in batches:
        parts.append(np.asarray(model.predict_on_batch(batch), np.float64))
        done += len(batch)
        if between is not None:
            between(done)
    probabilities = np.concatenate(parts)
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True), np.float64)


def _split(
    model: Any, data: PreparedData, split: str, batch_size: int, between: Callable[[int], None]
) -> SplitPredictions:
    rows = data.indices(split)
    probabilities = predict(model, pipeline.input_batches(data, rows, batch_size), between)
    return SplitPredictions(rows, data.labels[rows], data.groups[rows], probabilities)


def _metrics(
    split: SplitPredictions, data: PreparedData, temperature: float, threshold: float | None
) -> dict[str, Any]:
    positive = data.positive_class if threshold is not None else None
    probabilities = calibration.with_temperature(split.probabilities, temperature)
    return statistics.classification_metrics(
        split.labels, probabilities, data.classes, positive, threshold, ordinal=data.ordinal
    )
