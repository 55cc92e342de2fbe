"""`manage.py export_audit --out FILE`: the audit log as a signed file."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from xrayplatform.audit import AuditEntry, keyring
from xrayplatform.audit_export import FORMATS
from xrayplatform.audit_filters import AuditFilter, pieces_of_export
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    help = "Write the audit log, or some days of it, to a signed file (CSV or JSON, by the file's name)."
    permission = "xrayplatform.view_auditentry"

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--out", required=True, metavar="FILE", help="a new file, ending with .csv or .json")
        parser.add_argument("--since", default="", metavar="DAY", help="from this day on (UTC), as 2026-01-31")
        parser.add_argument("--until", default="", metavar="DAY", help="up to the end of this day (UTC)")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        out = Path(options["out"])
        form = out.suffix.removeprefix(".").lower()
        if form not in FORMATS:
            raise CommandError("Name a file of --out that ends with .csv or .json.")
        asked = {name: options[name] for name in ("since", "until") if options[name]}
        found = AuditFilter(asked, AuditEntry.objects.all())
        if not found.is_valid():
            raise CommandError("Write the days of --since and --until as 2026-01-31.")
        try:
            with out.open("xb") as file:
                file.writelines(pieces_of_export(found.qs, form, asked, by=self.actor(options)))
                size = file.tell()
        except FileExistsError as error:
            raise CommandError(f"{out} exists already; it was left as it is. Name another file.") from error
        except OSError as error:
            raise CommandError(f"{out} cannot be written: {error.strerror}.") from error
        return {"file": str(out), "bytes": size, "public_key": keyring().public_key()}

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Wrote {result['file']} ({result['bytes']:,} bytes).")
        self.stdout.write(f"Whoever gets it can verify it with the public key {result['public_key']}.")
