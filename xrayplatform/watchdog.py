"""Keeps one queue cluster running: starts it, restarts it when it died or froze, stops it without losing work.

django-q2 survives the death of most of its processes, but not of all: killing the idle worker that holds the lock of
the task queue freezes a whole cluster, SIGTERM to its process group hangs it, and killing its main process leaves
workers that nobody watches. So the cluster runs as a child in its own session and is ended as a whole from outside.

The cluster inherits the reading end of a pipe. Its end is the sign that the queue is to stop, or that the watchdog is
gone: workers then start no new training, and supervisors send theirs to a checkpoint (`is_stopping`).
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from types import FrameType

import psutil
from django.db import DatabaseError, close_old_connections, transaction
from django_q.tasks import async_task

from . import audit, jobs, system
from .processes import signal_group, stop_group

logger = logging.getLogger(__name__)
LIFELINE_VARIABLE = "QUEUE_LIFELINE"
POLL_SECONDS = 0.5
CHECK_EVERY_SECONDS = 5.0
ASK_EVERY_SECONDS = 60.0
# A cluster that ended right after it started is started again after 1, 2, 4 ... seconds.
LONGEST_PAUSE_SECONDS = 60.0
STABLE_AFTER_SECONDS = 300.0
# For trainings to reach a checkpoint and for short tasks to end, before everything is killed.
STOP_GRACE_SECONDS = 45.0
IDLE_GRACE_SECONDS = 4.0
TERMINATE_GRACE_SECONDS = 3.0


def is_stopping() -> bool:
    """Whether the queue that this worker belongs to is being stopped. Without a watchdog, nobody tells."""
    lifeline = os.environ.get(LIFELINE_VARIABLE)
    return lifeline is not None and bool(select.select([int(lifeline)], [], [], 0)[0])


class Watchdog:
    """Runs `command` as the cluster of a queue until `stop` is called, which a signal does."""

    def __init__(self, cluster: str, command: list[str]) -> None:
        self.cluster = cluster
        self.command = command
        self.stopping = False
        self.child: subprocess.Popen[bytes] | None = None
        self.lifeline: int | None = None
        self.pause = 1.0

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        self.stopping = True

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        try:
            while not self.stopping:
                self._start()
                reason = self._watch()
                if not self.stopping:
                    self._restart(reason)
        finally:
            self._end()

    def _start(self) -> None:
        reading, self.lifeline = os.pipe()
        environment = {**os.environ, "Q_CLUSTER_NAME": self.cluster, LIFELINE_VARIABLE: str(reading)}
        try:
            self.child = subprocess.Popen(
                self.command, env=environment, pass_fds=[reading], stdin=subprocess.DEVNULL, start_new_session=True
            )
        finally:
            os.close(reading)
        self.started = time.monotonic()

    def _watch(self) -> str:
        """Until the cluster has ended, froze or is to be stopped; why it must be started again."""
        signs = _Signs(self.cluster)
        family = _Family(self.child.pid)
        checked = time.monotonic()
        while not self.stopping:
            time.sleep(POLL_SECONDS)
            code = self.child.poll()
            if code is None and time.monotonic() - checked < CHECK_EVERY_SECONDS:
                continue
            checked = time.monotonic()
            frozen = signs.are_missing(family.deaths())
            if code is None and not frozen:
                continue
            self._kill()
            _free(family.deaths())
            if code is not None:
                return f"it ended with status {code}"
            return f"it gave no sign of life for {system.STALE_AFTER.total_seconds():.0f} seconds"
        return ""

    def _restart(self, reason: str) -> None:
        logger.error("The queue %s is started again: %s.", self.cluster, reason)
        try:
            with transaction.atomic():
                after = {"queue": self.cluster, "reason": reason, "host": socket.gethostname()}
                audit.record("queue.restarted", outcome=audit.AuditEntry.Outcome.FAILED, after=after)
        except DatabaseError:
            logger.exception("The restart of the queue %s could not be recorded", self.cluster)
        if time.monotonic() - self.started > STABLE_AFTER_SECONDS:
            self.pause = 1.0
        self._sleep(self.pause)
        self.pause = min(self.pause * 2, LONGEST_PAUSE_SECONDS)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(POLL_SECONDS)

    def _kill(self) -> None:
        """The whole cluster at once: one that is frozen does not stop otherwise."""
        signal_group(self.child.pid, signal.SIGKILL)
        self.child.wait()
        self._close_lifeline()

    def _end(self) -> None:
        """Tell workers to come to an end, ask the cluster to, and end what is left after a while."""
        self._close_lifeline()
        if self.child is None:
            return
        family = _Family(self.child.pid)
        family.deaths()
        if self.child.poll() is None:
            self.child.terminate()
            self._await_end(family)
        stop_group(self.child, TERMINATE_GRACE_SECONDS)
        _free(family.deaths())

    def _await_end(self, family: "_Family") -> None:
        """Until the cluster has ended, or has no job to lose any more: a message that waits in it can hang its end."""
        started = busy = time.monotonic()
        while self.child.poll() is None and time.monotonic() - started < STOP_GRACE_SECONDS:
            time.sleep(POLL_SECONDS)
            if _have_jobs(family.alive()):
                busy = time.monotonic()
            if time.monotonic() - busy > IDLE_GRACE_SECONDS:
                return

    def _close_lifeline(self) -> None:
        if self.lifeline is not None:
            os.close(self.lifeline)
            self.lifeline = None


class _Family:
    """The processes of the cluster, to notice when one is gone."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.members: set[int] = set()

    def alive(self) -> set[int]:
        try:
            family = psutil.Process(self.leader).children(recursive=True)
        except psutil.Error:
            return set()
        return {process.pid for process in family if _lives(process)}

    def deaths(self) -> set[int]:
        """The numbers of those that are gone since the last call."""
        alive = self.alive()
        gone, self.members = self.members - alive, alive
        return gone


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _free(pids: set[int]) -> None:
    """What these dead processes did goes on elsewhere at once; without the database, when the lease is over."""
    try:
        jobs.expire(pids)
    except DatabaseError as error:
        logger.warning("Jobs of dead processes wait until their leases are over: %s", error)


def _have_jobs(pids: set[int]) -> bool:
    close_old_connections()
    try:
        return jobs.any_of(pids)
    except DatabaseError:
        # Not known, so it is assumed.
        return True


class _Signs:
    """Asks the cluster for signs of life and notices when they stop coming.

    By the monotonic clock: whether a sign is new is seen from its being another one, not from its time.
    """

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self.last: datetime | None = None
        self.seen = time.monotonic()
        self.asked = -ASK_EVERY_SECONDS

    def are_missing(self, deaths: set[int]) -> bool:
        """Whether the cluster is frozen; what its dead processes did is freed for others."""
        close_old_connections()
        try:
            self._look_after_jobs(deaths)
            last = system.WorkerSign.objects.filter(cluster=self.cluster).values_list("at", flat=True).first()
        except DatabaseError as error:
            # Nobody can leave a sign in a database that does not answer.
            logger.warning("The queue %s cannot be watched, the database does not answer: %s", self.cluster, error)
            self.seen = time.monotonic()
            return False
        if last != self.last:
            self.last, self.seen = last, time.monotonic()
        return time.monotonic() - self.seen > system.STALE_AFTER.total_seconds()

    def _look_after_jobs(self, deaths: set[int]) -> None:
        jobs.expire(deaths)
        jobs.reap()
        if time.monotonic() - self.asked >= ASK_EVERY_SECONDS:
            self.asked = time.monotonic()
            # In this order: where a message waits no other is sent, and a request for a sign would hold back work.
            self._resend_lost()
            ask_for_sign(self.cluster)

    def _resend_lost(self) -> None:
        try:
            jobs.resend_lost()
        except DatabaseError:
            raise
        except Exception:
            # Whatever went wrong with one kind of job, the cluster goes on with the others.
            logger.exception("Lost messages of the queue %s could not be sent again", self.cluster)


def ask_for_sign(cluster: str) -> None:
    """Send an idle queue a task that leaves a sign of life. Where a message waits already, that one will do."""
    if not system.message_waits(cluster):
        async_task("xrayplatform.tasks.leave_sign", cluster, cluster=cluster, task_name="sign-of-life")


def cluster_command(cluster: str) -> list[str]:
    """The command of this process, to be run as the cluster itself."""
    return [sys.executable, sys.argv[0], "run_queue", cluster, "--cluster-of", str(os.getpid())]
