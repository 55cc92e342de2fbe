"""Pages: versions of one condition side by side."""

from http import HTTPStatus
from itertools import groupby
from typing import Any
from urllib.parse import urlencode

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from xrayplatform.access import allow

from . import report_tables
from .comparing import LEAST, METRICS, MOST
from .comparisons import Document
from .image_sets import ComparisonError, chosen_versions
from .models import Deployment, ModelVersion
from .side_by_side import side_by_side

MOST_OFFERED = 200


@allow("registry.view_modelversion")
@require_GET
def version_compare(request: HttpRequest) -> HttpResponse:
    """Two to ten versions side by side; without any, or with a choice that cannot be compared, what to choose from."""
    visible = ModelVersion.objects.visible_to(request.user)
    asked = request.GET.getlist("version")
    if not asked:
        return _chooser(request, visible)
    try:
        versions = chosen_versions(visible, asked)
    except ModelVersion.DoesNotExist as error:
        raise Http404 from error
    except ComparisonError as error:
        return _chooser(request, visible, str(error))
    try:
        document = _asked(request, versions)
    except ComparisonError as error:
        return _chooser(request, visible, str(error))
    return render(request, "registry/version_compare.html", _context(request, versions, document))


def _asked(request: HttpRequest, versions: list[ModelVersion]) -> Document:
    return side_by_side(
        versions,
        images=request.GET.get("images", ""),
        metric=request.GET.get("metric") or "auc",
        name=request.GET.get("class"),
    )


def _chooser(request: HttpRequest, visible: Any, problem: str = "") -> HttpResponse:
    status = HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK
    context = {
        "problem": problem,
        "conditions": _offered(visible),
        "chosen": set(request.GET.getlist("version")),
        "least": LEAST,
        "most": MOST,
    }
    return render(request, "registry/version_compare_choose.html", context, status=status)


def _offered(visible: Any) -> list[tuple[str, list[ModelVersion]]]:
    """The newest versions by condition; only conditions with something to compare."""
    versions = visible.select_related("condition").defer("history", "metrics", "configuration", "environment")
    newest = sorted(versions.order_by("-pk")[:MOST_OFFERED], key=lambda version: version.condition.slug)
    groups = groupby(newest, key=lambda version: version.condition)
    found = [(condition.name, list(members)) for condition, members in groups]
    return [(name, members) for name, members in found if len(members) >= LEAST]


def _context(request: HttpRequest, versions: list[ModelVersion], document: Document) -> dict[str, Any]:
    others = ModelVersion.objects.visible_to(request.user).filter(condition=versions[0].condition)
    evaluated = {row["label"]: row for row in document["evaluations"]}
    measured = {row["label"]: row for row in document["measured"]}
    leader = document["ranking"][0]["label"] if document["ranking"] else ""
    deployment = Deployment.objects.filter(condition=versions[0].condition).first()
    return {
        "compared": document,
        "condition": versions[0].condition,
        "versions": versions,
        "active": deployment.active_id if deployment else None,
        "columns": [
            {
                "version": version,
                "label": row["label"],
                "weights": row["weights"],
                "evaluation": evaluated.get(row["label"]),
                "measured": measured.get(row["label"]),
            }
            for version, row in zip(versions, document["versions"], strict=True)
        ],
        "metric_rows": list(_metric_rows(document)),
        "metric_names": {name: report_tables.FIGURES[name].name for name in METRICS},
        "ranking": _ranking(document, versions),
        "charts": {
            "roc": document["curves"]["roc"],
            "pr": document["curves"]["pr"],
            "histories": document["histories"],
        },
        "history_tables": _history_tables(document["histories"]),
        "others": others.select_related("condition").defer("history", "metrics", "configuration")[:MOST_OFFERED],
        "chosen": {str(version.pk) for version in versions},
        "most": MOST,
        "leading": [pair for pair in document["pairs"] if leader in (pair["first"], pair["second"])],
        "following": [pair for pair in document["pairs"] if leader not in (pair["first"], pair["second"])],
        "methods": sorted({pair["decisions"]["method"] for pair in document["pairs"]}),
        "query": _query(request, versions),
        "versions_query": urlencode([("version", version.pk) for version in versions]),
    }


def _metric_rows(document: Document) -> Any:
    """A row for each figure, in the order of reports, with a cell for each version; None where it has no figures."""
    labels = [row["label"] for row in document["versions"]]
    for name, words in report_tables.FIGURES.items():
        if name in document["metrics"]:
            cells = {figure["label"]: figure for figure in document["metrics"][name]}
            yield {
                "key": name,
                "words": words,
                "cells": [cells.get(label) for label in labels],
                "best": document["best"].get(name, ""),
            }


def _ranking(document: Document, versions: list[ModelVersion]) -> list[dict[str, Any]]:
    by_label = {row["label"]: version for row, version in zip(document["versions"], versions, strict=True)}
    figures = {figure["label"]: figure for figure in document["metrics"].get(document["metric"], [])}
    return [
        {**row, "version": by_label[row["label"]], "figure": figures.get(row["label"])} for row in document["ranking"]
    ]


def _history_tables(histories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Table twins of the charts of the trainings: a row for each epoch, a cell for each version."""
    epochs = sorted({epoch for history in histories for epoch in history["epochs"]})
    tables = []
    for key, name in (("val_loss", "Validation loss"), ("val_auc", "Validation AUC")):
        columns = [dict(zip(history["epochs"], history[key], strict=True)) for history in histories]
        rows = [{"epoch": epoch, "cells": [column.get(epoch) for column in columns]} for epoch in epochs]
        tables.append({"key": key, "name": name, "labels": [history["label"] for history in histories], "rows": rows})
    return tables


def _query(request: HttpRequest, versions: list[ModelVersion]) -> str:
    """The choice of this page as the beginning of an address, without the class of the curves."""
    query = request.GET.copy()
    query.pop("class", None)
    query.setlist("version", [str(version.pk) for version in versions])
    return query.urlencode()
