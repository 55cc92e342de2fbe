"""One training from prepared data to an evaluated network."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from datasets.cache import PreparedData
from training.configurations import Configuration
from training.ml import architectures, callbacks, pipeline
from training.ml.callbacks import Cancelled, TrainingFailed
from training.ml.evaluation import Doubt, Evaluation, doubts, evaluate
from training.ml.export import assign_weights
from training.ml.runtime import keras, tf

__all__ = ["Cancelled", "Progress", "Trained", "TrainingFailed", "train"]

# Shares of the whole run, for the progress bar: where training starts, where it ends and where evaluation ends.
_TRAINING_STARTS, _TRAINING_ENDS, _EVALUATION_ENDS = 0.02, 0.93, 0.97


@dataclass(frozen=True)
class Progress:
    """How far a run is. phase: loading, training, evaluating or saving. fraction: 0..1 of the whole run.

    metrics: at the end of an epoch loss, accuracy, val_loss, val_accuracy, val_auc, learning_rate and seconds (a
    figure is None when it is undefined). message: something the user should know, or "".
    """

    phase: str
    fraction: float
    epoch: int = 0
    epochs: int = 0
    metrics: dict[str, float | None] | None = None
    message: str = ""


@dataclass(frozen=True)
class Trained:
    """A finished training: the network with its best weights, its evaluation and how it came about.

    configuration: as asked for, with what it left to the architecture filled in.
    """

    model: Any
    architecture_id: str
    configuration: Configuration
    initial_weights: str
    history: list[dict[str, float | None]]
    best_epoch: int
    stopped_early: bool
    evaluation: Evaluation
    doubts: list[Doubt]
    seconds: float


@dataclass(frozen=True)
class _Stage:
    """Epochs first (from 0) to last (not included) with one peak rate. frozen: only the head learns."""

    first: int
    last: int
    rate: float
    frozen: bool = False


@dataclass
class _Run:
    """What one training carries from epoch to epoch."""

    data: PreparedData
    configuration: Configuration
    model: Any
    rate: float
    batch_size: int
    minimum_steps: int
    report: Callable[[Progress], None]
    should_stop: Callable[[], bool]
    best: callbacks.BestWeights
    pretrained: bool
    history: list[dict[str, float | None]] = field(default_factory=list)
    stopped_early: bool = False

    def within(self, epoch: int, share: float) -> None:
        self._tell(epoch, epoch - 1 + share)

    def ended(self, epoch: int, figures: dict[str, float | None]) -> None:
        self.history.append({"epoch": epoch, **figures})
        self._tell(epoch, epoch, figures)

    def say(self, message: str) -> None:
        self._tell(len(self.history) + 1, len(self.history), message=message)

    def _tell(self, epoch: int, done: float, metrics: dict[str, float | None] | None = None, message: str = "") -> None:
        epochs = self.configuration.epochs
        fraction = _TRAINING_STARTS + (_TRAINING_ENDS - _TRAINING_STARTS) * done / epochs
        self.report(Progress("training", fraction, epoch, epochs, metrics, message))


def train(
    data: PreparedData,
    architecture_id: str,
    configuration: Configuration,
    *,
    weights: Path | None,
    work_dir: Path,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Trained:
    """Train, keep the weights of the best epoch, and evaluate them.

    weights: a published backbone file (architectures.pretrained_weights), or None to start from scratch. work_dir:
    where the best weights are kept meanwhile. `should_stop` is asked after every step.

    The best epoch is the one with the lowest validation loss, which also drives early stopping and the plateau
    schedule: it judges the probabilities that users will see, and unlike the area under the ROC curve it still
    moves when a small validation set is ranked perfectly.

    Raises Cancelled when `should_stop` said so, and TrainingFailed, with a hint, when the training cannot go on.
    """
    started = time.monotonic()
    report(Progress("loading", 0.0, 0, configuration.epochs))
    _check(data)
    keras.utils.set_random_seed(configuration.seed)
    run = _prepare(data, architecture_id, configuration, weights, work_dir, report, should_stop)
    for stage in stages(run.configuration, run.rate, pretrained=run.pretrained):
        _fit_stage(run, stage)
    assign_weights(run.model, load_file(run.best.path))
    evaluation = _evaluate(run)
    return Trained(
        model=run.model,
        architecture_id=architecture_id,
        configuration=run.configuration,
        initial_weights=weights.name if weights is not None else "scratch",
        history=run.history,
        best_epoch=run.best.best_epoch,
        stopped_early=run.stopped_early,
        evaluation=evaluation,
        doubts=doubts(run.model, data, evaluation, run.batch_size, _between(run, 0.4, 1.0)),
        seconds=round(time.monotonic() - started, 1),
    )


def stages(configuration: Configuration, rate: float, *, pretrained: bool) -> list[_Stage]:
    """The parts of a training with the peak learning rate of each.

    From scratch everything learns at once. With pretrained weights the new head learns first, alone: its random
    gradients would otherwise spoil the backbone, which is then tuned at a lower rate."""
    epochs = configuration.epochs
    if not pretrained:
        return [_Stage(0, epochs, rate)]
    head = min(configuration.head_epochs, max(1, epochs - 1))
    both = [_Stage(0, head, rate, frozen=True), _Stage(head, epochs, rate * configuration.fine_tuning_factor)]
    return [stage for stage in both if stage.first < stage.last]


def _check(data: PreparedData) -> None:
    labels = data.labels[data.indices("train")]
    missing = [name for index, name in enumerate(data.classes) if not (labels == index).any()]
    if missing:
        raise TrainingFailed(
            f"There are no training images of class {', '.join(missing)}.",
            "Add images of every class to the dataset and prepare it again.",
        )


def _prepare(
    data: PreparedData,
    architecture_id: str,
    configuration: Configuration,
    weights: Path | None,
    work_dir: Path,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> _Run:
    entry = architectures.architecture(architecture_id)
    batch_size = configuration.batch_size or entry.batch_size
    minimum_steps = configuration.minimum_steps or entry.minimum_steps
    own_rate = entry.learning_rate if weights is None else entry.pretrained_learning_rate
    rate = configuration.learning_rate or own_rate
    model = architectures.build(
        architecture_id,
        image_size=data.image_size,
        classes=len(data.classes),
        weights=weights,
        dropout=configuration.dropout,
    )
    work_dir.mkdir(parents=True, exist_ok=True)
    monitor = "val_loss" if len(data.indices("validation")) else "loss"
    return _Run(
        data=data,
        configuration=configuration.with_options(
            batch_size=batch_size, learning_rate=rate, minimum_steps=minimum_steps
        ),
        model=model,
        rate=rate,
        batch_size=batch_size,
        minimum_steps=minimum_steps,
        report=report,
        should_stop=should_stop,
        best=callbacks.BestWeights(work_dir / "best.safetensors", monitor),
        pretrained=weights is not None,
    )


def _fit_stage(run: _Run, stage: _Stage) -> None:
    """Train one stage; when memory runs out, go on from the same epoch with half the batch size."""
    _set_trainable(run, stage)
    run.model.compile(
        optimizer=_optimizer(run.configuration, stage.rate),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=run.configuration.label_smoothing),
        metrics=["accuracy"],
        jit_compile=False,
    )
    while True:
        try:
            _fit(run, stage)
            return
        except tf.errors.ResourceExhaustedError as error:
            if run.batch_size == 1:
                raise TrainingFailed(
                    "The memory does not suffice, not even for one image at a time.",
                    "Choose a smaller architecture, or train on a machine with more memory.",
                ) from error
            run.batch_size //= 2
            run.say(f"Out of memory: going on with batches of {run.batch_size} images.")


def _set_trainable(run: _Run, stage: _Stage) -> None:
    """Which layers learn. Pretrained batch normalisation keeps its statistics: a small dataset would spoil them."""
    for layer in run.model.layers:
        kept = run.pretrained and isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name == "head" or not (stage.frozen or kept)


def _optimizer(configuration: Configuration, rate: float) -> Any:
    if configuration.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=configuration.weight_decay)
    if configuration.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=configuration.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def _fit(run: _Run, stage: _Stage) -> None:
    first = max(stage.first, len(run.history))
    rows = run.data.indices("train")
    steps = pipeline.steps_per_epoch(len(rows), run.batch_size, run.minimum_steps)
    early_stopping = keras.callbacks.EarlyStopping(
        run.best.monitor, patience=run.configuration.early_stopping_patience, verbose=0
    )
    run.model.fit(
        pipeline.training_batches(run.data, rows, run.configuration, batch_size=run.batch_size, first_epoch=first),
        initial_epoch=first,
        epochs=stage.last,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[
            callbacks.StopWhenAsked(run.should_stop),
            callbacks.StopOnNonFiniteLoss(),
            callbacks.Validation(run.data, run.data.indices("validation"), run.batch_size, run.should_stop),
            run.best,
            _schedule(run, stage, steps),
            callbacks.Report(steps, run.within, run.ended),
            early_stopping,
        ],
    )
    run.stopped_early = early_stopping.stopped_epoch > 0


def _schedule(run: _Run, stage: _Stage, steps: int) -> Any:
    if run.configuration.schedule == "cosine":
        return callbacks.Cosine(stage.rate, run.configuration.warmup_fraction, stage.first, stage.last, steps)
    patience = max(2, run.configuration.early_stopping_patience // 3)
    return keras.callbacks.ReduceLROnPlateau(run.best.monitor, factor=0.5, patience=patience, verbose=0)


def _evaluate(run: _Run) -> Evaluation:
    between = _between(run, 0.0, 0.4)
    between(0.0)
    return evaluate(run.model, run.data, run.batch_size, between)


def _between(run: _Run, first: float, last: float) -> Callable[[float], None]:
    """Told of the share that is done of one part (first to last) of the evaluation: reports it, stops when asked to."""

    def between(share: float) -> None:
        callbacks.stop_if_asked(run.should_stop)
        fraction = _TRAINING_ENDS + (_EVALUATION_ENDS - _TRAINING_ENDS) * (first + (last - first) * share)
        run.report(Progress("evaluating", fraction, len(run.history), run.configuration.epochs))

    return between
