"""How long the steps of a training take on this machine, measured before it starts."""

import resource
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from datasets.cache import PreparedData
from training.configurations import Configuration
from training.ml import pipeline, transfer
from training.ml.control import TrainingFailed
from training.ml.learning import Learner, compiled, even
from training.ml.prediction import OneDevice
from training.ml.run import complete, network
from training.ml.runtime import replicas, strategy, tf
from training.ml.schedules import Callback

_CLASSES = tuple(str(number) for number in range(1000))
# The first steps compile the network and fill the caches.
_SLOW_STEPS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of a training step and of the prediction of a batch, of the start until the first step was done (without
    the import of TensorFlow), and the largest memory this process had, in bytes (not that of a GPU)."""

    step_seconds: float
    prediction_seconds: float
    start_seconds: float
    peak_memory: int


class _Steps(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ended.append(time.monotonic())


def timed_steps(
    architecture_id: str, *, image_size: int, classes: int, batch_size: int, fine_tuning: bool, steps: int = 6
) -> Timing:
    """Train a few steps on random pixels, by the way of a real training, augmentation included.

    fine_tuning: with batch normalisation left alone, as with initial weights. Raises TrainingFailed when the memory
    does not suffice.
    """
    started = time.monotonic()
    devices = strategy()
    batch_size = even(batch_size, replicas(devices))
    configuration = complete(architecture_id, Configuration(batch_size=batch_size), None)
    data = _random_data(image_size, classes, batch_size)
    model = network(data, architecture_id, configuration, None, strategy=devices)
    learner = Learner(
        model,
        lambda size, position: pipeline.training_batches(
            data, data.indices("train"), configuration, batch_size=size, position=position
        ),
        lambda size: pipeline.input_batches(data, data.indices("train"), size),
        transfer.tune(model, configuration) if fine_tuning else None,
    )
    compiled(learner, configuration, 1e-6, devices)
    try:
        ended = _train(learner, batch_size, _SLOW_STEPS + steps)
        prediction = _predict(learner, batch_size)
    except tf.errors.ResourceExhaustedError as error:
        raise TrainingFailed(
            f"The memory does not suffice for batches of {batch_size} images.",
            "Choose a smaller batch size or a smaller architecture.",
        ) from error
    return Timing(
        step_seconds=median(np.diff(ended)[_SLOW_STEPS - 1 :].tolist()),
        prediction_seconds=prediction,
        start_seconds=ended[0] - started,
        peak_memory=_peak_memory(),
    )


def _random_data(image_size: int, classes: int, count: int) -> PreparedData:
    count = max(count, classes)
    random = np.random.default_rng(0)
    return PreparedData(
        images=random.integers(0, 256, (count, image_size, image_size), np.uint8),
        labels=np.arange(count) % classes,
        splits=np.zeros(count, np.uint8),
        groups=np.arange(count),
        classes=_CLASSES[:classes],
        positive_class=_CLASSES[classes - 1],
        pipeline={},
        digest="",
    )


def _train(learner: Learner, batch_size: int, steps: int) -> list[float]:
    watch = _Steps()
    learner.model.fit(
        learner.batches(batch_size, 0), steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[watch]
    )
    return watch.ended


def _predict(learner: Learner, batch_size: int) -> float:
    """Seconds of one batch, after one that compiles."""
    predictor = OneDevice(learner.model)
    batch = next(iter(learner.inputs(batch_size)))
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        predictor.predict_on_batch(batch)
        seconds.append(time.monotonic() - began)
    return min(seconds)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in kilobytes, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
