"""In which settings do versions differ? Nested settings side by side, with what is equal in all left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_SET = "not set"
_MISSING = object()


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same everywhere. key: its path, the parts joined by dots. name: the same for people.

    values: as they are, None where a version lacks the setting. words: the same for people.
    """

    key: str
    name: str
    values: tuple[Any, ...]
    words: tuple[str, ...]


def differences(settings: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """One row for each setting that differs, in the order in which the settings first appear."""
    flat = [dict(_flattened(each)) for each in settings]
    keys = dict.fromkeys(key for each in flat for key in each)
    return [_difference(key, flat) for key in keys if _differs(key, flat)]


def _flattened(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, key)
        else:
            yield key, value


def _differs(key: str, flat: Sequence[Mapping[str, Any]]) -> bool:
    # 1 equals True, but a switch that became a number is another setting.
    found = [(isinstance(each.get(key), bool), each.get(key, _MISSING)) for each in flat]
    return any(each != found[0] for each in found)


def _difference(key: str, flat: Sequence[Mapping[str, Any]]) -> Difference:
    values = tuple(each.get(key) for each in flat)
    words = tuple(in_words(each[key]) if key in each else NOT_SET for each in flat)
    name = key.replace(".", ": ").replace("_", " ")
    return Difference(key, name[:1].upper() + name[1:], values, words)


def in_words(value: Any) -> str:
    """A value of JSON as people read it."""
    if value is None or value == "" or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) or "none"
    return str(value)
