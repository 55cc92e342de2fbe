"""Batches from the memory-mapped pixel cache, as fast as from arrays in memory, the same for the same seed.

What a batch holds depends on the seed and on how many images came before it, and on nothing else: a training that was
interrupted anywhere goes on with the very batches that it would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets import splitting
from datasets.cache import PreparedData
from training.configurations import Configuration
from training.ml import augmentation
from training.ml.runtime import tf

Rows = NDArray[np.int64]
# What a random number is for: part of its seed.
_ORDER, _CHANGES = 0, 1
# Batches that wait ready for the network.
_AHEAD = 4


@dataclass(frozen=True)
class Order:
    """Which training image comes when: an endless row of numbers 0..N-1, of which any part can be computed at once.

    labels: int64 (N,). Without `balanced`, one random permutation of all images follows the other, so that all come
    equally often. With it, the classes take turns, and each goes through its own permutations.
    """

    labels: Rows
    seed: int
    balanced: bool = False

    def numbers(self, position: int, count: int) -> Rows:
        """The images that come at `position` and behind it, int64 (count,)."""
        if not self.balanced:
            return self._in_turns(np.arange(len(self.labels)), position, count, self.seed)
        classes = len(self._pools)
        chosen = np.empty(count, np.int64)
        for turn, (label, pool) in enumerate(self._pools.items()):
            first = (turn - position) % classes
            own = range(position + first, position + count, classes)
            before = (position + first - turn) // classes
            chosen[first::classes] = self._in_turns(pool, before, len(own), self.seed, label + 1)
        return chosen

    def _in_turns(self, pool: Rows, position: int, count: int, *seed: int) -> Rows:
        """`count` members of the pool from `position` on, in a row of one permutation after the other."""
        parts = [pool[:0]]
        while count > 0:
            turn, first = divmod(position, len(pool))
            part = pool[self._permutation(len(pool), *seed, turn)[first : first + count]]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts)

    @cached_property
    def _pools(self) -> dict[int, Rows]:
        """The images of each class."""
        return {int(label): np.flatnonzero(self.labels == label) for label in np.unique(self.labels)}

    @cached_property
    def _permutation(self) -> Callable[..., Rows]:
        """The present permutation of each class is kept, and the next one: together two of all images."""
        return lru_cache(maxsize=2 * len(self._pools))(_permutation)


def _permutation(count: int, *seed: int) -> Rows:
    return np.random.default_rng([_ORDER, *seed]).permutation(count)


def order(data: PreparedData, rows: Rows, configuration: Configuration) -> Order:
    return Order(data.labels[rows], configuration.seed, configuration.balance == "sampling")


def class_weights(labels: Rows, classes: int, configuration: Configuration) -> NDArray[np.float32]:
    """How much an image of each class counts in the loss, float32 (C,)."""
    weights = np.ones(classes, np.float32)
    if configuration.balance == "weights":
        for number, weight in splitting.class_weights(labels.tolist()).items():
            weights[number] = weight
    return weights


def training_batches(
    data: PreparedData, rows: Rows, configuration: Configuration, *, batch_size: int, position: int = 0
) -> Any:
    """An endless tf.data.Dataset of (images float32 (B, S, S, 1), one-hot labels (B, C), weights (B,)).

    All batches have the same size. Images are read and augmented in the background while the network computes.
    position: how many images came before.
    """
    size, classes = data.image_size, len(data.classes)
    images = order(data, rows, configuration)
    weights = class_weights(images.labels, classes, configuration)
    signature = (
        tf.TensorSpec((batch_size, size, size), tf.uint8),
        tf.TensorSpec((batch_size,), tf.int64),
        tf.TensorSpec((batch_size,), tf.float32),
        augmentation.signature(batch_size, configuration),
    )

    def read() -> Iterator[tuple[Any, ...]]:
        at = position
        while True:
            chosen = rows[images.numbers(at, batch_size)]
            labels = data.labels[chosen]
            random = np.random.default_rng([_CHANGES, configuration.seed, at])
            changes = augmentation.draw(random, batch_size, size, configuration)
            yield data.images[chosen], labels, weights[labels], changes
            at += batch_size

    def finish(images: Any, labels: Any, weight: Any, changes: augmentation.Changes) -> tuple[Any, Any, Any]:
        return augmentation.apply(images, changes), tf.one_hot(labels, classes), weight

    batches = tf.data.Dataset.from_generator(read, output_signature=signature)
    return batches.map(finish, num_parallel_calls=1, deterministic=True).prefetch(_AHEAD)


def feature_batches(
    features: NDArray[np.float32],
    labels: Rows,
    classes: int,
    configuration: Configuration,
    *,
    batch_size: int,
    position: int = 0,
) -> Any:
    """The same of features (N, D) instead of images, without augmentation: (features (B, D), labels, weights)."""
    images = Order(labels, configuration.seed, configuration.balance == "sampling")
    weights = class_weights(labels, classes, configuration)
    one_hot = np.eye(classes, dtype=np.float32)
    signature = (
        tf.TensorSpec((batch_size, features.shape[1]), tf.float32),
        tf.TensorSpec((batch_size, classes), tf.float32),
        tf.TensorSpec((batch_size,), tf.float32),
    )

    def read() -> Iterator[tuple[Any, ...]]:
        at = position
        while True:
            chosen = images.numbers(at, batch_size)
            yield features[chosen], one_hot[labels[chosen]], weights[labels[chosen]]
            at += batch_size

    return tf.data.Dataset.from_generator(read, output_signature=signature).prefetch(_AHEAD)


def input_batches(data: PreparedData, rows: Rows, batch_size: int) -> Iterator[NDArray[np.float32]]:
    """The rows in order as network input, float32 (<= B, S, S, 1), without augmentation."""
    for start in range(0, len(rows), batch_size):
        yield data.images[rows[start : start + batch_size], :, :, None].astype(np.float32) / np.float32(255)
