"""Pages: the quality report of a dataset."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from xrayplatform import audit
from xrayplatform.access import allow

from ..findings import report
from ..forms import DecisionForm
from .datasets import visible_dataset


@allow("datasets.view_finding")
@require_GET
def quality_report(request: HttpRequest, pk: int) -> HttpResponse:
    """What is suspicious in the dataset, kind by kind, with pictures and distributions."""
    dataset = visible_dataset(request, pk)
    audit.record("dataset.view_quality", dataset, actor=request.user)
    context = {
        "dataset": dataset,
        "report": report(dataset),
        "decision_form": DecisionForm(),
        "tab": "quality",
    }
    return render(request, "datasets/quality_report.html", context)
