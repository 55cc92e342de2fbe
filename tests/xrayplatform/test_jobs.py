"""The life of a job: claimed once, fenced by its lease, cancelled, reaped, and ended exactly once."""

import os
import subprocess
import time
import uuid
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from django.db import connection, models
from django.utils import timezone
from django_q.models import OrmQ

from datasets.models import Scan
from tests.factories import DatasetFactory, PreparationFactory, ScanFactory, TrainingRunFactory, UploadFactory
from training.models import TrainingRun
from xrayplatform import audit, jobs
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobCancelled, JobError, LeaseLost
from xrayplatform.system import WorkerSign

pytestmark = pytest.mark.django_db


@pytest.fixture
def job():
    return ScanFactory()


@pytest.fixture
def claimed(job):
    assert job.claim(1)
    return job


def fresh(job):
    return type(job).objects.get(pk=job.pk)


def entries(job, action):
    return AuditEntry.objects.filter(action=action, object_type="scan", object_id=str(job.pk)).count()


def expire(job, **fields):
    past = timezone.now() - timedelta(seconds=1)
    Scan.objects.filter(pk=job.pk).update(**{"lease_until": past} | fields)


# -- Starting


def test_a_message_carries_numbers_only_and_goes_to_the_queue_of_the_job():
    job = ScanFactory()
    job.enqueue()
    message = OrmQ.objects.get()
    assert message.key == "xray"
    assert (message.task["func"], message.task["args"]) == ("datasets.tasks.scan", (job.pk, 1))


def test_exactly_one_of_several_claims_wins(job):
    copies = [fresh(job) for _ in range(5)]
    assert [copy.claim(1) for copy in copies] == [True, False, False, False, False]
    assert fresh(job).lease_token == copies[0].lease_token is not None


def test_a_claimed_job_tells_where_it_runs_and_until_when_it_is_leased(claimed):
    assert claimed.state == "running"
    assert claimed.host and claimed.pid
    assert timedelta(seconds=110) < claimed.lease_until - timezone.now() <= jobs.LEASE


def test_a_job_that_goes_on_keeps_the_time_of_its_first_start(claimed):
    began = timezone.now() - timedelta(hours=2)
    claimed.write(started_at=began)
    claimed.requeue("The worker died.")
    assert claimed.claim(2)
    assert claimed.started_at == began and claimed.seconds > 7000


def test_a_claim_for_an_earlier_attempt_is_refused(job):
    Scan.objects.filter(pk=job.pk).update(attempt=2)
    assert not job.claim(1)
    assert fresh(job).state == "queued"


@pytest.mark.parametrize("state", ["running", "succeeded", "failed", "cancelled"])
def test_only_a_waiting_job_can_be_claimed(state):
    assert not ScanFactory(state=state).claim(1)


def test_a_message_delivered_twice_does_the_work_once(job):
    done = []

    def work():
        done.append(1)
        job.succeed()

    assert job.run(1, work)
    assert not fresh(job).run(1, work)
    assert done == [1]
    assert entries(job, "scan.succeeded") == 1


# -- While it runs


def test_only_the_holder_of_the_lease_writes(claimed):
    other = fresh(claimed)
    other.lease_token = uuid.uuid4()
    with pytest.raises(LeaseLost):
        other.write(message="from a stranger")
    claimed.write(message="from the owner")
    assert fresh(claimed).message == "from the owner"


def test_a_job_that_has_ended_takes_no_more_writes(claimed):
    claimed.succeed("done")
    with pytest.raises(LeaseLost):
        claimed.write(message="late")
    assert fresh(claimed).message == "done"


def test_renewing_prolongs_the_lease(claimed):
    expire(claimed)
    claimed.renew(progress=0.5)
    row = fresh(claimed)
    assert row.lease_until > timezone.now() + timedelta(seconds=100)
    assert row.progress == 0.5


@pytest.mark.parametrize("in_worker", [True, False])
def test_a_worker_that_is_busy_with_one_job_gives_signs_of_life_by_it_and_a_command_does_not(
    claimed, monkeypatch, in_worker
):
    monkeypatch.setattr(jobs, "_signed", {})
    monkeypatch.setattr(jobs.multiprocessing, "parent_process", lambda: object() if in_worker else None)
    claimed.renew()
    assert WorkerSign.objects.filter(cluster="xray").exists() == in_worker


def test_signs_of_life_are_not_left_with_every_report(claimed, monkeypatch):
    left = []
    monkeypatch.setattr(jobs, "_signed", {})
    monkeypatch.setattr(jobs.multiprocessing, "parent_process", object)
    monkeypatch.setattr(WorkerSign, "leave", left.append)
    for _ in range(5):
        claimed.renew()
    assert left == ["xray"]


def test_progress_is_written_at_most_once_a_second(claimed, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    report = claimed.reporter()
    report(1, 4, "first")
    now[0] += 0.9
    report(2, 4, "too soon")
    assert (fresh(claimed).message, fresh(claimed).progress) == ("first", 0.25)
    now[0] += 0.2
    report(5, 4, "later")
    assert (fresh(claimed).message, fresh(claimed).progress) == ("later", 1.0)


def test_the_time_left_is_told_from_the_progress(claimed):
    claimed.write(progress=0.25, started_at=timezone.now() - timedelta(seconds=30))
    assert claimed.eta_seconds == pytest.approx(90, rel=0.05)
    claimed.write(progress=0.0)
    assert claimed.eta_seconds is None


# -- Cancelling


def test_a_waiting_job_is_cancelled_at_once(job, alice):
    assert job.request_cancel(alice)
    assert (job.state, job.message) == ("cancelled", "Cancelled before it started")
    assert job.finished_at is not None
    assert not fresh(job).claim(1)
    assert entries(job, "scan.cancel") == entries(job, "scan.cancelled") == 1


def test_a_running_job_is_asked_to_stop_and_stops_at_its_next_renewal(claimed, alice):
    assert fresh(claimed).request_cancel(alice)
    assert fresh(claimed).state == "running"
    with pytest.raises(JobCancelled):
        claimed.renew()


def test_a_job_that_notices_the_request_ends_as_cancelled(job, alice):
    def work():
        fresh(job).request_cancel(alice)
        job.renew()
        pytest.fail("went on after the request")

    job.run(1, work)
    assert (fresh(job).state, fresh(job).message) == ("cancelled", "Cancelled on request")
    assert entries(job, "scan.cancelled") == 1


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_job_that_has_ended_cannot_be_cancelled(state, alice):
    job = ScanFactory(state=state)
    assert not job.request_cancel(alice)
    assert fresh(job).state == state
    assert entries(job, "scan.cancel") == 0


# -- Ending


def test_a_success_is_written_with_its_audit_entry(claimed):
    claimed.succeed("12 images", after={"images": 12})
    row = fresh(claimed)
    assert (row.state, row.message, row.progress, row.lease_until) == ("succeeded", "12 images", 1.0, None)
    assert AuditEntry.objects.get(action="scan.succeeded").after == {"images": 12}


def test_an_end_whose_audit_entry_cannot_be_written_is_no_end(claimed, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no audit")

    monkeypatch.setattr(audit, "record", fail)
    with pytest.raises(RuntimeError):
        claimed.succeed()
    assert fresh(claimed).state == "running"


def test_an_expected_error_is_told_with_what_to_do(job):
    def work():
        raise JobError("The folder is not there.", "Mount it.")

    job.run(1, work)
    row = fresh(job)
    assert (row.state, row.error, row.hint) == ("failed", "The folder is not there.", "Mount it.")
    assert AuditEntry.objects.get(action="scan.failed").outcome == "failed"


def test_an_unexpected_error_fails_the_job_in_plain_words_and_reaches_the_log(job):
    def work():
        raise ZeroDivisionError("secret detail")

    with pytest.raises(ZeroDivisionError):
        job.run(1, work)
    row = fresh(job)
    assert (row.state, row.error) == ("failed", "The job stopped on an unexpected error.")
    assert "administrator" in row.hint
    assert "secret detail" not in row.error + row.hint


@pytest.mark.parametrize("first", ["succeed", "end_cancelled", "fail"])
@pytest.mark.parametrize("second", ["succeed", "end_cancelled", "fail"])
def test_a_job_ends_once(claimed, first, second):
    def end(name):
        getattr(claimed, name)(*(["reason"] if name == "fail" else []))

    end(first)
    before = fresh(claimed)
    with pytest.raises(LeaseLost):
        end(second)
    assert (fresh(claimed).state, fresh(claimed).finished_at) == (before.state, before.finished_at)
    assert AuditEntry.objects.filter(object_type="scan").count() == 1


# -- Dying


def test_a_job_whose_worker_died_is_ended_in_words(claimed):
    expire(claimed, heartbeat_at=timezone.now() - timedelta(seconds=300), host="node7", pid=4711)
    assert jobs.reap() == 1
    row = fresh(claimed)
    assert row.state == "failed"
    assert row.error == "The worker died: no sign of life for 300 seconds (host node7, process 4711)."
    assert "Start it again" in row.hint
    assert entries(claimed, "scan.failed") == 1


def test_every_kind_of_job_is_reaped():
    preparation = PreparationFactory(state="queued")
    run = TrainingRunFactory(preparation=PreparationFactory(dataset=DatasetFactory()))
    scan = ScanFactory()
    for job in (scan, preparation, run):
        assert job.claim(1)
        type(job).objects.filter(pk=job.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert jobs.reap() == 3
    assert [fresh(job).state for job in (scan, preparation, run)] == ["failed", "failed", "queued"]


def test_jobs_that_live_wait_or_have_ended_are_left_alone(claimed):
    waiting, ended = ScanFactory(), ScanFactory(state="succeeded")
    assert jobs.reap() == 0
    assert [fresh(job).state for job in (claimed, waiting, ended)] == ["running", "queued", "succeeded"]


def test_a_frozen_worker_that_wakes_up_after_the_reaper_changes_nothing(claimed):
    expire(claimed)
    jobs.reap()
    for late in (lambda: claimed.write(message="hello"), claimed.renew, claimed.succeed):
        with pytest.raises(LeaseLost):
            late()
    assert (fresh(claimed).state, entries(claimed, "scan.succeeded")) == ("failed", 0)


def test_reaping_twice_ends_a_job_once(claimed):
    expire(claimed)
    assert [jobs.reap(), jobs.reap()] == [1, 0]
    assert entries(claimed, "scan.failed") == 1


def test_a_dead_job_whose_end_cannot_be_written_does_not_keep_others_from_theirs(claimed, monkeypatch):
    other = ScanFactory()
    other.claim(1)
    expire(claimed)
    expire(other)
    real = Scan._on_end

    def fail_for_one(job):
        if job.pk == claimed.pk:
            raise RuntimeError("no message")
        real(job)

    monkeypatch.setattr(Scan, "_on_end", fail_for_one)
    assert jobs.reap() == 1
    assert [fresh(job).state for job in (claimed, other)] == ["running", "failed"]


def test_a_renewal_between_the_look_and_the_reaping_saves_the_job(claimed, monkeypatch):
    """The worker was only slow: it renews after the reaper has read the row and before it takes it."""
    expire(claimed)
    renewed = []
    real = jobs.uuid.uuid4

    def renew_first():
        if not renewed:
            renewed.append(1)
            claimed.renew()
        return real()

    monkeypatch.setattr(jobs.uuid, "uuid4", renew_first)
    assert jobs.reap() == 0
    assert fresh(claimed).state == "running"


# -- Being tried again


@pytest.fixture
def run():
    """A kind of job that has three attempts."""
    run = TrainingRunFactory()
    assert run.claim(1)
    return run


def run_entries(run, action):
    return AuditEntry.objects.filter(action=f"trainingrun.{action}", object_id=str(run.pk))


def test_a_job_with_attempts_left_waits_again_when_its_worker_died(run):
    TrainingRun.objects.filter(pk=run.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert jobs.reap() == 1
    row = fresh(run)
    assert (row.state, row.attempt, row.pid, row.lease_until, row.heartbeat_at) == ("queued", 2, None, None, None)
    assert row.message == f"Waiting to go on: The worker died (host {run.host}, process {run.pid})."
    assert run_entries(run, "requeued").get().after["attempt"] == 2
    assert OrmQ.objects.filter(key="train").count() == 1
    assert not fresh(run).claim(1)
    assert fresh(run).claim(2)


def test_the_last_attempt_whose_worker_dies_fails(run):
    for attempt in (1, 2, 3):
        run.claim(attempt)
        TrainingRun.objects.filter(pk=run.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
        assert jobs.reap() == 1
        run = fresh(run)
    assert (run.state, run.attempt) == ("failed", 3)
    assert run.error.count("The worker died") == 3
    assert run_entries(run, "failed").count() == 1


def test_a_stop_that_is_nobodys_fault_is_none_of_the_attempts(run):
    for _ in range(5):
        run.requeue("An update.", counted=False)
        assert (fresh(run).state, fresh(run).attempt) == ("queued", 1)
        assert run.claim(1)
    assert [item["counted"] for item in fresh(run).interruptions] == [False] * 5


def test_only_the_holder_of_the_lease_puts_a_job_back(run):
    stranger = fresh(run)
    stranger.lease_token = uuid.uuid4()
    with pytest.raises(LeaseLost):
        stranger.requeue("not mine")
    assert fresh(run).state == "running"
    late = fresh(run)
    run.requeue("mine")
    with pytest.raises(LeaseLost):
        late.renew()
    with pytest.raises(LeaseLost):
        late.requeue("again")
    assert (fresh(run).attempt, run_entries(run, "requeued").count()) == (2, 1)


def test_a_job_that_somebody_cancelled_is_not_tried_again(run, alice):
    fresh(run).request_cancel(alice)
    run.requeue("The process died.")
    assert fresh(run).state == "cancelled"
    assert run_entries(run, "cancelled").count() == 1


def test_a_requeue_whose_audit_entry_cannot_be_written_is_none(run, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no audit")

    monkeypatch.setattr(audit, "record", fail)
    with pytest.raises(RuntimeError):
        run.requeue("died")
    assert (fresh(run).state, OrmQ.objects.count()) == ("running", 0)


def test_an_unexpected_error_of_the_supervisor_costs_one_attempt(run):
    def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run.see_through(work)
    assert (fresh(run).state, fresh(run).attempt) == ("queued", 2)


def test_what_the_dead_worker_left_running_on_this_host_is_killed(run):
    """Only the process that was started with the run's own lease: its number may belong to another one by now."""
    innocent = subprocess.Popen(["sleep", "60"], start_new_session=True)
    environment = {"TRAINING_LEASE_TOKEN": str(run.lease_token), "PATH": os.environ["PATH"]}
    child = subprocess.Popen(["sh", "-c", "sleep 60; :"], env=environment, start_new_session=True)
    try:
        wait_for_environment(child.pid, environment)
        token = run.lease_token
        for pid, killed in ((innocent.pid, False), (child.pid, True)):
            run.child_pid = pid
            run.end_remains(token)
            assert (ends(innocent if pid == innocent.pid else child)) == killed
        assert child.returncode == -9
    finally:
        for process in (innocent, child):
            process.kill()
            process.wait()


def test_what_runs_on_another_host_is_not_killed_here(run):
    environment = {"TRAINING_LEASE_TOKEN": str(run.lease_token), "PATH": os.environ["PATH"]}
    child = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
    try:
        wait_for_environment(child.pid, environment)
        run.child_pid, run.host = child.pid, "elsewhere"
        run.end_remains(run.lease_token)
        assert not ends(child)
    finally:
        child.kill()
        child.wait()


def ends(process):
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_for_environment(pid, environment):
    """Until the child has begun its own program."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and psutil.Process(pid).environ() != environment:
        time.sleep(0.01)


# -- Cancelling what does not answer


def silent(run, seconds):
    TrainingRun.objects.filter(pk=run.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=seconds))


def test_a_job_that_is_put_back_while_somebody_cancels_it_is_cancelled_all_the_same(run, alice, monkeypatch):
    """Between the statement that looks for a waiting job and the one that looks for a running job."""
    real, statements = models.QuerySet.update, []

    def update(rows, **fields):
        changed = real(rows, **fields)
        statements.append(fields)
        if len(statements) == 1:
            real(TrainingRun.objects.filter(pk=run.pk), state="queued")
        return changed

    monkeypatch.setattr(models.QuerySet, "update", update)
    assert fresh(run).request_cancel(alice)
    assert fresh(run).state == "cancelled"
    assert run_entries(run, "cancelled").count() == 1


def test_a_job_whose_worker_is_dead_is_cancelled_at_once(run, alice):
    silent(run, 21)
    assert fresh(run).request_cancel(alice)
    assert fresh(run).state == "cancelled"
    assert run_entries(run, "cancelled").count() == 1
    with pytest.raises(LeaseLost):
        run.renew()


def test_a_job_whose_worker_was_just_heard_of_is_only_asked(run, alice):
    silent(run, 15)
    job = fresh(run)
    assert job.request_cancel(alice)
    assert job.state == "running"
    assert jobs.reap() == 0


def test_a_job_whose_worker_dies_before_it_answers_is_ended_by_the_reaper(run, alice):
    fresh(run).request_cancel(alice)
    silent(run, 21)
    assert jobs.reap() == 1
    assert (fresh(run).state, fresh(run).attempt) == ("cancelled", 1)


def test_a_scan_may_be_silent_for_the_whole_lease_before_it_is_given_up(claimed, alice):
    """It reports between files, and a file may take its time."""
    Scan.objects.filter(pk=claimed.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=60))
    fresh(claimed).request_cancel(alice)
    assert fresh(claimed).state == "running"


# -- Clocks


@pytest.fixture
def clock(monkeypatch):
    """Sets the wall clock; `time` goes on by itself."""
    moved = [0.0]
    real = time.time
    monkeypatch.setattr(jobs.time, "time", lambda: real() + moved[0])
    monkeypatch.setattr(jobs, "_clock", jobs._Clock())
    monkeypatch.setattr(timezone, "now", lambda: datetime.fromtimestamp(jobs.time.time(), UTC))

    def put_forward(seconds):
        moved[0] += seconds

    return put_forward


def test_nobody_is_taken_for_dead_because_the_clock_was_set(run, clock, monkeypatch):
    assert jobs.reap() == 0
    clock(3600)
    assert jobs.reap() == 0
    run.renew()
    monkeypatch.setattr(jobs, "CLOCK_TRUSTED_AFTER_SECONDS", 0.0)
    assert jobs.reap() == 0
    assert fresh(run).state == "running"


def test_a_dead_worker_is_found_again_a_while_after_the_clock_was_set(run, clock, monkeypatch):
    jobs.reap()
    clock(3600)
    assert jobs.reap() == 0
    monkeypatch.setattr(jobs, "CLOCK_TRUSTED_AFTER_SECONDS", 0.0)
    assert jobs.reap() == 1


# -- The end


class Ends:
    def __init__(self, monkeypatch):
        self.states = []
        monkeypatch.setattr(Scan, "_on_end", lambda job: self.states.append((job.state, connection.in_atomic_block)))


@pytest.mark.parametrize("end", ["succeed", "fail", "end_cancelled", "request_cancel", "reap"])
def test_whatever_the_end_is_what_belongs_to_it_happens_once_in_its_transaction(job, alice, monkeypatch, end):
    ends = Ends(monkeypatch)
    if end == "request_cancel":
        job.request_cancel(alice)
    else:
        job.claim(1)
        expire(job)
        {"succeed": job.succeed, "fail": lambda: job.fail("x"), "end_cancelled": job.end_cancelled, "reap": jobs.reap}[
            end
        ]()
    assert ends.states == [(fresh(job).state, True)]


def test_an_end_is_undone_when_what_belongs_to_it_fails(claimed, monkeypatch):
    def fail(job):
        raise RuntimeError("no message")

    monkeypatch.setattr(Scan, "_on_end", fail)
    with pytest.raises(RuntimeError):
        claimed.succeed()
    assert fresh(claimed).state == "running"


# -- What a job uses


@pytest.mark.parametrize("state", ["queued", "running"])
def test_jobs_that_wait_or_run_are_named_as_users_of_what_they_refer_to(state):
    preparation = PreparationFactory()
    run = TrainingRunFactory(preparation=preparation, state=state)
    assert jobs.active_jobs_of(preparation) == [run]


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_jobs_that_have_ended_use_nothing(state):
    preparation = PreparationFactory()
    TrainingRunFactory(preparation=preparation, state=state)
    assert jobs.active_jobs_of(preparation) == []


def test_jobs_of_every_kind_are_found_and_those_of_other_objects_are_not():
    dataset, other = DatasetFactory(), DatasetFactory()
    mine = [PreparationFactory(dataset=dataset, state="running"), UploadFactory(dataset=dataset, state="queued")]
    PreparationFactory(dataset=other, state="running")
    assert jobs.active_jobs_of(dataset) == mine or jobs.active_jobs_of(dataset) == mine[::-1]


def test_an_object_that_no_job_refers_to_is_in_no_use(job):
    assert jobs.active_jobs_of(job) == []


# -- A site without workers


def test_an_interrupted_job_ends_and_does_not_block_the_next(job):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(1, interrupted)
    assert fresh(job).state == "failed"
    assert "interrupted" in fresh(job).error


def test_a_new_job_first_ends_those_whose_process_is_gone(settings):
    dead = ScanFactory(root=str(settings.DATASET_ROOT))
    assert dead.claim(1)
    expire(dead)
    assert Scan.create(None).state == "queued"
    assert "worker died" in fresh(dead).error


def test_the_queue_may_take_longer_over_a_job_than_over_a_small_task():
    ScanFactory().enqueue()
    assert OrmQ.objects.get().task["timeout"] == 86_400
