"""Pages of long lists of wide rows, numbered or by cursor, that may be sorted by what many rows have in common.

Which rows are on a page is found out from the keys alone, often without touching the rows; then these are read.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.core.paginator import Page, Paginator
from django.db import DataError
from django.db.models import Q, QuerySet
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.utils.urls import replace_query_param

from .http import NewestFirstPagination


def rows_of(queryset: QuerySet, keys: Sequence[Any]) -> list[Any]:
    """The rows with these keys, in the order of the queryset."""
    return list(queryset.filter(pk__in=keys)) if keys else []


class KeyPaginator(Paginator):
    """Numbered pages. count: rows in the queryset, where it is known already."""

    def __init__(self, queryset: QuerySet, per_page: int, *, count: int) -> None:
        super().__init__(queryset, per_page)
        self.count = count

    def page(self, number: Any) -> Page:
        number = self.validate_number(number)
        first = (number - 1) * self.per_page
        keys = list(self.object_list.values_list("pk", flat=True)[first : first + self.per_page])
        return self._get_page(rows_of(self.object_list, keys), number, self)


@dataclass(frozen=True)
class Mark:
    """The row at the edge of a page, by what the list is ordered by. backwards: the page before it is wanted."""

    order: list[str]
    values: list[Any]
    backwards: bool

    def encoded(self) -> str:
        text = json.dumps([self.order, self.values, self.backwards], default=str)
        return urlsafe_b64encode(text.encode()).decode()

    @classmethod
    def decoded(cls, text: str) -> "Mark":
        """Raises ValueError for what `encoded` did not write."""
        order, values, backwards = json.loads(urlsafe_b64decode(text.encode("ascii")))
        if not isinstance(values, list) or "\0" in "".join(map(str, values)):
            raise ValueError("A mark holds the values of one row.")
        return cls(order, values, bool(backwards))

    def beyond(self) -> Q:
        """The rows after this one in the order, or before it. The first values that differ decide."""
        found, equal = Q(), {}
        for field, value in zip(self.order, self.values, strict=True):
            name = field.removeprefix("-")
            less = field.startswith("-") != self.backwards
            found |= Q(**equal, **{f"{name}__{'lt' if less else 'gt'}": value})
            equal[name] = value
        return found


class SortedPagination(NewestFirstPagination):
    """Follows the order of the queryset, of which nothing may be NULL and the last part must be unique.

    The usual cursor knows the first part of the order alone and counts equal rows, up to a thousand; here every row
    comes once, however many are equal.
    """

    def paginate_queryset(self, queryset: QuerySet, request: Request, view: Any = None) -> list[Any]:
        self.base_url = request.build_absolute_uri()
        self.order = list(queryset.query.order_by or queryset.model._meta.ordering)
        try:
            mark = self._mark(request.query_params.get(self.cursor_query_param))
            rows, more = self._rows(queryset, mark, self.get_page_size(request))
        except (ValueError, TypeError, OverflowError, RecursionError, ValidationError, DataError) as error:
            raise NotFound(self.invalid_cursor_message) from error
        backwards = mark is not None and mark.backwards
        self.page = rows[::-1] if backwards else rows
        # Whoever goes back comes from a page, and so does whoever goes on.
        self.has_next = backwards or more
        self.has_previous = more if backwards else mark is not None
        return self.page

    def get_next_link(self) -> str | None:
        return self._link(self.page[-1], backwards=False) if self.page and self.has_next else None

    def get_previous_link(self) -> str | None:
        return self._link(self.page[0], backwards=True) if self.page and self.has_previous else None

    def _mark(self, text: str | None) -> Mark | None:
        mark = Mark.decoded(text) if text else None
        if mark is not None and mark.order != self.order:
            raise ValueError("The mark is of a list in another order.")
        return mark

    def _rows(self, queryset: QuerySet, mark: Mark | None, size: int) -> tuple[list[Any], bool]:
        """As many rows as a page holds, from the mark outwards, and whether there are more."""
        if mark is not None:
            queryset = queryset.filter(mark.beyond())
            queryset = queryset.reverse() if mark.backwards else queryset
        keys = list(queryset.values_list("pk", flat=True)[: size + 1])
        return rows_of(queryset, keys[:size]), len(keys) > size

    def _link(self, row: Any, *, backwards: bool) -> str:
        values = [getattr(row, field.removeprefix("-")) for field in self.order]
        return str(
            replace_query_param(self.base_url, self.cursor_query_param, Mark(self.order, values, backwards).encoded())
        )
