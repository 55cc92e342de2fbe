"""How much less well does a version answer about other images than about those of its own test part? In words."""

from collections.abc import Mapping
from typing import Any

COMPARED = {"auc": "AUC", "accuracy": "Accuracy"}
_IN_PERCENT = {"Accuracy"}
_SMALLEST_SHOWN = 0.0005

Figures = Mapping[str, Mapping[str, Any]]


def sentences(internal: Figures, external: Figures) -> list[str]:
    """One sentence for each of COMPARED: the difference, and whether the 95 % intervals overlap.

    internal, external: figures of two reports. The images differ, so that nothing is paired: overlapping intervals
    are no proof of equality, intervals apart are the sign that the change is more than a matter of which patients.
    """
    return [_sentence(name, internal[key], external[key]) for key, name in COMPARED.items()]


def differences(internal: Figures, external: Figures) -> dict[str, float | None]:
    """Of each of COMPARED the external value minus the internal one; None where either is undefined."""
    return {key: _difference(internal[key]["value"], external[key]["value"]) for key in COMPARED}


def _difference(internal: float | None, external: float | None) -> float | None:
    return None if internal is None or external is None else external - internal


def _sentence(name: str, internal: Mapping[str, Any], external: Mapping[str, Any]) -> str:
    if internal["undefined"] or external["undefined"]:
        where = "here" if external["undefined"] else "on the test part"
        return f"{name} cannot be compared: it is undefined {where}. {external['undefined'] or internal['undefined']}"
    difference = external["value"] - internal["value"]
    if abs(difference) < _SMALLEST_SHOWN:
        return f"{name} is the same as on the test part ({_shown(name, external['value'])})."
    return (
        f"{name} is {_size(name, difference)} {'lower' if difference < 0 else 'higher'} than on the test part "
        f"({_shown(name, external['value'])} instead of {_shown(name, internal['value'])}). "
        f"{_judgement(internal, external)}"
    )


def _judgement(internal: Mapping[str, Any], external: Mapping[str, Any]) -> str:
    # Resamples of images without a single error have none either: such an interval is no evidence.
    if internal["low"] == internal["high"] or external["low"] == external["high"]:
        return "One of the intervals has no width, so that nobody can tell from them whether this is chance."
    if external["low"] <= internal["high"] and internal["low"] <= external["high"]:
        return "The intervals overlap: it may be chance."
    return "The intervals do not overlap: chance alone would hardly do that."


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%") if name in _IN_PERCENT else f"{value:.3f}"


def _size(name: str, difference: float) -> str:
    return f"{100 * abs(difference):.1f} percentage points" if name in _IN_PERCENT else f"{abs(difference):.3f}"
