"""Processes that belong together: a child that does not outlive its parent, a group that is ended as a whole."""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil

_SET_PARENT_DEATH_SIGNAL = 1
# A child of a queue worker must not believe that it is a cluster itself.
_OF_THE_QUEUE = ("Q_CLUSTER_NAME", "QUEUE_LIFELINE")


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies. Exits at once when `parent` is gone already."""
    _bind_to_parent()
    if sys.platform.startswith("linux") and os.getppid() != parent:
        sys.exit("The process that started this one is gone.")


def forks_die_with_parent() -> None:
    """From now on every process forked from this one, and from those, is killed when the one it was forked from dies.

    The kernel does it, whatever happens: an orphaned queue worker would go on taking work that nobody watches.
    """
    forking = [os.getpid()]

    def remember() -> None:
        forking[0] = os.getpid()

    def bind() -> None:
        _bind_to_parent()
        # It may have died before the kernel was asked.
        if sys.platform.startswith("linux") and os.getppid() != forking[0]:
            os._exit(1)

    os.register_at_fork(before=remember, after_in_child=bind)


def _bind_to_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def child_environment(**variables: str) -> dict[str, str]:
    """The environment of this process for a child that is no part of the queue, with some more variables."""
    passed_on = {name: value for name, value in os.environ.items() if name not in _OF_THE_QUEUE}
    return {**passed_on, **variables}


def memory_of(pid: int) -> int:
    """Bytes of memory that a process has at the moment; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def stop_group(leader: "subprocess.Popen[bytes]", grace_seconds: float) -> None:
    """End a child that leads its own session, and all in it: asked first, killed if it does not listen in time."""
    if leader.poll() is None:
        signal_group(leader.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            leader.wait(grace_seconds)
    # Also what the leader has left behind when it ended.
    signal_group(leader.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        leader.wait(grace_seconds)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group `pid`; nothing happens when it is gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def has_variable(pid: int, name: str, value: str) -> bool:
    """Whether the process exists and was started with this environment variable: process numbers are used again."""
    try:
        return psutil.Process(pid).environ().get(name) == value
    except (psutil.Error, OSError):
        return False
