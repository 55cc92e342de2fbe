"""Batches from the memory-mapped pixel cache, as fast as from arrays in memory, the same for the same seed."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets import splitting
from datasets.cache import PreparedData
from training.configurations import Configuration
from training.ml import augmentation
from training.ml.runtime import tf

Rows = NDArray[np.int64]


def steps_per_epoch(images: int, batch_size: int, minimum_steps: int) -> int:
    """Optimizer steps of one epoch: one pass over the images, or several passes when that is fewer than the minimum.

    With 100 images and batches of 32, one pass is 3 steps: five epochs would end before anything was learned.
    """
    return max(math.ceil(images / batch_size), minimum_steps)


def training_batches(
    data: PreparedData, rows: Rows, configuration: Configuration, *, batch_size: int, first_epoch: int = 0
) -> Any:
    """An endless tf.data.Dataset of (images float32 (B, S, S, 1), one-hot labels (B, C), weights (B,)).

    All batches have the same size and all images come equally often. Images are read and augmented in the
    background while the network computes. first_epoch: part of the seed, so that a resumed training goes on with
    new numbers.
    """
    size, classes = data.image_size, len(data.classes)
    signature = (
        tf.TensorSpec((batch_size, size, size), tf.uint8),
        tf.TensorSpec((batch_size,), tf.int64),
        tf.TensorSpec((batch_size,), tf.float32),
        augmentation.Changes(
            tf.TensorSpec((batch_size, 8), tf.float32),
            tf.TensorSpec((batch_size,), tf.float32),
            tf.TensorSpec((batch_size,), tf.float32),
        ),
    )
    weights = np.ones(classes, np.float32)
    if configuration.balance == "weights":
        for number, weight in splitting.class_weights(data.labels[rows].tolist()).items():
            weights[number] = weight

    def read() -> Iterator[tuple[Any, ...]]:
        random = np.random.default_rng([configuration.seed, first_epoch])
        for chosen in _endless(rows, batch_size, random):
            labels = data.labels[chosen]
            yield (
                data.images[chosen],
                labels,
                weights[labels],
                augmentation.draw(random, batch_size, size, configuration),
            )

    def finish(images: Any, labels: Any, weight: Any, changes: augmentation.Changes) -> tuple[Any, Any, Any]:
        return augmentation.apply(images, changes), tf.one_hot(labels, classes), weight

    batches = tf.data.Dataset.from_generator(read, output_signature=signature)
    return batches.map(finish, num_parallel_calls=1, deterministic=True).prefetch(4)


def input_batches(data: PreparedData, rows: Rows, batch_size: int) -> Iterator[NDArray[np.float32]]:
    """The rows in order as network input, float32 (<= B, S, S, 1), without augmentation."""
    for start in range(0, len(rows), batch_size):
        yield data.images[rows[start : start + batch_size], :, :, None].astype(np.float32) / np.float32(255)


def _endless(rows: Rows, batch_size: int, random: np.random.Generator) -> Iterator[Rows]:
    """Batches from one permutation after the other, running on across the seams."""
    waiting = rows[:0]
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, random.permutation(rows)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
