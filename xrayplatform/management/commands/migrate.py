"""`migrate`, with the triggers out of its way that guard immutable rows, and back in place afterwards."""

from typing import Any

from django.core.management.commands import migrate

from xrayplatform import immutability


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        if options.get("plan") or options.get("check_unapplied"):
            super().handle(*args, **options)
            return
        with immutability.suspended(options["database"]), immutability.numbers_kept(options["database"]):
            super().handle(*args, **options)
