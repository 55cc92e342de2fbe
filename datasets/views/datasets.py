"""Pages: Dataset Overview, one dataset, one preparation, and the fragments that show their jobs."""

from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError

from .forms import PrepareForm
from .models import Dataset, Preparation, Scan


@allow("datasets.view_dataset")
@require_GET
def dataset_list(request: HttpRequest) -> HttpResponse:
    datasets = Dataset.objects.visible_to(request.user).for_pages()
    context = {
        "datasets": datasets,
        "scan": Scan.objects.first(),
        "root": settings.DATASET_ROOT.name,
        "prepare_form": PrepareForm(),
    }
    return render(request, "datasets/dataset_list.html", context)


@allow("datasets.view_dataset")
@require_GET
def dataset_detail(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user).select_related("condition"), pk=pk)
    context = {
        "dataset": dataset,
        "preparations": dataset.preparations.select_related("created_by")[:10],
        "form": PrepareForm(),
    }
    return render(request, "datasets/dataset_detail.html", context)


@allow("datasets.scan_dataset")
@require_POST
def scan_start(request: HttpRequest) -> HttpResponse:
    try:
        with transaction.atomic():
            Scan.create(request.user).enqueue()
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
    return redirect("datasets:dataset-list")


@allow("datasets.scan_dataset")
@require_POST
def scan_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    get_object_or_404(Scan, pk=pk).request_cancel(request.user)
    return redirect("datasets:dataset-list")


@allow("datasets.view_scan")
@require_GET
def scan_status(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """The scan's progress; once it has ended the page is asked to reload itself and show what was found."""
    scan = get_object_or_404(Scan, pk=pk)
    response = render(request, "datasets/_scan_status.html", {"scan": scan})
    if not scan.is_active:
        response["HX-Refresh"] = "true"
    return response


@allow("datasets.prepare_dataset")
@require_POST
def preparation_start(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    form = PrepareForm(request.POST)
    if not form.is_valid():
        context = {"dataset": dataset, "preparations": dataset.preparations.all()[:10], "form": form}
        return render(request, "datasets/dataset_detail.html", context, status=400)
    try:
        with transaction.atomic():
            preparation = Preparation.create(dataset, request.user, **form.cleaned_data)
            preparation.enqueue()
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
        return redirect(dataset)
    return redirect(preparation)


@allow("datasets.view_preparation")
@require_GET
def preparation_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    preparation = get_object_or_404(
        Preparation.objects.visible_to(request.user).select_related("dataset__condition", "created_by"), pk=pk
    )
    template = "datasets/_preparation.html" if request.htmx else "datasets/preparation_detail.html"
    return render(request, template, {"preparation": preparation, "dataset": preparation.dataset})


@allow("datasets.prepare_dataset")
@require_POST
def preparation_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    preparation = get_object_or_404(Preparation.objects.visible_to(request.user), pk=pk)
    preparation.request_cancel(request.user)
    return redirect(preparation)
