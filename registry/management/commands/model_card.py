"""`manage.py model_card CONDITION VERSION`: the model card as Markdown, JSON or HTML."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.template.loader import render_to_string

from registry import cards, model_card
from registry.models import ModelVersion
from xrayplatform import audit
from xrayplatform.commands import PlatformCommand

WRITERS = {
    "markdown": model_card.to_markdown,
    "json": model_card.to_json,
    "html": lambda card: render_to_string("registry/version_card_file.html", {"card": card}),
}


class Command(PlatformCommand):
    permission = "registry.view_modelversion"
    help = "Write the model card of a version: purpose, counts of the data, training, figures, limits, approval."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("--as", dest="form", choices=list(WRITERS), default="markdown", help="(default markdown)")
        parser.add_argument("--out", metavar="FILE", help="write to this file, which must not exist yet")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        versions = ModelVersion.objects.seen_by(actor).select_related("created_by", "parent__condition")
        try:
            version = versions.numbered(options["condition"], options["version"])
        except ModelVersion.DoesNotExist as error:
            raise CommandError(str(error)) from error
        card = cards.card_of(version)
        text = WRITERS[options["form"]](card)
        audit.record("version.card", version, actor=actor, after={"format": options["form"]})
        if options["out"]:
            _write(Path(options["out"]), text)
        return {"version": str(version), "file": options["out"], "card": card, "text": text}

    def show(self, result: dict[str, Any]) -> None:
        if result["file"]:
            self.stdout.write(f"The card of {result['version']} was written to {result['file']}.")
        else:
            self.stdout.write(result["text"], ending="")


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise CommandError(f"{path} exists. Choose another name, or remove it first.") from error
    except OSError as error:
        raise CommandError(f"{path} could not be written: {error.strerror}.") from error
