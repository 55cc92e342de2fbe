"""`manage.py verdict PREDICTION agree|disagree --user NAME`: say what a reader thinks of an answer, as on its page."""

import uuid
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from inference.models import Prediction, Verdict, VerdictError
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "inference.add_verdict"
    help = "Store a reader's verdict about an analysis."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("prediction", type=uuid.UUID, help="the number on the analysis' page")
        parser.add_argument("verdict", choices=["agree", "disagree"])
        parser.add_argument(
            "--label", default="", metavar="CLASS", help="with disagree: the class that the reader sees"
        )
        parser.add_argument("--comment", default="", metavar="TEXT")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        if by is None:
            raise CommandError("A verdict is a person's: say whose, with --user.")
        prediction = (
            Prediction.objects.visible_to(by).select_related("version").filter(pk=options["prediction"]).first()
        )
        if prediction is None:
            raise CommandError(f"There is no analysis {options['prediction']} that {by} may see.")
        agrees = options["verdict"] == "agree"
        try:
            verdict = Verdict.objects.give(prediction, by, agrees, options["label"], options["comment"])
        except VerdictError as error:
            raise CommandError(str(error)) from error
        return {
            "verdict": verdict.pk,
            "prediction": str(prediction.pk),
            "decision": prediction.decision,
            "agrees": verdict.agrees,
            "label": verdict.label,
            "by": by.get_username(),
        }

    def show(self, result: dict[str, Any]) -> None:
        word = "agrees with" if result["agrees"] else f"sees {result['label']} instead of"
        self.stdout.write(f"Stored: {result['by']} {word} {result['decision']}.")
