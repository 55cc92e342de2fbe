"""One training from prepared data to an evaluated network, through every interruption."""

import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from datasets.cache import PreparedData
from training.configurations import Configuration
from training.ml import callbacks, initial, pipeline, runtime, schedules, transfer
from training.ml.callbacks import ShouldStop
from training.ml.checkpoints import Checkpoints, Damaged
from training.ml.control import Cancelled, Paused, TrainingFailed
from training.ml.evaluation import Doubt, Evaluation, doubts, evaluate, predict
from training.ml.export import variables_of
from training.ml.initial import InitialWeights
from training.ml.learning import Learner, Learning, compiled, schedule, scope
from training.ml.prediction import OneDevice
from training.ml.run import Best, Progress, Run, Trained, complete, network
from training.ml.runtime import keras
from training.ml.stages import Stage
from training.ml.timing import Timing, timed_steps

__all__ = [
    "Cancelled",
    "Paused",
    "Progress",
    "Timing",
    "Trained",
    "TrainingFailed",
    "timed_steps",
    "train",
]


def train(
    data: PreparedData,
    architecture_id: str,
    configuration: Configuration,
    *,
    weights: InitialWeights | None,
    work_dir: Path,
    report: Callable[[Progress], None],
    should_stop: ShouldStop,
    batch_size: int | None = None,
    epoch_limit: int | None = None,
    strategy: Any = None,
) -> Trained:
    """Train, keep the weights of the best epoch, and evaluate them.

    weights: what to start from; None is from scratch. work_dir: where checkpoints and best weights are kept meanwhile;
    with a checkpoint there that fits, the training goes on from it. `should_stop` is asked after every step: CANCEL
    ends the training, DRAIN lets it pause at a checkpoint. batch_size: instead of the configuration's, for a run that
    met lack of memory before; an epoch still shows as many images. epoch_limit: pause when so many epochs are finished
    and more would follow. strategy: a tf.distribute.Strategy; None takes all GPUs of this machine.

    The best epoch is the one with the lowest validation loss, which also drives early stopping and the plateau
    schedule: it judges the probabilities that users will see, and unlike the area under the ROC curve it still
    moves when a small validation set is ranked perfectly.

    Raises Cancelled and Paused when that was asked for, and TrainingFailed, with a hint, when the training cannot go
    on.
    """
    started = time.monotonic()
    report(Progress("loading", 0.0, 0, configuration.epochs))
    _check(data)
    run = _prepare(data, architecture_id, configuration, weights, work_dir, report, should_stop, epoch_limit, strategy)
    run.started = started
    _resume(run, batch_size)
    for stage in run.stages:
        if run.epoch < stage.last and not run.stopped_early:
            _learn(run, stage)
    model = _best_network(run)
    evaluation, doubtful = _evaluate(run, model)
    return Trained(
        model=model,
        architecture_id=architecture_id,
        configuration=run.configuration,
        initial_weights=initial.SCRATCH if weights is None else weights.words,
        history=run.history,
        best_epoch=run.best.epoch,
        stopped_early=run.stopped_early,
        evaluation=evaluation,
        doubts=doubtful,
        seconds=round(time.monotonic() - run.started, 1),
    )


# -- Before the first step


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
    weights: InitialWeights | None,
    work_dir: Path,
    report: Callable[[Progress], None],
    should_stop: ShouldStop,
    epoch_limit: int | None,
    strategy: Any,
) -> Run:
    if configuration.deterministic:
        runtime.deterministic()
    keras.utils.set_random_seed(configuration.seed)
    strategy = runtime.strategy() if strategy is None else strategy
    halves = configuration.mixed_precision and runtime.mixed_precision_helps()
    filled = complete(architecture_id, configuration, weights)
    build = partial(network, data, architecture_id, filled, weights)
    model = build(strategy=strategy, halves=halves)
    digest = _digest(data, architecture_id, configuration, weights, model)
    work_dir.mkdir(parents=True, exist_ok=True)
    run = Run(
        data=data,
        architecture_id=architecture_id,
        configuration=filled,
        weights=weights,
        network=build,
        model=model,
        strategy=strategy,
        checkpoints=Checkpoints(work_dir, digest),
        features=transfer.Features(work_dir, f"{digest} {model.dtype_policy.name}"),
        report=report,
        should_stop=should_stop,
        epoch_limit=epoch_limit,
    )
    if configuration.mixed_precision and not halves:
        run.say("Half precision would not make this machine faster, so everything is computed in single precision.")
    return run


def _digest(
    data: PreparedData, architecture_id: str, configuration: Configuration, weights: InitialWeights | None, model: Any
) -> str:
    """Of all that a checkpoint must fit to.

    Of the options those that are not at their default: with an update that brings another one, trainings that wait
    for it go on. Not whether it is computed in half precision: the weights fit either way.
    """
    defaults = Configuration().to_json()
    options = {name: value for name, value in configuration.to_json().items() if value != defaults[name]}
    shapes = {name: [int(side) for side in variable.shape] for name, variable in variables_of(model).items()}
    words = initial.SCRATCH if weights is None else weights.words
    content = [data.digest, architecture_id, options, words, sorted(shapes.items())]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# -- Going on after an interruption


def _resume(run: Run, batch_size: int | None) -> None:
    """Let the run stand where its newest checkpoint that can be used was written."""
    checkpoint, said = run.checkpoints.newest(variables_of(run.model))
    for message in said:
        run.say(message)
    if checkpoint is None:
        if said:
            run.say("There is no other checkpoint: the training starts anew.")
        run.checkpoints.clear()
        run.batches.begin(batch_size or cast("int", run.configuration.batch_size))
        return
    state = checkpoint.state
    run.history, run.stopped_early = state["history"], state["stopped_early"]
    run.best = Best(state["best_epoch"], _number(state["best_value"]), checkpoint.best)
    run.batches.begin(batch_size or state["batch_size"])
    run.started -= state["seconds"]
    for name, variable in variables_of(run.model).items():
        if f"weights/{name}" in checkpoint.tensors:
            variable.assign(checkpoint.tensors[f"weights/{name}"])
    run.say(f"Going on from a checkpoint in epoch {min(run.epoch + 1, run.configuration.epochs)}.")
    run.resumed = checkpoint


def _restore(run: Run, stage: Stage, learning: Learning) -> None:
    """Put the stage where the checkpoint was written, if it was written in this one."""
    checkpoint, run.resumed = run.resumed, None
    if checkpoint is None or checkpoint.state["first"] != stage.first:
        return
    if not learning.restore(checkpoint.state, checkpoint.tensors):
        changed = checkpoint.state.get("precision") != run.model.dtype_policy.name
        why = "it was computed in another precision" if changed else "another version of Keras wrote it"
        run.say(f"Of the checkpoint only weights and figures fit, because {why}: the optimizer begins anew.")


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


def _state(run: Run, learning: Learning, stopped_early: bool) -> dict[str, Any]:
    """What a checkpoint says beside the variables, as JSON."""
    return {
        **learning.state(),
        "history": run.history,
        "stopped_early": stopped_early,
        "best_epoch": run.best.epoch,
        "best_value": None if run.best.file is None else run.best.value,
        "batch_size": run.batches.training,
        "precision": run.model.dtype_policy.name,
        "seconds": time.monotonic() - run.started,
    }


# -- The stages


def _learn(run: Run, stage: Stage) -> None:
    """One stage, from its beginning or from a checkpoint that was written in it."""
    run.stage = stage.name
    learner = _head(run) if stage.frozen else _whole(run)
    place = schedules.Place(stage.first, stage.last, run.epoch_images, run.batches.training, run.epoch)
    rate = schedule(run.configuration, stage.rate, place, run.monitor)
    # Before fine-tuning the head keeps its few epochs, which take seconds.
    patience = run.configuration.early_stopping_patience if stage.last == run.configuration.epochs else stage.last
    early_stopping = schedules.EarlyStopping(run.monitor, patience)
    pace = callbacks.Pace(place)
    report = callbacks.Report(place, partial(_within, run, stage, pace), partial(_ended, run, stage, pace))
    figures = compiled(learner, run.configuration, stage.rate, run.strategy)
    learning = Learning(learner, place, run.batches, figures, [rate, early_stopping, report])
    saving = callbacks.Checkpointing(
        place,
        lambda: _save(run, learning, early_stopping.stopped),
        run.should_stop,
        run.epoch_limit,
        run.configuration.epochs,
    )
    _restore(run, stage, learning)
    saving.pause_at_limit()
    rows = run.data.indices("validation")
    learning.fit(
        [
            pace,
            callbacks.StopOnNonFiniteLoss(),
            callbacks.Validation(run.data, rows, _validation(run, learner, saving)),
            callbacks.Best(run.monitor, run.best.value, partial(_keep_best, run, learner)),
            rate,
            report,
            early_stopping,
            saving,
        ]
    )
    run.stopped_early = early_stopping.stopped
    if stage.frozen:
        _take_over_head(run, learner)


def _whole(run: Run) -> Learner:
    """The network itself, which learns from the images."""
    rows, validation = run.data.indices("train"), run.data.indices("validation")
    run.features.remove()

    def batches(size: int, position: int) -> Any:
        return pipeline.training_batches(run.data, rows, run.configuration, batch_size=size, position=position)

    return Learner(
        run.model,
        batches,
        lambda size: pipeline.input_batches(run.data, validation, size),
        None if run.weights is None else transfer.tune(run.model, run.configuration),
        run.data.ordinal,
    )


def _head(run: Run) -> Learner:
    """The head alone, which learns from the features of the images."""
    train, validation = run.data.indices("train"), run.data.indices("validation")
    rows = np.concatenate([train, validation])
    features = _features(run, rows)
    labels = run.data.labels[train]
    with scope(run.strategy):
        head = transfer.new_head(run.model, run.configuration)

    def batches(size: int, position: int) -> Any:
        return pipeline.feature_batches(
            features[: len(train)], labels, len(run.data.classes), run.configuration, batch_size=size, position=position
        )

    def inputs(size: int) -> Any:
        return (features[start : start + size] for start in range(len(train), len(rows), size))

    return Learner(head, batches, inputs, ordinal=run.data.ordinal)


def _features(run: Run, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    if not run.epoch:
        run.tell_features(0.0, f"The features of {len(rows)} images are computed once; the head learns from them.")

    def between(share: float) -> None:
        run.stop_if_asked()
        if run.epoch:
            run.tell(run.epoch)
        else:
            run.tell_features(share)

    try:
        return run.batches.sparing(lambda size: run.features.compute(run.model, run.data, rows, size, between))
    except OSError as error:
        raise TrainingFailed(
            f"The features of the images could not be saved: {error.strerror or error}.",
            "Free some disk space where the models are kept, then train again.",
        ) from error


def _take_over_head(run: Run, learner: Learner) -> None:
    theirs = variables_of(learner.model)
    for name, variable in variables_of(run.model).items():
        if name in theirs:
            variable.assign(np.asarray(theirs[name]))


def _validation(run: Run, learner: Learner, saving: callbacks.Checkpointing) -> Callable[[], NDArray[np.float64]]:
    network = OneDevice(learner.model)

    def between(done: int) -> None:
        callbacks.stop_if_asked(run.should_stop, saving.pause)
        run.tell(run.epoch + 1)

    def validate() -> NDArray[np.float64]:
        saving.before_validation()
        return run.batches.sparing(lambda size: predict(network, learner.inputs(size), between))

    return validate


def _within(run: Run, stage: Stage, pace: callbacks.Pace, epoch: int, share: float) -> None:
    _measure(run, stage, pace)
    run.tell(epoch - 1 + share)


def _ended(run: Run, stage: Stage, pace: callbacks.Pace, epoch: int, figures: dict[str, float | None]) -> None:
    _measure(run, stage, pace)
    run.history.append({"epoch": epoch, "stage": stage.name, **figures})
    run.tell(epoch, figures, epoch=epoch)


def _measure(run: Run, stage: Stage, pace: callbacks.Pace) -> None:
    # What the head learns from are not images.
    if not stage.frozen and pace.images_per_second is not None:
        run.images_per_second = pace.images_per_second


def _keep_best(run: Run, learner: Learner, epoch: int, value: float) -> None:
    try:
        file = run.checkpoints.save_best(epoch, variables_of(learner.model))
    except OSError as error:
        raise TrainingFailed(
            f"The best weights could not be saved: {error.strerror or error}.",
            "Free some disk space where the models are kept, then train again.",
        ) from error
    run.best = Best(epoch, value, file)


def _save(run: Run, learning: Learning, stopped_early: bool) -> None:
    """A checkpoint; without one the training goes on all the same, and says so once."""
    try:
        run.checkpoints.save(_state(run, learning, stopped_early), learning.variables(), run.best.file)
    except OSError as error:
        if not run.unsaved:
            run.say(
                f"A checkpoint could not be written ({error.strerror or error}). The training goes on; after an "
                "interruption it would go on from the one before. Free some disk space where the models are kept."
            )
        run.unsaved = True
    else:
        run.unsaved = False


# -- After the last step


def _best_network(run: Run) -> Any:
    """The network with the best weights, on one device and in single precision."""
    if run.best.file is None:
        raise callbacks.not_a_number()
    try:
        weights = run.checkpoints.best_weights(run.best.file)
    except Damaged as error:
        raise TrainingFailed(
            "The best weights were damaged on the disk.", "Have the disk checked, then train again."
        ) from error
    model, variables = run.model, variables_of(run.model)
    plain = run.strategy is None and model.dtype_policy.name == "float32"
    # The best epoch was one of the head: what was tuned behind it is not part of it.
    if not plain or weights.keys() != variables.keys():
        model = run.network()
        variables = variables_of(model)
    for name, value in weights.items():
        variables[name].assign(value)
    return model


def _evaluate(run: Run, model: Any) -> tuple[Evaluation, list[Doubt]]:
    def between(first: float, last: float) -> Callable[[float], None]:
        def done(share: float) -> None:
            run.stop_if_asked()
            run.tell_evaluating(first + (last - first) * share)

        return done

    run.tell_evaluating(0.0)
    evaluation = run.batches.sparing(lambda size: evaluate(model, run.data, size, between(0.0, 0.4)))
    doubtful = run.batches.sparing(lambda size: doubts(model, run.data, evaluation, size, between(0.4, 1.0)))
    return evaluation, doubtful
