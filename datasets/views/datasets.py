"""Pages: Dataset Overview, one dataset, how it is to be read, its problems, and the scan's progress."""

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError

from ..forms import AnswerForm, ClassesForm, ConditionForm, PatternForm, PrepareForm
from ..models import Dataset, Scan


def visible_dataset(request: HttpRequest, pk: int) -> Dataset:
    """The dataset, or 404 when it does not exist or belongs to another team."""
    return get_object_or_404(Dataset.objects.visible_to(request.user).select_related("condition"), pk=pk)


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
    return render(
        request, "datasets/dataset_detail.html", detail_context(visible_dataset(request, pk), _prepare_form(request))
    )


def _prepare_form(request: HttpRequest) -> PrepareForm:
    """With the choices that the link named, as a training that lacks a preparation does."""
    named = {name: request.GET[name] for name in ("image_size", "fit") if name in request.GET}
    return PrepareForm(initial=named | {"steps": request.GET.getlist("steps")})


def detail_context(dataset: Dataset, form: PrepareForm) -> dict[str, Any]:
    preparations = dataset.preparations.select_related("created_by")[:10]
    return {"dataset": dataset, "preparations": preparations, "form": form, "tab": "overview"}


@allow("datasets.view_dataset")
@require_GET
def problem_list(request: HttpRequest, pk: int) -> HttpResponse:
    """All files that cannot be used, a page at a time."""
    dataset = visible_dataset(request, pk)
    page = Paginator(dataset.file_problems.all(), 100).get_page(request.GET.get("page"))
    return render(request, "datasets/problem_list.html", {"dataset": dataset, "page": page, "tab": "overview"})


# -- Choices


@allow("datasets.curate_dataset")
@require_http_methods(["GET", "POST"])
def dataset_choices(request: HttpRequest, pk: int) -> HttpResponse:
    """How the dataset is to be read: the scan's question, classes, condition, patients in file names.

    One form each; the button that was pressed says which of them was sent.
    """
    dataset = visible_dataset(request, pk)
    sent = request.POST.get("form", "")
    forms = {
        "answer": AnswerForm(request.POST if sent == "answer" else None, dataset=dataset),
        "classes": ClassesForm(request.POST if sent == "classes" else None, dataset=dataset),
        "condition": ConditionForm(request.POST if sent == "condition" else None, dataset=dataset, user=request.user),
        "pattern": PatternForm(request.POST if sent == "pattern" else None, initial={"pattern": dataset.pattern}),
    }
    if sent in forms and forms[sent].is_valid():
        try:
            dataset.apply_choices(_choices(sent, forms[sent]), by=request.user)
            messages.success(request, "Saved. The next preparation honours it.")
            if sent == "answer":
                start_scan(request)
            return redirect("datasets:dataset-choices", pk)
        except JobError as error:
            dataset.refresh_from_db()
            forms[sent].add_error(None, f"{error} {error.hint}")
    status = 400 if request.method == "POST" else 200
    context = {"dataset": dataset, "tab": "choices"} | _preview(dataset, dataset.pattern)
    context |= {f"{name}_form": form for name, form in forms.items()}
    return render(request, "datasets/dataset_choices.html", context, status=status)


def _choices(sent: str, form: Any) -> dict[str, Any]:
    if sent == "classes":
        # What was left as the page showed it is no choice: it may follow from the names of the classes.
        named = {"positive": "positive_class", "ordinal": "ordinal"}
        changed = {named[field]: form.cleaned_data[field] for field in named if field in form.changed_data}
        fields = {name: f"class_{number}" for number, name in enumerate(form.dataset.source_classes)}
        classes = {name: form.choices[name] for name, field in fields.items() if field in form.changed_data}
        return {"classes": classes} | changed
    return dict(form.cleaned_data)


@allow("datasets.curate_dataset")
@require_POST
def missing_accept(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = visible_dataset(request, pk)
    try:
        dataset.accept_missing(by=request.user)
        start_scan(request)
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
    return redirect(dataset)


@allow("datasets.curate_dataset")
@require_GET
def pattern_preview(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """What a pattern finds in the dataset's file names, while it is typed."""
    dataset = visible_dataset(request, pk)
    context = {"dataset": dataset} | _preview(dataset, request.GET.get("pattern", "")[:1000])
    return render(request, "datasets/_pattern_preview.html", context)


def _preview(dataset: Dataset, pattern: str) -> dict[str, Any]:
    """What the pattern finds, or what is wrong with it in words."""
    try:
        return {"preview": dataset.preview_pattern(pattern), "preview_error": ""}
    except JobError as error:
        return {"preview": None, "preview_error": str(error)}


# -- Scans


def start_scan(request: HttpRequest) -> None:
    try:
        with transaction.atomic():
            Scan.create(request.user).enqueue()
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")


@allow("datasets.scan_dataset")
@require_POST
def scan_start(request: HttpRequest) -> HttpResponse:
    start_scan(request)
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
