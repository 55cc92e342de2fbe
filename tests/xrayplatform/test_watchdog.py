"""The watchdog of a queue: starts it, starts it again when it died or froze, frees its work, stops it without loss.

The cluster is a line of shell here; `tests/journey/test_chaos.py` does the same to a real one.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta

import psutil
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone
from django_q.models import OrmQ

from tests.factories import ScanFactory, TrainingRunFactory
from xrayplatform import jobs, processes, system, watchdog
from xrayplatform.audit import AuditEntry
from xrayplatform.system import WorkerSign
from xrayplatform.watchdog import Watchdog

pytestmark = pytest.mark.django_db
ASLEEP = "exec sleep 60"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, seconds in {
        "POLL_SECONDS": 0.02,
        "CHECK_EVERY_SECONDS": 0.05,
        "LONGEST_PAUSE_SECONDS": 0.05,
        "STOP_GRACE_SECONDS": 2.0,
        "IDLE_GRACE_SECONDS": 0.3,
        "TERMINATE_GRACE_SECONDS": 0.3,
    }.items():
        monkeypatch.setattr(watchdog, name, seconds)
    # The test's own transaction lives on the connection that this would close.
    monkeypatch.setattr(watchdog, "close_old_connections", lambda: None)


class Observed(Watchdog):
    """Is stopped after a while, or after so many starts; remembers its children."""

    def __init__(self, script, starts=99, seconds=0.5):
        super().__init__("train", ["sh", "-c", script])
        self.pause = 0.01
        self.starts, self.seconds = starts, seconds
        self.children = []

    def run(self):
        timer = threading.Timer(self.seconds if self.starts == 99 else 30, self.stop)
        timer.start()
        super().run()
        timer.cancel()

    def _start(self):
        super()._start()
        self.children.append(self.child)

    def _restart(self, reason):
        super()._restart(reason)
        if len(self.children) == self.starts:
            self.stop()


def restarts():
    return AuditEntry.objects.filter(action="queue.restarted")


# -- Starting again


def test_a_cluster_that_ends_is_started_again_and_that_is_recorded():
    dog = Observed("exit 7", starts=3)
    dog.run()
    assert len(dog.children) == restarts().count() == 3
    entry = restarts().last()
    assert entry.after["queue"] == "train"
    assert entry.after["reason"] == "it ended with status 7"
    assert entry.outcome == "failed"


def test_the_pauses_between_starts_grow_and_have_a_limit(monkeypatch):
    slept = []
    monkeypatch.setattr(watchdog, "LONGEST_PAUSE_SECONDS", 8.0)
    dog = Observed("exit 1", starts=7)
    dog.pause = 1.0
    monkeypatch.setattr(dog, "_sleep", slept.append)
    dog.run()
    assert slept[:6] == [1, 2, 4, 8, 8, 8]


def test_a_cluster_that_ran_well_for_a_while_is_started_again_soon(monkeypatch):
    slept = []
    monkeypatch.setattr(watchdog, "STABLE_AFTER_SECONDS", 0.0)
    dog = Observed("exit 1", starts=3)
    dog.pause = 32.0
    monkeypatch.setattr(dog, "_sleep", slept.append)
    dog.run()
    assert slept[0] == 1


def test_a_cluster_that_gives_no_sign_of_life_is_killed_and_started_again(monkeypatch):
    monkeypatch.setattr(system, "STALE_AFTER", timedelta(seconds=0.3))
    run = TrainingRunFactory()
    run.claim(1)

    class Frozen(Observed):
        """Its worker, a child of the shell, has a job."""

        def _watch(self):
            return_after = time.monotonic() + 5
            while not psutil.Process(self.child.pid).children() and time.monotonic() < return_after:
                time.sleep(0.01)
            type(run).objects.update(pid=psutil.Process(self.child.pid).children()[0].pid)
            return super()._watch()

    dog = Frozen("trap '' TERM; sleep 60; :", starts=1)
    dog.run()
    jobs.reap()
    run.refresh_from_db()
    assert run.state == "queued"
    assert dog.children[0].returncode == -9
    assert "no sign of life" in restarts().last().after["reason"]


def test_a_cluster_that_gives_signs_is_left_alone(monkeypatch):
    monkeypatch.setattr(system, "STALE_AFTER", timedelta(seconds=0.2))
    monkeypatch.setattr(jobs, "reap", lambda: WorkerSign.leave("train"))
    dog = Observed(ASLEEP)
    dog.run()
    assert len(dog.children) == 1 and not restarts().exists()


def test_the_whole_family_of_a_cluster_is_ended(tmp_path):
    """A worker that lost its cluster would go on taking work."""
    number = tmp_path / "pid"
    dog = Observed(f"sleep 60 & echo $! > {number}; exit 1", starts=1)
    dog.run()
    assert gone(int(number.read_text()))


def gone(pid):
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_a_silent_database_is_no_reason_to_start_the_cluster_again(monkeypatch):
    def fail():
        raise OperationalError("no answer")

    monkeypatch.setattr(system, "STALE_AFTER", timedelta(seconds=0.1))
    monkeypatch.setattr(jobs, "reap", fail)
    dog = Observed(ASLEEP)
    dog.run()
    assert len(dog.children) == 1


def test_a_mistake_in_sending_lost_messages_does_not_end_the_cluster(monkeypatch):
    def fail():
        raise RuntimeError("a mistake")

    monkeypatch.setattr(jobs, "resend_lost", fail)
    dog = Observed(ASLEEP)
    dog.run()
    assert len(dog.children) == 1 and dog.child.returncode == -15


# -- What it does beside


def test_an_idle_queue_is_asked_for_a_sign_once():
    watchdog.ask_for_sign("train")
    watchdog.ask_for_sign("train")
    message = OrmQ.objects.get(key="train").task
    assert (message["func"], message["args"]) == ("xrayplatform.tasks.leave_sign", ("train",))


def test_a_message_that_a_dead_worker_took_does_not_keep_the_queue_from_being_asked():
    watchdog.ask_for_sign("train")
    OrmQ.objects.update(lock=timezone.now() + timedelta(days=8))
    watchdog.ask_for_sign("train")
    assert OrmQ.objects.filter(key="train").count() == 2


def test_dead_jobs_are_reaped_and_lost_messages_sent_again_without_any_worker(monkeypatch):
    dead = ScanFactory()
    dead.claim(1)
    type(dead).objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    TrainingRunFactory()
    Observed(ASLEEP).run()
    dead.refresh_from_db()
    assert dead.state == "failed"
    assert OrmQ.objects.filter(key="train").first().task["func"] == "training.tasks.train_next"


def test_what_a_dead_process_of_the_cluster_did_need_not_wait_for_its_lease(tmp_path):
    number = tmp_path / "pid"
    run = TrainingRunFactory()
    run.claim(1)

    class Claiming(Observed):
        def _watch(self):
            while not number.exists() or not number.read_text().strip():
                time.sleep(0.01)
            worker = int(number.read_text())
            type(run).objects.update(pid=worker)
            threading.Timer(0.5, os.kill, (worker, signal.SIGKILL)).start()
            return super()._watch()

    Claiming(f"sleep 60 & echo $! > {number}; exec sleep 60", seconds=2).run()
    run.refresh_from_db()
    assert (run.state, run.attempt) == ("queued", 2)


def test_processes_of_other_hosts_are_not_taken_for_dead():
    run = TrainingRunFactory()
    run.claim(1)
    type(run).objects.update(pid=4711, host="elsewhere")
    assert jobs.expire({4711}) == 0


# -- Stopping


def test_a_queue_that_stops_tells_its_workers_so(tmp_path):
    """The end of the pipe that every process of the cluster inherits."""
    told = tmp_path / "told"
    worker = f'trap "" TERM; cat /dev/fd/$QUEUE_LIFELINE; touch {told}'
    dog = Observed(worker)
    dog.run()
    assert told.exists()
    assert dog.child.returncode == 0


@pytest.mark.parametrize("busy", [True, False])
def test_a_cluster_that_does_not_stop_is_ended_soon_when_it_has_no_job_to_lose(tmp_path, busy):
    number = tmp_path / "pid"
    run = TrainingRunFactory()
    run.claim(1)

    class Claiming(Observed):
        def _await_end(self, family):
            type(run).objects.update(pid=int(number.read_text()) if busy else 1)
            started = time.monotonic()
            super()._await_end(family)
            self.waited = time.monotonic() - started

    dog = Claiming(f"sleep 60 & echo $! > {number}; trap '' TERM; while :; do sleep 1; done")
    dog.run()
    assert dog.child.returncode == -9
    assert (dog.waited >= 2.0) == busy
    jobs.reap()
    run.refresh_from_db()
    assert run.state == ("queued" if busy else "running"), "what was lost need not wait for its lease"
    assert not restarts().exists()


def test_a_worker_without_a_watchdog_is_never_told_to_stop(monkeypatch):
    monkeypatch.delenv(watchdog.LIFELINE_VARIABLE, raising=False)
    assert not watchdog.is_stopping()


def test_a_worker_is_told_to_stop_when_its_watchdog_is_gone(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setenv(watchdog.LIFELINE_VARIABLE, str(reading))
    assert not watchdog.is_stopping()
    os.close(writing)
    assert watchdog.is_stopping()
    os.close(reading)


def test_the_kernel_ends_every_fork_when_the_one_above_it_dies(tmp_path):
    """As a cluster: main, sentinel, worker. The main process is killed and cannot tell anybody."""
    script = tmp_path / "cluster.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, sys, time
            from xrayplatform.processes import forks_die_with_parent

            def worker():
                time.sleep(60)

            def sentinel():
                child = multiprocessing.Process(target=worker)
                child.start()
                os.write(1, b"%d\\n" % child.pid)
                time.sleep(60)

            forks_die_with_parent()
            multiprocessing.set_start_method("fork")
            child = multiprocessing.Process(target=sentinel)
            child.start()
            os.write(1, b"%d\\n" % child.pid)
            time.sleep(60)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    main = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment, text=True)
    family = [int(main.stdout.readline()) for _ in range(2)]
    main.kill()
    main.wait()
    assert all(gone(pid) for pid in family)


def test_a_process_whose_parent_is_gone_already_ends_itself(monkeypatch):
    monkeypatch.setattr(processes, "_bind_to_parent", lambda: None)
    with pytest.raises(SystemExit, match="process that started this one is gone"):
        processes.die_with_parent(os.getppid() + 1)


def test_a_group_is_ended_with_what_its_leader_left_behind(tmp_path):
    number = tmp_path / "pid"
    leader = subprocess.Popen(["sh", "-c", f"sleep 60 & echo $! > {number}; exit 0"], start_new_session=True)
    leader.wait()
    processes.stop_group(leader, 0.2)
    assert gone(int(number.read_text()))


# -- The command


def test_the_command_runs_the_watchdog_of_the_queue(monkeypatch):
    ran = []
    monkeypatch.setattr(Watchdog, "run", lambda dog: ran.append((dog.cluster, dog.command[2:5])))
    call_command("run_queue", "train")
    assert ran == [("train", ["run_queue", "train", "--cluster-of"])]


def test_a_cluster_is_not_started_under_the_name_of_another(monkeypatch):
    monkeypatch.setenv("Q_CLUSTER_NAME", "xray")
    with pytest.raises(CommandError, match="started by its watchdog"):
        call_command("run_queue", "train", cluster_of=1)


def test_system_status_tells_when_and_why_a_queue_was_started_again(client, auditor):
    Observed("exit 7", starts=1).run()
    row = {queue["cluster"]: queue for queue in system.queue_status()}
    assert row["train"]["restarted"]["reason"] == "it ended with status 7"
    assert row["xray"]["restarted"] is None
    client.force_login(auditor)
    page = client.get("/system/").content.decode()
    assert "it ended with status 7" in page
