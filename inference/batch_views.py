"""Pages: analyse many radiographs at once, and what became of each."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import TooManyFilesSent
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from datasets.models import Dataset
from datasets.receiving import Inbox, receiving, require_room
from registry.models import Deployment
from xrayplatform import audit
from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest, row_number
from xrayplatform.jobs import JobError

from . import batch_results
from .batch_forms import BatchForm, FilesForm, FolderForm
from .batches import MAX_FILES
from .looking_views import KEPT_NOWHERE
from .models import Batch, BatchItem

ROWS_ON_A_PAGE = 50
FILTERS: dict[str, tuple[str, Callable[[QuerySet], QuerySet]]] = {
    "": ("All", lambda items: items),
    "answered": ("Analysed", lambda items: items.filter(state=BatchItem.State.ANSWERED)),
    "warned": ("With a warning", lambda items: items.filter(state=BatchItem.State.ANSWERED).exclude(code="")),
    "refused": ("Refused", lambda items: items.filter(state=BatchItem.State.REFUSED)),
    "waiting": ("Waiting", lambda items: items.filter(state=BatchItem.State.WAITING)),
}


# The token is checked in `_take`: checking reads the body, and where its files go must be settled before that.
@csrf_exempt
@allow("inference.add_batch")
@require_http_methods(["GET", "POST"])
def batch_create(request: HttpRequest) -> HttpResponse:
    """Send files or archives, or name a folder of a dataset."""
    if request.method == "GET":
        return _page(request)
    with receiving(request) as inbox:
        try:
            require_room(request)
            return _take(request, inbox)
        except JobError as error:
            return _page(request, status=HTTPStatus.CONFLICT, error=f"{error} {error.hint}")
        except TooManyFilesSent:
            most = settings.DATA_UPLOAD_MAX_NUMBER_FILES
            error = f"More than {most:,} files were sent at once. Send them as a zip."
            return _page(request, status=HTTPStatus.BAD_REQUEST, error=error)


batch_create.takes_archives = True  # type: ignore[attr-defined]


@csrf_protect
def _take(request: HttpRequest, inbox: Inbox) -> HttpResponse:
    dataset = _dataset(request, request.POST.get("dataset", ""))
    if dataset is None:
        form: BatchForm = FilesForm(request.POST, request.FILES, user=request.user)
    else:
        form = FolderForm(request.POST, user=request.user, dataset=dataset)
    if not form.is_valid():
        return _page(request, form, dataset, status=HTTPStatus.BAD_REQUEST)
    try:
        with transaction.atomic():
            batch = _submit(form.cleaned_data, dataset, inbox, request.user)
            batch.enqueue()
    except JobError as error:
        form.add_error(None, f"{error} {error.hint}")
        return _page(request, form, dataset, status=HTTPStatus.CONFLICT)
    return redirect(batch)


def _submit(given: dict[str, Any], dataset: Dataset | None, inbox: Inbox, by: Any) -> Batch:
    if dataset is None:
        return Batch.of_files(given["condition"], inbox.seal(), by=by, name=given["name"])
    return Batch.of_dataset(given["condition"], dataset, given["folder"], by=by, name=given["name"])


def _dataset(request: HttpRequest, named: str) -> Dataset | None:
    """The dataset that is named, None when none is. Raises Http404."""
    if not named:
        return None
    return get_object_or_404(_datasets(request), pk=row_number(named) or 0)


def _datasets(request: HttpRequest) -> QuerySet:
    return Dataset.objects.visible_to(request.user).select_related("condition__team").order_by("name")


def _page(
    request: HttpRequest,
    form: BatchForm | None = None,
    dataset: Dataset | None = None,
    *,
    status: HTTPStatus = HTTPStatus.OK,
    error: str = "",
) -> HttpResponse:
    dataset = dataset or _dataset(request, request.GET.get("dataset", ""))
    initial = {"condition": request.GET.get("condition") or _first_in_service(request)}
    files, folder = FilesForm(user=request.user, initial=initial), None
    if dataset is not None:
        folder = FolderForm(user=request.user, dataset=dataset, initial={"condition": dataset.condition.slug})
    if isinstance(form, FolderForm):
        folder = form
    elif form is not None:
        files = form
    context = {
        "form": files,
        "folder_form": folder,
        "dataset": dataset,
        "datasets": _datasets(request),
        "error": error,
        "kept_days": settings.KEEP_RADIOGRAPHS_DAYS,
        "max_files": settings.DATA_UPLOAD_MAX_NUMBER_FILES,
        "max_items": MAX_FILES,
        "max_bytes": max(settings.MAX_ARCHIVE_MB, settings.MAX_UPLOAD_MB) * 1024 * 1024,
        "max_file_mb": settings.MAX_UPLOAD_MB,
    }
    return render(request, "inference/batch_create.html", context, status=status)


def _first_in_service(request: HttpRequest) -> str:
    visible = Deployment.objects.filter(active__isnull=False).order_by("condition__slug")
    deployment = visible.filter(condition__in=BatchForm(user=request.user).fields["condition"].queryset).first()
    return deployment.condition.slug if deployment else ""


@allow("inference.view_batch")
@require_GET
def batch_list(request: HttpRequest) -> HttpResponse:
    batches = Batch.objects.visible_to(request.user).counted().select_related("condition", "created_by")
    page = Paginator(batches, ROWS_ON_A_PAGE).get_page(request.GET.get("page"))
    return render(request, "inference/batch_list.html", {"page": page})


def visible_batch(user: Any, pk: int) -> Batch:
    """Raises Http404 for that of another team."""
    batches = Batch.objects.visible_to(user).counted().select_related("condition__team", "created_by")
    return get_object_or_404(batches, pk=pk)


@allow("inference.view_batch", "inference.view_prediction")
@require_GET
def batch_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """How far the batch is, and its items; to htmx the part that changes alone."""
    batch = visible_batch(request.user, pk)
    shown = request.GET.get("show", "")
    shown = shown if shown in FILTERS else ""
    chosen = FILTERS[shown][1](batch_results.items_of(batch))
    decision = request.GET.get("decision", "")
    if decision:
        chosen = chosen.filter(prediction__decision=decision)
    page = Paginator(chosen, ROWS_ON_A_PAGE).get_page(request.GET.get("page"))
    # A page that polls looks at the same thing again.
    if not request.headers.get("X-Poll"):
        audit.record("batch.view", batch, actor=request.user, after={"page": page.number, "show": shown})
    context = {
        "batch": batch,
        "page": page,
        "shown": shown,
        "decision": decision,
        "filters": [(key, words, _count(batch, key)) for key, (words, _) in FILTERS.items()],
        "decisions": batch_results.decisions(batch),
        "rows": [(item, batch_results.warnings_of(item.prediction) if item.prediction else []) for item in page],
    }
    template = "inference/_batch.html" if request.htmx else "inference/batch_detail.html"
    response = render(request, template, context)
    response["Cache-Control"] = KEPT_NOWHERE
    return response


def _count(batch: Any, key: str) -> int:
    return int(getattr(batch, key) if key else batch.items_count)


@allow("inference.add_batch")
@require_POST
def batch_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    batch = visible_batch(request.user, pk)
    if not batch.request_cancel(request.user):
        messages.info(request, "This batch had ended already.")
    return redirect(batch)


@allow("inference.add_batch")
@require_POST
def batch_go_on(request: HttpRequest, pk: int) -> HttpResponse:
    batch = visible_batch(request.user, pk)
    try:
        batch.go_on(request.user)
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
    return redirect(batch)


@allow("inference.view_batch", "inference.view_prediction")
@require_GET
def batch_csv(request: HttpRequest, pk: int) -> HttpResponseBase:
    return batch_results.as_csv(visible_batch(request.user, pk), request.user)


@allow("inference.view_batch", "inference.view_prediction")
@require_GET
def batch_json(request: HttpRequest, pk: int) -> HttpResponse:
    batch = visible_batch(request.user, pk)
    response = JsonResponse(batch_results.as_json(batch, request.user), json_dumps_params={"indent": 1})
    response["Content-Disposition"] = f'attachment; filename="{batch_results.file_name(batch)}.json"'
    response["Cache-Control"] = "no-store"
    return response
