"""`manage.py rebuild_version`: the process that rebuilds the network of a version. It alone imports TensorFlow."""

import json
import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from registry import artifacts, packages, weights_file
from training.rebuilding import PARENT_VARIABLE
from xrayplatform.processes import die_with_parent


class Command(BaseCommand):
    help = "Rebuild the network of a package or of a version. Started by the platform, not by people."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("what", choices=["package", "keras", "onnx"])
        parser.add_argument("question", type=Path)
        parser.add_argument("answer", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        die_with_parent(int(os.environ.get(PARENT_VARIABLE, "0")))
        asked = json.loads(options["question"].read_text())
        try:
            told = _rebuild(asked) if options["what"] == "package" else _write(options["what"], asked)
        except (packages.PackageError, artifacts.ArtifactError, weights_file.WeightsError) as error:
            told = {"reason": error.reason, "error": str(error)}
        part = options["answer"].with_suffix(".part")
        part.write_text(json.dumps(told))
        part.rename(options["answer"])


def _rebuild(asked: dict[str, Any]) -> dict[str, Any]:
    weights = Path(asked["package"]) / packages.WEIGHTS
    # What can be refused is refused before TensorFlow is loaded.
    shapes = weights_file.check(weights)
    from training.ml.rebuilding import rebuild_foreign

    return {"sha256": rebuild_foreign(weights, shapes, asked["manifest"], Path(asked["target"]))}


def _write(form: str, asked: dict[str, Any]) -> dict[str, Any]:
    artifact = artifacts.load(Path(asked["folder"]), asked["sha256"])
    from training.ml.rebuilding import WRITERS

    WRITERS[form](artifact, Path(asked["target"]))
    return {}
