"""What happens between the steps of a training: one small class a concern."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.cache import PreparedData
from registry import statistics
from training.ml import pipeline
from training.ml.evaluation import predict
from training.ml.export import weights_of
from training.ml.runtime import keras

_CLIP = 1e-7


class Cancelled(Exception):
    """The training was asked to stop, and did."""


class TrainingFailed(Exception):
    """The training cannot go on. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class _Callback(keras.callbacks.Callback):  # type: ignore[misc]
    """Keras is not typed; the one place to say so."""


class StopWhenAsked(_Callback):
    """Ends the training between two steps once `should_stop` says so."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        super().__init__()
        self.should_stop = should_stop

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        stop_if_asked(self.should_stop)


def stop_if_asked(should_stop: Callable[[], bool]) -> None:
    """Raise Cancelled when it is time to stop."""
    if should_stop():
        raise Cancelled("The training was cancelled.")


class StopOnNonFiniteLoss(_Callback):
    """Ends the training at the first step whose loss is not a number: nothing after it could be learned."""

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise TrainingFailed(
                "The loss is no longer a number (it overflowed), so the network cannot learn any more.",
                "Train again with a learning rate ten times smaller. If that does not help, look for blank or damaged "
                "images in the dataset.",
            )


class Cosine(_Callback):
    """Learning rate of each step: linear warm-up from zero, then half a cosine down (Loshchilov and Hutter 2017).

    Follows the share of epochs done and not a count of steps, so that it still ends at zero when the batch size, and
    with it the number of steps, changes on the way.
    """

    def __init__(self, peak: float, warmup: float, first_epoch: int, last_epoch: int, steps: int) -> None:
        super().__init__()
        self.peak, self.warmup = peak, warmup
        self.first_epoch, self.last_epoch, self.steps = first_epoch, last_epoch, steps
        self.epoch = first_epoch

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        epochs = self.last_epoch - self.first_epoch
        done = (self.epoch - self.first_epoch + (batch + 1) / self.steps) / epochs
        self.model.optimizer.learning_rate.assign(self.peak * cosine(done, self.warmup))


def cosine(done: float, warmup: float) -> float:
    """Learning rate relative to its peak when the share `done` (0..1) of the training is done."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


class Validation(_Callback):
    """Adds val_loss, val_accuracy and val_auc to the figures of each epoch, computed as the final evaluation does.

    Comes first in the list of callbacks: the others read these figures.
    """

    def __init__(
        self, data: PreparedData, rows: NDArray[np.int64], batch_size: int, should_stop: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.data, self.rows, self.batch_size, self.should_stop = data, rows, batch_size, should_stop

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None or not len(self.rows):
            return
        probabilities = predict(
            self.model, pipeline.input_batches(self.data, self.rows, self.batch_size), self._between_batches
        )
        labels = self.data.labels[self.rows]
        positive = self.data.positive_class if len(self.data.classes) == 2 else None
        metrics = statistics.classification_metrics(labels, probabilities, self.data.classes, positive)
        chosen = probabilities[np.arange(len(labels)), labels]
        logs["val_loss"] = float(-np.log(np.clip(chosen, _CLIP, 1)).mean())
        logs["val_accuracy"] = metrics["accuracy"]
        logs["val_auc"] = metrics["auc"]

    def _between_batches(self, done: int) -> None:
        stop_if_asked(self.should_stop)


class BestWeights(_Callback):
    """Keeps the weights of the epoch with the lowest `monitor` in a file, which is replaced whole or not at all."""

    def __init__(self, path: Path, monitor: str) -> None:
        super().__init__()
        self.path, self.monitor = path, monitor
        self.best, self.best_epoch = math.inf, 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        value = (logs or {})[self.monitor]
        if value >= self.best:
            return
        self.best, self.best_epoch = value, epoch + 1
        try:
            write_weights(self.model, self.path)
        except OSError as error:
            raise TrainingFailed(
                f"The best weights could not be saved: {error.strerror or error}.",
                "Free some disk space where the models are kept, then train again.",
            ) from error


def write_weights(model: Any, path: Path) -> None:
    """Write the weights as safetensors: to a temporary file, forced to the disk, then renamed."""
    from safetensors.numpy import save

    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(save(weights_of(model)))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class Report(_Callback):
    """Tells how far the training is: during an epoch about once a second, and at its end with all figures."""

    SECONDS = 1.0

    def __init__(
        self,
        steps: int,
        within: Callable[[int, float], None],
        ended: Callable[[int, dict[str, float | None]], None],
    ) -> None:
        """within(epoch, share of its steps done) and ended(epoch, figures) are called; epochs count from 1."""
        super().__init__()
        self.steps, self.within, self.ended = steps, within, ended
        self.epoch, self.started, self.told = 0, 0.0, 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch, self.started = epoch + 1, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if time.monotonic() - self.told >= self.SECONDS:
            self.told = time.monotonic()
            self.within(self.epoch, (batch + 1) / self.steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, float | None] | None = None) -> None:
        figures = {name: _number(value) for name, value in (logs or {}).items()}
        figures["learning_rate"] = float(np.asarray(self.model.optimizer.learning_rate))
        figures["seconds"] = round(time.monotonic() - self.started, 2)
        self.ended(epoch + 1, figures)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
