"""`manage.py compare_models CONDITION V1 V2 ...`: versions side by side, as the comparison page shows them."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.comparing import METRICS
from registry.image_sets import ComparisonError, chosen_versions
from registry.models import ModelVersion
from registry.side_by_side import side_by_side
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.view_modelversion"
    help = "Compare two to ten versions of a condition on the same images: ranking, differences and conclusions."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("versions", type=int, nargs="+", metavar="version", help="numbers of the versions")
        parser.add_argument("--metric", choices=list(METRICS), default="auc", help="to rank by (default auc)")
        parser.add_argument("--images", default="", help="value of one of `image_sets` (default: the own test parts)")
        parser.add_argument("--class", dest="name", help="whose curves the JSON holds (default: the mean, or the only)")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        visible = ModelVersion.objects.seen_by(self.actor(options))
        try:
            named = [visible.numbered(options["condition"], number) for number in options["versions"]]
            versions = chosen_versions(visible, [str(version.pk) for version in named])
            return side_by_side(versions, images=options["images"], metric=options["metric"], name=options["name"])
        except (ModelVersion.DoesNotExist, ComparisonError) as error:
            raise CommandError(str(error)) from error

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"{result['condition']}: {result['images']['label']}")
        for sentence in result["obstacles"]:
            self.stdout.write(f"! {sentence}")
        self.stdout.write(f"Ranking by {METRICS[result['metric']]}")
        figures = {figure["label"]: figure for figure in result["metrics"].get(result["metric"], [])}
        for row in result["ranking"]:
            place = "-" if row["place"] is None else row["place"]
            self.stdout.write(f"  {place:>2}  {row['label']:6} {_in_words(figures[row['label']])}")
        for pair in result["pairs"]:
            self.stdout.write(pair["conclusion"])
        for note in result["notes"]:
            self.stdout.write(note)
        if len(result["image_sets"]) > 1:
            self.stdout.write("Other images to compare on (--images):")
            for one in result["image_sets"]:
                self.stdout.write(f"  {one['value']}  {one['label']}")


def _in_words(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return f"not available: {figure['undefined']}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
