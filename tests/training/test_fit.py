"""One training, from prepared data to an evaluated network: what it reports, when it stops, what it hands over."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from datasets.cache import PreparedData
from tests.training import small
from tests.training.small import PRETRAINED, make_data
from training.configurations import PRESETS, Configuration
from training.hints import WHAT_TO_DO
from training.ml import architectures, callbacks, checkpoints, fit, schedules
from training.ml.areas import AreaUnderCurve
from training.ml.export import weights_of
from training.ml.fit import Cancelled, TrainingFailed, train
from training.ml.runtime import tf
from training.ml.stages import stages

BRIEF = Configuration(epochs=2, batch_size=8, minimum_steps=3, early_stopping_patience=50)


@pytest.fixture
def small_network(monkeypatch):
    """For what does not depend on the architecture."""
    monkeypatch.setattr(architectures, "build", small.build)


@pytest.fixture
def run(tmp_path, small_network):
    """train() of the small network with everything but what a test is about; reports are collected in `run.reports`."""

    def go(configuration=BRIEF, data=None, architecture="Custom_CNN", should_stop=lambda: False, weights=None):
        return train(
            data or make_data(),
            architecture,
            configuration,
            weights=weights,
            work_dir=tmp_path / "work",
            report=go.reports.append,
            should_stop=should_stop,
        )

    go.reports = []
    return go


@pytest.mark.slow
def test_custom_cnn_learns_from_a_few_dozen_images_in_a_quick_test(tmp_path):
    configuration = PRESETS["quick"].configuration.with_options(batch_size=16)
    data = make_data(120, 64)
    trained = train(
        data,
        "Custom_CNN",
        configuration,
        weights=None,
        work_dir=tmp_path,
        report=lambda progress: None,
        should_stop=lambda: False,
    )
    assert trained.evaluation.metrics["test"]["auc"] > 0.95
    assert trained.evaluation.metrics["test"]["warnings"] == []


def test_progress_goes_from_loading_over_training_to_evaluating_and_never_back(run):
    run()
    phases = list(dict.fromkeys(report.phase for report in run.reports))
    fractions = [report.fraction for report in run.reports]
    assert phases == ["loading", "training", "evaluating"]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] < 1


def test_each_epoch_ends_with_all_its_figures(run):
    trained = run()
    ended = [report for report in run.reports if report.metrics]
    assert [(report.epoch, report.epochs) for report in ended] == [(1, 2), (2, 2)]
    for report in ended:
        assert report.metrics.keys() == {
            "loss", "accuracy", "auc", "val_loss", "val_accuracy", "val_auc", "learning_rate", "seconds",
        }  # fmt: skip
        assert all(math.isfinite(value) for value in report.metrics.values())
    assert [figures["epoch"] for figures in trained.history] == [1, 2]


def test_progress_names_batch_size_speed_and_stage(run):
    run(BRIEF.with_options(epochs=1))
    last = run.reports[-1]
    assert (last.batch_size, last.stage) == (8, "")
    assert last.images_per_second > 0


def test_the_batch_size_is_not_told_before_it_is_known(run):
    run(BRIEF.with_options(epochs=1, mixed_precision=True))
    assert {report.batch_size for report in run.reports if report.message} == {0}
    assert {report.batch_size for report in run.reports if report.phase == "evaluating"} == {8}


def test_validation_is_reported_as_it_goes_on(run, monkeypatch):
    monkeypatch.setattr(callbacks.Report, "SECONDS", math.inf)
    run()
    training = [report for report in run.reports if report.phase == "training"]
    # In each epoch the 2 batches of validation images, and then its end.
    assert [bool(report.metrics) for report in training] == [False, False, True] * 2
    assert [report.epoch for report in training] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_area_under_the_curve_of_an_epoch_is_that_of_all_its_predictions(classes):
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, 200)
    scores = random.normal(size=(200, classes)) * 4 + 3 * np.eye(classes)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    area = AreaUnderCurve(classes)
    for part in np.array_split(np.arange(200), 7):
        area.update_state(np.eye(classes, dtype=np.float32)[labels[part]], probabilities[part].astype(np.float32))
    expected = roc_auc_score(labels, probabilities[:, 1] if classes == 2 else probabilities, multi_class="ovr")
    assert float(area.result()) == pytest.approx(expected, abs=2e-3)


def test_the_area_is_undefined_while_a_class_is_missing():
    area = AreaUnderCurve(2)
    area.update_state(np.array([[1.0, 0.0]], np.float32), np.array([[0.5, 0.5]], np.float32))
    assert math.isnan(float(area.result()))


def test_the_same_seed_trains_the_same_network(run):
    first, again, other = run(), run(), run(BRIEF.with_options(seed=1))
    assert first.history[0]["loss"] == pytest.approx(again.history[0]["loss"], rel=1e-4)
    assert first.history[0]["loss"] != pytest.approx(other.history[0]["loss"], rel=1e-4)


def test_cancelling_ends_the_training_at_the_next_step(run):
    answers = iter([False, False, True])
    with pytest.raises(Cancelled):
        run(should_stop=lambda: next(answers))
    assert [report for report in run.reports if report.metrics] == []


def test_cancelling_ends_the_evaluation_too(run):
    def during_evaluation():
        return run.reports[-1].phase == "evaluating"

    with pytest.raises(Cancelled):
        run(should_stop=during_evaluation)


def out_of_memory_at(call: int):
    """For `should_stop`: memory runs out when it is called for the so many-th time."""
    asked = 0

    def should_stop():
        nonlocal asked
        asked += 1
        if asked == call:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return False

    return should_stop


# An epoch has 5 steps, and 2 batches of validation images.
@pytest.mark.parametrize(("call", "what"), [(3, "going on"), (6, "predicting")])
def test_out_of_memory_halves_the_batch_and_goes_on_with_the_same_epoch(run, call, what):
    trained = run(should_stop=out_of_memory_at(call))
    (message,) = [report.message for report in run.reports if report.message]
    assert message == f"Out of memory: {what} with batches of 4 images."
    assert [figures["epoch"] for figures in trained.history] == [1, 2]


def test_after_lack_of_memory_an_epoch_shows_as_many_images_as_before(run, monkeypatch):
    seen = []
    monkeypatch.setattr(fit.pipeline, "training_batches", noting_positions(seen))
    run(should_stop=out_of_memory_at(3))
    # 3 steps of 8 images, then the other 16 of the epoch's 40 by fours, then whole epochs.
    assert seen == [(8, 0), (4, 24), (4, 40)]


def noting_positions(seen):
    def training_batches(*arguments, batch_size, position):
        seen.append((batch_size, position))
        return make_batches(*arguments, batch_size=batch_size, position=position)

    make_batches = fit.pipeline.training_batches
    return training_batches


def test_out_of_memory_with_single_images_fails_with_advice(run):
    def always():
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with pytest.raises(TrainingFailed, match="memory") as failure:
        run(should_stop=always)
    assert "smaller architecture" in failure.value.hint
    assert [report.message[-9:] for report in run.reports if report.message] == ["4 images.", "2 images.", "1 images."]


def test_the_weights_of_the_best_epoch_are_handed_over(run, monkeypatch):
    saved = {}

    def remember(store, epoch, variables):
        saved[epoch] = {name: np.asarray(variable).copy() for name, variable in variables.items()}
        return save(store, epoch, variables)

    save = checkpoints.Checkpoints.save_best
    monkeypatch.setattr(checkpoints.Checkpoints, "save_best", remember)
    answer_with(monkeypatch, [0.7, 0.9, 0.6])
    trained = run(BRIEF.with_options(epochs=3))
    assert trained.best_epoch == 2 and not trained.stopped_early
    handed = weights_of(trained.model)
    assert all(np.array_equal(handed[name], saved[2][name]) for name in handed)


def test_training_stops_early_when_validation_no_longer_improves(run, monkeypatch):
    answer_with(monkeypatch, [0.9, 0.8, 0.7, 0.6])
    trained = run(BRIEF.with_options(epochs=10, early_stopping_patience=2))
    assert len(trained.history) == 3
    assert trained.best_epoch == 1 and trained.stopped_early


def answer_with(monkeypatch, confidences):
    """Let validation see a network that gives the true class these probabilities, one an epoch."""
    remaining = iter(confidences)

    def predict(model, batches, between):
        right = next(remaining)
        truth = make_data().labels[make_data().indices("validation")]
        return np.where(np.eye(2)[truth] == 1, right, 1 - right)

    monkeypatch.setattr(fit, "predict", predict)


def test_a_plateau_of_the_validation_loss_halves_the_learning_rate(run, monkeypatch):
    answer_with(monkeypatch, [0.6] * 4)
    options = {"epochs": 4, "schedule": "plateau", "early_stopping_patience": 6, "learning_rate": 0.01}
    trained = run(BRIEF.with_options(**options))
    assert [figures["learning_rate"] for figures in trained.history] == pytest.approx([0.01, 0.01, 0.01, 0.005])


def test_the_cosine_schedule_warms_up_peaks_and_ends_at_zero():
    assert schedules.cosine(0.05, 0.1) == 0.5
    assert schedules.cosine(0.1, 0.1) == 1.0
    assert schedules.cosine(0.55, 0.1) == pytest.approx(0.5)
    assert schedules.cosine(1.0, 0.1) == pytest.approx(0)
    assert schedules.cosine(0.0, 0.0) == 1.0


def test_without_validation_images_the_training_loss_decides(run):
    trained = run(data=make_data(missing=("validation",)))
    assert trained.evaluation.threshold == 0.5
    assert "val_loss" not in trained.history[0]
    assert trained.evaluation.metrics["validation"]["warnings"] == ["There are no images to evaluate on."]


def test_a_class_without_training_images_is_named(run):
    data = make_data()
    data.labels[data.indices("train")] = 0
    with pytest.raises(TrainingFailed, match="class right") as failure:
        run(data=data)
    assert "prepare it again" in failure.value.hint


def test_a_loss_that_is_no_number_stops_with_advice():
    with pytest.raises(TrainingFailed, match="no longer a number") as failure:
        callbacks.StopOnNonFiniteLoss().on_train_batch_end(3, {"loss": math.nan})
    assert failure.value.hint == WHAT_TO_DO["not-a-number"]


def test_the_threshold_comes_from_validation_and_the_test_set_is_only_reported(run):
    data = make_data()
    trained = run(data=data)
    evaluation = trained.evaluation
    assert evaluation.metrics["validation"]["threshold"] == evaluation.metrics["test"]["threshold"]
    relabelled = make_data()
    relabelled.labels[relabelled.indices("test")] ^= 1
    assert run(data=relabelled).evaluation.threshold == pytest.approx(evaluation.threshold, abs=1e-3)


def test_several_classes_are_trained_without_a_threshold(run):
    data = make_data()
    three = PreparedData(
        **{**vars(data), "classes": ("0", "1", "2"), "labels": np.arange(60) % 3, "positive_class": ""}
    )
    trained = run(data=three)
    assert trained.evaluation.threshold is None
    assert trained.evaluation.test.probabilities.shape == (12, 3)


def test_from_scratch_everything_learns_at_once():
    (only,) = stages(Configuration(epochs=5), 0.01, pretrained=False)
    assert (only.first, only.last, only.frozen, only.rate) == (0, 5, False, 0.01)


def test_with_pretrained_weights_the_head_learns_first_and_then_everything_more_slowly():
    head, everything = stages(Configuration(epochs=5), 0.01, pretrained=True)
    assert (head.first, head.last, head.frozen, head.rate) == (0, 2, True, 0.01)
    assert (everything.first, everything.last, everything.frozen) == (2, 5, False)
    assert everything.rate == pytest.approx(0.001)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_trainings_with_pretrained_weights_have_exactly_their_epochs(epochs):
    planned = stages(Configuration(epochs=epochs), 0.01, pretrained=True)
    assert [stage.first for stage in planned[1:]] == [stage.last for stage in planned[:-1]]
    assert (planned[0].first, planned[-1].last) == (0, epochs)
    assert planned[0].frozen


def weights_before_and_after(run, monkeypatch, configuration):
    before, build = {}, architectures.build

    def remember(name, **options):
        model = build(name, **options)
        before.update(weights_of(model))
        return model

    monkeypatch.setattr(architectures, "build", remember)
    trained = run(configuration, architecture="ResNet50", weights=PRETRAINED)
    assert trained.initial_weights == "published"
    return before, weights_of(trained.model)


def test_the_pretrained_backbone_stays_as_it_is_while_the_head_learns(run, monkeypatch):
    before, after = weights_before_and_after(run, monkeypatch, BRIEF.with_options(epochs=1))
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed == {"head/kernel", "head/bias"}


def test_fine_tuning_leaves_pretrained_batch_normalisation_alone(run, monkeypatch):
    before, after = weights_before_and_after(run, monkeypatch, BRIEF.with_options(head_epochs=1))
    changed = {name.split("/")[0] for name in after if not np.array_equal(after[name], before[name])}
    assert changed == {"head", "hidden", "deep"}


def test_a_finished_training_says_how_it_came_about(run):
    trained = run(BRIEF.with_options(epochs=1, batch_size=None))
    own = architectures.ARCHITECTURES["Custom_CNN"]
    assert (trained.architecture_id, trained.initial_weights) == ("Custom_CNN", "scratch")
    assert trained.configuration.epochs == 1 and trained.configuration.minimum_steps == 3
    assert trained.configuration.batch_size == own.batch_size
    assert trained.configuration.learning_rate == own.learning_rate
    assert trained.seconds > 0
