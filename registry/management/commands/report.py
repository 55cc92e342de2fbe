"""`manage.py report CONDITION VERSION`: the report of a version, as its page shows it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry import report_tables
from registry.models import Evaluation, ModelVersion
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.view_evaluation"
    help = "Print the report of a model version: figures with 95 % intervals, warnings, and as JSON everything."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--kind", choices=Evaluation.Kind.values, default=Evaluation.Kind.TEST.value, help="the newest of this kind"
        )
        which.add_argument("--evaluation", type=int, metavar="N", help="this evaluation")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        try:
            versions = ModelVersion.objects.seen_by(actor)
            version = versions.numbered(options["condition"], options["version"])
            evaluation = Evaluation.objects.chosen(version, options["kind"], options["evaluation"])
        except (ModelVersion.DoesNotExist, Evaluation.DoesNotExist) as error:
            raise CommandError(str(error)) from error
        return {
            "condition": version.condition.slug,
            "version": version.number,
            "evaluation": evaluation.pk,
            "kind": evaluation.kind,
            "dataset": evaluation.dataset_name,
            "versions_measured": evaluation.versions_measured,
            "cautions": [caution.to_json() for caution in evaluation.cautions],
            "drop": evaluation.drop,
            "drop_by_figure": evaluation.drop_by_figure,
            "report": evaluation.report,
        }

    def show(self, result: dict[str, Any]) -> None:
        report = result["report"]
        self.stdout.write(f"Version {result['version']} of {result['condition']}, evaluation {result['evaluation']}")
        self.stdout.write(f"{report['n']:,} images of {report['patients']:,} patients: {result['dataset']}")
        for caution in result["cautions"]:
            self.stdout.write(f"! {caution['text']} {caution['advice']}")
        for sentence in result["drop"]:
            self.stdout.write(sentence)
        for row in report_tables.figure_rows(report["metrics"]):
            self.stdout.write(f"  {row['words'].name:24} {_in_words(row['figure'])}")
        self.stdout.write("Confusion matrix (rows: true class, columns: decision)")
        for name, counts in zip(report["classes"], report["confusion_matrix"], strict=True):
            self.stdout.write(f"  {name:24} " + " ".join(f"{count:6d}" for count in counts))


def _in_words(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return f"not available: {figure['undefined']}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
