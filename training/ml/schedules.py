"""Learning rates over a stage of a training, and when it ends early.

Keras' own callbacks begin anew with every call of `fit`; these know what they had seen before an interruption: `state`
is plain JSON, and `restore` takes it.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from training.ml.runtime import keras

# An improvement by less than this is none: Keras' own figure for its plateaus.
_NOTHING = 1e-4


@dataclass
class Place:
    """Where a stage of a training stands, in images and epochs.

    epoch: finished epochs of the whole training. first, last: epochs of the stage, `last` not included. images: seen
    in this stage; epoch_began: how many of them before the present epoch. epoch_images: of one epoch.
    batch_size: of the next step.
    """

    first: int
    last: int
    epoch_images: int
    batch_size: int
    epoch: int
    images: int = 0
    epoch_began: int = 0

    @property
    def left(self) -> int:
        """Images until the end of the present epoch."""
        return max(0, self.epoch_began + self.epoch_images - self.images)

    @property
    def share(self) -> float:
        """Of the present epoch, 0..1, that is done."""
        return min(1.0, (self.images - self.epoch_began) / self.epoch_images)

    @property
    def epochs_after_step(self) -> float:
        """Epochs of this stage that are done when the next step is."""
        done = (self.images + self.batch_size - self.epoch_began) / self.epoch_images
        return self.epoch - self.first + min(done, 1.0)

    def end_epoch(self) -> None:
        self.epoch, self.epoch_began = self.epoch + 1, self.images


class Callback(keras.callbacks.Callback):  # type: ignore[misc]
    """Keras is not typed; the one place to say so."""


class Lasting(Callback):
    """A callback that goes on where it was after an interruption. `key` names its state."""

    key: ClassVar[str]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` returned."""


class Constant(Lasting):
    """The same learning rate at every step; its subclasses change it."""

    key = "schedule"

    def __init__(self, peak: float, place: Place) -> None:
        super().__init__()
        self.peak, self.place = peak, place

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # A step has the rate of its end: the first one of a warm-up has some already.
        share = self.share(self.place.epochs_after_step)
        self.model.optimizer.learning_rate.assign(self.peak * share)

    def share(self, epochs: float) -> float:
        """Of the peak rate, when so many epochs of the stage are done."""
        return 1.0


class Cosine(Constant):
    """Linear warm-up from zero, then half a cosine down (Loshchilov and Hutter 2017).

    Follows the share of epochs done and not a count of steps, so that it still ends at zero when the batch size, and
    with it the number of steps, changes on the way.
    """

    def __init__(self, peak: float, place: Place, warmup: float) -> None:
        super().__init__(peak, place)
        self.warmup = warmup

    def share(self, epochs: float) -> float:
        return cosine(epochs / (self.place.last - self.place.first), self.warmup)


def cosine(done: float, warmup: float) -> float:
    """Learning rate relative to its peak when the share `done` (0..1) of the training is done."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


class Step(Constant):
    """Multiplied by `factor` after every `epochs` epochs."""

    def __init__(self, peak: float, place: Place, epochs: int, factor: float) -> None:
        super().__init__(peak, place)
        self.epochs, self.factor = epochs, factor

    def share(self, epochs: float) -> float:
        return self.factor ** ((self.place.epoch - self.place.first) // self.epochs)


class Plateau(Constant):
    """Halved when `monitor` has not fallen for `patience` epochs."""

    def __init__(self, peak: float, place: Place, monitor: str, patience: int) -> None:
        super().__init__(peak, place)
        self.monitor, self.patience = monitor, patience
        self.best, self.waited, self.halvings = math.inf, 0, 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        value = (logs or {})[self.monitor]
        if value < self.best - _NOTHING:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.waited, self.halvings = 0, self.halvings + 1

    def share(self, epochs: float) -> float:
        return 0.5**self.halvings

    def state(self) -> dict[str, Any]:
        return {"best": _or_none(self.best), "waited": self.waited, "halvings": self.halvings}

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.waited, self.halvings = _or_infinite(state["best"]), state["waited"], state["halvings"]


class EarlyStopping(Lasting):
    """Ends the stage when `monitor` has not fallen for `patience` epochs."""

    key = "early_stopping"

    def __init__(self, monitor: str, patience: int) -> None:
        super().__init__()
        self.monitor, self.patience = monitor, patience
        self.best, self.waited, self.stopped = math.inf, 0, False

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        value = (logs or {})[self.monitor]
        self.best, self.waited = (value, 0) if value < self.best else (self.best, self.waited + 1)
        self.stopped = self.waited >= self.patience
        if self.stopped:
            self.model.stop_training = True

    def state(self) -> dict[str, Any]:
        return {"best": _or_none(self.best), "waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.waited = _or_infinite(state["best"]), state["waited"]


def _or_none(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if math.isfinite(value) else None


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value
