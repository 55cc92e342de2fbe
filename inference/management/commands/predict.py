"""`manage.py predict CONDITION FILE...`: analyse radiographs with the version in service, as X-ray Analysis does.

Each file has its own `error`; the exit status is 1 when not one of them could be analysed.
"""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from datasets.imaging import ImageError, read_bytes
from inference.analysing import GateRefused
from inference.engine import EngineError
from inference.models import NoActiveModel, Prediction, model_in_service
from xrayplatform.commands import PlatformCommand
from xrayplatform.conditions import Condition


class Command(PlatformCommand):
    permission = "inference.add_prediction"
    help = "Analyse radiographs with the model in service for a condition."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("files", nargs="+", type=Path, metavar="FILE")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        conditions = Condition.objects.seen_by(actor)
        condition = conditions.filter(slug=options["condition"]).first()
        if condition is None:
            known = ", ".join(conditions.values_list("slug", flat=True)) or "none; run scan_dataset first"
            raise CommandError(f"There is no condition {options['condition']!r}. Known conditions: {known}.")
        try:
            model_in_service(condition)
        except (NoActiveModel, EngineError) as error:
            raise CommandError(str(error)) from error
        predictions = [_predict(condition, path, actor) for path in options["files"]]
        failed = all(item["error"] for item in predictions)
        return {"predictions": predictions} | ({"failed": True} if failed else {})

    def show(self, result: dict[str, Any]) -> None:
        for item in result["predictions"]:
            if item["error"]:
                self.stdout.write(f"{item['file']}: {item['error']}")
                continue
            chances = ", ".join(f"{name} {chance:.3f}" for name, chance in item["probabilities"].items())
            self.stdout.write(f"{item['file']}: {item['decision']} ({chances}) by {item['version']}")


def _predict(condition: Condition, path: Path, actor: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {"file": str(path), "version": None, "probabilities": None, "decision": None}
    try:
        source = read_bytes(path)
        way = Prediction.Channel.COMMAND
        prediction = Prediction.objects.analyse(condition, source, by=actor, channel=way).prediction
    except (ImageError, GateRefused, EngineError) as error:
        return answer | {"error": str(error)}
    return answer | {
        "warnings": [verdict["text"] for verdict in prediction.gate if verdict["outcome"] in ("warn", "fail")],
        "version": prediction.version.number,
        "probabilities": prediction.probabilities,
        "decision": prediction.decision,
        "error": None,
    }
