"""Tables for spreadsheet programs, which take a text that begins like a formula for one and compute it."""

import csv
from collections.abc import Iterable, Iterator
from typing import Any, Final

# By OWASP's list ("CSV Injection"), with the full-width forms that some programs read alike.
_BEGINNINGS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def neutral(cell: Any) -> Any:
    """The cell, with an apostrophe before a text that a spreadsheet program would compute; numbers stay numbers."""
    is_formula = isinstance(cell, str) and cell.lstrip(" ").startswith(_BEGINNINGS)
    return f"'{cell}" if is_formula else cell


def csv_lines(rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """The rows as lines of CSV (RFC 4180), each cell neutral."""
    writer = csv.writer(_Line())
    for row in rows:
        yield writer.writerow([neutral(cell) for cell in row])


class _Line:
    """What a writer writes into: hands the line back."""

    def write(self, line: str) -> str:
        return line
