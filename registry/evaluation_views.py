"""Pages: the report of an evaluation, on the screen and on paper."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from xrayplatform import audit
from xrayplatform.access import allow

from . import report_tables
from .models import Evaluation


@allow("registry.view_evaluation")
@require_GET
def evaluation_detail(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "registry/evaluation_detail.html", _context(request, pk))


@allow("registry.view_evaluation")
@require_GET
def evaluation_print(request: HttpRequest, pk: int) -> HttpResponse:
    context = _context(request, pk) | {"paper": True}
    audit.record("evaluation.print", context["evaluation"], actor=request.user)
    return render(request, "registry/evaluation_print.html", context)


def _context(request: HttpRequest, pk: int) -> dict[str, Any]:
    """Everything comes from the stored report; the answers behind it are not read."""
    evaluations = Evaluation.objects.visible_to(request.user).select_related("version__condition", "created_by")
    evaluation = get_object_or_404(evaluations, pk=pk)
    report = evaluation.report
    tables = [report["metrics"], *(_figures_of(row) for row in report["per_class"])]
    return {
        "evaluation": evaluation,
        "version": evaluation.version,
        "report": report,
        "cautions": evaluation.cautions,
        "figures": report_tables.figure_rows(report["metrics"]),
        "per_class_figures": ["precision", "sensitivity", "specificity", "f1", "auc", "average_precision"],
        "missing": report_tables.reasons(tables),
        "charts": {name: report[name] for name in ("roc", "pr", "calibration", "metrics", "positive_class")},
        "roc_lines": report_tables.roc_lines(report["roc"]),
        "pr_lines": report_tables.pr_lines(report["pr"]),
        "reliability_lines": report_tables.reliability_lines(report["calibration"]),
        "versions_measured": evaluation.versions_measured,
    }


def _figures_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if isinstance(value, dict)}
