"""A run and its process: created after checks, supervised to its end, cancelled, and explained when it dies."""

import os
import subprocess
import uuid
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from tests.factories import DatasetFactory, PreparationFactory, put_cache
from training import supervisor
from training.configurations import PRESETS
from training.models import NotPrepared, TrainingRun
from training.tasks import train
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError, LeaseLost
from xrayplatform.system import NotEnoughDisk, WorkerSign

QUICK = PRESETS["quick"].configuration
STUBBORN = "trap '' TERM; while :; do sleep 1; done"

# -- Creating


def create(dataset, by=None, configuration=QUICK):
    return TrainingRun.create(dataset, "Custom_CNN", configuration, by, preset="quick")


def test_a_run_keeps_its_options_and_who_started_it(world, alice):
    run = create(world.dataset, alice, QUICK.with_options(epochs=3, seed=4))
    run.refresh_from_db()
    assert (run.state, run.preparation, run.created_by, run.epochs) == ("queued", world.preparation, alice, 3)
    assert (run.configuration["epochs"], run.configuration["seed"]) == (3, 4)
    entry = AuditEntry.objects.get(action="run.start")
    assert (entry.actor, entry.after["architecture"]) == (alice, "Custom_CNN")


def test_a_dataset_without_a_preparation_is_refused(db):
    with pytest.raises(NotPrepared, match=r"Dataset not prepared: .* has no finished preparation") as refusal:
        create(DatasetFactory())
    assert "Prepare for Training" in refusal.value.hint
    assert not TrainingRun.objects.exists() and not AuditEntry.objects.exists()


@pytest.mark.parametrize("state", ["queued", "running", "failed", "cancelled"])
def test_a_preparation_that_has_not_succeeded_does_not_count(db, state):
    with pytest.raises(NotPrepared):
        create(PreparationFactory(state=state).dataset)


def test_a_preparation_whose_files_are_gone_does_not_count(world):
    (world.preparation.cache_folder / "cache.json").unlink()
    with pytest.raises(NotPrepared):
        create(world.dataset)


def test_the_newest_finished_preparation_is_used(world):
    newer = PreparationFactory(dataset=world.dataset)
    put_cache(newer)
    PreparationFactory(dataset=world.dataset, state="failed")
    assert create(world.dataset).preparation == newer


def test_not_enough_disk_is_refused_before_the_start(world, monkeypatch):
    def refuse(count):
        raise NotEnoughDisk(f"Not enough free disk: this needs {count} bytes.")

    monkeypatch.setattr("training.models.require_disk", refuse)
    with pytest.raises(JobError, match="Not enough free disk"):
        create(world.dataset)
    assert TrainingRun.objects.count() == 1


# -- The supervisor and its child


@pytest.fixture
def child(monkeypatch):
    """Runs a line of shell instead of the training process, with everything else as in life but faster."""
    for name, seconds in {
        "POLL_SECONDS": 0.02,
        "RENEW_EVERY_SECONDS": 0.05,
        "CANCEL_GRACE_SECONDS": 0.2,
        "TERMINATE_GRACE_SECONDS": 0.5,
    }.items():
        monkeypatch.setattr(supervisor, name, seconds)
    # The test's own transaction lives on the connection that this would close.
    monkeypatch.setattr(supervisor, "close_old_connections", lambda: None)
    started = []

    def use(script, kind=subprocess.Popen):
        def start(run, log):
            started.append(kind(["sh", "-c", script], stdout=log, stderr=subprocess.STDOUT, start_new_session=True))
            return started[-1]

        monkeypatch.setattr(supervisor, "_start", start)
        return started

    yield use
    for process in started:
        assert process.poll() is not None, "a child was left running"


@pytest.fixture
def run(world):
    return world.run


def trained(run):
    train(run.pk, 1)
    run.refresh_from_db()
    return run


def test_a_child_that_ends_without_a_reason_is_reported_with_its_status(run, child):
    child("echo something went wrong; exit 3")
    assert trained(run).state == "failed"
    assert run.error == "The training process ended with status 3 and gave no reason."
    assert "log" in run.hint
    assert run.log_tail() == "something went wrong\n"
    assert AuditEntry.objects.filter(action="trainingrun.failed").count() == 1


def test_a_child_that_claims_success_but_did_not_end_its_run_has_failed(run, child):
    child("exit 0")
    assert (trained(run).state, run.version) == ("failed", None)
    assert "status 0" in run.error


def test_a_killed_child_is_explained_by_memory(run, child):
    child("kill -9 $$")
    assert trained(run).state == "failed"
    assert "ran out of memory" in run.error
    assert "smaller batch size" in run.hint


def test_a_child_stopped_by_another_signal_names_it(run, child):
    child("kill -15 $$")
    assert "stopped by signal SIGTERM" in trained(run).error


def test_a_run_that_its_child_ended_is_left_as_the_child_left_it(run, child):
    """The child ends its run in the database and then exits, here at the moment its exit is noticed."""

    class EndsItsRun(subprocess.Popen):
        def poll(self):
            code = super().poll()
            owner = TrainingRun.objects.get(pk=run.pk)
            if code is not None and owner.is_active:
                owner.succeed("Version 1 of chest")
            return code

    child("exit 0", EndsItsRun)
    assert (trained(run).state, run.message, run.error) == ("succeeded", "Version 1 of chest", "")
    assert AuditEntry.objects.filter(object_type="trainingrun").count() == 1


def test_a_renewal_that_finds_the_run_ended_by_its_child_is_no_error(run, child, monkeypatch):
    def end_and_measure(pid):
        owner = TrainingRun.objects.get(pk=run.pk)
        if owner.is_active:
            owner.fail("Out of memory.", "Use a smaller batch size.")
        return 0

    monkeypatch.setattr(supervisor, "_memory", end_and_measure)
    child("sleep 0.1")
    assert (trained(run).state, run.error) == ("failed", "Out of memory.")


def test_the_lease_is_renewed_and_memory_and_signs_of_life_are_noted(run, child, monkeypatch):
    renewed = []
    real = TrainingRun.renew

    def renew(run, **fields):
        renewed.append(fields)
        real(run, **fields)

    monkeypatch.setattr(TrainingRun, "renew", renew)
    child("sleep 0.4; exit 1")
    trained(run)
    assert len(renewed) >= 3
    assert run.peak_memory > 0
    assert run.child_pid
    assert WorkerSign.objects.filter(cluster="train").exists()


def test_a_cancelled_child_that_does_not_stop_by_itself_is_stopped(run, child, alice):
    started = child("sleep 60")
    run.claim(1)
    TrainingRun.objects.get(pk=run.pk).request_cancel(alice)
    TrainingRun.objects.filter(pk=run.pk).update(state="queued")
    before = timezone.now()
    assert trained(run).state == "cancelled"
    assert (timezone.now() - before).total_seconds() < 5
    assert started[0].returncode == -15
    assert run.error == ""


def test_a_child_that_ignores_the_request_to_end_is_killed(run, child):
    started = child(STUBBORN)
    TrainingRun.objects.filter(pk=run.pk).update(cancel_requested=True)
    assert trained(run).state == "cancelled"
    assert started[0].returncode == -9


def test_a_child_that_stops_in_time_is_not_shot(run, child):
    started = child("sleep 0.1; exit 0")
    TrainingRun.objects.filter(pk=run.pk).update(cancel_requested=True)
    assert trained(run).state == "cancelled"
    assert started[0].returncode == 0


def test_when_the_lease_is_lost_the_child_is_stopped_and_nothing_is_written(run, child, monkeypatch):
    started = child("sleep 60")
    taken = uuid.uuid4()

    def take_away(pid):
        TrainingRun.objects.filter(pk=run.pk).update(lease_token=taken, message="mine now")
        return 0

    monkeypatch.setattr(supervisor, "_memory", take_away)
    with pytest.raises(LeaseLost):
        train(run.pk, 1)
    run.refresh_from_db()
    assert (run.state, run.lease_token, run.message) == ("running", taken, "mine now")
    assert started[0].returncode == -15


def test_a_child_started_after_the_lease_was_lost_is_stopped_at_once(run, child, monkeypatch):
    started = child("sleep 60")
    start = supervisor._start

    def start_late(run, log):
        TrainingRun.objects.filter(pk=run.pk).update(lease_token=uuid.uuid4())
        return start(run, log)

    monkeypatch.setattr(supervisor, "_start", start_late)
    with pytest.raises(LeaseLost):
        train(run.pk, 1)
    assert started[0].returncode == -15


def test_a_supervisor_that_fails_takes_its_child_with_it(run, child, monkeypatch):
    started = child("sleep 60")

    def fail(run):
        raise RuntimeError("the database is gone")

    monkeypatch.setattr(supervisor, "_cancel_requested", fail)
    monkeypatch.setattr(supervisor, "RENEW_EVERY_SECONDS", 1000)
    with pytest.raises(RuntimeError):
        train(run.pk, 1)
    run.refresh_from_db()
    assert (run.state, run.error) == ("failed", "The job stopped on an unexpected error.")
    assert started[0].returncode == -15


def test_a_run_that_is_not_waiting_starts_no_child(run, child):
    started = child("exit 0")
    TrainingRun.objects.filter(pk=run.pk).update(state="cancelled")
    train(run.pk, 1)
    assert started == []


def test_the_child_is_told_the_lease_and_not_that_it_is_a_queue_worker(run, monkeypatch, tmp_path):
    given = {}

    def remember(command, **options):
        given.update(options, command=command)
        return SimpleNamespace(pid=1)

    monkeypatch.setenv("Q_CLUSTER_NAME", "train")
    monkeypatch.setattr(supervisor.subprocess, "Popen", remember)
    run.claim(1)
    supervisor._start(run, 1)
    assert given["command"][-2:] == ["train_run", str(run.pk)]
    assert given["env"][supervisor.TOKEN_VARIABLE] == str(run.lease_token)
    assert "Q_CLUSTER_NAME" not in given["env"]
    assert given["start_new_session"]


# -- The child's own entrance


@pytest.fixture
def as_child(monkeypatch):
    """Call the child's command without binding the life of the test process to its parent's."""
    monkeypatch.setattr("training.management.commands.train_run.die_with_parent", lambda parent: None)
    monkeypatch.delenv(supervisor.TOKEN_VARIABLE, raising=False)
    return monkeypatch


def test_a_child_that_nobody_claimed_for_refuses_to_train(run, as_child):
    with pytest.raises(CommandError, match="is not claimed"):
        call_command("train_run", run.pk)
    run.claim(1)
    with pytest.raises(CommandError, match="is not claimed"):
        call_command("train_run", run.pk)
    as_child.setenv(supervisor.TOKEN_VARIABLE, str(uuid.uuid4()))
    with pytest.raises(CommandError, match="is not claimed"):
        call_command("train_run", run.pk)
    assert TrainingRun.objects.get(pk=run.pk).message == ""


def test_a_process_whose_supervisor_is_gone_already_ends_itself(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(prctl=lambda *args: 0))
    with pytest.raises(SystemExit, match="supervisor of this training is gone"):
        supervisor.die_with_parent(os.getppid() + 1)
