"""`manage.py export_model CONDITION VERSION OUT.zip`: a version as a signed package, or as a file for other tools."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from registry import exporting
from registry.models import ModelVersion
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.export_modelversion"
    help = "Write a model version as a signed package for another site, or as a file for other tools."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("out", type=Path, help="the file to write; one that is there is replaced")
        parser.add_argument("--as", dest="form", choices=list(exporting.FORMS), default="package")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        out = options["out"]
        try:
            version = ModelVersion.objects.seen_by(by).numbered(options["condition"], options["version"])
            sha256 = exporting.FORMS[options["form"]].write(version, out, by=by)
        except (ModelVersion.DoesNotExist, *exporting.REFUSALS) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{out} cannot be written: {error.strerror}.") from error
        return {
            "condition": version.condition.slug,
            "version": version.number,
            "form": options["form"],
            "file": str(out),
            "size": out.stat().st_size,
            "package": sha256,
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['file']}: {result['size']:,} bytes")
        if result["package"]:
            self.stdout.write(f"Package {result['package']}")
