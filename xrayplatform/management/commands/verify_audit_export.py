"""`manage.py verify_audit_export FILE`: is an export as it left the platform? Ends with status 1 when it is not."""

from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from xrayplatform import audit, audit_export
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    help = "Say whether an export of the audit log is as it was written, by its signature."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("file", metavar="FILE")
        parser.add_argument("--public-key", default="", help="of the site that exported it (default: this one)")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        try:
            found = audit_export.verify(Path(options["file"]), audit.keyring(), options["public_key"].lower())
        except OSError as error:
            raise CommandError(f"{options['file']} cannot be read: {error.strerror}.") from error
        return asdict(found) | {"failed": not found.trusted}

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(result["message"])
