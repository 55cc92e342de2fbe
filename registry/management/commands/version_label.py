"""`manage.py version_label CONDITION VERSION`: show a version's tags and notes, or add and remove some."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from registry.models import LabelError, ModelVersion
from xrayplatform.commands import PlatformCommand

LABEL = "registry.label_modelversion"


class Command(PlatformCommand):
    permission = "registry.view_modelversion"
    help = "Show the tags and notes of a model version; with options, tag it, untag it, write a note: all or nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("--tag", action="append", default=[], metavar="NAME", help="add this tag; repeat it")
        parser.add_argument("--untag", action="append", default=[], metavar="NAME", help="remove this tag; repeat it")
        parser.add_argument("--note", metavar="TEXT", help="add this note; it cannot be changed afterwards")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        changes = options["tag"] or options["untag"] or options["note"] is not None
        if changes and actor is not None and not actor.has_perm(LABEL):
            raise CommandError(f"{actor} has no role that allows this ({LABEL}).")
        try:
            version = ModelVersion.objects.seen_by(actor).numbered(options["condition"], options["version"])
            with transaction.atomic():
                _label(version, options, actor)
        except (ModelVersion.DoesNotExist, LabelError) as error:
            raise CommandError(str(error)) from error
        return {
            "condition": version.condition.slug,
            "version": version.number,
            "tags": [tag.name for tag in version.tags.all()],
            "notes": [
                {"text": note.text, "by": note.by.get_username() if note.by else None, "at": note.at.isoformat()}
                for note in version.notes.select_related("by")
            ],
        }

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Tags: {', '.join(result['tags']) or 'none'}")
        for note in result["notes"]:
            self.stdout.write(f"  {note['at'][:16]} {note['by'] or 'command line'}: {note['text']}")


def _label(version: ModelVersion, options: dict[str, Any], actor: Any) -> None:
    for name in options["untag"]:
        version.untag(name, by=actor)
    for name in options["tag"]:
        version.tag(name, by=actor)
    if options["note"] is not None:
        version.add_note(options["note"], by=actor)
