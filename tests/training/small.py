"""A dataset and a network that are small enough to be trained in a second."""

from pathlib import Path

import numpy as np

from datasets.cache import SPLITS, PreparedData
from training.ml.initial import InitialWeights
from training.ml.runtime import keras

SIZE = 32
PRETRAINED = InitialWeights("imagenet", "published", path=Path("published.h5"))


def make_data(count: int = 60, size: int = SIZE, missing: tuple[str, ...] = ()) -> PreparedData:
    """Noise with a bright spot at the left (class 0) or at the right (class 1), at a height that varies."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = random.integers(0, 120, (count, size, size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top = random.integers(0, size - size // 4)
        left = (size // 8) + (size // 2 if label else 0)
        image[top : top + size // 4, left : left + size // 4] += 100
    splits = [split for split in ("train",) * 6 + ("validation",) * 2 + ("test",) * 2 for _ in range(2)]
    kept = ["train" if split in missing else split for split in splits]
    return PreparedData(
        images=images,
        labels=labels,
        splits=np.array([SPLITS.index(kept[i % len(kept)]) for i in range(count)], np.uint8),
        groups=np.arange(count),
        classes=("left", "right"),
        positive_class="right",
        pipeline={"id": "test", "version": 1},
        digest="0" * 64,
    )


def build(name, *, image_size, classes, weights=None, dropout=0.0):
    """A network that compiles in a moment, with everything whose state must survive: batch normalisation, dropout.

    With weights, whatever they are, its backbone is the same each time.
    """
    fixed = None if weights is None else 1
    radiograph = keras.Input((image_size, image_size, 1), name="radiograph")
    x = keras.layers.AveragePooling2D(8, name="small")(radiograph)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(6, name="deep", kernel_initializer=keras.initializers.GlorotUniform(fixed))(x)
    x = keras.layers.BatchNormalization(name="normalization")(x)
    x = keras.layers.Dense(4, name="hidden", kernel_initializer=keras.initializers.GlorotUniform(fixed))(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(radiograph, keras.layers.Dense(classes, activation="softmax", name="head")(x), name=name)
