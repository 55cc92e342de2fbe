"""What training costs without the platform: programs that `manage.py benchmark train` runs beside it.

`python -m training.ml.baselines KIND SPECIFICATION` does one of `PROGRAMS`, with the JSON of a `Specification`, and
writes one line of JSON for each thing that happened to its standard output.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.cache import PreparedData, open_cache
from registry.statistics import classification_metrics
from training.configurations import Configuration
from training.ml import architectures, augmentation, pipeline
from training.ml.runtime import keras, tf

# Random changes that an augmenting graph chooses from.
_DRAWS = 8192
_BLOCKS = 7
_SETTLES_SECONDS = 0.2


@dataclass(frozen=True)
class Specification:
    """What all of them train. cache: folder of the preparation. train, validation: class folders of the same images.

    configuration: as JSON. batch_size, epochs, learning_rate: those of the platform's own training. block: steps.
    """

    cache: str
    train: str
    validation: str
    architecture: str
    configuration: dict[str, Any]
    batch_size: int
    epochs: int
    learning_rate: float
    block: int = 12

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def options(self) -> Configuration:
        return Configuration.from_json(self.configuration)


def first_step(asked: Specification) -> None:
    """Import, build, trace, one step. The images are made up: reading them is not what is measured."""
    data = open_cache(Path(asked.cache))
    images = np.zeros((asked.batch_size, data.image_size, data.image_size, 1), np.float32)
    labels = np.eye(len(data.classes), dtype=np.float32)[np.zeros(asked.batch_size, np.int64)]
    _compiled(asked, data, _network(asked, data), 1).fit(images, labels, batch_size=asked.batch_size, verbose=0)
    _tell(event="first step")
    # Alive until its processor time has been read.
    sys.stdin.read()


def arrays(asked: Specification) -> None:
    """`model.fit` on float32 arrays in memory, without augmentation."""
    data = open_cache(Path(asked.cache))
    _fit_arrays(asked, data, _network(asked, data))


def arrays_augmented(asked: Specification) -> None:
    """The same with the platform's augmentation as the first layer of the network."""
    data = open_cache(Path(asked.cache))
    network = _network(asked, data)
    radiograph = keras.Input((data.image_size, data.image_size, 1))
    augmented = _Augmentation(asked.options, data.image_size)(radiograph)
    _fit_arrays(asked, data, keras.Model(radiograph, network(augmented)))


def files(asked: Specification) -> None:
    """What a user would write: `image_dataset_from_directory` and `fit`. Every epoch decodes the files again."""
    data = open_cache(Path(asked.cache))
    train, validation = (_from_directory(asked, data, folder) for folder in (asked.train, asked.validation))
    labels = np.concatenate([np.asarray(label).argmax(axis=1) for _, label in validation])
    steps = math.ceil(len(data.indices("train")) / asked.batch_size)
    model = _compiled(asked, data, _network(asked, data), steps)
    _fit(asked, data, model, train, validation.map(lambda images, _: images), labels)


def feed(asked: Specification) -> None:
    """Images a second of the feed alone, of the step alone and of both, for each way to augment, in turns."""
    data = open_cache(Path(asked.cache))
    rows, options = data.indices("train"), asked.options
    model = _compiled(asked, data, _network(asked, data), asked.block)
    ready = next(iter(pipeline.training_batches(data, rows, _still(options), batch_size=asked.batch_size)))
    feeds = {
        "in_graph": pipeline.training_batches(data, rows, options, batch_size=asked.batch_size),
        "uint8_in_threads": _threaded_batches(data, rows, options, asked.batch_size),
        "without": pipeline.training_batches(data, rows, _still(options), batch_size=asked.batch_size),
    }
    work: dict[str, Callable[[], Any]] = {
        "step_alone": _steps(model, tf.data.Dataset.from_tensors(ready).repeat(), asked.block)
    }
    for name, batches in feeds.items():
        work[f"feed_alone_{name}"] = _drain(batches, asked.block)
        work[f"both_{name}"] = _steps(model, batches, asked.block)
    _tell(event="feed", images_per_second=_in_turns(work, asked.block * asked.batch_size))


PROGRAMS = {
    "first_step": first_step,
    "arrays": arrays,
    "arrays_augmented": arrays_augmented,
    "files": files,
    "feed": feed,
}


# -- Network and training


def _network(asked: Specification, data: PreparedData) -> Any:
    keras.utils.set_random_seed(asked.options.seed)
    return architectures.build(
        asked.architecture, image_size=data.image_size, classes=len(data.classes), dropout=asked.options.dropout
    )


def _compiled(asked: Specification, data: PreparedData, model: Any, steps: int) -> Any:
    """With the platform's optimizer, schedule and loss."""
    options = asked.options
    total = asked.epochs * steps
    warmup = round(options.warmup_fraction * total)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total - warmup), warmup_target=asked.learning_rate, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=options.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=options.label_smoothing)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=False)
    return model


def _fit_arrays(asked: Specification, data: PreparedData, network: Any) -> None:
    images, labels = _in_memory(data, "train")
    validation, _ = _in_memory(data, "validation")
    model = _compiled(asked, data, network, math.ceil(len(images) / asked.batch_size))
    one_hot = np.eye(len(data.classes), dtype=np.float32)[labels]
    known = data.labels[data.indices("validation")]
    _fit(asked, data, model, images, validation, known, y=one_hot, batch_size=asked.batch_size)


def _in_memory(data: PreparedData, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows = data.indices(split)
    return data.images[rows, :, :, None].astype(np.float32) / np.float32(255), data.labels[rows]


def _from_directory(asked: Specification, data: PreparedData, folder: str) -> Any:
    batches = keras.utils.image_dataset_from_directory(
        folder,
        label_mode="categorical",
        class_names=list(data.classes),
        color_mode="grayscale",
        batch_size=asked.batch_size,
        image_size=(data.image_size, data.image_size),
        shuffle=folder == asked.train,
        seed=asked.options.seed,
        verbose=False,
    )
    return batches.map(lambda images, labels: (images / 255.0, labels)).prefetch(tf.data.AUTOTUNE)


def _fit(
    asked: Specification, data: PreparedData, model: Any, x: Any, validation: Any, known: NDArray[np.int64], **more: Any
) -> None:
    weights = pipeline.class_weights(data.labels[data.indices("train")], len(data.classes), asked.options)
    callback = _Tell(data, validation, known, asked.batch_size)
    balance = {number: float(weight) for number, weight in enumerate(weights)}
    model.fit(x, epochs=asked.epochs, verbose=0, class_weight=balance, callbacks=[callback], **more)


class _Tell(keras.callbacks.Callback):  # type: ignore[misc]
    """Validates at the end of each epoch, as the platform does, and tells of it."""

    def __init__(self, data: PreparedData, validation: Any, known: NDArray[np.int64], batch_size: int) -> None:
        super().__init__()
        self.data, self.validation, self.known, self.batch_size = data, validation, known, batch_size
        self.told_first = False

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if not self.told_first:
            self.told_first = True
            _tell(event="first step")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        batch_size = self.batch_size if isinstance(self.validation, np.ndarray) else None
        probabilities = self.model.predict(self.validation, batch_size=batch_size, verbose=0)
        positive = self.data.positive_class if len(self.data.classes) == 2 else None
        figures = classification_metrics(self.known, probabilities, self.data.classes, positive)
        _tell(event="epoch", epoch=epoch + 1, val_auc=figures["auc"])


class _Augmentation(keras.layers.Layer):  # type: ignore[misc]
    """The platform's augmentation of a batch, each image changed by one of many changes drawn beforehand."""

    def __init__(self, configuration: Configuration, image_size: int) -> None:
        super().__init__()
        random = np.random.default_rng(configuration.seed)
        self.draws = augmentation.draw(random, _DRAWS, image_size, configuration)

    def call(self, images: Any, training: bool = False) -> Any:
        if not training:
            return images
        chosen = tf.random.uniform((tf.shape(images)[0],), 0, _DRAWS, tf.int32)
        changes = augmentation.Changes(*(tf.gather(tf.constant(draw), chosen) for draw in self.draws))
        return augmentation.apply(images[..., 0] * 255.0, changes)


# -- The feed by itself


def _still(configuration: Configuration) -> Configuration:
    """Without augmentation."""
    strengths = ("shift", "zoom", "rotation", "contrast", "brightness", "gamma", "blur", "noise", "erase")
    return configuration.with_options(**dict.fromkeys(strengths, 0.0), flip=False)


def _steps(model: Any, batches: Any, count: int) -> Callable[[], Any]:
    """`fit` would begin anew with each block, and wait for its first batches."""
    endless = iter(batches)
    model.make_train_function()

    def step() -> None:
        for _ in range(count):
            float(model.train_function(endless)["loss"])

    return step


def _drain(batches: Any, count: int) -> Callable[[], Any]:
    endless = iter(batches)

    def drain() -> None:
        for _ in range(count):
            next(endless)

    return drain


def _settle(name: str, work: Callable[[], Any]) -> None:
    """Batches are made ahead: let that come to an end, and for a feed alone use them up, so that all are counted."""
    time.sleep(_SETTLES_SECONDS)
    if name.startswith("feed_alone"):
        work()


def _in_turns(work: dict[str, Callable[[], Any]], images: int) -> dict[str, dict[str, float]]:
    """Wall clock and processor time of each, medians over blocks that alternate. The first block does not count."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for block in range(_BLOCKS + 1):
        for name, do in work.items():
            _settle(name, do)
            wall, busy = time.perf_counter(), time.process_time()
            do()
            if block:
                measured[name].append((time.perf_counter() - wall, time.process_time() - busy))
    return {
        name: {
            "per_second": round(images / statistics.median(wall for wall, _ in times), 1),
            "cpu_ms_per_image": round(1000 / images * statistics.median(busy for _, busy in times), 3),
        }
        for name, times in measured.items()
    }


def _threaded_batches(
    data: PreparedData, rows: NDArray[np.int64], configuration: Configuration, batch_size: int
) -> Any:
    """The other way to augment: shift, zoom, rotation and exposure on uint8 images by Pillow, one thread a core.

    Pillow lets go of the interpreter while it computes. Only what every preset uses is done here.
    """
    size = data.image_size
    margin = size // 4
    images = pipeline.order(data, rows, configuration)
    one_hot = np.eye(len(data.classes), dtype=np.float32)
    weights = pipeline.class_weights(images.labels, len(data.classes), configuration)
    levels = np.arange(256)

    def change(image: NDArray[np.uint8], transform: NDArray[np.float32], exposure: NDArray[np.float32]) -> Any:
        a, b, across, c, d, down = _six(transform)
        # Pillow measures from the corner of a pixel, and the picture lies within its repeated edge.
        across += margin + 0.5 - 0.5 * (a + b)
        down += margin + 0.5 - 0.5 * (c + d)
        picture = Image.fromarray(np.pad(image, margin, mode="edge"))
        moved = np.asarray(picture.transform((size, size), Image.Transform.AFFINE, (a, b, across, c, d, down), 2))
        gain, offset = exposure.tolist()
        mean = moved.mean()
        table = np.clip((levels - mean) * gain + mean + offset * 255, 0, 255).astype(np.uint8)
        return table[moved]

    def read() -> Iterator[tuple[Any, ...]]:
        at = 0
        with ThreadPoolExecutor(2) as threads:
            while True:
                chosen = rows[images.numbers(at, batch_size)]
                random = np.random.default_rng([configuration.seed, at])
                changes = augmentation.draw(random, batch_size, size, configuration)
                changed = threads.map(change, data.images[chosen], changes.transforms, changes.exposures)
                labels = data.labels[chosen]
                yield np.stack(list(changed)), one_hot[labels], weights[labels]
                at += batch_size

    signature = (
        tf.TensorSpec((batch_size, size, size), tf.uint8),
        tf.TensorSpec((batch_size, len(data.classes)), tf.float32),
        tf.TensorSpec((batch_size,), tf.float32),
    )
    batches = tf.data.Dataset.from_generator(read, output_signature=signature)
    scaled = batches.map(lambda pixels, *rest: (tf.cast(pixels, tf.float32)[..., None] / 255.0, *rest))
    return scaled.prefetch(4)


def _six(transform: NDArray[np.float32]) -> list[float]:
    """The whole affine transform, also of one without rotation."""
    numbers: list[float] = transform.tolist()
    if len(numbers) == 4:
        scale, shift, row_scale, row_shift = numbers
        return [scale, 0.0, shift, 0.0, row_scale, row_shift]
    return numbers[:6]


def _tell(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Specification(**json.loads(sys.argv[2])))
