"""Pages: one preparation, its progress, what changed since another one, and the space that preparations take."""

from django.contrib import messages
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError
from xrayplatform.system import resources

from .. import storage
from ..forms import PrepareForm
from ..models import Preparation
from ..versions import NOW, compare_versions, find_version, newest_version
from .datasets import detail_context, visible_dataset


def visible_preparation(request: HttpRequest, pk: int) -> Preparation:
    preparations = Preparation.objects.visible_to(request.user).select_related("dataset__condition", "created_by")
    return get_object_or_404(preparations, pk=pk)


@allow("datasets.prepare_dataset")
@require_POST
def preparation_start(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = visible_dataset(request, pk)
    form = PrepareForm(request.POST)
    if not form.is_valid():
        return render(request, "datasets/dataset_detail.html", detail_context(dataset, form), status=400)
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
    preparation = visible_preparation(request, pk)
    template = "datasets/_preparation.html" if request.htmx else "datasets/preparation_detail.html"
    context = {"preparation": preparation, "dataset": preparation.dataset, "tab": "preparations"}
    return render(request, template, context)


@allow("datasets.prepare_dataset")
@require_POST
def preparation_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    preparation = visible_preparation(request, pk)
    preparation.request_cancel(request.user)
    return redirect(preparation)


@allow("datasets.view_preparation")
@require_GET
def version_compare(request: HttpRequest, pk: int) -> HttpResponse:
    """What was added, removed or relabelled between two preparations, or since one of them."""
    dataset = visible_dataset(request, pk)
    versions = dataset.preparations.filter(state=Preparation.State.SUCCEEDED)
    new = request.GET.get("to") or NOW
    old = request.GET.get("from") or newest_version(dataset)
    try:
        comparison = compare_versions(find_version(dataset, old), find_version(dataset, new))
    except JobError as error:
        raise Http404(str(error)) from error
    context = {
        "dataset": dataset,
        "versions": versions,
        "old": old,
        "new": new,
        "comparison": comparison,
        "tab": "preparations",
    }
    return render(request, "datasets/version_compare.html", context)


# -- Space


@allow("datasets.view_preparation")
@require_GET
def storage_detail(request: HttpRequest) -> HttpResponse:
    preparations = Preparation.objects.with_pixels().visible_to(request.user).select_related("dataset", "created_by")
    context = {
        "preparations": preparations,
        "use": storage.use(),
        "resources": resources(),
        "days": storage.DAYS,
    }
    return render(request, "datasets/storage_detail.html", context)


@allow("datasets.remove_pixels")
@require_POST
def pixels_remove(request: HttpRequest, pk: int) -> HttpResponse:
    preparation = visible_preparation(request, pk)
    try:
        freed = preparation.remove_pixels(by=request.user)
        messages.success(request, f"Removed: {freed / 1e6:,.1f} MB are free again. The split and its proof stay.")
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
    return redirect("datasets:storage-detail")


@allow("datasets.remove_pixels")
@require_POST
def storage_prune(request: HttpRequest) -> HttpResponse:
    """Remove decoded pixels that have not been needed for some time."""
    try:
        days = int(request.POST.get("days", storage.DAYS))
    except ValueError:
        messages.warning(request, "The number of days must be a whole number.")
        return redirect("datasets:storage-detail")
    pruned = storage.prune_older(days, by=request.user)
    messages.success(
        request, f"{pruned['preparations']} preparations removed, {pruned['bytes'] / 1e6:,.1f} MB are free again."
    )
    return redirect("datasets:storage-detail")
