"""`manage.py verify_audit`: is the audit log as it was written? Ends with status 1 when it is not."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from xrayplatform.audit_keys import AuditKeyError
from xrayplatform.audit_verification import verify_and_record
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    help = "Name the first entry of the audit log that was altered, added, removed or moved."
    permission = "xrayplatform.view_auditentry"

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--since", type=int, default=0, metavar="SEQ", help="begin at this entry")
        parser.add_argument("--anchor", metavar="FILE", help="a copy of MODEL_ROOT/audit/heads-*.jsonl kept elsewhere")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        anchor = Path(options["anchor"]) if options["anchor"] else None
        try:
            found = verify_and_record(actor=self.actor(options), since=options["since"], anchor=anchor)
        except OSError as error:
            raise CommandError(f"The file of --anchor cannot be read: {error}.") from error
        except AuditKeyError as error:
            raise CommandError(str(error)) from error
        return found.to_json() | {"failed": found.problem is not None}

    def show(self, result: dict[str, Any]) -> None:
        problem = result["problem"]
        if problem:
            self.stdout.write(self.style.ERROR(f"{problem['message']} ({problem['kind']})"))
            self.stdout.write(f"The {result['entries']:,} entries before it are as they were written.")
            return
        self.stdout.write(
            f"All {result['entries']:,} entries are as they were written; {result['anchors']:,} ends of the log kept "
            "in files fit them."
        )
        if result["upgraded"]:
            self.stdout.write(
                f"{result['upgraded']:,} of them are from before the chain: what happened to them until then cannot be "
                "known."
            )
