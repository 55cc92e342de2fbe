"""`manage.py restore_version CONDITION VERSION`: put the files of a damaged version back from its backup."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.backups import BackupError
from registry.models import ModelVersion
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.activate_modelversion"
    help = "Put the files of a damaged version back from the backup that was made when it was in service."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        try:
            version = ModelVersion.objects.seen_by(actor).numbered(options["condition"], options["version"])
            check = version.restore(by=actor)
        except (ModelVersion.DoesNotExist, BackupError) as error:
            raise CommandError(str(error)) from error
        if check.is_damaged:
            raise CommandError(f"The files of {version} were put back, and still: {check.message}")
        return {"condition": version.condition.slug, "version": version.number, "sha256": version.sha256}

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['condition']} v{result['version']} is what was registered ({result['sha256']}).")
