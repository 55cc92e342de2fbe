"""`manage.py pretrained list|fetch|add`: the ImageNet weights that trainings may start from."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from training.ml.architectures import ARCHITECTURES
from training.pretrained import PretrainedError, add, fetch, inventory, weights_state
from xrayplatform.commands import PlatformCommand

TELL_EVERY_BYTES = 10 << 20


class Command(PlatformCommand):
    help = "Show, download or take in the ImageNet weights that Keras publishes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        super().add_arguments(actions.add_parser("list", help="which architectures have their weights here"))
        fetching = actions.add_parser("fetch", help="download them (needs internet)")
        fetching.add_argument("names", nargs="+", metavar="NAME", help="an architecture, or all")
        adding = actions.add_parser("add", help="take in files that were carried here")
        adding.add_argument("files", nargs="+", metavar="FILE", type=Path, help="its name does not matter")
        super().add_arguments(fetching)
        super().add_arguments(adding)

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        self.permission = "training.view_trainingrun" if options["action"] == "list" else "training.add_trainingrun"
        by = self.actor(options)
        if options["action"] == "fetch":
            done, errors = self._fetch(options["names"], by)
        elif options["action"] == "add":
            done, errors = self._add(options["files"], by)
        else:
            done, errors = [], []
        result = {"architectures": inventory(), "installed": done, "errors": errors}
        return result | {"failed": True} if errors else result

    def _fetch(self, names: list[str], by: Any) -> tuple[list[str], list[str]]:
        """The architectures whose weights came in, and what went wrong with others."""
        wanted = [row["architecture"] for row in inventory()] if names == ["all"] else names
        for name in wanted:
            if name not in ARCHITECTURES:
                raise CommandError(f"There is no architecture {name!r}; there are {', '.join(ARCHITECTURES)}.")
        done, errors = [], []
        for name in wanted:
            if weights_state(ARCHITECTURES[name]) == "installed":
                self.tell(f"{name}: already installed.")
                continue
            try:
                fetch(ARCHITECTURES[name], by, self._progress(name))
                done.append(name)
            except PretrainedError as error:
                errors.append(f"{name}: {error}")
        return done, errors

    def _progress(self, name: str) -> Any:
        told = 0

        def on_progress(received: int) -> None:
            nonlocal told
            if received - told >= TELL_EVERY_BYTES:
                told = received
                self.tell(f"  {name}: {received >> 20} MiB")

        return on_progress

    def _add(self, files: list[Path], by: Any) -> tuple[list[str], list[str]]:
        done, errors = [], []
        for file in files:
            try:
                done.append(add(file, by).id)
            except PretrainedError as error:
                errors.append(str(error))
        return done, errors

    def show(self, result: dict[str, Any]) -> None:
        for row in result["architectures"]:
            self.stdout.write(f"{row['architecture']:17} {row['state']:9} {row['file']}")
            self.stdout.write(f"{'':27} {row['algorithm']} {row['digest']}")
            self.stdout.write(f"{'':27} {row['url']}")
        for name in result["installed"]:
            self.stdout.write(f"Installed the weights of {name}.")
        for error in result["errors"]:
            self.stderr.write(error)
