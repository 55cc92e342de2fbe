"""What a training minimises."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.configurations import Configuration
from training.ml.runtime import keras, tf


def spread(classes: int, width: float) -> NDArray[np.float32]:
    """How a grade is spread over all grades, float32 (C, C), rows summing to 1: Gaussian of `width` grades.

    Readers disagree about neighbouring grades and hardly ever about distant ones; a label that says so teaches the
    order of the grades (Diaz and Marathe 2019, soft labels for ordinal regression).
    """
    grades = np.arange(classes)
    nearness = np.exp(-(((grades[:, None] - grades[None]) / width) ** 2) / 2)
    return np.asarray(nearness / nearness.sum(axis=1, keepdims=True), np.float32)


class GradedCrossentropy(keras.losses.Loss):  # type: ignore[misc]
    """Cross entropy against labels that are spread over the neighbouring grades."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__(name="graded_crossentropy")
        self.spread = tf.constant(spread(classes, width))

    def call(self, truth: Any, probabilities: Any) -> Any:
        return keras.losses.categorical_crossentropy(tf.matmul(tf.cast(truth, tf.float32), self.spread), probabilities)


def create(configuration: Configuration, classes: int, *, ordinal: bool) -> Any:
    """The loss of a configuration; grades are spread instead of smoothed evenly, unless the spread is 0."""
    if ordinal and configuration.grade_spread:
        return GradedCrossentropy(classes, configuration.grade_spread)
    return keras.losses.CategoricalCrossentropy(label_smoothing=configuration.label_smoothing)
