"""Queue tasks of the platform itself."""

from . import jobs, system, watchdog


def every_minute() -> None:
    """Leave a sign of life, repair what died or got lost, and ask the training queue for a sign when it is idle."""
    system.WorkerSign.leave("xray")
    jobs.reap()
    jobs.resend_lost()
    watchdog.ask_for_sign("train")


def leave_sign(cluster: str) -> None:
    system.WorkerSign.leave(cluster)
