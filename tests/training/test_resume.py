"""A training that was interrupted goes on from its last checkpoint as if nothing had happened."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.training import small
from tests.training.small import PRETRAINED
from training.configurations import OPTIONS, Configuration
from training.ml import architectures, callbacks, checkpoints, fit, optimizers, runtime, schedules
from training.ml.control import Cancelled, Paused, Stop, TrainingFailed
from training.ml.export import weights_of
from training.ml.fit import Trained, train
from training.ml.initial import InitialWeights
from training.ml.runtime import keras, tf

# 36 training images: 5 steps of 8 an epoch, then 2 batches of validation.
BRIEF = Configuration(epochs=4, batch_size=8, minimum_steps=3, early_stopping_patience=50, dropout=0.3, seed=7)
SCHEDULES = [
    {"schedule": "cosine", "optimizer": "adamw"},
    {"schedule": "constant", "optimizer": "sgd", "balance": "sampling"},
    {"schedule": "step", "optimizer": "adam", "step_epochs": 2},
    {"schedule": "plateau", "optimizer": "adamw", "learning_rate": 0.9, "early_stopping_patience": 6, "epochs": 7},
]


class Killed(Exception):
    """The process is gone, as far as the training can see."""


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(architectures, "build", small.build)


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after each step."""
    monkeypatch.setattr(callbacks.Checkpointing, "SECONDS", 0.0)


class Run:
    """A training in a folder; `at(n, what)` lets something happen at the n-th time it is asked whether to stop."""

    def __init__(self, folder: Path, configuration: Configuration = BRIEF, weights: InitialWeights | None = None):
        self.folder, self.configuration, self.weights = folder, configuration, weights
        self.messages: list[str] = []
        self.epochs: list[int] = []
        self.asked = 0
        self.trained: Trained | None = None

    def __call__(self, at: int = 0, what: object = None, **options):
        self.asked = 0

        def should_stop():
            self.asked += 1
            if self.asked == at and isinstance(what, Exception):
                raise what
            return what if self.asked == at else None

        options = {"data": small.make_data(), "configuration": self.configuration} | options
        self.trained = train(
            options.pop("data"),
            "Custom_CNN",
            options.pop("configuration"),
            weights=self.weights,
            work_dir=self.folder,
            report=self._report,
            should_stop=should_stop,
            **options,
        )
        return self.trained

    def variables(self):
        """All of them as they were after the last step, random states and optimizer included."""
        newest = max(self.folder.glob("checkpoint-*.safetensors"), key=number_of)
        return checkpoints.load_file(newest)

    def _report(self, progress):
        if progress.message:
            self.messages.append(progress.message)
        if progress.metrics:
            self.epochs.append(progress.epoch)


def number_of(path):
    return int(path.stem.split("-")[1])


def assert_same(one, other):
    """Both have the same variables after the last step, and the same result."""
    assert_close(one.variables(), other.variables())
    assert_same_result(one.trained, other.trained)


def assert_same_result(one, other):
    """The same best network, and the same figures of each epoch."""
    assert one.best_epoch == other.best_epoch
    assert_close(weights_of(one.model), weights_of(other.model))
    assert [figures["stage"] for figures in one.history] == [figures["stage"] for figures in other.history]
    for ours, theirs in zip(one.history, other.history, strict=True):
        for name in ours.keys() - {"stage", "seconds"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same training without any interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "build", small.build)
        run = Run(tmp_path_factory.mktemp("whole"))
        run()
    return run


def assert_survives(folder, options, weights, kills):
    configuration = BRIEF.with_options(**options)
    whole = Run(folder / "whole", configuration, weights)
    whole()
    run = Run(folder / "killed", configuration, weights)
    # Wherever that is: within an epoch, during validation, between the stages.
    for at in np.random.default_rng(len(options)).integers(2, whole.asked // kills, kills):
        with pytest.raises(Killed):
            run(int(at), Killed())
    run()
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("options", "weights"),
    list(zip(SCHEDULES, [None, PRETRAINED] * 2, strict=True)),
    ids=["cosine", "constant", "step", "plateau"],
)
def test_killed_anywhere_the_resumed_training_ends_with_the_same_network(tmp_path, often, options, weights):
    assert_survives(tmp_path, options, weights, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("options", SCHEDULES, ids=lambda options: options["schedule"])
@pytest.mark.parametrize("weights", [None, PRETRAINED], ids=["scratch", "pretrained"])
def test_killed_again_and_again_it_still_ends_with_the_same_network(tmp_path, often, options, weights):
    assert_survives(tmp_path, options, weights, kills=5)


def test_between_checkpoints_what_was_lost_is_learned_again(tmp_path, whole):
    run = Run(tmp_path / "killed")
    # In the third step of the second epoch; the checkpoint is from the end of the first.
    with pytest.raises(Killed):
        run(10, Killed())
    run()
    assert_same(run, whole)
    assert run.messages == ["Going on from a checkpoint in epoch 2."]
    assert run.epochs == [1, 2, 3, 4]


def test_draining_pauses_at_the_very_step(tmp_path, whole):
    run = Run(tmp_path / "drained")
    with pytest.raises(Paused) as paused:
        run(10, Stop.DRAIN)
    assert paused.value.epoch == 1
    assert state_of(run)["images"] == (5 + 3) * 8
    run()
    assert_same(run, whole)


def test_draining_during_validation_keeps_the_epoch_that_was_learned(tmp_path, whole):
    run = Run(tmp_path / "drained")
    with pytest.raises(Paused) as paused:
        run(6, Stop.DRAIN)
    assert paused.value.epoch == 0
    assert state_of(run)["images"] == 5 * 8
    run()
    assert_same(run, whole)


def test_killed_in_validation_after_long_steps_an_epoch_is_not_repeated(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(callbacks.Checkpointing, "SECONDS_BEFORE_VALIDATION", 0.0)
    run = Run(tmp_path / "killed")
    with pytest.raises(Killed):
        run(6, Killed())
    assert state_of(run)["images"] == 5 * 8
    run()
    # Two batches of validation, three whole epochs, and the evaluation of 60 images.
    assert run.asked == whole.asked - 5
    assert_same(run, whole)


def test_before_a_validation_that_follows_few_steps_nothing_is_saved(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Killed):
        run(6, Killed())
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_draining_during_the_last_evaluation_keeps_the_whole_training(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Paused) as paused:
        run(4 * 7 + 1, Stop.DRAIN)
    assert paused.value.epoch == 4
    trained = run()
    assert run.epochs == [1, 2, 3, 4] and len(trained.history) == 4


def test_cancelling_is_final_and_saves_nothing(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Cancelled):
        run(3, Stop.CANCEL)
    assert list(tmp_path.iterdir()) == []


def test_a_training_pauses_after_so_many_epochs_and_goes_on_when_it_may(tmp_path, whole):
    run = Run(tmp_path / "limited")
    for limit in (1, 1, 3):
        with pytest.raises(Paused) as paused:
            run(epoch_limit=limit)
        assert paused.value.epoch == limit
    assert run.epochs == [1, 2, 3]
    run(epoch_limit=4)
    assert_same(run, whole)


def test_a_training_that_was_stopped_early_is_not_continued(tmp_path):
    run = Run(tmp_path, BRIEF.with_options(epochs=30, early_stopping_patience=1, learning_rate=1.0))
    with pytest.raises(Paused):
        # Once the training is over: the first question of the evaluation.
        drain_in_evaluation(run)
    stopped_after = len(run.epochs)
    trained = run()
    assert trained.stopped_early and len(trained.history) == stopped_after < 30


def drain_in_evaluation(run):
    phases = []
    return train(
        small.make_data(),
        "Custom_CNN",
        run.configuration,
        weights=None,
        work_dir=run.folder,
        report=lambda progress: (phases.append(progress.phase), run._report(progress)),
        should_stop=lambda: Stop.DRAIN if phases[-1] == "evaluating" else None,
    )


def state_of(run, number=-1):
    newest = sorted(run.folder.glob("checkpoint-*.json"), key=number_of)[number]
    return json.loads(newest.read_text())["content"]["state"]


# -- Checkpoints that cannot be used


def paused_after(folder, epochs, **options):
    run = Run(folder, **options)
    with pytest.raises(Paused):
        run(epoch_limit=epochs)
    return run


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, ending, whole):
    run = paused_after(tmp_path / "damaged", 3)
    path = run.folder / f"checkpoint-3.{ending}"
    content = bytearray(path.read_bytes())
    # Not just anywhere: the last digit of a figure may be more than a number in memory holds.
    content[content.index(b"sha256") + 12 if ending == "json" else len(content) // 2] ^= 1
    path.write_bytes(content)
    run()
    assert_same(run, whole)
    assert run.messages[0].startswith("A checkpoint cannot be used: ")
    assert run.messages[1] == "Going on from a checkpoint in epoch 3."


def test_a_checkpoint_without_its_best_weights_is_damaged(tmp_path):
    run = paused_after(tmp_path, 2)
    for path in tmp_path.glob("best-*"):
        path.unlink()
    run()
    assert run.messages[-1] == "There is no other checkpoint: the training starts anew."
    assert run.epochs == [1, 2, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "change", [{"configuration": BRIEF.with_options(seed=8)}, {"data": small.make_data(80)}], ids=["options", "data"]
)
def test_a_checkpoint_of_something_else_is_not_used(tmp_path, change):
    if "data" in change:
        object.__setattr__(change["data"], "digest", "1" * 64)
    run = paused_after(tmp_path, 2)
    run(**change)
    assert run.messages[-2:] == [
        "A checkpoint cannot be used: it belongs to other data or another configuration.",
        "There is no other checkpoint: the training starts anew.",
    ]
    aside = {path.name for path in tmp_path.glob("*.other")}
    assert {f"checkpoint-{n}.{ending}.other" for n in (1, 2) for ending in ("json", "safetensors")} < aside
    assert any(name.startswith("best-") for name in aside)


@dataclass(frozen=True)
class Later(Configuration):
    """With one more option than the present one has."""

    brilliance: float = 0.5


def test_an_update_with_another_option_goes_on_with_the_trainings_that_wait(tmp_path, monkeypatch):
    run = paused_after(tmp_path, 2)
    monkeypatch.setitem(OPTIONS, "brilliance", OPTIONS["dropout"])
    monkeypatch.setattr(fit, "Configuration", Later)
    values = BRIEF.to_json()
    run.epochs.clear()
    with pytest.raises(Paused):
        run(configuration=Later(**values), epoch_limit=3)
    assert run.epochs == [3] and run.messages == ["Going on from a checkpoint in epoch 3."]
    run(configuration=Later(**values, brilliance=0.7))
    assert run.messages[-1] == "There is no other checkpoint: the training starts anew."


def test_after_a_change_of_precision_the_optimizer_begins_anew_with_the_weights(tmp_path, monkeypatch):
    halves = BRIEF.with_options(mixed_precision=True)
    run = paused_after(tmp_path, 2, configuration=halves)
    monkeypatch.setattr(runtime, "mixed_precision_helps", lambda: True)
    trained = run()
    assert run.messages[-2:] == [
        "Going on from a checkpoint in epoch 3.",
        "Of the checkpoint only weights and figures fit, because it was computed in another precision: the optimizer "
        "begins anew.",
    ]
    assert run.epochs == [1, 2, 3, 4] and len(trained.history) == 4


def test_without_what_the_optimizer_remembered_the_weights_are_kept(tmp_path, monkeypatch):
    run = paused_after(tmp_path, 2)
    before = run.variables()
    # As if another version of Keras kept other variables; and a step changes nothing.
    monkeypatch.setattr(optimizers, "create", lambda *arguments: keras.optimizers.SGD(0.0))
    monkeypatch.setattr(schedules.Constant, "on_train_batch_begin", lambda *arguments, **options: None)
    with pytest.raises(Paused):
        run(1, Stop.DRAIN)
    assert "another version of Keras wrote it" in run.messages[-1]
    after = run.variables()
    learned = [name for name in before if name.startswith("weights/") and "moving" not in name]
    assert learned and all(np.array_equal(before[name], after[name]) for name in learned)
    assert after.keys() < before.keys()


@pytest.mark.parametrize(
    "weights",
    [{"a/kernel": np.zeros((2, 3), np.float32)}, {"a/kernel": np.zeros(6, np.float64)}, {"b/kernel": np.zeros(6)}],
    ids=["shape", "type", "name"],
)
def test_weights_of_another_network_are_set_aside(tmp_path, weights):
    store = checkpoints.Checkpoints(tmp_path, "digest")
    own = {"a/kernel": np.zeros(6, np.float32)}
    best = store.save_best(1, own)
    for _ in range(2):
        store.save({}, {f"weights/{name}": value for name, value in own.items()}, best)
    written = {path.name for path in tmp_path.iterdir()}
    assert store.newest(own)[0] is not None
    found, said = store.newest(weights)
    assert found is None and said == ["A checkpoint cannot be used: its weights are not those of this network."] * 2
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.other" for name in written}


def test_a_crash_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch, whole):
    run = paused_after(tmp_path / "crashed", 2)

    def crash(descriptor):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints.os, "fsync", crash)
        run()
    run()
    assert_same(run, whole)


def test_two_checkpoints_are_kept_and_the_best_weights_they_name(tmp_path):
    run = paused_after(tmp_path, 3)
    # On a busy machine the pause comes an epoch later.
    first, second = sorted(int(path.stem.removeprefix("checkpoint-")) for path in tmp_path.glob("checkpoint-*.json"))
    assert (second - first, second >= 3) == (1, True)
    named = {state_of(run, number)["best_epoch"] for number in (-1, -2)}
    assert {path.name for path in tmp_path.glob("best-*")} == {f"best-{epoch}.safetensors" for epoch in named}


# -- A full disk


def full_disk(monkeypatch, pattern):
    """Files with such names cannot be written."""

    def write(path, *pieces):
        if pattern in path.name:
            raise OSError(28, "No space left on device")
        return really(path, *pieces)

    really = checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", write)


def test_without_room_for_checkpoints_the_training_goes_on_and_says_so(tmp_path, monkeypatch, whole):
    full_disk(monkeypatch, "checkpoint-")
    run = Run(tmp_path / "full")
    run()
    assert_same_result(run.trained, whole.trained)
    (message,) = run.messages
    assert message.startswith("A checkpoint could not be written (No space left on device).")


def test_without_room_for_the_best_weights_the_training_fails_with_advice(tmp_path, monkeypatch):
    full_disk(monkeypatch, "best-")
    with pytest.raises(TrainingFailed, match="No space left on device") as failure:
        Run(tmp_path)()
    assert "disk space" in failure.value.hint


def test_the_older_checkpoint_makes_room_for_the_best_weights(tmp_path, monkeypatch):
    run = paused_after(tmp_path, 2)

    def write(path, *pieces):
        if "best-" in path.name and len(list(tmp_path.glob("checkpoint-*.json"))) > 1:
            raise OSError(28, "No space left on device")
        return really(path, *pieces)

    really = checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", write)
    assert len(run().history) == 4


# -- After lack of memory


def test_a_smaller_batch_size_can_be_given_and_stays(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Paused):
        run(3, Stop.DRAIN, batch_size=4)
    # Ten steps of 4 images are an epoch.
    assert state_of(run)["images"] == 3 * 4 and state_of(run)["batch_size"] == 4
    with pytest.raises(Paused):
        run(epoch_limit=2)
    assert state_of(run)["images"] == 2 * 40 and state_of(run)["batch_size"] == 4


def test_memory_that_ran_out_once_does_not_run_out_again_after_a_restart(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Paused):
        exhausted = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        run(3, exhausted, epoch_limit=1)
    run()
    assert run.messages == [
        "Out of memory: going on with batches of 4 images.",
        "Going on from a checkpoint in epoch 2.",
    ]


# -- The file format


def test_what_is_written_is_read_again(tmp_path):
    variables = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "count": np.int64(5),
        "seed": np.zeros(2, np.uint32),
    }
    file = checkpoints.write_tensors(tmp_path / "some.safetensors", variables)
    read = checkpoints.load_file(tmp_path / file.name)
    assert {name: (value.dtype, value.tolist()) for name, value in read.items()} == {
        name: (value.dtype, value.tolist()) for name, value in variables.items()
    }
