"""The training process: what it reports, when it stops, how it hands its run back. Without TensorFlow."""

import signal
import sys
import time
import uuid
from types import SimpleNamespace

import pytest
from django.db import OperationalError
from django.db.models import QuerySet

import training.ml
from training.management.commands import train_run
from training.management.commands.train_run import Reporter, StopCheck
from training.ml.control import Cancelled, Paused, Stop, TrainingFailed
from training.models import EpochMetric, TrainingRun
from xrayplatform.jobs import LeaseLost

FIGURES = {
    "loss": 0.4,
    "accuracy": 0.8,
    "auc": 0.9,
    "val_loss": 0.5,
    "val_auc": 0.85,
    "learning_rate": 1e-3,
    "seconds": 2.0,
}


@pytest.fixture
def run(world):
    world.run.metrics.all().delete()
    assert world.run.claim(1)
    return world.run


@pytest.fixture
def log():
    return []


@pytest.fixture
def report(run, log):
    return Reporter(run, log.append)


def progress(epoch=1, fraction=0.1, metrics=None, **fields):
    usual = {
        "phase": "training",
        "epochs": 5,
        "message": "",
        "batch_size": 16,
        "images_per_second": 80.0,
        "stage": "head",
    }
    return SimpleNamespace(epoch=epoch, fraction=fraction, metrics=metrics, **(usual | fields))


def fresh(run):
    return TrainingRun.objects.get(pk=run.pk)


# -- Reporting


def test_what_a_training_tells_is_on_its_row(run, report):
    report(progress(epoch=3, fraction=0.5))
    row = fresh(run)
    assert (row.phase, row.epoch, row.progress, row.message) == ("training", 2, 0.5, "Training, epoch 3 of 5")
    assert (row.batch_size, row.images_per_second) == (16, 80.0)
    assert row.progress_at is not None


def test_within_an_epoch_the_row_is_written_at_most_once_a_second(run, report, monkeypatch):
    report(progress(fraction=0.1))
    report(progress(fraction=0.2))
    assert fresh(run).progress == 0.1
    monkeypatch.setattr(train_run, "CHECK_EVERY_SECONDS", 0.0)
    report(progress(fraction=0.3))
    assert fresh(run).progress == 0.3


def test_every_finished_epoch_is_kept_with_what_learned_in_it_and_logged(run, report, log):
    report(progress(1, metrics=FIGURES))
    report(progress(2, metrics=FIGURES | {"val_auc": None}, stage="fine-tuning"))
    first, second = run.metrics.all()
    assert (first.stage, first.auc, first.val_auc) == ("head", 0.9, 0.85)
    assert (second.stage, second.val_auc) == ("fine-tuning", None)
    assert fresh(run).epoch == 2
    assert log[0].startswith("epoch 1 of 5: loss 0.4, accuracy 0.8, auc 0.9")


def test_epochs_beyond_the_checkpoint_from_which_a_run_goes_on_are_replaced(run, report):
    EpochMetric.objects.bulk_create(EpochMetric(run=run, epoch=epoch, loss=9) for epoch in (1, 2, 3))
    report(progress(2, metrics=FIGURES))
    assert list(run.metrics.values_list("epoch", "loss")) == [(1, 9.0), (2, 0.4)]


def test_what_a_silent_database_did_not_take_is_stored_later(run, report, monkeypatch):
    silent = [True]
    real = TrainingRun.write

    def write(run, **fields):
        if silent[0]:
            raise OperationalError("no answer")
        real(run, **fields)

    monkeypatch.setattr(TrainingRun, "write", write)
    report(progress(1, metrics=FIGURES))
    report(progress(2, metrics=FIGURES))
    assert not run.metrics.exists()
    silent[0] = False
    report(progress(3, metrics=FIGURES))
    assert list(run.metrics.values_list("epoch", flat=True)) == [1, 2, 3]


def test_a_training_whose_lease_is_gone_ends_with_its_next_word(run, report):
    TrainingRun.objects.update(lease_token=uuid.uuid4())
    with pytest.raises(LeaseLost):
        report(progress(1, metrics=FIGURES))
    assert not run.metrics.exists()


# -- Stopping


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({}, None),
        ({"cancel_requested": True}, Stop.CANCEL),
        ({"drain_requested": True}, Stop.DRAIN),
        ({"cancel_requested": True, "drain_requested": True}, Stop.CANCEL),
    ],
)
def test_a_training_sees_what_it_is_asked_to_do(run, asked, answer):
    stop = StopCheck(run)
    if asked:
        TrainingRun.objects.update(**asked)
    assert stop.ask() is answer


def test_the_database_is_asked_at_most_once_a_second(run, django_assert_num_queries):
    stop = StopCheck(run)
    with django_assert_num_queries(0):
        assert [stop() for _ in range(100)] == [None] * 100
    stop.asked_at -= 1
    with django_assert_num_queries(1):
        [stop() for _ in range(100)]


def test_a_sigterm_is_heard_at_once_and_means_a_checkpoint(run):
    stop = StopCheck(run)
    before = signal.signal(signal.SIGTERM, stop.terminate)
    try:
        signal.raise_signal(signal.SIGTERM)
        assert stop() is Stop.DRAIN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_somebody_who_cancels_goes_before_a_sigterm(run):
    stop = StopCheck(run)
    TrainingRun.objects.update(cancel_requested=True)
    stop.terminate(15, None)
    assert stop() is Stop.CANCEL


def test_a_training_that_was_taken_over_stops(run):
    stop = StopCheck(run)
    TrainingRun.objects.update(lease_token=uuid.uuid4())
    with pytest.raises(LeaseLost):
        stop.ask()


def test_a_silent_database_does_not_stop_a_training(run, monkeypatch):
    def fail(*args):
        raise OperationalError("no answer")

    stop = StopCheck(run)
    monkeypatch.setattr(QuerySet, "first", fail)
    assert stop.ask() is None
    assert time.monotonic() - stop.asked_at < 1


# -- How it ends


@pytest.fixture
def train(run, monkeypatch, log):
    """Runs the child's work with a training that does what the test says."""

    def use(training_does):
        def fit(data, architecture, configuration, **options):
            return training_does(**options)

        module = SimpleNamespace(train=fit)
        monkeypatch.setitem(sys.modules, "training.ml.fit", module)
        monkeypatch.setattr(training.ml, "fit", module, raising=False)
        monkeypatch.setattr(train_run, "_open", lambda run: None)
        monkeypatch.setattr(TrainingRun, "starting_weights", lambda run: None)
        train_run._train(run, log.append, StopCheck(run))
        return fresh(run)

    return use


def raises(error):
    def work(**options):
        raise error

    return work


def test_a_training_that_paused_waits_to_go_on(train):
    row = train(raises(Paused(3)))
    assert (row.state, row.attempt, row.message) == ("queued", 1, "Waiting to go on: Paused after epoch 3.")


def test_a_training_that_was_cancelled_has_ended(train):
    assert train(raises(Cancelled("The training was cancelled."))).state == "cancelled"


def test_a_training_that_cannot_go_on_has_failed_and_is_not_tried_again(train):
    row = train(raises(TrainingFailed("The loss is not a number.", "Use a smaller learning rate.")))
    assert (row.state, row.error, row.hint) == (
        "failed",
        "The loss is not a number.",
        "Use a smaller learning rate.",
    )


def test_a_training_is_told_the_batch_that_fitted_and_where_its_search_compares(run, train):
    run.batch_size, run.epoch_limit = 4, 3
    given = {}

    def work(**options):
        given.update(options)
        raise Paused(3)

    train(work)
    assert (given["batch_size"], given["epoch_limit"], given["work_dir"]) == (4, 3, run.work_folder)


def test_a_request_to_cancel_is_heard_until_the_version_is_registered(run, train, monkeypatch):
    export = SimpleNamespace(save_version=lambda trained, data, folder: "0" * 64)
    monkeypatch.setitem(sys.modules, "training.ml.export", export)
    monkeypatch.setattr(train_run, "load", lambda folder, sha256: SimpleNamespace(manifest={}))

    def work(**options):
        TrainingRun.objects.update(cancel_requested=True)

    row = train(work)
    assert (row.state, row.version) == ("cancelled", None)
