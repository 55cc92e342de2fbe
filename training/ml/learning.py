"""One stage of a training: from compiled network to its last epoch, through interruptions and lack of memory."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from training.configurations import Configuration
from training.ml import callbacks, losses, optimizers, schedules
from training.ml.areas import AreaUnderCurve
from training.ml.checkpoints import Tensors, fits
from training.ml.control import TrainingFailed
from training.ml.export import variables_of
from training.ml.runtime import keras, tf

Result = TypeVar("Result")


@dataclass(frozen=True)
class Learner:
    """What learns in a stage, and from what.

    batches(batch size, images before) is the endless dataset it is fitted on; inputs(batch size) are the validation
    images, as the network takes them. shares: of the learning rate, one a trainable variable; None: 1 for all.
    ordinal: the classes are grades.
    """

    model: Any
    batches: Callable[[int, int], Any]
    inputs: Callable[[int], Iterable[NDArray[np.float32]]]
    shares: Sequence[float] | None = None
    ordinal: bool = False


class Batches:
    """Sizes of the batches in training and in prediction; each is halved when memory runs out.

    replicas: devices that share a batch of the training, each as many images. Both sizes are 0 until `begin`.
    """

    def __init__(self, say: Callable[[str], None], replicas: int = 1) -> None:
        self.training = self.prediction = 0
        self.say, self.replicas = say, replicas

    def begin(self, size: int) -> None:
        self.training = self.prediction = even(size, self.replicas)
        if self.training != size:
            self.say(
                f"Training with batches of {self.training} images instead of {size}, so that each of the "
                f"{self.replicas} devices gets as many."
            )

    def sparing(self, predict: Callable[[int], Result]) -> Result:
        """The result of `predict`, which is called with the size, and called again with less when memory runs out."""
        while True:
            try:
                return predict(self.prediction)
            except tf.errors.ResourceExhaustedError as error:
                self.prediction = _half(self.prediction, error)
                self.say(f"Out of memory: predicting with batches of {self.prediction} images.")

    def halve_training(self, error: Exception) -> None:
        self.training = _half(self.training, error, self.replicas)
        self.say(f"Out of memory: going on with batches of {self.training} images.")


def _half(size: int, error: Exception, replicas: int = 1) -> int:
    if size <= replicas:
        least = "one image at a time" if replicas == 1 else "one image on each device"
        raise TrainingFailed(
            f"The memory does not suffice, not even for {least}.",
            "Choose a smaller architecture, or train on a machine with more memory.",
        ) from error
    return even(size // 2, replicas)


def even(size: int, replicas: int) -> int:
    """A batch size that the devices can share: rounded down to a multiple of their number, which is the least."""
    return max(size // replicas, 1) * replicas


def scope(strategy: Any) -> AbstractContextManager[Any]:
    return nullcontext() if strategy is None else strategy.scope()


def compiled(learner: Learner, configuration: Configuration, rate: float, strategy: Any = None) -> list[Any]:
    """Compile the learner's network; returns what counts its figures (loss, accuracy, auc)."""
    model = learner.model
    with scope(strategy):
        figures = [keras.metrics.CategoricalAccuracy(name="accuracy"), AreaUnderCurve(model.output_shape[-1])]
        model.compile(
            optimizer=optimizers.create(configuration, rate, learner.shares),
            loss=losses.create(configuration, model.output_shape[-1], ordinal=learner.ordinal),
            metrics=figures,
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)
    return [model.metrics[0], *figures]


def schedule(configuration: Configuration, rate: float, place: schedules.Place, monitor: str) -> schedules.Constant:
    """The learning rate of each step, as the configuration asks for it."""
    match configuration.schedule:
        case "cosine":
            return schedules.Cosine(rate, place, configuration.warmup_fraction)
        case "step":
            return schedules.Step(rate, place, configuration.step_epochs, configuration.step_factor)
        case "plateau":
            patience = max(2, configuration.early_stopping_patience // 3)
            return schedules.Plateau(rate, place, monitor, patience)
        case _:
            return schedules.Constant(rate, place)


class Learning:
    """The state of a stage that a checkpoint holds: place, variables and callbacks; `fit` works through it."""

    def __init__(
        self,
        learner: Learner,
        place: schedules.Place,
        batches: Batches,
        figures: Sequence[Any],
        lasting: Sequence[schedules.Lasting],
    ) -> None:
        self.learner, self.place, self.batches, self.lasting = learner, place, batches, lasting
        self.sums = callbacks.Sums(figures)

    def fit(self, others: Sequence[schedules.Callback]) -> None:
        """To the end of the stage; `others` are the callbacks beside those that count, in their order."""
        own = [self.sums, *others]
        while self.place.epoch < self.place.last and not getattr(self.learner.model, "stop_training", False):
            try:
                self._go_on(own)
            except tf.errors.ResourceExhaustedError as error:
                # What was learned stays; the batch that did not fit is taken again, in halves.
                self.batches.halve_training(error)
                self.place.batch_size = self.batches.training
                if self.place.share:
                    self.sums.keep()

    def _go_on(self, own: list[schedules.Callback]) -> None:
        if not self.place.left:
            self._end_epoch(own)
            return
        steps = math.ceil(self.place.left / self.place.batch_size)
        whole = steps == math.ceil(self.place.epoch_images / self.place.batch_size)
        self.learner.model.fit(
            self.learner.batches(self.place.batch_size, self.place.images),
            initial_epoch=self.place.epoch,
            # An epoch that was begun has fewer steps than the others, and Keras takes one number of steps a call.
            epochs=self.place.last if whole else self.place.epoch + 1,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=own,
        )

    def _end_epoch(self, own: list[schedules.Callback]) -> None:
        """Of an epoch whose steps were all done before the interruption."""
        for callback in own:
            callback.set_model(self.learner.model)
            callback.on_epoch_begin(self.place.epoch)
        figures: dict[str, Any] = self.sums.figures()
        for callback in own:
            callback.on_epoch_end(self.place.epoch, figures)

    # -- Checkpoints

    def variables(self) -> dict[str, Any]:
        """Everything that changes while the stage goes on, by name."""
        return {name: variable for found in self._kinds().values() for name, variable in found.items()}

    def _kinds(self) -> dict[str, dict[str, Any]]:
        """The same by kind, which is the first part of each name."""
        model = self.learner.model
        weights = {f"weights/{name}": variable for name, variable in variables_of(model).items()}
        known = {id(variable) for variable in weights.values()}
        others = {
            "states": [variable for variable in model.variables if id(variable) not in known],
            "optimizer": model.optimizer.variables,
            "sums": self.sums.variables,
        }
        numbered = {
            kind: {f"{kind}/{n}": variable for n, variable in enumerate(found)} for kind, found in others.items()
        }
        return {"weights": weights, **numbered}

    def state(self) -> dict[str, Any]:
        place = self.place
        return {
            "first": place.first,
            "images": place.images,
            "epoch_began": place.epoch_began,
            "callbacks": {callback.key: callback.state() for callback in self.lasting},
        }

    def restore(self, state: dict[str, Any], tensors: Tensors) -> bool:
        """Stand where a checkpoint of this stage was written; returns whether all of it fits.

        A kind of variables that does not, such as those of the optimizer after a change of precision, begins anew.
        """
        self.place.images, self.place.epoch_began = state["images"], state["epoch_began"]
        for callback in self.lasting:
            callback.restore(state["callbacks"][callback.key])
        kinds = self._kinds()
        fitting = {kind: variables for kind, variables in kinds.items() if fits(kind, variables, tensors)}
        sums = fitting.pop("sums", {})
        for variables in fitting.values():
            for name, variable in variables.items():
                variable.assign(tensors[name])
        if self.place.share:
            self.sums.keep([tensors[name] for name in sums])
        return len(fitting) + bool(sums) == len(kinds)
