"""JSON that somebody else wrote, read without surprises: what comes out can be walked, shown and stored as it is.

Python's own reader takes NaN, keeps the last of two equal names, and makes infinity out of 1e999; databases refuse NUL
and half characters, and deep nesting ends in a RecursionError wherever it is walked later. All of that is refused here.
"""

import json
import math
import re
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 32
# Each becomes an object of some 60 bytes, so that a file of brackets alone would take thirty times its size.
MAX_VALUES: Final = 500_000
_LARGEST_INTEGER: Final = 2**63 - 1
# NUL and halves of surrogate pairs.
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


def parse(content: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError, which says why not, and nothing else.

    The caller bounds the length. Unknown names in objects are the caller's business.
    """
    text = content.decode("utf-8")
    if sum(text.count(sign) for sign in ",[{") > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES:,} values")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("it holds the same name twice in one object")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _integer(text: str) -> int:
    value = int(text)
    if abs(value) > _LARGEST_INTEGER:
        raise ValueError("a whole number is too large")
    return value


def _check(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, str) and _UNSTORABLE.search(value):
        raise ValueError("a text holds a character that cannot be stored")
    return value if isinstance(value, list) else []
