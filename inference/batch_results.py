"""What became of the files of a batch, for pages, programs and spreadsheets."""

import itertools
from collections.abc import Iterator
from typing import Any, Final

from django.db.models import Count, QuerySet
from django.http import StreamingHttpResponse
from django.utils.text import slugify

from registry.models import ModelVersion
from xrayplatform import audit
from xrayplatform.spreadsheets import csv_lines

from .models import Batch, BatchItem
from .results import RESEARCH_USE

NOT_SHOWN: Final = ("prediction__activation", "prediction__measures", "prediction__activation_frame")
_ROWS_AT_ONCE: Final = 1000


def items_of(batch: Batch) -> QuerySet:
    """The items with their answers, without what is large in these."""
    return batch.items.select_related("prediction__version__condition").defer(*NOT_SHOWN)


def decisions(batch: Batch) -> dict[str, int]:
    """How many answers decided each class, the most frequent first."""
    answered = batch.items.filter(state=BatchItem.State.ANSWERED).order_by()
    counts = answered.values_list("prediction__decision").annotate(count=Count("pk"))
    return dict(sorted(counts, key=lambda one: (-one[1], one[0])))


def warnings_of(prediction: Any) -> list[str]:
    """What the checks before the model had against the picture, in sentences."""
    return [verdict["text"] for verdict in prediction.gate if verdict["outcome"] in ("warn", "fail")]


def result_of(item: BatchItem) -> dict[str, Any]:
    """One item as programs are told of it."""
    prediction = item.prediction
    told: dict[str, Any] = {"position": item.position, "name": item.name, "state": item.state}
    if prediction is None:
        return told | {"prediction": None, "code": item.code, "error": item.error}
    return told | {
        "prediction": str(prediction.pk),
        "version": prediction.version.number,
        "decision": prediction.decision,
        "probabilities": prediction.probabilities,
        "threshold": prediction.threshold,
        "warnings": warnings_of(prediction),
        "code": item.code,
        "error": "",
    }


def as_json(batch: Batch, by: Any) -> dict[str, Any]:
    """Everything, for a download; audited."""
    _record(batch, by, "json")
    return {
        "batch": batch.pk,
        "name": batch.name,
        "condition": batch.condition.slug,
        "state": batch.state,
        "notice": RESEARCH_USE,
        "results": [result_of(item) for item in items_of(batch).iterator(_ROWS_AT_ONCE)],
    }


def as_csv(batch: Batch, by: Any) -> StreamingHttpResponse:
    """Everything as a download for spreadsheet programs; audited."""
    _record(batch, by, "csv")
    # The mark at the start tells spreadsheet programs that this is UTF-8.
    lines = itertools.chain(["\ufeff"], csv_lines(csv_rows(batch)))
    response = StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{file_name(batch)}.csv"'
    response["Cache-Control"] = "no-store"
    return response


def file_name(batch: Batch) -> str:
    return f"batch-{batch.pk}-{slugify(batch.condition.slug)}"


def csv_rows(batch: Batch) -> Iterator[list[Any]]:
    """A head, then a row for each item; a column for each class that the versions that answered have."""
    classes = _classes(batch)
    yield [
        "position", "file", "state", "decision", *(f"probability of {name}" for name in classes), "threshold",
        "version", "warnings", "error", "prediction", "notice",
    ]  # fmt: skip
    for item in items_of(batch).iterator(_ROWS_AT_ONCE):
        told = result_of(item)
        chances = told.get("probabilities", {})
        yield [
            item.position, item.name, item.state, told.get("decision", ""),
            *(chances.get(name, "") for name in classes), told.get("threshold"), told.get("version", ""),
            " ".join(told.get("warnings", ())), item.error, told["prediction"] or "", RESEARCH_USE,
        ]  # fmt: skip


def _classes(batch: Batch) -> list[str]:
    answering = batch.predictions.shown().order_by().values("version")
    versions = ModelVersion.objects.filter(pk__in=answering).order_by("number")
    return list(dict.fromkeys(name for version in versions for name in version.classes))


def _record(batch: Batch, by: Any, form: str) -> None:
    audit.record("batch.export", batch, actor=by, after={"format": form, "items": batch.items_count})
