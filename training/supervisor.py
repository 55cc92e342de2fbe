"""Run one training in a process of its own: start it, keep its lease, watch it, cancel it, explain its death.

The supervisor runs in a queue worker and never imports TensorFlow; the child (`manage.py train_run ID`) alone does.
The child ends its run itself (finished, failed with a reason); whatever ends the child otherwise is explained here.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from django.conf import settings
from django.db import OperationalError, close_old_connections

from xrayplatform.jobs import JobCancelled, JobError, LeaseLost

from .models import TrainingRun

logger = logging.getLogger(__name__)
PARENT_VARIABLE = "TRAINING_SUPERVISOR_PID"
TOKEN_VARIABLE = "TRAINING_LEASE_TOKEN"  # noqa: S105 - the name of the variable
POLL_SECONDS = 1.0
RENEW_EVERY_SECONDS = 15.0
CANCEL_GRACE_SECONDS = 20.0
TERMINATE_GRACE_SECONDS = 8.0


def supervise(run: TrainingRun, on_beat: Callable[[], None] = lambda: None) -> None:
    """See a claimed run through; `on_beat` is called with each renewal of the lease.

    Raises JobError with the reason when the child died without giving one.
    """
    run.log_path.parent.mkdir(parents=True, exist_ok=True)
    with run.log_path.open("ab") as log:
        child = _start(run, log.fileno())
    try:
        run.write(child_pid=child.pid, message="Starting")
        _watch(run, child, on_beat)
    except LeaseLost:
        # The child ends its own run, which ends the lease too; only a run that still goes on was really taken away.
        _stop(child)
        if _ended_by_child(run):
            return
        raise
    except BaseException:
        _stop(child)
        raise
    finally:
        run.clean_up()
    if not _ended_by_child(run):
        raise _explain(child.returncode)


def _start(run: TrainingRun, log: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "train_run", str(run.pk)]
    environment = {
        **os.environ,
        TOKEN_VARIABLE: str(run.lease_token),
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # The child must not believe that it is a queue cluster.
    environment.pop("Q_CLUSTER_NAME", None)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=settings.BASE_DIR,
        start_new_session=True,
    )


def _watch(run: TrainingRun, child: "subprocess.Popen[bytes]", on_beat: Callable[[], None]) -> None:
    """Until the child has ended: renew the lease, note its memory, and stop it on request."""
    renewed = 0.0
    asked_at: float | None = None
    while child.poll() is None:
        time.sleep(POLL_SECONDS)
        close_old_connections()
        try:
            if time.monotonic() - renewed >= RENEW_EVERY_SECONDS or _cancel_requested(run):
                on_beat()
                run.renew(peak_memory=max(run.peak_memory, _memory(child.pid)))
                renewed = time.monotonic()
        except JobCancelled:
            asked_at = asked_at or time.monotonic()
            if time.monotonic() - asked_at > CANCEL_GRACE_SECONDS:
                _stop(child)
        except LeaseLost:
            with suppress(subprocess.TimeoutExpired):
                child.wait(POLL_SECONDS * 5)
            raise
        except OperationalError as error:
            # The lease outlives two minutes without the database; the training need not end for a shorter pause.
            logger.warning("%s: the database did not answer: %s", run, error)
    if _cancel_requested(run) and not _ended_by_child(run):
        raise JobCancelled


def _cancel_requested(run: TrainingRun) -> bool:
    return TrainingRun.objects.filter(pk=run.pk, cancel_requested=True).exists()


def _ended_by_child(run: TrainingRun) -> bool:
    return not TrainingRun.objects.active().filter(pk=run.pk).exists()


def _memory(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End the child's whole session: asked first, killed if it does not listen."""
    if child.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(TERMINATE_GRACE_SECONDS)
            return


def _explain(code: int | None) -> JobError:
    if code == -signal.SIGKILL:
        return JobError(
            "The training process was killed, most likely because the machine ran out of memory.",
            "Use a smaller batch size or architecture, or free memory; System Status shows how much there is.",
        )
    if code is not None and code < 0:
        return JobError(
            f"The training process was stopped by signal {signal.Signals(-code).name}.",
            "If nobody stopped it on purpose, look at the end of the log and tell an administrator.",
        )
    return JobError(
        f"The training process ended with status {code} and gave no reason.",
        "Look at the end of the log and tell an administrator.",
    )


def die_with_parent(parent: int) -> None:
    """Ask Linux to end this process when its supervisor dies, so that no training goes on unseen."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("The supervisor of this training is gone.")


def pretrained_folder() -> Path:
    return Path(settings.MODEL_ROOT) / "pretrained"
