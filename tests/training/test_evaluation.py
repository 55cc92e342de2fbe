"""The figures of a trained network: those that fit its classes."""

from types import SimpleNamespace

import numpy as np

from datasets.cache import PreparedData
from training.ml import evaluation


def grades(ordinal: bool) -> PreparedData:
    """Nine images of three classes; the brightness of an image is its class."""
    labels = np.arange(9) % 3
    return PreparedData(
        images=np.full((9, 4, 4), labels[:, None, None], np.uint8),
        labels=labels,
        splits=np.repeat(np.array([0, 1, 2], np.uint8), 3),
        groups=np.arange(9),
        classes=("0", "1", "2"),
        positive_class="",
        pipeline={"id": "test", "version": 1},
        digest="0" * 64,
        ordinal=ordinal,
    )


def perfect() -> SimpleNamespace:
    """A network that reads the class off the brightness."""

    def predict_on_batch(images: np.ndarray) -> np.ndarray:
        return np.eye(3)[np.rint(images.mean(axis=(1, 2, 3)) * 255).astype(int)]

    return SimpleNamespace(predict_on_batch=predict_on_batch, output_shape=(None, 3))


def test_kappa_is_reported_where_the_classes_are_grades():
    metrics = evaluation.evaluate(perfect(), grades(ordinal=True), 2, lambda done: None).metrics

    assert metrics["test"]["quadratic_kappa"] == metrics["validation"]["quadratic_kappa"] == 1.0


def test_kappa_is_not_reported_for_classes_without_an_order():
    metrics = evaluation.evaluate(perfect(), grades(ordinal=False), 2, lambda done: None).metrics

    assert "quadratic_kappa" not in metrics["test"]
