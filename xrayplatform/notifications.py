"""What the platform tells a person: on the page, and by e-mail where the site has a mail server."""

import logging
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.core.mail import send_mail
from django.db import models, transaction
from django.utils import timezone
from django_q.tasks import async_task, schedule

from . import audit
from .tries import next_try_after

logger = logging.getLogger(__name__)
SEND = "xrayplatform.tasks.send_mail"
STARTED_IT = "You get this message because you started this work on the X-ray platform."


class NotificationQuerySet(models.QuerySet):
    def of(self, user: Any) -> "NotificationQuerySet":
        return self.filter(user=user)

    def unread(self) -> "NotificationQuerySet":
        return self.filter(read_at__isnull=True)


class Notification(models.Model):
    """One message to one user; `url` is a page of the platform."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="notifications")
    at = models.DateTimeField(auto_now_add=True)
    text = models.CharField(max_length=300)
    url = models.CharField(max_length=200, blank=True)
    read_at = models.DateTimeField(null=True)

    objects = NotificationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["user", "read_at"], name="unread_notifications")]

    def __str__(self) -> str:
        return f"to {self.user}: {self.text}"


def notify(user: Any, text: str, url: str = "", *, why: str = STARTED_IT) -> Notification | None:
    """Tell `user` (None: nobody, the command line started it) something; call it in the transaction of what happened.

    The e-mail goes into the queue with it, and only if the user has an address and the site a mail server; its last
    line is `why`. Nobody waits for the mail server, and without a worker of the queue the mail waits for one.
    """
    if user is None or not user.is_active:
        return None
    notification = Notification.objects.create(user=user, text=text[:300], url=url)
    if settings.EMAIL_ON and user.email:
        async_task(SEND, notification.pk, why, 1, cluster="xray", task_name=f"mail-{notification.pk}")
    return notification


def send_mail_about(notification: Notification, why: str, attempt: int) -> None:
    """Try to send the mail; one that fails is logged and tried again after a pause, the last time given up."""
    user = notification.user
    if not (settings.EMAIL_ON and user.is_active and user.email):
        return
    try:
        _send(notification, user.email, why)
    except Exception:
        logger.exception("The mail about notification %s could not be sent, try %s", notification.pk, attempt)
        _try_again(notification, why, attempt)


def _try_again(notification: Notification, why: str, attempt: int) -> None:
    next_run = next_try_after(attempt)
    if next_run is None:
        logger.error("The mail about notification %s was given up; it stands on the page.", notification.pk)
        return
    schedule(SEND, notification.pk, why, attempt + 1, cluster="xray", next_run=next_run)


def _send(notification: Notification, address: str, why: str) -> None:
    body = [notification.text]
    if notification.url and settings.SITE_URL:
        body.append(settings.SITE_URL.rstrip("/") + notification.url)
    body.append(why)
    # A line break would end the subject's header.
    subject = " ".join(f"X-ray platform: {notification.text}".split())
    send_mail(subject[:120], "\n\n".join(body), None, [address])


def mark_read(user: Any, numbers: Iterable[int] | None = None) -> int:
    """Mark the user's own unread notifications (those with these numbers, or all) as read. Returns how many."""
    unread = Notification.objects.of(user).unread()
    if numbers is not None:
        unread = unread.filter(pk__in=list(numbers))
    with transaction.atomic():
        count = unread.update(read_at=timezone.now())
        if count:
            audit.record("notification.read", user, actor=user, after={"count": count})
    return count
