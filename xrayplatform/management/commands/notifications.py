"""`manage.py notifications --user NAME`: what the platform told a user; --read marks it as read."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from xrayplatform.commands import PlatformCommand
from xrayplatform.notifications import Notification, mark_read


class Command(PlatformCommand):
    help = "Show the unread notifications of a user."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--read", action="store_true", help="mark them as read")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        user = self.actor(options)
        if user is None:
            raise CommandError("Say whose: --user NAME.")
        unread = list(Notification.objects.of(user).unread())
        if options["read"]:
            mark_read(user, [item.pk for item in unread])
        return {
            "notifications": [
                {"id": item.pk, "at": item.at.isoformat(), "text": item.text, "url": item.url} for item in unread
            ]
        }

    def show(self, result: dict[str, Any]) -> None:
        for item in result["notifications"]:
            self.stdout.write(f"{item['at'][:16]} {item['text']}")
