"""Queue tasks of the platform itself."""

import logging
from collections.abc import Callable

from django.utils import timezone

from . import audit, audit_verification, jobs, system, watchdog
from .idempotency import IdempotentAnswer
from .notifications import Notification, send_mail_about

logger = logging.getLogger(__name__)

# What the apps want to be done each minute, a matter of seconds each.
EACH_MINUTE: list[Callable[[], None]] = []


def every_minute() -> None:
    """Leave a sign of life, repair what died or got lost, and ask the training queue for a sign when it is idle."""
    system.WorkerSign.leave("xray")
    jobs.reap()
    jobs.resend_lost()
    if timezone.now().minute == 0:
        jobs.sweep()
        IdempotentAnswer.objects.forget()
    watchdog.ask_for_sign("train")
    for work in (_keep_audit_log, *EACH_MINUTE):
        try:
            work()
        except Exception:
            # What fails in one app must not keep the others from their work.
            logger.exception("The work of each minute failed: %s", work.__module__)


def _keep_audit_log() -> None:
    """Chain what is not, keep the end of the log outside of the database each hour, and have it verified each day."""
    audit.seal()
    if timezone.now().minute == 0:
        audit_verification.keep_end()
        audit_verification.ask_for_verification()


def verify_audit() -> None:
    audit_verification.verify_and_record()


def leave_sign(cluster: str) -> None:
    system.WorkerSign.leave(cluster)


def send_mail(number: int, why: str, attempt: int) -> None:
    notification = Notification.objects.select_related("user").filter(pk=number).first()
    if notification is not None:
        send_mail_about(notification, why, attempt)
