"""Other systems that are told of what happens in the registry, and each call to them."""

import ipaddress
import json
import logging
import time
import uuid
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MinLengthValidator
from django.db import models, transaction
from django.utils import timezone
from django_q.tasks import async_task

from xrayplatform import audit
from xrayplatform.tries import Tried, next_try_after

from .. import outgoing

logger = logging.getLogger(__name__)

# A worker that died while it called is not waited for any longer.
CALL_LASTS = timedelta(minutes=2)


class Event(models.TextChoices):
    NEW = "version.new", "New version"
    ACTIVATED = "version.activated", "Version put in service"
    ROLLED_BACK = "version.rolled_back", "Rolled back"
    DAMAGED = "version.damaged", "Files of a version damaged"
    ALERT = "monitoring.alert", "A figure in use beyond its limit"


TEST = "webhook.test"


def listed_networks() -> list[outgoing.Network]:
    """Those of the settings. Raises OutgoingError when one is none; a system check says so at the start as well."""
    return outgoing.read_networks(settings.WEBHOOK_PRIVATE_NETWORKS)


def check_url(url: str) -> None:
    """What cannot be called is refused when it is entered; a name is looked up with each call."""
    try:
        host = outgoing.parse(url).hostname or ""
        networks = listed_networks()
    except outgoing.OutgoingError as error:
        raise ValidationError(str(error)) from error
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not outgoing.is_allowed(address, networks):
        raise ValidationError(
            f"{host} is no public address. Networks of your own have to be listed in WEBHOOK_PRIVATE_NETWORKS."
        )


class Webhook(models.Model):
    """An address on the administrators' list of those that are called. Only what is here is ever called."""

    name = models.CharField(max_length=120, unique=True)
    url = models.CharField("address", max_length=500, validators=[check_url])
    secret = models.CharField(
        max_length=200,
        validators=[MinLengthValidator(16)],
        help_text="at least 16 characters; the receiver verifies the signature of each call with it",
    )
    events = models.JSONField(default=list)
    active = models.BooleanField(default=True, help_text="an address that is not active is not called")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def enqueue(self, event: str, payload: dict[str, Any]) -> "WebhookDelivery":
        """Call it inside the transaction of what happened: the call appears with it or not at all."""
        delivery = WebhookDelivery.objects.create(webhook=self, event=event, payload=payload, next_at=timezone.now())
        async_task("registry.tasks.deliver", delivery.pk, cluster="xray", task_name=f"webhook-{delivery.pk}")
        return delivery

    def test(self, *, by: Any) -> "WebhookDelivery":
        """A call that tells of nothing, with its audit entry; it goes the way of every other."""
        with transaction.atomic():
            delivery = self.enqueue(TEST, {})
            audit.record("webhook.test", self, actor=by)
        return delivery


def tell_systems(event: str, version: Any, **more: Any) -> None:
    """Enqueue a call to every active address that wants to know of the event; nothing in it is about a patient."""
    payload = {"condition": version.condition.slug, "version": version.number, "sha256": version.sha256, **more}
    for webhook in Webhook.objects.filter(active=True):
        if event in webhook.events:
            webhook.enqueue(event, payload)


class WebhookDeliveryQuerySet(models.QuerySet):
    def due(self) -> "WebhookDeliveryQuerySet":
        return self.filter(state=WebhookDelivery.State.WAITING, next_at__lte=timezone.now())


class WebhookDelivery(Tried):
    """One call, with every try of it. `key` stays the same, so that a receiver knows what it had already."""

    try_lasts = CALL_LASTS

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        SENT = "sent", "Sent"
        FAILED = "failed", "Failed"

    key = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    webhook = models.ForeignKey(Webhook, models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=40)
    payload = models.JSONField()
    state = models.CharField(max_length=10, choices=State, default=State.WAITING, db_index=True)
    next_at = models.DateTimeField(help_text="not before this time")
    log = models.JSONField(default=list, help_text="when each try was made and what came of it")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = WebhookDeliveryQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        verbose_name_plural = "webhook deliveries"

    def __str__(self) -> str:
        return f"{self.event} to {self.webhook}"

    def deliver(self) -> bool:
        """Make a try, if it is time for one and nobody else does. Whether the call has been sent by it."""
        if not self.claim():
            return False
        try:
            if not self.webhook.active:
                raise outgoing.OutgoingError("The address was switched off.")
            status = self._send()
        except outgoing.OutgoingError as error:
            self._note(str(error), self._after_failure())
            return False
        self._note(f"answered {status}", self.State.SENT)
        return True

    def _send(self) -> int:
        content = {"id": str(self.key), "event": self.event, "at": self.created_at.isoformat(), **self.payload}
        body = json.dumps(content, sort_keys=True).encode()
        headers = {
            "X-Xray-Event": self.event,
            "X-Xray-Delivery": str(self.key),
            "X-Xray-Signature": outgoing.signature(self.webhook.secret, int(time.time()), body),
        }
        return outgoing.send(self.webhook.url, body, headers, listed_networks())

    def _after_failure(self) -> str:
        """Waiting for the next try, where there is one left."""
        next_at = next_try_after(self.tries) if self.webhook.active else None
        if next_at is None:
            return self.State.FAILED
        self.next_at = next_at
        return self.State.WAITING

    def _note(self, words: str, state: str) -> None:
        self.state = state
        self.log = [*self.log, {"at": timezone.now().isoformat(), "result": words[:300]}]
        self.save(update_fields=["state", "log", "next_at"])
        if state != self.State.SENT:
            logger.warning("%s, try %s: %s", self, self.tries, words)
