"""The training options on the command line."""

from argparse import ArgumentParser, BooleanOptionalAction
from typing import Any

from django.core.management.base import CommandError

from registry.models import ModelVersion

from .configurations import GROUPS, OPTIONS, PREPROCESSING, Option
from .models import TrainingRun


def add_options(parser: ArgumentParser) -> None:
    """Every training option. What is left out is that of the configuration."""
    for group in GROUPS:
        arguments = parser.add_argument_group(group)
        for option in OPTIONS.values():
            if option.group == group:
                arguments.add_argument(f"--{option.name.replace('_', '-')}", **_argument(option))


def _argument(option: Option) -> dict[str, Any]:
    """How argparse reads an option. Ranges are checked by the configuration, whose message names the field."""
    if option.name == "preprocessing":
        words = f"{option.help} Without a step: none of them."
        return {"nargs": "*", "choices": PREPROCESSING, "metavar": "STEP", "help": words}
    if option.is_switch:
        return {"action": BooleanOptionalAction, "default": None, "help": option.help}
    if option.range is None:
        choices = list(option.choices)
        return {"type": type(choices[0]), "choices": choices, "help": option.help}
    return {"type": option.range.kind, "help": f"{option.help} {str(option.range).capitalize()}."}


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in OPTIONS if options.get(name) is not None}


def add_initial(parser: ArgumentParser) -> None:
    """What to start from; read by `chosen_initial`."""
    parser.add_argument("--initial", choices=TrainingRun.Initial.values, help="what to start from (default: auto)")
    parser.add_argument("--initial-version", metavar="CONDITION:NUMBER", help="start from the weights of this version")


def chosen_initial(options: dict[str, Any], by: Any) -> dict[str, Any]:
    """What to start from. Raises CommandError for a version that is not there."""
    wanted = options["initial_version"]
    initial = options["initial"] or (TrainingRun.Initial.VERSION if wanted else TrainingRun.Initial.AUTO)
    if not wanted:
        return {"initial": initial, "version": None}
    condition, _, number = wanted.rpartition(":")
    if not condition or not number.isdecimal():
        raise CommandError(f"{wanted!r} is no version; write it like chest:3.")
    try:
        version = ModelVersion.objects.seen_by(by).numbered(condition, int(number))
    except ModelVersion.DoesNotExist as error:
        raise CommandError(str(error)) from error
    return {"initial": initial, "version": version}
