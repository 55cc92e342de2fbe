"""The training options on the command line."""

from argparse import ArgumentParser, BooleanOptionalAction
from typing import Any

from .configurations import GROUPS, OPTIONS, PREPROCESSING, Option


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
