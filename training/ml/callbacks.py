"""What happens between the steps of a training: one small class a concern."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.cache import PreparedData
from registry import statistics
from training.hints import WHAT_TO_DO
from training.ml.control import Cancelled, Paused, Stop, TrainingFailed
from training.ml.schedules import Callback, Lasting, Place

_CLIP = 1e-7

ShouldStop = Callable[[], "Stop | bool | None"]


def asked(should_stop: ShouldStop) -> Stop | None:
    """What the training is asked to do, if anything; True is CANCEL."""
    answer = should_stop()
    if not answer:
        return None
    return answer if isinstance(answer, Stop) else Stop.CANCEL


def stop_if_asked(should_stop: ShouldStop, pause: Callable[[], Paused]) -> None:
    """Raise Cancelled, or what `pause` returns, when it is time to stop."""
    stop = asked(should_stop)
    if stop is Stop.CANCEL:
        raise Cancelled("The training was cancelled.")
    if stop is Stop.DRAIN:
        raise pause()


class Pace(Callback):
    """Counts the images, and how many the training gets through in a second of this epoch.

    The first steps after a start compile the network and are left out, as is what happens between the steps.
    """

    SLOW_STEPS = 2

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.slow, self.images, self.seconds, self.began = 0, 0, 0.0, 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        self.slow = self.SLOW_STEPS

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.images, self.seconds = 0, 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.place.images += self.place.batch_size
        if self.slow:
            self.slow -= 1
            return
        self.images += self.place.batch_size
        self.seconds += time.monotonic() - self.began

    @property
    def images_per_second(self) -> float | None:
        return round(self.images / self.seconds, 2) if self.seconds > 0 else None


class Sums(Callback):
    """Empties the sums behind the figures when an epoch begins, or puts back those of one that was interrupted."""

    def __init__(self, metrics: Sequence[Any]) -> None:
        super().__init__()
        self.metrics = metrics
        self.waiting: list[NDArray[Any]] = []

    @property
    def variables(self) -> list[Any]:
        return [variable for metric in self.metrics for variable in metric.variables]

    def keep(self, values: Sequence[NDArray[Any]] | None = None) -> None:
        """These, or the present ones, are put back when the next epoch begins."""
        self.waiting = [np.asarray(value).copy() for value in (self.variables if values is None else values)]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        for metric in self.metrics:
            metric.reset_state()
        for variable, value in zip(self.variables, self.waiting, strict=False):
            variable.assign(value)
        self.waiting = []

    def figures(self) -> dict[str, float]:
        return {metric.name: float(metric.result()) for metric in self.metrics}


class StopOnNonFiniteLoss(Callback):
    """Ends the training at the first step whose loss is not a number: nothing after it could be learned."""

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise not_a_number()


def not_a_number() -> TrainingFailed:
    return TrainingFailed(
        "The loss is no longer a number (it overflowed), so the network cannot learn any more.",
        WHAT_TO_DO["not-a-number"],
    )


class Validation(Callback):
    """Adds val_loss, val_accuracy and val_auc to the figures of each epoch, computed as the final evaluation does.

    Comes before the other callbacks that look at the end of an epoch: they read these figures. predict: the
    probabilities of `rows`, float64 (N, C).
    """

    def __init__(self, data: PreparedData, rows: NDArray[np.int64], predict: Callable[[], NDArray[np.float64]]) -> None:
        super().__init__()
        self.data, self.rows, self.predict = data, rows, predict

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None or not len(self.rows):
            return
        probabilities = self.predict()
        labels = self.data.labels[self.rows]
        positive = self.data.positive_class if len(self.data.classes) == 2 else None
        metrics = statistics.classification_metrics(labels, probabilities, self.data.classes, positive)
        chosen = probabilities[np.arange(len(labels)), labels]
        logs["val_loss"] = float(-np.log(np.clip(chosen, _CLIP, 1)).mean())
        logs["val_accuracy"] = metrics["accuracy"]
        logs["val_auc"] = metrics["auc"]


class Best(Callback):
    """Calls `keep` with the epoch, from 1, and its `monitor`, whenever that is lower than in all epochs before."""

    def __init__(self, monitor: str, lowest: float, keep: Callable[[int, float], None]) -> None:
        super().__init__()
        self.monitor, self.lowest, self.keep = monitor, lowest, keep

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        value = (logs or {})[self.monitor]
        if value < self.lowest:
            self.lowest = value
            self.keep(epoch + 1, value)


class Report(Lasting):
    """Tells how far the training is: during an epoch about once a second, and at its end with all figures."""

    SECONDS = 1.0
    key = "report"

    def __init__(
        self, place: Place, within: Callable[[int, float], None], ended: Callable[[int, dict[str, float | None]], None]
    ) -> None:
        """within(epoch, share of its steps done) and ended(epoch, figures) are called; epochs count from 1."""
        super().__init__()
        self.place, self.within, self.ended = place, within, ended
        self.epoch, self.started, self.told, self.earlier = 0, 0.0, 0.0, 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch, self.started = epoch + 1, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if time.monotonic() - self.told >= self.SECONDS:
            self.told = time.monotonic()
            self.within(self.epoch, self.place.share)

    def on_epoch_end(self, epoch: int, logs: dict[str, float | None] | None = None) -> None:
        figures = {name: _number(value) for name, value in (logs or {}).items()}
        figures["learning_rate"] = float(np.asarray(self.model.optimizer.learning_rate))
        figures["seconds"] = round(self._seconds, 2)
        self.earlier, self.started = 0.0, time.monotonic()
        self.ended(epoch + 1, figures)

    @property
    def _seconds(self) -> float:
        """Of this epoch, with those before an interruption."""
        return self.earlier + time.monotonic() - self.started

    def state(self) -> dict[str, Any]:
        return {"seconds": self._seconds}

    def restore(self, state: dict[str, Any]) -> None:
        self.earlier = state["seconds"]


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


class Checkpointing(Callback):
    """Saves at the end of each epoch, every ten minutes within one, and before a validation that follows a minute or
    more of steps. Stops at the next step when asked to.

    Comes last: what the others do at the end of an epoch belongs to its checkpoint. limit: finished epochs after which
    the training pauses, although it is not at its end.
    """

    SECONDS = 600.0
    SECONDS_BEFORE_VALIDATION = 60.0

    def __init__(
        self, place: Place, save: Callable[[], None], should_stop: ShouldStop, limit: int | None, epochs: int
    ) -> None:
        super().__init__()
        self.place, self.save, self.should_stop = place, save, should_stop
        self.limit, self.epochs, self.saved = limit, epochs, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        stop_if_asked(self.should_stop, self.pause)
        if time.monotonic() - self.saved >= self.SECONDS:
            self._save()

    def before_validation(self) -> None:
        """The steps of the epoch are done: a validation that does not come to its end is not to cost them."""
        if time.monotonic() - self.saved >= self.SECONDS_BEFORE_VALIDATION:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.place.end_epoch()
        self._save()
        if not self.model.stop_training:
            self.pause_at_limit()

    def pause_at_limit(self) -> None:
        if self.limit is not None and self.limit <= self.place.epoch < self.epochs:
            raise Paused(self.place.epoch)

    def pause(self) -> Paused:
        self._save()
        return Paused(self.place.epoch)

    def _save(self) -> None:
        self.save()
        self.saved = time.monotonic()
