"""`manage.py webhook [NAME --test]`: the addresses that are called, and a test call to one of them."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import Webhook, WebhookDelivery
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.view_webhook"
    help = "List the webhooks, or one; --test calls it now. The list itself is kept in the admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", nargs="?", help="of the webhook (default: all)")
        parser.add_argument("--test", action="store_true", help="send a test call and say what came of it")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor, name = self.actor(options), options["name"]
        webhooks = list(Webhook.objects.filter(**({"name": name} if name else {})))
        if name and not webhooks:
            known = ", ".join(Webhook.objects.values_list("name", flat=True)) or "none"
            raise CommandError(f"There is no webhook {name!r}. Known: {known}.")
        result: dict[str, Any] = {"webhooks": [_row(webhook) for webhook in webhooks]}
        return result | _test(webhooks[0], actor) if _may_test(options, actor) else result

    def show(self, result: dict[str, Any]) -> None:
        for row in result["webhooks"]:
            state = "" if row["active"] else " (inactive)"
            self.stdout.write(f"{row['name']}{state}: {row['url']} on {', '.join(row['events']) or 'nothing'}")
        if not result["webhooks"]:
            self.stdout.write("There are no webhooks. An administrator adds them in the admin.")
        if "test" in result:
            self.stdout.write(f"Test call: {result['test']}")


def _row(webhook: Webhook) -> dict[str, Any]:
    """Without the secret."""
    last = webhook.deliveries.first()
    return {
        "name": webhook.name,
        "url": webhook.url,
        "events": webhook.events,
        "active": webhook.active,
        "last_call": last and {"event": last.event, "state": last.state, "at": last.created_at.isoformat()},
    }


def _may_test(options: dict[str, Any], actor: Any) -> bool:
    """Whether a test call is asked for. Raises CommandError without a name, or without the right."""
    if not options["test"]:
        return False
    if not options["name"]:
        raise CommandError("Say which one to test: webhook NAME --test.")
    if actor is not None and not actor.has_perm("registry.change_webhook"):
        raise CommandError(f"{actor} has no role that allows this (registry.change_webhook).")
    return True


def _test(webhook: Webhook, actor: Any) -> dict[str, Any]:
    """What the first try came to; where it failed, the queue goes on trying as with every call."""
    delivery = webhook.test(by=actor)
    sent = delivery.deliver()
    delivery.refresh_from_db()
    words = delivery.log[-1]["result"] if delivery.log else "a worker of the queue is calling"
    waits = delivery.state == WebhookDelivery.State.WAITING
    return {"test": words + (" It is tried again." if waits else ""), "failed": 0 if sent or not delivery.log else 1}
