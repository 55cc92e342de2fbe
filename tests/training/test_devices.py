"""What a training is computed on, and how exactly: several devices, half precision, repeatable bits."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from tests.training import small
from tests.training.small import PRETRAINED, make_data
from training.configurations import Configuration
from training.ml import architectures, fit, runtime
from training.ml.control import TrainingFailed
from training.ml.runtime import tf
from training.ml.timing import timed_steps

BRIEF = Configuration(epochs=2, batch_size=8, minimum_steps=3, early_stopping_patience=50)

# What the processes of the tests below begin with; each has devices or settings that a process cannot change later.
PRELUDE = """
import tempfile
from pathlib import Path
import numpy as np
from training.ml.runtime import tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)
from dataclasses import replace
from tests.training.small import PRETRAINED, build, make_data
from training.configurations import Configuration
from training.ml import architectures
from training.ml.export import save_version, weights_of
from training.ml.fit import Paused, train

def go(configuration, weights=None, folder=None, data=None, should_stop=lambda: None, **options):
    go.messages = []
    return train(
        data or make_data(), "Custom_CNN", configuration, weights=weights, work_dir=Path(folder or tempfile.mkdtemp()),
        report=lambda progress: progress.message and go.messages.append(progress.message), should_stop=should_stop,
        **options,
    )
"""


def in_a_process(code: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)], capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-2000:]


# -- Several devices


@pytest.mark.slow
def test_two_devices_train_the_same_network_as_one_and_predict_every_image_once():
    # Frozen batch normalisation and no dropout: the other kinds depend on which images are on which device.
    in_a_process("""
        architectures.build = build
        configuration = Configuration(
            epochs=3, head_epochs=1, batch_size=8, minimum_steps=3, dropout=0, learning_rate=0.05,
            fine_tuning_factor=0.5,
        )
        one = go(configuration, PRETRAINED)
        devices = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert devices.num_replicas_in_sync == 2
        two = go(configuration, PRETRAINED, strategy=devices)
        ours, theirs = weights_of(one.model), weights_of(two.model)
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
        for a, b in zip(one.history, two.history, strict=True):
            assert abs(a["loss"] - b["loss"]) < 1e-4 and abs(a["auc"] - b["auc"]) < 1e-6
        assert len(two.evaluation.test.probabilities) == len(two.evaluation.test.rows) == 12

        folder = tempfile.mkdtemp()
        try:
            go(configuration, PRETRAINED, folder, strategy=devices, epoch_limit=2)
        except Paused:
            resumed = weights_of(go(configuration, PRETRAINED, folder, strategy=devices).model)
        for name in ours:
            np.testing.assert_allclose(ours[name], resumed[name], rtol=1e-4, atol=1e-5, err_msg=name)
    """)


@pytest.mark.slow
def test_what_several_devices_trained_is_a_version_like_any_other(tmp_path):
    in_a_process(f"""
        from registry.artifacts import load
        from training.ml.export import rebuild
        trained = go(
            Configuration(epochs=1, batch_size=8, minimum_steps=1),
            strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
        )
        folder = Path({str(tmp_path)!r}) / "version"
        artifact = load(folder, save_version(trained, make_data(), folder))
        golden = artifact.manifest["golden"]
        assert np.shape(golden["outputs"]) == (golden["count"], 2)
        assert weights_of(rebuild(artifact)).keys() == weights_of(trained.model).keys()
    """)


@pytest.mark.slow
def test_a_batch_that_the_devices_cannot_share_is_rounded_down():
    in_a_process("""
        from training.ml.control import Stop, TrainingFailed
        architectures.build = build
        configuration = Configuration(epochs=2, batch_size=8, minimum_steps=3)
        devices = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
        rounded = "Training with batches of 6 images instead of 8, so that each of the 3 devices gets as many."

        folder = tempfile.mkdtemp()
        try:
            go(configuration, folder=folder, strategy=devices, epoch_limit=1)
        except Paused:
            assert go.messages == [rounded]
        trained = go(configuration, folder=folder, strategy=devices, batch_size=8)
        assert go.messages == ["Going on from a checkpoint in epoch 2.", rounded][::-1], go.messages
        assert len(trained.history) == 2 and trained.configuration.batch_size == 8

        def exhausted():
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

        try:
            go(configuration, strategy=devices, should_stop=exhausted)
        except TrainingFailed as failure:
            assert str(failure) == "The memory does not suffice, not even for one image on each device."
        assert go.messages == [rounded, "Out of memory: going on with batches of 3 images."]
    """)


@pytest.mark.slow
def test_grades_are_learned_by_several_devices_as_by_one():
    in_a_process("""
        architectures.build = build
        data = make_data()
        data = replace(
            data, classes=("0", "1", "2"), labels=np.arange(60) % 3, positive_class="", ordinal=True
        )
        configuration = Configuration(
            epochs=2, head_epochs=1, batch_size=8, minimum_steps=3, dropout=0, learning_rate=0.05,
        )
        one = go(configuration, PRETRAINED, data=data)
        two = go(configuration, PRETRAINED, data=data, strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
        assert [figures["stage"] for figures in one.history] == ["head", "fine-tuning"]
        for a, b in zip(one.history, two.history, strict=True):
            assert abs(a["loss"] - b["loss"]) < 1e-4, (a, b)
        smoothed = go(configuration.with_options(grade_spread=0), PRETRAINED, data=data)
        assert abs(smoothed.history[0]["loss"] - one.history[0]["loss"]) > 1e-3
    """)


def test_all_gpus_are_used_when_there_are_several(monkeypatch):
    def gpus(count):
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [f"GPU:{n}" for n in range(count)])
        return runtime.strategy()

    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices: devices)
    assert gpus(0) is None and gpus(1) is None
    assert gpus(2) == ["GPU:0", "GPU:1"]


# -- Half precision


@pytest.mark.parametrize(
    ("capabilities", "helps"),
    [([], False), ([(6, 1)], False), ([(7, 0)], True), ([(8, 6), (6, 1)], False), ([None], False)],
)
def test_half_precision_helps_on_gpus_that_have_units_for_it(monkeypatch, capabilities, helps):
    details = [{} if known is None else {"compute_capability": known} for known in capabilities]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(range(len(details))))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details[gpu])
    assert runtime.mixed_precision_helps() is helps


def train_in_halves(tmp_path, data=None, weights=None, **options):
    reports = []
    trained = fit.train(
        data or make_data(),
        "Custom_CNN",
        BRIEF.with_options(mixed_precision=True, **options),
        weights=weights,
        work_dir=tmp_path,
        report=reports.append,
        should_stop=lambda: None,
    )
    return trained, [report.message for report in reports if report.message]


@pytest.fixture
def policies(monkeypatch):
    """The number formats of the networks that are built: of the whole, and of its head after the start."""
    built = []

    def build(*arguments, **options):
        built.append(small.build(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(architectures, "build", build)
    return lambda: [(model.dtype_policy.name, model.get_layer("head").compute_dtype) for model in built]


def test_where_half_precision_does_not_help_the_training_says_so_and_does_without(tmp_path, policies):
    _, messages = train_in_halves(tmp_path)
    assert messages == [
        "Half precision would not make this machine faster, so everything is computed in single precision."
    ]
    assert policies() == [("float32", "float32")]


def test_half_precision_ends_with_the_training(tmp_path, policies, monkeypatch):
    monkeypatch.setattr(runtime, "mixed_precision_helps", lambda: True)
    trained, messages = train_in_halves(tmp_path)
    assert messages == []
    # What is handed over is another network, with the weights of the one that was trained.
    assert policies() == [("mixed_float16", "float32"), ("float32", "float32")]
    assert trained.model.dtype_policy.name == "float32"
    assert {str(variable.dtype) for variable in trained.model.weights} == {"float32"}
    assert all(np.isfinite(figures["loss"]) for figures in trained.history)
    assert runtime.keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("weights", [None, PRETRAINED], ids=["scratch", "pretrained"])
def test_grades_are_learned_in_half_precision(tmp_path, policies, monkeypatch, weights):
    monkeypatch.setattr(runtime, "mixed_precision_helps", lambda: True)
    data = replace(make_data(), classes=("0", "1", "2"), labels=np.arange(60) % 3, positive_class="", ordinal=True)
    halves, _ = train_in_halves(tmp_path / "halves", data=data, weights=weights, head_epochs=1, dropout=0)
    monkeypatch.setattr(runtime, "mixed_precision_helps", lambda: False)
    whole, _ = train_in_halves(tmp_path / "whole", data=data, weights=weights, head_epochs=1, dropout=0)
    for ours, theirs in zip(halves.history, whole.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)


# -- The same bits


@pytest.mark.slow
def test_a_deterministic_training_gives_the_same_bytes_in_every_repetition():
    in_a_process("""
        configuration = Configuration(epochs=2, batch_size=8, minimum_steps=3, deterministic=True, noise=0.05, blur=1.0)
        one, two = weights_of(go(configuration).model), weights_of(go(configuration).model)
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    """)


# -- Speed


def test_steps_are_timed_on_the_way_a_training_takes(monkeypatch):
    monkeypatch.setattr(architectures, "build", small.build)
    timing = timed_steps("Custom_CNN", image_size=32, classes=3, batch_size=4, fine_tuning=False, steps=3)
    assert 0 < timing.step_seconds < timing.start_seconds
    assert timing.prediction_seconds > 0
    assert timing.peak_memory > 50 * 1024**2


def test_with_several_devices_the_timed_batches_are_such_as_they_can_share(monkeypatch):
    sizes = []
    monkeypatch.setattr(architectures, "build", small.build)
    monkeypatch.setattr("training.ml.timing.replicas", lambda devices: 3)
    monkeypatch.setattr("training.ml.timing._train", lambda learner, size, steps: sizes.append(size) or [0.0] * steps)
    timed_steps("Custom_CNN", image_size=32, classes=2, batch_size=8, fine_tuning=False, steps=1)
    assert sizes == [6]


def test_too_little_memory_for_the_timed_batches_is_said(monkeypatch):
    def exhausted(model):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(architectures, "build", small.build)
    monkeypatch.setattr("training.ml.timing.OneDevice", exhausted)
    with pytest.raises(TrainingFailed, match="batches of 4 images"):
        timed_steps("Custom_CNN", image_size=32, classes=2, batch_size=4, fine_tuning=True, steps=1)
