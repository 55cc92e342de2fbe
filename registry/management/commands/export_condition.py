"""`manage.py export_condition CONDITION OUT.zip`: all versions as packages, with the history of what was in service."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from registry import exporting
from xrayplatform.commands import PlatformCommand
from xrayplatform.conditions import Condition


class Command(PlatformCommand):
    permission = "registry.export_modelversion"
    help = "Write all versions of a condition as signed packages into one zip, with its history."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("out", type=Path, help="the file to write; one that is there is replaced")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        condition = Condition.objects.seen_by(by).filter(slug=options["condition"]).first()
        if condition is None:
            raise CommandError(f"There is no condition {options['condition']}.")
        out = options["out"]
        try:
            history = exporting.export_condition(condition, out, by=by)
        except exporting.REFUSALS as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{out} cannot be written: {error.strerror}.") from error
        return {"file": str(out), "size": out.stat().st_size, **history}

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['file']}: {result['size']:,} bytes, {len(result['versions'])} versions")
        for version in result["versions"]:
            if version["problem"]:
                self.stdout.write(f"  ! version {version['number']} was left out: {version['problem']}")
