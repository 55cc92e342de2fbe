"""A run and its process: created after checks, supervised to its end, cancelled, and tried again when it dies."""

import shutil
import subprocess
import uuid
from datetime import UTC, datetime, timedelta
from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, OperationalError
from django.urls import reverse
from django.utils import timezone

from tests.factories import DatasetFactory, PreparationFactory, TrainingRunFactory, put_cache
from training import supervisor
from training.configurations import PRESETS
from training.models import NotPrepared, TrainingRun
from training.tasks import train_next
from xrayplatform import system
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError, LeaseLost
from xrayplatform.system import GIB, NotEnoughDisk, WorkerSign
from xrayplatform.tasks import every_minute

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
    assert (entry.after["preset"], entry.after["search"], entry.after["priority"]) == ("quick", None, "Normal")


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

    monkeypatch.setattr("training.models.run.require_disk", refuse)
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
        "DRAIN_GRACE_SECONDS": 2,
        "LOST_GRACE_SECONDS": 0.5,
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
    """One attempt, without the wait before it."""
    TrainingRun.objects.update(not_before=None)
    train_next()
    run.refresh_from_db()
    return run


def reasons(run):
    return [item["reason"] for item in run.interruptions]


def entries(run, action):
    return AuditEntry.objects.filter(object_type="trainingrun", object_id=str(run.pk), action=f"trainingrun.{action}")


def test_a_run_whose_child_dies_waits_for_its_next_attempt(run, child):
    child("echo something went wrong; exit 3")
    assert trained(run).state == "queued"
    assert (run.attempt, run.error, run.child_pid) == (2, "", None)
    assert reasons(run) == ["The training process ended with status 3 and gave no reason."]
    assert run.message == "Waiting to go on: The training process ended with status 3 and gave no reason."
    assert run.log_tail() == "something went wrong\n"
    assert entries(run, "requeued").get().after == {"reason": reasons(run)[0], "attempt": 2}


def test_after_the_third_attempt_a_run_has_failed_with_every_reason(run, child):
    for script in ("exit 3", "kill -15 $$", "kill -9 $$"):
        child(script)
        trained(run)
    assert (run.state, run.attempt) == ("failed", 3)
    assert run.error == (
        "The training was interrupted 3 times and is not tried again: "
        "(1) The training process ended with status 3 and gave no reason. "
        "(2) The training process was stopped by signal SIGTERM. (3) The training process was killed."
    )
    assert "memory" in run.hint
    assert [item["attempt"] for item in run.interruptions] == [1, 2, 3]
    assert (entries(run, "requeued").count(), entries(run, "failed").count()) == (2, 1)


def test_a_child_that_claims_success_but_did_not_end_its_run_is_no_success(run, child):
    child("exit 0")
    assert (trained(run).state, run.version) == ("queued", None)
    assert "status 0" in reasons(run)[0]


@pytest.mark.parametrize(
    ("end", "kept"), [("end_attempt", True), ("fail", True), ("end_cancelled", False), ("succeed", False)]
)
def test_the_checkpoints_stay_unless_the_run_has_come_to_its_end(run, end, kept, django_capture_on_commit_callbacks):
    leave_checkpoint(run)
    run.claim(1)
    with django_capture_on_commit_callbacks(execute=True):
        getattr(run, end)(*["It died."] * (end in ("end_attempt", "fail")))
    assert run.has_checkpoint == kept


def leave_checkpoint(run):
    run.work_folder.mkdir(parents=True, exist_ok=True)
    (run.work_folder / "checkpoint-7.json").write_text("{}")


def test_between_attempts_a_run_waits_longer_each_time(run, child, monkeypatch):
    monkeypatch.setattr(TrainingRun, "max_attempts", 5)
    child("exit 1")
    waits = []
    for _ in range(4):
        trained(run)
        waits.append(round((run.not_before - timezone.now()).total_seconds()))
        assert not TrainingRun.objects.startable().exists()
    assert waits == pytest.approx([10, 60, 300, 300], abs=2)
    TrainingRun.objects.update(not_before=timezone.now())
    assert TrainingRun.objects.startable().exists()


def test_a_worker_waits_for_a_run_that_is_tried_again_in_a_moment_and_for_no_other(run, child, monkeypatch):
    started = child("exit 1")
    monkeypatch.setattr("training.tasks.POLL_SECONDS", 0.05)
    TrainingRun.objects.update(not_before=timezone.now() + timedelta(seconds=16))
    train_next()
    assert started == []
    TrainingRun.objects.update(not_before=timezone.now() + timedelta(seconds=0.3))
    train_next()
    assert len(started) == 1


def test_an_attempt_that_got_further_than_those_before_is_not_counted(run, child):
    child("exit 1")
    for epoch, attempt in ((2, 1), (5, 1), (5, 2), (4, 3), (6, 3)):
        TrainingRun.objects.filter(pk=run.pk).update(epoch=epoch)
        trained(run)
        assert (run.state, run.attempt) == ("queued", attempt)
    trained(run)
    assert run.state == "failed"
    assert run.error.startswith("The training was interrupted 6 times")


def test_a_training_that_dies_again_and_again_ends_however_far_it_gets(run, child):
    child("exit 1")
    for epoch in range(1, 11):
        TrainingRun.objects.filter(pk=run.pk).update(epoch=epoch)
        assert trained(run).state == ("failed" if epoch == 10 else "queued")


# -- Going on after a failure


@pytest.fixture
def failed(run):
    """Failed after three attempts; its checkpoint is there."""
    leave_checkpoint(run)
    for attempt in (1, 2, 3):
        run.claim(attempt)
        run.end_attempt("It died.", "Look.")
    return TrainingRun.objects.get(pk=run.pk)


def test_a_failed_run_goes_on_with_fresh_attempts(failed, alice, child):
    failed.resume(alice)
    assert (failed.state, failed.attempt, failed.error, failed.finished_at) == ("queued", 1, "", None)
    assert entries(failed, "resume").get().actor == alice
    child("exit 1")
    assert [trained(failed).state for _ in range(3)] == ["queued", "queued", "failed"]
    assert failed.error.startswith("The training was interrupted 3 times")


def test_only_a_failed_run_whose_checkpoint_is_there_goes_on(failed, alice):
    shutil.rmtree(failed.work_folder)
    with pytest.raises(JobError, match="cannot go on"):
        failed.resume(alice)
    leave_checkpoint(failed)
    TrainingRun.objects.update(state="cancelled")
    with pytest.raises(JobError, match="has not failed any more"):
        failed.resume(alice)
    failed.refresh_from_db()
    with pytest.raises(JobError, match="cannot go on"):
        failed.resume(alice)
    assert not entries(failed, "resume").exists()


def test_a_failed_run_goes_on_from_its_page_and_over_the_api(failed, alice, client):
    client.force_login(alice)
    button = "Go on from the last checkpoint"
    assert button in client.get(failed.get_absolute_url()).content.decode()
    assert client.post(reverse("training:run-resume", args=[failed.pk])).url == failed.get_absolute_url()
    assert TrainingRun.objects.get(pk=failed.pk).state == "queued"
    assert button not in client.get(failed.get_absolute_url()).content.decode()
    assert client.post(reverse("api:run-resume", args=[failed.pk])).status_code == 409
    TrainingRun.objects.update(state="failed")
    assert client.post(reverse("api:run-resume", args=[failed.pk])).json()["state"] == "queued"


def test_a_failed_run_goes_on_from_the_command_line(failed):
    call_command("train", "--resume", str(failed.pk), stdout=StringIO())
    assert TrainingRun.objects.get(pk=failed.pk).state == "queued"
    with pytest.raises(SystemExit):
        call_command("train", "--resume", "4711", json=True, stdout=StringIO(), stderr=StringIO())
    with pytest.raises(CommandError, match="Name the dataset"):
        call_command("train")


# -- What is left on the disk


def test_what_ended_runs_left_is_swept_and_what_may_be_needed_stays(run, preparation_runs):
    now = timezone.now()
    for state, days in (("queued", 99), ("running", 99), ("failed", 6), ("failed", 8), ("succeeded", 91)):
        preparation_runs(state, now - timedelta(days=days))
    TrainingRun.sweep()
    left = {
        (other.state, bool(days > 7)): [other.has_checkpoint, other.staging_folder.exists(), other.log_path.exists()]
        for other in TrainingRun.objects.exclude(pk=run.pk)
        for days in [(now - other.finished_at).days]
    }
    assert left == {
        ("queued", True): [True, True, True],
        ("running", True): [True, True, True],
        ("failed", False): [True, False, True],
        ("failed", True): [False, False, True],
        ("succeeded", True): [False, False, False],
    }
    assert run.staging_folder.with_name("upload-3").exists(), "it is somebody else's"


@pytest.fixture
def preparation_runs(run):
    def make(state, finished_at):
        other = TrainingRunFactory(preparation=run.preparation, state=state, finished_at=finished_at)
        leave_checkpoint(other)
        other.staging_folder.mkdir(parents=True)
        other.staging_folder.with_name("upload-3").mkdir(exist_ok=True)
        other.log_path.parent.mkdir(parents=True, exist_ok=True)
        other.log_path.touch()

    return make


def test_files_are_swept_once_an_hour(db, monkeypatch):
    swept = []
    monkeypatch.setattr(TrainingRun, "sweep", lambda: swept.append(1))
    for minute in (59, 0, 1):
        monkeypatch.setattr(timezone, "now", lambda: datetime(2026, 11, 25, 14, minute, tzinfo=UTC))  # noqa: B023
        every_minute()
    assert swept == [1]


def test_only_the_end_of_a_long_log_is_read(run):
    run.log_path.parent.mkdir(parents=True)
    run.log_path.write_bytes(b"first\n" + b"x" * 10_000_000 + "\nlast wörd\n".encode())
    assert run.log_tail(1) == "last wörd\n"
    assert len(run.log_tail(5)) <= 64 * 1024


def test_a_run_waits_while_there_is_too_little_disk_and_says_so(run, monkeypatch):
    asked = []

    def refuse(count):
        asked.append(count)
        raise NotEnoughDisk("Not enough free disk.")

    monkeypatch.setattr("training.models.run.require_disk", refuse)
    assert TrainingRun.claim_next() is None
    run.refresh_from_db()
    assert (run.state, run.message) == ("queued", "Waiting for disk space: Not enough free disk.")
    assert not TrainingRun.objects.startable().exists()
    # What its checkpoints take already is not needed once more.
    leave_checkpoint(run)
    assert run.waits_for_disk() and asked[1] == asked[0] - 2
    monkeypatch.setattr("training.models.run.require_disk", lambda count: None)
    TrainingRun.objects.update(not_before=timezone.now())
    assert TrainingRun.claim_next() == run


def test_a_log_that_cannot_be_opened_costs_no_training(run, child):
    run.log_path.mkdir(parents=True)
    child("exit 3")
    assert "status 3" in reasons(trained(run))[0]


# -- Out of memory


@pytest.fixture
def memory_counter(monkeypatch, tmp_path):
    """What the kernel tells: `memory_counter(n)` processes were killed so far."""
    file = tmp_path / "vmstat"
    monkeypatch.setattr(system, "OOM_COUNTERS", (file,))
    monkeypatch.setattr(system, "_own_group", lambda name: [])

    def tell(kills):
        file.write_text(f"pgfault 12\noom_kill {kills}\n")
        return file

    tell(0)
    return tell


def test_a_child_that_the_kernel_killed_for_memory_goes_on_with_half_the_batch(run, child, memory_counter):
    TrainingRun.objects.filter(pk=run.pk).update(batch_size=32)
    file = memory_counter(4)
    child(f"echo oom_kill 5 > {file}; kill -9 $$")
    assert trained(run).state == "queued"
    assert (run.batch_size, run.attempt) == (16, 1), "it is not one of the attempts"
    assert reasons(run) == [
        "The machine ran out of memory with batches of 32 images. Going on with batches of 16 images."
    ]


def test_a_child_whose_memory_was_nearly_all_of_the_machine_was_killed_for_it(run, child, memory_counter, monkeypatch):
    monkeypatch.setattr(system, "memory_limit", lambda: 10 * GIB)
    TrainingRun.objects.filter(pk=run.pk).update(peak_memory=int(9.5 * GIB))
    child("kill -9 $$")
    trained(run)
    assert run.batch_size == run.configuration["batch_size"] or run.batch_size == 16
    assert "Going on with batches of" in reasons(run)[0]


def test_a_batch_of_one_image_cannot_be_halved_and_ends_after_three_attempts(run, child, memory_counter):
    TrainingRun.objects.filter(pk=run.pk).update(batch_size=1)
    for kills in (1, 2, 3):
        child(f"echo oom_kill {kills} > {memory_counter(kills - 1)}; kill -9 $$")
        trained(run)
    assert (run.state, run.batch_size) == ("failed", 1)
    assert "(3) The machine ran out of memory with batches of 1 image." in run.error
    assert "smaller architecture" in run.hint


@pytest.mark.parametrize(
    "script",
    [
        "echo \"terminate called after throwing an instance of 'std::bad_alloc'\"; kill -6 $$",
        "echo Traceback; echo 'numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8 GiB'; exit 1",
        "echo 'OSError: [Errno 12] Cannot allocate memory'; exit 1",
    ],
)
def test_a_child_that_asked_for_memory_in_vain_goes_on_with_half_the_batch(run, child, memory_counter, script):
    TrainingRun.objects.filter(pk=run.pk).update(batch_size=32)
    child(script)
    trained(run)
    assert (run.batch_size, run.attempt) == (16, 1)


def test_lack_of_memory_in_an_earlier_attempt_explains_no_later_one(run, child, memory_counter):
    run.log_path.parent.mkdir(parents=True)
    run.log_path.write_text("std::bad_alloc\n")
    TrainingRun.objects.filter(pk=run.pk).update(batch_size=32)
    child("kill -6 $$")
    assert (trained(run).batch_size, run.attempt) == (32, 2)


def test_a_killed_child_of_a_machine_with_memory_to_spare_keeps_its_batch(run, child, memory_counter):
    TrainingRun.objects.filter(pk=run.pk).update(batch_size=32)
    child("kill -9 $$")
    trained(run)
    assert (run.batch_size, reasons(run)) == (32, ["The training process was killed."])


# -- No progress


def test_a_child_that_makes_no_progress_is_ended_and_the_run_goes_on(run, child, settings):
    settings.TRAINING_STALL_MINUTES = 0.3 / 60
    started = child(STUBBORN)
    assert trained(run).state == "queued"
    assert started[0].returncode == -9
    assert reasons(run) == ["There was no progress for 0.005 minutes; the training process was ended."]
    assert run.attempt == 2


def test_a_child_that_moves_on_is_not_taken_for_stuck(run, child, settings, monkeypatch):
    settings.TRAINING_STALL_MINUTES = 0.3 / 60

    def move_on(pid):
        TrainingRun.objects.filter(pk=run.pk).update(progress_at=timezone.now())
        return 0

    monkeypatch.setattr(supervisor, "memory_of", move_on)
    child("sleep 1; exit 7")
    assert "status 7" in reasons(trained(run))[0]


# -- The worker stops


def test_when_the_worker_is_to_stop_the_child_is_asked_for_a_checkpoint(run, child, monkeypatch, tmp_path):
    """The child hands its run back, as `train_run` does after it has written a checkpoint."""
    asked = tmp_path / "asked"
    monkeypatch.setattr(supervisor, "is_stopping", lambda: True)

    class HandsBack(subprocess.Popen):
        def poll(self):
            code = super().poll()
            owner = TrainingRun.objects.get(pk=run.pk)
            if code is not None and owner.state == "running":
                owner.pause(2)
            return code

    started = child(f"trap 'touch {asked}; exit 0' TERM; while :; do sleep 0.05; done", HandsBack)
    assert trained(run).state == "queued"
    assert asked.exists() and started[0].returncode == 0
    assert (run.attempt, reasons(run)) == (1, ["Paused after epoch 2."])


def test_a_child_that_reaches_no_checkpoint_in_time_is_ended_and_that_is_not_its_fault(run, child, monkeypatch):
    monkeypatch.setattr(supervisor, "is_stopping", lambda: True)
    monkeypatch.setattr(supervisor, "DRAIN_GRACE_SECONDS", 0.2)
    started = child(STUBBORN)
    assert (trained(run).state, run.attempt) == ("queued", 1)
    assert started[0].returncode == -9
    assert reasons(run) == ["The training worker was stopped or restarted."]
    assert entries(run, "requeued").get().outcome == "success"


def test_a_worker_that_is_to_stop_begins_no_training(run, child, monkeypatch):
    monkeypatch.setattr("training.tasks.is_stopping", lambda: True)
    started = child("exit 0")
    assert trained(run).state == "queued"
    assert started == []


# -- What the child did counts


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
    assert entries(run, "succeeded").count() == 1
    assert AuditEntry.objects.filter(object_type="trainingrun").count() == 1


def test_a_renewal_that_finds_the_run_ended_by_its_child_is_no_error(run, child, monkeypatch):
    def end_and_measure(pid):
        owner = TrainingRun.objects.get(pk=run.pk)
        if owner.is_active:
            owner.fail("Out of memory.", "Use a smaller batch size.")
        return 0

    monkeypatch.setattr(supervisor, "memory_of", end_and_measure)
    child("sleep 0.1")
    assert (trained(run).state, run.error) == ("failed", "Out of memory.")


def test_the_lease_is_renewed_and_memory_and_signs_of_life_are_noted(run, child, monkeypatch):
    renewed = []
    real = TrainingRun.renew

    def renew(run, **fields):
        renewed.append(TrainingRun.objects.get(pk=run.pk).child_pid)
        real(run, **fields)

    monkeypatch.setattr(TrainingRun, "renew", renew)
    started = child("sleep 0.4; exit 1")
    trained(run)
    assert len(renewed) >= 3
    assert set(renewed) == {started[0].pid}
    assert run.peak_memory > 0
    assert WorkerSign.objects.filter(cluster="train").exists()


def test_the_page_that_follows_a_run_ends_it_when_nobody_is_left_to_do_so(run, client, alice):
    run.claim(1)
    assert TrainingRun.objects.get(pk=run.pk).request_cancel(alice)
    TrainingRun.objects.update(heartbeat_at=timezone.now() - timedelta(seconds=21))
    client.force_login(alice)
    assert client.get(reverse("training:run-status", args=[run.pk]))["HX-Refresh"] == "true"
    run.refresh_from_db()
    assert run.state == "cancelled"


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

    monkeypatch.setattr(supervisor, "memory_of", take_away)
    with pytest.raises(LeaseLost):
        train_next()
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
        train_next()
    assert started[0].returncode == -15


def test_a_supervisor_that_fails_takes_its_child_with_it_and_the_run_goes_on(run, child, monkeypatch):
    started = child("sleep 60")

    def fail(pid):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(supervisor, "memory_of", fail)
    with pytest.raises(RuntimeError):
        train_next()
    run.refresh_from_db()
    assert (run.state, reasons(run)) == ("queued", ["The job stopped on an unexpected error."])
    assert started[0].returncode == -15


def test_a_database_that_does_not_answer_for_a_while_costs_no_training(run, child, monkeypatch):
    answers = iter([OperationalError("gone"), DatabaseError("still gone")])
    real = TrainingRun.renew

    def renew(run, **fields):
        for error in answers:
            raise error
        real(run, **fields)

    monkeypatch.setattr(TrainingRun, "renew", renew)
    child("sleep 0.3; exit 5")
    assert "status 5" in reasons(trained(run))[0]


def test_a_run_that_is_not_waiting_starts_no_child(run, child):
    started = child("exit 0")
    TrainingRun.objects.filter(pk=run.pk).update(state="cancelled")
    train_next()
    assert started == []


def test_the_child_is_told_the_lease_and_not_that_it_is_a_queue_worker(run, monkeypatch, tmp_path):
    given = {}

    def remember(command, **options):
        given.update(options, command=command)
        return SimpleNamespace(pid=1)

    monkeypatch.setenv("Q_CLUSTER_NAME", "train")
    monkeypatch.setenv("QUEUE_LIFELINE", "7")
    monkeypatch.setattr(supervisor.subprocess, "Popen", remember)
    run.claim(1)
    supervisor._start(run, 1)
    assert given["command"][-2:] == ["train_run", str(run.pk)]
    assert given["env"][supervisor.LEASE_VARIABLE] == str(run.lease_token)
    assert not {"Q_CLUSTER_NAME", "QUEUE_LIFELINE"} & set(given["env"])
    assert given["start_new_session"]


# -- The child's own entrance


@pytest.fixture
def as_child(monkeypatch):
    """Call the child's command without binding the life of the test process to its parent's."""
    monkeypatch.setattr("training.management.commands.train_run.die_with_parent", lambda parent: None)
    monkeypatch.delenv(supervisor.LEASE_VARIABLE, raising=False)
    return monkeypatch


def test_a_child_that_nobody_claimed_for_refuses_to_train(run, as_child):
    with pytest.raises(CommandError, match="is not claimed"):
        call_command("train_run", run.pk)
    run.claim(1)
    with pytest.raises(CommandError, match="is not claimed"):
        call_command("train_run", run.pk)
    as_child.setenv(supervisor.LEASE_VARIABLE, str(uuid.uuid4()))
    with pytest.raises(CommandError, match="is not claimed"):
        call_command("train_run", run.pk)
    assert TrainingRun.objects.get(pk=run.pk).message == ""
