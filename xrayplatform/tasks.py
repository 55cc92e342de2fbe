"""Queue tasks of the platform itself."""

from django.utils import timezone

from . import jobs, system, watchdog


def every_minute() -> None:
    """Leave a sign of life, repair what died or got lost, and ask the training queue for a sign when it is idle."""
    system.WorkerSign.leave("xray")
    jobs.reap()
    jobs.resend_lost()
    if timezone.now().minute == 0:
        jobs.sweep()
    watchdog.ask_for_sign("train")


def leave_sign(cluster: str) -> None:
    system.WorkerSign.leave(cluster)
