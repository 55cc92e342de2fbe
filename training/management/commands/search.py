"""`manage.py search create|list|show|cancel`: train several at once and compare them, as the pages do."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets.models import Dataset
from training.arguments import add_initial, chosen_initial
from training.comparing import compare
from training.configurations import ConfigurationError
from training.ml.architectures import ARCHITECTURES
from training.models import SavedPreset, Search
from training.search_preflight import outlook
from training.searching import ETA, ETAS, Plan, parse_values, plan
from xrayplatform.commands import PlatformCommand
from xrayplatform.http import row_number
from xrayplatform.jobs import JobError
from xrayplatform.templatetags.platform_tags import duration

PERMISSIONS = {
    "create": "training.add_search",
    "list": "training.view_search",
    "show": "training.view_search",
    "cancel": "training.cancel_trainingrun",
}


class Command(PlatformCommand):
    help = "Train several networks at once and compare them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("action", choices=list(PERMISSIONS))
        parser.add_argument("what", nargs="?", help="create: the dataset's path; show, cancel: the search's number")
        parser.add_argument("--name", default="", help="what you want to find out")
        parser.add_argument("--architecture", nargs="+", default=["Custom_CNN"], choices=list(ARCHITECTURES))
        parser.add_argument(
            "--configuration",
            default="standard",
            help='of all runs: "standard", or "saved:" and a number',
        )
        parser.add_argument(
            "--vary", action="append", default=[], metavar="OPTION=VALUES", help="such as learning_rate=0.001,0.0003"
        )
        parser.add_argument("--mode", choices=Search.Mode.values, default=Search.Mode.GRID)
        parser.add_argument("--eta", type=int, choices=ETAS, default=ETA, help="halving: one run in so many goes on")
        add_initial(parser)
        parser.add_argument("--check", action="store_true", help="create: start nothing; say what it would be")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        self.permission = PERMISSIONS[options["action"]]
        by = self.actor(options)
        if options["action"] == "list":
            return {"searches": [_row(search) for search in Search.objects.seen_by(by).with_counts().order_by("-pk")]}
        if options["what"] is None:
            raise CommandError("Name the dataset to train on." if options["action"] == "create" else "Which search?")
        if options["action"] == "create":
            return _create(options, by)
        search = _found(options["what"], by)
        if options["action"] == "cancel":
            search.cancel(by)
        return _json(search)

    def show(self, result: dict[str, Any]) -> None:
        if "searches" in result:
            for row in result["searches"]:
                self.stdout.write(
                    f"Search {row['search']}: {row['name']} ({row['mode']}), {row['runs']} runs, "
                    f"{row['active']} active, {row['finished']} finished"
                )
            return
        if "checks" in result:
            self._show_outlook(result)
            return
        self.stdout.write(f"Search {result['search']}: {result['name']}")
        for run in result["runs"]:
            options = ", ".join(f"{name} {value}" for name, value in run["options"].items())
            loss = run["validation_loss"]
            figure = "no figure yet" if loss is None else f"validation loss {loss:.3f}"
            mark = " (best)" if run["best"] else ""
            self.stdout.write(f"  run {run['run']} {run['state']}: {run['architecture']} {options}, {figure}{mark}")
        for sentence in result["conclusion"]:
            self.stdout.write(sentence)

    def _show_outlook(self, result: dict[str, Any]) -> None:
        for check in result["checks"]:
            self.stdout.write(f"{check['level']:8} {check['name']}: {check['text']} {check['advice']}".rstrip())
        rungs = (result["rungs"] or [])[:-1]
        compared = f", compared after {' and '.join(map(str, rungs))} epochs" if rungs else ""
        self.stdout.write(f"{'runs':8} {result['runs']}{compared}; {result['to_the_end']} train to the end")
        self.stdout.write(f"{'epochs':8} {result['epochs']} in all at most")
        seconds = result["seconds"]
        words = (
            "not known; see speed_test" if seconds is None else f"about {duration(seconds)}, one run after the other"
        )
        self.stdout.write(f"{'time':8} {words}")


def _create(options: dict[str, Any], by: Any) -> dict[str, Any]:
    """Start the search, or with --check say what it would be."""
    try:
        wanted = _plan(options, by)
        dataset = Dataset.objects.seen_by(by).named(options["what"])
        initial = chosen_initial(options, by)
        if not options["check"]:
            return _json(Search.start(dataset, wanted, by, name=options["name"], **initial))
        found = outlook(dataset, wanted, by, **initial)
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
    except JobError as error:
        raise CommandError(f"{error} {error.hint}") from error
    result = found.to_json()
    return result if found.can_start else result | {"failed": True}


def _plan(options: dict[str, Any], by: Any) -> Plan:
    preset = SavedPreset.objects.chosen(options["configuration"], by)
    values: dict[str, list[Any]] = {}
    for text in options["vary"]:
        option, equals, given = text.partition("=")
        if not equals or option in values:
            raise CommandError(
                f"Write each option once, with its values, like learning_rate=0.001,0.0003; not {text!r}."
            )
        values[option] = parse_values(option, given)
    eta = options["eta"] if options["mode"] == Search.Mode.HALVING else None
    return plan(options["architecture"], preset.configuration, values, preset=preset.recorded, eta=eta)


def _found(number: str, by: Any) -> Search:
    search = Search.objects.seen_by(by).filter(pk=row_number(number)).first()
    if search is None:
        raise CommandError(f"There is no search {number}.")
    return search


def _row(search: Search) -> dict[str, Any]:
    return {
        "search": search.pk,
        "name": search.name,
        "mode": search.mode,
        "runs": search.runs_count,
        "active": search.active_count,
        "finished": search.finished_count,
    }


def _json(search: Search) -> dict[str, Any]:
    comparison = compare(search)
    return {
        "search": search.pk,
        "name": search.name,
        "mode": search.mode,
        "active": comparison.is_active,
        "rungs": search.parameters.get("rungs"),
        "runs": [standing.to_json() for standing in comparison.standings],
        "conclusion": comparison.conclusion,
    }
