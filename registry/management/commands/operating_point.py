"""`manage.py operating_point CONDITION VERSION`: choose a threshold on validation, see it on test, and save it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry.models import ModelVersion
from registry.models.threshold_set import ThresholdError
from registry.operating_points import COST, CRITERIA, SENSITIVITY, SPECIFICITY
from registry.weighing import BY_HAND, Weighing, Wish
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    permission = "registry.view_thresholdset"
    help = "Show what a threshold of a version does, chosen by a criterion or given, and save it as a threshold set."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--criterion", choices=list(CRITERIA), help="how to choose the threshold on validation")
        which.add_argument("--threshold", type=float, help="this threshold, between 0 and 1")
        parser.add_argument(
            "--target",
            type=float,
            help="the sensitivity or specificity (0 to 1), or how many false alarms a miss costs",
        )
        parser.add_argument("--prevalence", type=float, help="share of positives among who is examined (0 to 1)")
        parser.add_argument("--save", action="store_true", help="save it as a threshold set; needs --reason")
        parser.add_argument("--reason", default="", help="why this threshold is the right one; it is kept")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        if options["save"]:
            _need_right_to_save(actor)
        if len(options["reason"]) > 500:
            raise CommandError("The reason is too long; 500 characters at most.")
        try:
            version = ModelVersion.objects.seen_by(actor).numbered(options["condition"], options["version"])
            weighing = Weighing.of(version)
            return _result(weighing, _wish(weighing, options), options, actor)
        except (ModelVersion.DoesNotExist, ThresholdError) as error:
            raise CommandError(str(error)) from error

    def show(self, result: dict[str, Any]) -> None:
        self.stdout.write(f"Threshold {result['threshold']:.4g} (as trained: {result['trained']:.4g})")
        for part, figures in result["figures"].items():
            rates = ", ".join(f"{name} {_rate(figures[name])}" for name in ("sensitivity", "specificity"))
            self.stdout.write(f"  {part:10} {rates}")
            if figures["predictive_values"]:
                values = figures["predictive_values"].items()
                said = [f"{name} {'not available' if value is None else f'{value:.3f}'}" for name, value in values]
                self.stdout.write(f"  {'':10} predictive values: {', '.join(said)}")
        if result["saved"]:
            self.stdout.write(f"Saved as threshold set {result['saved']}; nothing in service has changed.")
        for point in result["sets"]:
            self.stdout.write(f"  set {point['number']}: {point['threshold']:.4g} ({point['reason']})")


def _need_right_to_save(actor: Any) -> None:
    if actor is not None and not actor.has_perm("registry.add_thresholdset"):
        raise CommandError(f"{actor} has no role that allows saving (registry.add_thresholdset).")


def _wish(weighing: Weighing, options: dict[str, Any]) -> Wish:
    criterion, threshold, prevalence = options["criterion"], options["threshold"], options["prevalence"]
    if threshold is not None and not 0 < threshold < 1:
        raise CommandError(f"A threshold lies between 0 and 1, and {threshold:g} does not.")
    if criterion in (SENSITIVITY, SPECIFICITY, COST) and options["target"] is None:
        raise CommandError(f"The criterion {criterion} needs a --target.")
    if criterion is None:
        return Wish(BY_HAND, None, prevalence, weighing.trained if threshold is None else threshold)
    return Wish(criterion, options["target"], prevalence)


def _result(weighing: Weighing, wish: Wish, options: dict[str, Any], actor: Any) -> dict[str, Any]:
    threshold = weighing.threshold(wish)
    saved = weighing.save(wish, reason=options["reason"], by=actor) if options["save"] else None
    version = weighing.version
    return {
        "condition": version.condition.slug,
        "version": version.number,
        "trained": weighing.trained,
        "threshold": threshold,
        "figures": weighing.figures(threshold, wish.prevalence),
        "saved": saved.number if saved else None,
        "sets": list(version.threshold_sets.values("number", "threshold", "criterion", "reason")),
    }


def _rate(rate: dict[str, float | None]) -> str:
    if rate["value"] is None:
        return "not available"
    return f"{rate['value']:.3f} ({rate['low']:.3f} to {rate['high']:.3f})"
