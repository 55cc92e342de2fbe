"""Searching the audit log: the same questions on the page, over the API and on the command line."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import Any

import django_filters
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpResponseBase, StreamingHttpResponse

from . import audit, audit_export
from .audit import AuditEntry

_TO_THE_LAST_MICROSECOND = time(23, 59, 59, 999999)


class AuditFilter(django_filters.FilterSet):
    """What people type: parts of names, and whole days in UTC."""

    action = django_filters.CharFilter(lookup_expr="icontains", label="Action")
    actor = django_filters.CharFilter("actor_name", lookup_expr="icontains", label="User")
    object = django_filters.CharFilter(method="about", label="Object")
    outcome = django_filters.CharFilter(label="Outcome")
    channel = django_filters.CharFilter(label="Channel")
    request_id = django_filters.CharFilter(label="Request")
    since = django_filters.DateFilter(method="from_day", label="From")
    until = django_filters.DateFilter(method="to_day", label="Until")

    class Meta:
        model = AuditEntry
        fields: list[str] = []

    def about(self, entries: QuerySet, name: str, text: str) -> QuerySet:
        """By the object's name, its number, or its kind and number: `dataset 12`."""
        kind, _, number = text.partition(" ")
        both = Q(object_type__iexact=kind, object_id=number.strip()) if number else Q(object_type__iexact=text)
        return entries.filter(both | Q(object_id=text) | Q(object_label__icontains=text))

    def from_day(self, entries: QuerySet, name: str, day: date) -> QuerySet:
        return entries.filter(at__gte=datetime.combine(day, time.min, UTC))

    def to_day(self, entries: QuerySet, name: str, day: date) -> QuerySet:
        return entries.filter(at__lte=datetime.combine(day, _TO_THE_LAST_MICROSECOND, UTC))


class AuditApiFilter(AuditFilter):
    """What programs ask: an action by its whole name, an object by its kind and number."""

    action = django_filters.CharFilter()
    outcome = django_filters.ChoiceFilter(choices=AuditEntry.Outcome.choices)
    object_type = django_filters.CharFilter()
    object_id = django_filters.CharFilter()


def pieces_of_export(entries: QuerySet, form: str, asked: dict[str, str], *, by: Any) -> Iterator[bytes]:
    """The signed file of these entries as they are now, oldest first; that somebody took it along is recorded."""
    if form not in audit_export.FORMATS:
        raise ValueError(f"There is no export as {form!r}; csv and json there are.")
    audit.seal()
    with transaction.atomic():
        last = audit.record("audit.export", actor=by, after={"as": form, "filters": asked})
    rows = entries.filter(seq__lt=last.seq).order_by("seq").values(*audit_export.COLUMNS)
    about = {"exported_at": last.at.isoformat(), "exported_by": last.actor_name, "filters": asked}
    return audit_export.export(rows.iterator(chunk_size=1000), form, audit.keyring(), about)


def export_response(entries: QuerySet, form: str, asked: dict[str, str], *, by: Any) -> HttpResponseBase:
    """The export as a download. Raises ValueError for another form than csv and json."""
    pieces = pieces_of_export(entries, form, asked, by=by)
    response = StreamingHttpResponse(pieces, content_type=audit_export.FORMATS[form])
    response["Content-Disposition"] = f'attachment; filename="audit.{form}"'
    return response
