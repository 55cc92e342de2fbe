"""Rows as they are not made any more, or as somebody with access to the database would leave them."""

from typing import Any

from xrayplatform import immutability
from xrayplatform.immutability import Immutable


def tampered(row: Immutable, **changes: Any) -> None:
    """Write `changes` past the model and past the triggers that guard the row."""
    with immutability.suspended():
        type(row)._base_manager.filter(pk=row.pk).update(**changes)
