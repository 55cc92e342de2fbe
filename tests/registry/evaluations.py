"""Evaluations that are really stored: made-up answers of any quality, their report, and the file with both."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.models import Evaluation, Measured, ModelVersion
from registry.reports import EvaluatedImages

IMAGES_OF_A_PATIENT = 2
QUALITY = 2.0


def make_evaluation(
    version: ModelVersion,
    *,
    kind: str = "test",
    patients: int = 40,
    seed: int = 0,
    quality: float = QUALITY,
    preparation: int | None = None,
    images_like: Evaluation | None = None,
    images: EvaluatedImages | None = None,
    by: Any = None,
) -> Evaluation:
    """What `version` answered about images, two a patient; patients take turns to have each class.

    quality: how far the logit of the true class lies above the others on average, with noise of 1; 0 is guessing.
    The seed makes the images and the noise. images_like: the images and patients of that evaluation, so that both can
    be paired; only the answers are new. images: the answers themselves, instead of made-up ones.
    """
    if images is None:
        images = images_like.images if images_like else make_images(len(version.classes), patients, seed)
        images = answered(images, len(version.classes), seed, quality)
    measured = Measured.of(
        kind,
        images,
        version.question,
        dataset_name="Another clinic" if kind == Evaluation.Kind.EXTERNAL else version.dataset_name,
        preparation=preparation,
        dataset_digest=version.dataset_digest,
        split_digest=version.split_digest,
    )
    return Evaluation.objects.store(version, measured, by=by)


def make_images(classes: int, patients: int, seed: int = 0) -> EvaluatedImages:
    """Labelled images without answers. Women and men, and a format that all share."""
    groups = np.repeat(np.arange(patients, dtype=np.int64), IMAGES_OF_A_PATIENT)
    count = len(groups)
    return EvaluatedImages(
        labels=groups % classes,
        probabilities=np.full((count, classes), 1 / classes),
        groups=groups,
        digests=np.array([hashlib.sha256(f"{seed} {index}".encode()).hexdigest() for index in range(count)]),
        rows=np.arange(count, dtype=np.int64),
        subgroups={
            "sex": np.where(groups // classes % 2, "female", "male").astype(np.str_),
            "image format": np.full(count, "PNG"),
        },
    )


def answered(images: EvaluatedImages, classes: int, seed: int, quality: float = QUALITY) -> EvaluatedImages:
    """The same images with answers of that quality."""
    noise = np.random.default_rng(seed).normal(size=(len(images.labels), classes))
    return EvaluatedImages(
        **{**vars(images), "probabilities": softmax(quality * np.eye(classes)[images.labels] + noise)}
    )


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)
