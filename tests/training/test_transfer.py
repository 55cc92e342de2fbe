"""A training from initial weights: first the head, on features computed once; then fine-tuning, part by part."""

import json

import numpy as np
import pytest

from tests.training import small
from tests.training.small import PRETRAINED, make_data
from training.configurations import Configuration
from training.ml import architectures, fit, optimizers, transfer
from training.ml.control import Paused, Stop
from training.ml.export import weights_of
from training.ml.runtime import keras, tf

# 36 training and 12 validation images.
BRIEF = Configuration(epochs=4, head_epochs=2, batch_size=8, minimum_steps=3, early_stopping_patience=50, dropout=0.0)
HEAD_ONLY = BRIEF.with_options(fine_tuning_depth=0)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(architectures, "build", small.build)


@pytest.fixture
def passes(monkeypatch):
    """The numbers of images of every pass that the backbone makes for features."""
    counts = []
    input_batches = transfer.pipeline.input_batches

    def counting(data, rows, batch_size):
        for batch in input_batches(data, rows, batch_size):
            counts.append(len(batch))
            yield batch

    # Validation and evaluation read through the same function; they are told apart by their caller.
    monkeypatch.setattr(transfer, "pipeline", type("Pipeline", (), {"input_batches": staticmethod(counting)}))
    return counts


@pytest.fixture
def go(tmp_path):
    reports = []

    def run(configuration=BRIEF, should_stop=lambda: None, data=None):
        return fit.train(
            data or make_data(),
            "ResNet50",
            configuration,
            weights=PRETRAINED,
            work_dir=tmp_path,
            report=reports.append,
            should_stop=should_stop,
        )

    run.reports = reports
    return run


def initial():
    return weights_of(small.build("", image_size=small.SIZE, classes=2, weights=PRETRAINED.path))


def changed(trained):
    before, after = initial(), weights_of(trained.model)
    return {name.split("/")[0] for name in after if not np.array_equal(after[name], before[name])}


# -- The head


def test_the_head_learns_from_features_that_are_computed_once(go, passes):
    trained = go(HEAD_ONLY)
    assert sum(passes) == 36 + 12
    assert [figures["stage"] for figures in trained.history] == ["head"] * 4
    assert changed(trained) == {"head"}


def test_the_head_on_its_features_is_the_whole_network(go):
    trained = go(HEAD_ONLY.with_options(epochs=1))
    validation = trained.evaluation.validation
    chosen = validation.probabilities[np.arange(12), validation.labels]
    assert -np.log(chosen).mean() == pytest.approx(trained.history[0]["val_loss"], rel=1e-5)


def test_the_head_learns_what_can_be_learned(go):
    trained = go(HEAD_ONLY.with_options(epochs=30, learning_rate=0.3))
    assert trained.evaluation.metrics["validation"]["auc"] > 0.9


def test_fine_tuning_follows_the_head_and_the_epochs_say_so(go):
    trained = go()
    assert [figures["stage"] for figures in trained.history] == ["head", "head", "fine-tuning", "fine-tuning"]
    assert [report.stage for report in go.reports if report.metrics] == ["head"] * 2 + ["fine-tuning"] * 2
    fractions = [report.fraction for report in go.reports]
    assert fractions == sorted(fractions)


def test_features_that_were_computed_before_an_interruption_are_used_again(go, passes):
    answers = iter([None, None, Stop.DRAIN])
    with pytest.raises(Paused) as paused:
        go(HEAD_ONLY, lambda: next(answers))
    assert paused.value.epoch == 0 and passes == [8, 8, 8]
    go(HEAD_ONLY)
    assert sum(passes) == 36 + 12


def test_how_many_features_are_computed_is_noted_meanwhile(go, passes, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "NOTE_SECONDS", 0.0)
    noted = []

    def should_stop():
        if (tmp_path / "features.json").exists():
            noted.append((sum(passes), json.loads((tmp_path / "features.json").read_text())["done"]))

    go(HEAD_ONLY, should_stop)
    assert noted[:6] == [(count, count) for count in (8, 16, 24, 32, 40, 48)]


def test_features_that_are_computed_again_are_reported_too(go, passes, tmp_path):
    with pytest.raises(Paused):
        go(HEAD_ONLY, lambda: Stop.DRAIN if any(report.metrics for report in go.reports) else None)
    (tmp_path / "features.npy").unlink()
    before, told = len(passes), len(go.reports)
    go(HEAD_ONLY, lambda: None)
    assert sum(passes[before:]) == 48
    again = [report for report in go.reports[told:] if not report.metrics and not report.message]
    assert sum(report.epoch == 2 for report in again) >= 6


def test_features_of_other_data_are_not_used(go, passes, tmp_path):
    with pytest.raises(Paused):
        go(HEAD_ONLY, lambda: Stop.DRAIN)
    data = make_data()
    object.__setattr__(data, "digest", "1" * 64)
    go(HEAD_ONLY, data=data)
    assert sum(passes) == 8 + 36 + 12


def test_features_are_computed_in_smaller_batches_when_memory_runs_out(go, passes):
    answers = iter([None, None])

    def should_stop():
        if next(answers, "end") == "end" and len(passes) == 3:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    go(HEAD_ONLY, should_stop)
    assert passes[:5] == [8, 8, 8, 4, 4] and sum(passes) == 48
    assert "Out of memory: predicting with batches of 4 images." in [report.message for report in go.reports]


def test_the_features_leave_the_disk_when_fine_tuning_begins(go, tmp_path):
    go()
    assert not list(tmp_path.glob("features*"))


def test_when_the_head_alone_was_best_the_network_is_as_it_was_then(go, monkeypatch):
    confidences = iter([0.6, 0.9, 0.7, 0.7])

    def predict(model, batches, between):
        truth = make_data().labels[make_data().indices("validation")]
        right = next(confidences)
        return np.where(np.eye(2)[truth] == 1, right, 1 - right)

    monkeypatch.setattr(fit, "predict", predict)
    trained = go()
    assert trained.best_epoch == 2
    assert changed(trained) == {"head"}


# -- Fine-tuning


def test_the_depth_says_how_much_of_the_backbone_is_tuned(go):
    # Three layers have weights: deep, normalization (which is never tuned) and hidden.
    assert changed(go(BRIEF.with_options(fine_tuning_depth=0.3))) <= {"head", "hidden"}
    assert changed(go(BRIEF.with_options(fine_tuning_depth=1.0, seed=1))) == {"head", "hidden", "deep"}


def deep_network(layers: int):
    x = inputs = keras.Input((4,))
    for number in range(layers):
        x = keras.layers.Dense(4, name=f"layer{number}")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


def test_each_fifth_of_the_layers_learns_more_slowly_than_the_one_above():
    network = deep_network(10)
    shares = transfer.tune(network, Configuration(layer_decay=0.5))
    by_layer = dict(zip([variable.path.split("/")[0] for variable in network.trainable_variables], shares, strict=True))
    expected = [0.5 ** (4 - number // 2) for number in range(10)]
    assert [by_layer[f"layer{number}"] for number in range(10)] == expected
    assert by_layer["head"] == 1.0


def test_what_lies_deeper_than_the_depth_does_not_learn():
    network = deep_network(10)
    transfer.tune(network, Configuration(fine_tuning_depth=0.4))
    assert [layer.name for layer in network.layers if layer.trainable_variables] == [
        "layer6", "layer7", "layer8", "layer9", "head",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_share_of_the_rate_is_a_share_of_the_step(name):
    variables = [keras.Variable(np.zeros(1, np.float32), name=f"kernel{number}") for number in range(3)]
    optimizer = optimizers.create(Configuration(optimizer=name), 0.1, [1.0, 0.5, 0.0])
    optimizer.apply([tf.ones(1)] * 3, variables)
    steps = [float(np.asarray(variable)[0]) for variable in variables]
    assert steps[0] < 0 and steps[1] == pytest.approx(steps[0] / 2) and steps[2] == 0


def decayed(optimizer: str, name: str, shape: tuple[int, ...], shares=None) -> list[float]:
    """What is left of ones after two steps without a gradient."""
    variables = [keras.Variable(np.ones(shape, np.float32), name=name) for _ in shares or [1.0]]
    created = optimizers.create(Configuration(optimizer=optimizer, weight_decay=0.2), 0.1, shares)
    for _ in range(2):
        created.apply([tf.zeros(shape)] * len(variables), variables)
    return [float(np.asarray(variable).flat[0]) for variable in variables]


def test_a_share_of_the_rate_is_a_share_of_the_weight_decay():
    assert decayed("adamw", "kernel", (1, 1), [1.0, 0.5]) == pytest.approx([0.98**2, 0.99**2])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_only_adamw_has_weight_decay(name):
    assert decayed(name, "kernel", (1, 1)) == [1.0]


@pytest.mark.parametrize(("name", "shape"), [("bias", (1,)), ("gamma", (1, 1)), ("kernel", (3,))])
def test_biases_and_scales_do_not_decay_whatever_they_are_called(name, shape):
    assert decayed("adamw", name, shape) == [1.0]
