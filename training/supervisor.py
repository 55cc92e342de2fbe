"""Run one training in a process of its own: start it, keep its lease, watch it, stop it, explain its death.

The supervisor runs in a queue worker and never imports TensorFlow; the child (`manage.py train_run ID`) alone does.
The child ends its run itself (finished, failed with a reason), or hands it back at a checkpoint; whatever ends the
child otherwise is explained here, and the run goes on in another child as long as it has attempts left.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from django.conf import settings
from django.db import DatabaseError, close_old_connections
from django.utils import timezone

from xrayplatform import system
from xrayplatform.jobs import Interrupted, JobCancelled, LeaseLost
from xrayplatform.processes import child_environment, die_with_parent, memory_of, signal_group, stop_group
from xrayplatform.watchdog import is_stopping

from .ml.architectures import ARCHITECTURES
from .models import TrainingRun
from .models.run import LEASE_VARIABLE

__all__ = ["LEASE_VARIABLE", "PARENT_VARIABLE", "die_with_parent", "supervise"]

logger = logging.getLogger(__name__)
PARENT_VARIABLE = "TRAINING_SUPERVISOR_PID"
POLL_SECONDS = 0.5
RENEW_EVERY_SECONDS = 5.0
# From the request to the end at most: the poll, then these two; below the promised 30 seconds.
CANCEL_GRACE_SECONDS = 10.0
TERMINATE_GRACE_SECONDS = 5.0
# For a child that has no lease any more to end by itself.
LOST_GRACE_SECONDS = 15.0
# When the worker itself is to stop: time for a checkpoint, within what the watchdog allows.
DRAIN_GRACE_SECONDS = 30.0
# A process that used this share of all memory and was killed was most likely killed for that.
MEMORY_EXHAUSTED = 0.9
# The last words of a process that asked for memory in vain.
NO_MEMORY = ("std::bad_alloc", "Cannot allocate memory")


def supervise(run: TrainingRun) -> None:
    """See a claimed run through until its child has ended it or handed it back.

    Raises Interrupted with the reason when the child ended otherwise, JobCancelled when that was asked for, and
    LeaseLost when the run was taken away from this process.
    """
    kills_before = system.oom_kills()
    with _log_of(run) as log:
        log_start = log.tell()
        child = _start(run, log.fileno())
    watch = _Watch(run, child)
    try:
        run.write(child_pid=child.pid, message="Starting", phase="starting", progress_at=timezone.now())
        watch.until_it_ends()
    except LeaseLost:
        # The child ends its own run, which ends the lease too; only a run that still goes on was really taken away.
        stop_group(child, TERMINATE_GRACE_SECONDS)
        if not _left_by_child(run, child):
            raise
    except BaseException:
        stop_group(child, TERMINATE_GRACE_SECONDS)
        raise
    finally:
        _clean_up(run)
    if _still_ours(run):
        no_memory = system.oom_kills() > kills_before, _tells_of_memory(run.log_end(log_start))
        raise _explain(run, child.returncode, watch, *no_memory)


def _log_of(run: TrainingRun) -> IO[bytes]:
    """The log of the run, to append to; where it cannot be opened the training goes on without it."""
    try:
        run.log_path.parent.mkdir(parents=True, exist_ok=True)
        return run.log_path.open("ab")
    except OSError as error:
        logger.warning("%s: its log cannot be opened: %s", run, error)
        return Path(os.devnull).open("ab")


def _start(run: TrainingRun, log: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "train_run", str(run.pk)]
    own = {LEASE_VARIABLE: str(run.lease_token), PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    environment = child_environment(**own)
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=settings.BASE_DIR,
        start_new_session=True,
    )


@dataclass
class _Watch:
    """Looks after a running child. Times are of the monotonic clock: somebody may set the other one."""

    run: TrainingRun
    child: "subprocess.Popen[bytes]"
    renewed: float = 0.0
    cancel_asked: float | None = None
    drain_asked: float | None = None
    progress_at: datetime | None = None
    progress_seen: float = field(default_factory=time.monotonic)
    # Why this process stopped the child; "" when it did not.
    stopped: str = ""

    def until_it_ends(self) -> None:
        """Renew the lease, note the memory, and stop the child on request or when it is stuck. Raises LeaseLost."""
        while self.child.poll() is None:
            time.sleep(POLL_SECONDS)
            close_old_connections()
            try:
                self._look()
            except LeaseLost:
                # The child has handed the run back, or finds by itself that it was taken away; either way it ends.
                with suppress(subprocess.TimeoutExpired):
                    self.child.wait(LOST_GRACE_SECONDS)
                raise
            except DatabaseError as error:
                # The lease outlives two minutes without the database; the training need not end for a shorter pause.
                logger.warning("%s: the database did not answer: %s", self.run, error)

    def _look(self) -> None:
        row = TrainingRun.objects.filter(pk=self.run.pk).values("cancel_requested", "progress_at").first()
        if row is None:
            raise LeaseLost(f"{self.run} is gone.")
        if time.monotonic() - self.renewed >= RENEW_EVERY_SECONDS:
            # Asked to cancel or not: the lease is renewed until the child has ended.
            with suppress(JobCancelled):
                self.run.renew(peak_memory=max(self.run.peak_memory, memory_of(self.child.pid)))
            self.renewed = time.monotonic()
        if row["cancel_requested"]:
            self._cancel()
        elif is_stopping():
            self._drain()
        else:
            self._expect_progress(row["progress_at"])

    def _cancel(self) -> None:
        """The child sees the request by itself; it is stopped when it does not answer."""
        self.cancel_asked = self.cancel_asked or time.monotonic()
        if time.monotonic() - self.cancel_asked > CANCEL_GRACE_SECONDS:
            self._stop("cancelled")

    def _drain(self) -> None:
        if self.drain_asked is None:
            self.drain_asked = time.monotonic()
            signal_group(self.child.pid, signal.SIGTERM)
        elif time.monotonic() - self.drain_asked > DRAIN_GRACE_SECONDS:
            self._stop("drained")

    def _expect_progress(self, at: datetime | None) -> None:
        if at != self.progress_at:
            self.progress_at, self.progress_seen = at, time.monotonic()
        elif time.monotonic() - self.progress_seen > settings.TRAINING_STALL_MINUTES * 60:
            self._stop("stalled")

    def _stop(self, why: str) -> None:
        self.stopped = why
        stop_group(self.child, TERMINATE_GRACE_SECONDS)


def _still_ours(run: TrainingRun) -> bool:
    held = TrainingRun.objects.filter(pk=run.pk, lease_token=run.lease_token, state=run.State.RUNNING)
    return held.exists()


def _left_by_child(run: TrainingRun, child: "subprocess.Popen[bytes]") -> bool:
    """Whether the child itself ended the run or handed it back, and did not find that somebody else had taken it."""
    ended = not TrainingRun.objects.active().filter(pk=run.pk).exists()
    return ended or child.returncode == 0


def _clean_up(run: TrainingRun) -> None:
    """The checkpoints stay as long as somebody will go on from them."""
    with suppress(DatabaseError):
        if not TrainingRun.objects.active().filter(pk=run.pk).exists():
            run.clean_up()


# -- Why a child ended that did not end its run


def _tells_of_memory(log: str) -> bool:
    # As a traceback ends; NumPy has an error of its own, with a longer name.
    error = log.rstrip().rpartition("\n")[2].partition(":")[0]
    return error.endswith("MemoryError") or any(words in log for words in NO_MEMORY)


def _explain(run: TrainingRun, code: int | None, watch: _Watch, oom_kill: bool, told: bool) -> Exception:
    """told: whether the child wrote into its log that it got no memory."""
    run.refresh_from_db()
    if run.cancel_requested:
        return JobCancelled()
    if watch.drain_asked is not None:
        return Interrupted("The training worker was stopped or restarted.", counted=False)
    if watch.stopped:
        return Interrupted(
            f"There was no progress for {settings.TRAINING_STALL_MINUTES:g} minutes; the training process was ended.",
            "Look at the end of the log. A larger TRAINING_STALL_MINUTES gives a very slow machine more time.",
        )
    exhausted = oom_kill or run.peak_memory > MEMORY_EXHAUSTED * system.memory_limit()
    if (code in (-signal.SIGKILL, -signal.SIGABRT) and exhausted) or (code and told):
        return _out_of_memory(run)
    return _died(code)


def _out_of_memory(run: TrainingRun) -> Interrupted:
    """Half the batch next time. Not one of the attempts as long as it can be halved: that ends by itself."""
    size = run.batch_size or run.configuration.get("batch_size") or ARCHITECTURES[run.architecture].batch_size
    happened = f"The machine ran out of memory with batches of {_images(size)}."
    hint = "Use a smaller architecture or image size, or free memory; System Status shows how much there is."
    if size == 1:
        return Interrupted(happened, hint)
    half = size // 2
    reason = f"{happened} Going on with batches of {_images(half)}."
    return Interrupted(reason, hint, counted=False, batch_size=half)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _died(code: int | None) -> Interrupted:
    if code == -signal.SIGKILL:
        return Interrupted(
            "The training process was killed.",
            "If nobody killed it on purpose, the machine may lack memory: use a smaller batch size or architecture, "
            "or free memory; System Status shows how much there is.",
        )
    if code is not None and code < 0:
        return Interrupted(
            f"The training process was stopped by signal {signal.Signals(-code).name}.",
            "If nobody stopped it on purpose, look at the end of the log and tell an administrator.",
        )
    return Interrupted(
        f"The training process ended with status {code} and gave no reason.",
        "Look at the end of the log and tell an administrator.",
    )
