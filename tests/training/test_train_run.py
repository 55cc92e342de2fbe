"""The training process: what it reports, when it stops, how it hands its run back. Without TensorFlow."""

import errno
import signal
import sys
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.db import DatabaseError, OperationalError
from django.db.models import QuerySet
from django.utils import timezone

import training.ml
from datasets.cache import CacheError
from registry.artifacts import ArtifactError
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


@pytest.fixture(autouse=True)
def one_connection(monkeypatch):
    """The test's own transaction lives on the connection that a silent database would have closed."""
    monkeypatch.setattr(train_run, "close_old_connections", lambda: None)


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


def test_a_log_on_a_full_disk_ends_no_training(run):
    with Path("/dev/full").open("w", buffering=1) as full:
        with pytest.raises(OSError, match="No space left"):
            full.write("a line\n")
        Reporter(run, lambda line: full.write(line + "\n"))(progress(2, metrics=FIGURES))
        assert fresh(run).epoch == 2
        with suppress(OSError):
            full.close()


def test_a_batch_size_that_the_training_does_not_know_yet_replaces_none(run, report):
    """What it says before it has found its checkpoint."""
    run.write(batch_size=8)
    report(progress(1, message="A checkpoint is damaged.", batch_size=0))
    assert fresh(run).batch_size == 8


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
    """Here the handler is called as a signal would; real signals are sent in the journeys."""
    stop = StopCheck(run)
    assert stop() is None
    stop.terminate(signal.SIGTERM, None)
    assert stop() is Stop.DRAIN


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


@pytest.mark.parametrize("error", [OperationalError, DatabaseError])
def test_a_training_without_the_database_stops_at_a_checkpoint_before_its_lease_is_used_twice(run, monkeypatch, error):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(train_run, "time", SimpleNamespace(monotonic=lambda: clock.now))
    stop = StopCheck(run)
    first, answers = QuerySet.first, [error, None, error, error, error]

    def answer(rows):
        failure = answers.pop(0)
        if failure:
            raise failure("no answer")
        return first(rows)

    monkeypatch.setattr(QuerySet, "first", answer)
    told = []
    for seconds in (60, 60, 60, 100, 11):
        clock.now += seconds
        told.append(stop.ask())
    assert told == [None, None, None, None, Stop.DRAIN]


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


FULL = OSError(errno.ENOSPC, "No space left on device", "/srv/models/x")
NO_MOUNT = FileNotFoundError(errno.ENOENT, "No such file or directory", "/srv/prepared/x")


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        caused(TrainingFailed("The best weights could not be saved.", "Free some disk space."), FULL),
        RuntimeError('I/O error: "No space left on device (os error 28)"'),
    ],
)
def test_a_full_disk_costs_no_attempt_and_the_run_says_what_it_waits_for(train, error):
    row = train(raises(error))
    assert (row.state, row.attempt) == ("queued", 1)
    assert row.message == "Waiting for disk space: The disk is full where models are kept."
    assert row.not_before > timezone.now() + timedelta(minutes=4)
    for _ in range(5):
        assert row.claim(1)
        row.end_attempt("The disk is full where models are kept.", counted=False, not_before=timezone.now())
    assert len(fresh(row).interruptions) == 1, "it is told once"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (caused(CacheError("The prepared data cannot be read."), NO_MOUNT), "The prepared data cannot be read."),
        (NO_MOUNT, "A file could not be read or written: No such file or directory."),
        (ArtifactError("changed", "The manifest was changed."), "The manifest was changed."),
    ],
)
def test_a_file_that_cannot_be_read_or_written_costs_one_attempt_and_some_time(train, error, reason):
    row = train(raises(error))
    assert (row.state, row.attempt, row.interruptions[0]["reason"]) == ("queued", 2, reason)
    assert row.not_before > timezone.now()


def test_prepared_images_that_are_others_fail_at_once(train):
    assert train(raises(CacheError("They are not those of the preparation."))).state == "failed"


@pytest.mark.parametrize("error", [ZeroDivisionError(), MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_an_error_that_nobody_expected_is_left_to_the_supervisor(run, train, error):
    with pytest.raises(type(error)):
        train(raises(error))
    assert fresh(run).state == "running"


@pytest.mark.parametrize(
    ("error", "method", "state"),
    [
        (Paused(3), "pause", "queued"),
        (Cancelled("Cancelled."), "end_cancelled", "cancelled"),
        (TrainingFailed("No.", ""), "fail", "failed"),
        (FULL, "end_attempt", "queued"),
    ],
)
def test_the_end_of_a_training_waits_for_a_database_that_does_not_answer(train, monkeypatch, error, method, state):
    monkeypatch.setattr(train_run, "RETRY_EVERY_SECONDS", 0.0)
    failures = [OperationalError("gone"), DatabaseError("still gone")]
    real = getattr(TrainingRun, method)

    def fail_first(run, *args, **options):
        if failures:
            raise failures.pop()
        return real(run, *args, **options)

    monkeypatch.setattr(TrainingRun, method, fail_first)
    assert train(raises(error)).state == state
    assert failures == []


def test_a_database_that_does_not_come_back_ends_the_process(run, train, monkeypatch):
    def fail(*args, **options):
        raise OperationalError("gone")

    monkeypatch.setattr(train_run, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(train_run, "RETRY_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(TrainingRun, "pause", fail)
    with pytest.raises(OperationalError):
        train(raises(Paused(3)))


def test_a_training_is_told_the_batch_that_fitted_and_where_its_search_compares(run, train):
    run.batch_size, run.epoch_limit = 4, 3
    given = {}

    def work(**options):
        given.update(options)
        raise Paused(3)

    train(work)
    assert (given["batch_size"], given["epoch_limit"], given["work_dir"]) == (4, 3, run.work_folder)


def test_a_request_to_cancel_is_heard_until_the_version_is_registered(run, train, monkeypatch):
    export = SimpleNamespace(save_version=lambda trained, data, folder, about_data: "0" * 64)
    monkeypatch.setitem(sys.modules, "training.ml.export", export)
    monkeypatch.setattr(train_run, "load", lambda folder, sha256: SimpleNamespace(manifest={}))

    def work(**options):
        TrainingRun.objects.update(cancel_requested=True)
        return SimpleNamespace(evaluation=SimpleNamespace(metrics={"test": {"warnings": []}}))

    row = train(work)
    assert (row.state, row.version) == ("cancelled", None)
