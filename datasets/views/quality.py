"""Pages: the quality report of a dataset."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from xrayplatform import audit
from xrayplatform.access import allow
from xrayplatform.jobs import JobError

from ..findings import report
from ..forms import DecideAllForm, DecisionForm
from ..models import DECIDED_AT_ONCE, Decision
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


@allow("datasets.curate_dataset")
@require_POST
def finding_decide(request: HttpRequest, pk: int) -> HttpResponse:
    """One decision about all images with a finding that nobody has judged yet."""
    dataset = visible_dataset(request, pk)
    form = DecideAllForm(request.POST)
    if not form.is_valid():
        messages.warning(request, "Choose what to do with the images, and say why.")
        return redirect("datasets:quality-report", pk)
    data = form.cleaned_data
    spare_one = data["action"] == "spare-one"
    action = Decision.Action.EXCLUDE if spare_one else data["action"]
    try:
        counts = dataset.decide_all(
            data["code"], action, data["reason"], spare_one=spare_one, most=DECIDED_AT_ONCE, by=request.user
        )
        contested = counts.get("contested", 0)
        more = f" {contested:,} lie under different labels: judge these one by one." if contested else ""
        messages.success(request, f"{counts['exclude']:,} images left out, {counts['keep']:,} kept.{more}")
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
    return redirect("datasets:quality-report", pk)
