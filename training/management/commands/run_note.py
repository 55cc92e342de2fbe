"""`manage.py run_note RUN TEXT`: add a note to a run; without TEXT, show the notes."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from training.live_views import NoteForm
from training.models import TrainingRun
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "training.add_runnote"
    help = "Add a note to a training run, or show its notes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("run", type=int)
        parser.add_argument("text", nargs="?")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        run = TrainingRun.objects.seen_by(by).filter(pk=options["run"]).first()
        if run is None:
            raise CommandError(f"There is no run {options['run']}.")
        if options["text"] is not None:
            form = NoteForm({"text": options["text"]})
            if not form.is_valid():
                raise CommandError(" ".join(form.errors["text"]))
            run.note(form.cleaned_data["text"], by)
        notes = run.notes.select_related("author")
        return {
            "run": run.pk,
            "notes": [
                {"author": note.author and note.author.get_username(), "at": note.at.isoformat(), "text": note.text}
                for note in notes
            ],
        }

    def show(self, result: dict[str, Any]) -> None:
        for note in result["notes"]:
            self.stdout.write(f"{note['at'][:16]} {note['author'] or 'command line'}: {note['text']}")
