"""What one training carries from stage to stage, and what it tells and hands over."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from datasets.cache import PreparedData
from training.configurations import Configuration
from training.ml import architectures, callbacks, initial, runtime, transfer
from training.ml.callbacks import ShouldStop
from training.ml.checkpoints import Checkpoint, Checkpoints, TensorFile
from training.ml.control import Paused
from training.ml.evaluation import Doubt, Evaluation
from training.ml.initial import InitialWeights
from training.ml.learning import Batches, scope
from training.ml.stages import EVALUATION_ENDS, TRAINING_ENDS, TRAINING_STARTS, Stage, stages, steps_per_epoch

# Of the time the head takes, what goes into the features that it learns from; the whole is about one other epoch.
_FEATURES_SHARE = 0.9


@dataclass(frozen=True)
class Progress:
    """How far a run is. phase: loading, training, evaluating or saving. fraction: 0..1 of the whole run.

    metrics: at the end of an epoch loss, accuracy, auc, val_loss, val_accuracy, val_auc, learning_rate and seconds (a
    figure is None when it is undefined). message: something the user should know, or "".
    batch_size: in use, 0 while it is not known. images_per_second: of this epoch, or of the last one at its beginning,
    without start and validation; None while nothing was measured. stage: "head", "fine-tuning", or "" from scratch.
    """

    phase: str
    fraction: float
    epoch: int = 0
    epochs: int = 0
    metrics: dict[str, float | None] | None = None
    message: str = ""
    batch_size: int = 0
    images_per_second: float | None = None
    stage: str = ""


@dataclass(frozen=True)
class Trained:
    """A finished training: the network with its best weights, its evaluation and how it came about.

    configuration: as asked for, with what it left to the architecture filled in. history: of each epoch its figures,
    "epoch" (from 1) and "stage". seconds: with those before an interruption.
    """

    model: Any
    architecture_id: str
    configuration: Configuration
    initial_weights: str
    history: list[dict[str, Any]]
    best_epoch: int
    stopped_early: bool
    evaluation: Evaluation
    doubts: list[Doubt]
    seconds: float


@dataclass
class Best:
    """The best epoch so far (from 1), its figure, and the file with the weights of what learned in it."""

    epoch: int = 0
    value: float = float("inf")
    file: TensorFile | None = None


@dataclass
class Run:
    """What one training carries from stage to stage."""

    data: PreparedData
    architecture_id: str
    configuration: Configuration  # complete: see complete
    weights: InitialWeights | None
    network: Callable[..., Any]
    model: Any
    strategy: Any
    checkpoints: Checkpoints
    features: transfer.Features
    report: Callable[[Progress], None]
    should_stop: ShouldStop
    epoch_limit: int | None
    batches: Batches = field(init=False)
    best: Best = field(default_factory=Best)
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped_early: bool = False
    started: float = field(default_factory=time.monotonic)
    stage: str = ""
    images_per_second: float | None = None
    unsaved: bool = False
    # Its variables need as much memory as the training itself: whoever has used it lets go of it.
    resumed: Checkpoint | None = None

    def __post_init__(self) -> None:
        self.batches = Batches(self.say, runtime.replicas(self.strategy))

    @property
    def rate(self) -> float:
        return cast("float", self.configuration.learning_rate)

    @property
    def epoch_images(self) -> int:
        """Of the batch size that was asked for: with a smaller one an epoch has more steps and shows as many."""
        size, minimum = cast("int", self.configuration.batch_size), cast("int", self.configuration.minimum_steps)
        return size * steps_per_epoch(len(self.data.indices("train")), size, minimum)

    @property
    def monitor(self) -> str:
        return "val_loss" if len(self.data.indices("validation")) else "loss"

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    def say(self, message: str) -> None:
        self.tell(self.epoch, message=message)

    def tell(
        self, done: float, metrics: dict[str, float | None] | None = None, message: str = "", epoch: int | None = None
    ) -> None:
        """Report that `done` epochs are done; epoch: from 1, the present one if it is not given."""
        epochs = self.configuration.epochs
        fraction = TRAINING_STARTS + (TRAINING_ENDS - TRAINING_STARTS) * self._share(done)
        self._report("training", fraction, min(self.epoch + 1, epochs) if epoch is None else epoch, metrics, message)

    def tell_evaluating(self, share: float) -> None:
        fraction = TRAINING_ENDS + (EVALUATION_ENDS - TRAINING_ENDS) * share
        self._report("evaluating", fraction, self.epoch, None, "")

    def _report(
        self, phase: str, fraction: float, epoch: int, metrics: dict[str, float | None] | None, message: str
    ) -> None:
        epochs, size = self.configuration.epochs, self.batches.training
        self.report(
            Progress(phase, fraction, epoch, epochs, metrics, message, size, self.images_per_second, self.stage)
        )

    def tell_features(self, share: float, message: str = "") -> None:
        """Report that a share of the features is computed that the head learns from."""
        fraction = TRAINING_STARTS + (TRAINING_ENDS - TRAINING_STARTS) * _FEATURES_SHARE * share / self._works
        self._report("training", fraction, 1, None, message)

    def _share(self, done: float) -> float:
        """Of all the work, when so many epochs are done."""
        head = self._head_epochs
        if done >= head:
            return (bool(head) + done - head) / self._works
        return (_FEATURES_SHARE + (1 - _FEATURES_SHARE) * done / head) / self._works

    @property
    def _works(self) -> int:
        """Epochs, those of the head counted as one: they take seconds, and the features about as long as an epoch."""
        return self.configuration.epochs - self._head_epochs + bool(self._head_epochs)

    @property
    def _head_epochs(self) -> int:
        return sum(stage.last - stage.first for stage in self.stages if stage.frozen)

    @property
    def stages(self) -> list[Stage]:
        return stages(self.configuration, self.rate, pretrained=self.weights is not None)

    def stop_if_asked(self) -> None:
        """Between two batches of what is computed outside the epochs; the last checkpoint serves for a pause."""
        callbacks.stop_if_asked(self.should_stop, lambda: Paused(self.epoch))


def complete(architecture_id: str, configuration: Configuration, weights: InitialWeights | None) -> Configuration:
    """With what it leaves to the architecture."""
    entry = architectures.architecture(architecture_id)
    own_rate = entry.learning_rate if weights is None else entry.pretrained_learning_rate
    return configuration.with_options(
        batch_size=configuration.batch_size or entry.batch_size,
        learning_rate=configuration.learning_rate or own_rate,
        minimum_steps=configuration.minimum_steps or entry.minimum_steps,
    )


def network(
    data: PreparedData,
    architecture_id: str,
    configuration: Configuration,
    weights: InitialWeights | None,
    *,
    strategy: Any = None,
    halves: bool = False,
) -> Any:
    """The network with its initial weights. halves: it computes in half precision, all but the probabilities."""
    with scope(strategy), runtime.mixed_precision(halves):
        model = architectures.build(
            architecture_id,
            image_size=data.image_size,
            classes=len(data.classes),
            weights=None if weights is None else weights.path,
            dropout=configuration.dropout,
        )
        if weights is not None and weights.artifact is not None:
            initial.assign(model, weights, data.classes)
        if halves:
            model.get_layer("head").dtype_policy = "float32"
    return model
