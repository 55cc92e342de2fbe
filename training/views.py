"""Pages: Model Training, one run with its live view, and the fragments that keep it live."""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.core.paginator import Paginator
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from datasets.cache import CacheError
from datasets.models import Dataset, Preparation
from registry.models import ModelVersion
from xrayplatform import audit
from xrayplatform.access import allow
from xrayplatform.audit import AuditEntry
from xrayplatform.http import HtmxHttpRequest, row_number
from xrayplatform.jobs import JobError, reap

from .advice import warnings_of
from .configurations import AUGMENTATION, Configuration
from .forms import RunForm
from .live import live_view
from .live_views import NoteForm
from .ml.architectures import ARCHITECTURES
from .models import NotPrepared, SavedPreset, TrainingRun
from .models.run import preparation_for
from .prefill import as_in
from .preflight import prepare_url
from .pretrained import weights_state
from .previews import changed_images

# While strengths are moved the same pictures are shown again and again; that is one look at them.
LOOK_LASTS = timedelta(minutes=10)
# The options that decide what a network sees: which preparation, and how its images are changed.
SEEN = ("image_size", "preprocessing", *AUGMENTATION)


@allow("training.view_trainingrun")
@require_GET
def run_list(request: HttpRequest) -> HttpResponse:
    runs = TrainingRun.objects.visible_to(request.user).select_related(
        "preparation__dataset__condition", "version__condition", "created_by"
    )
    return render(request, "training/run_list.html", {"page": Paginator(runs, 25).get_page(request.GET.get("page"))})


@allow("training.add_trainingrun")
@require_http_methods(["GET", "POST"])
def run_create(request: HtmxHttpRequest) -> HttpResponse:
    if request.method == "GET" and request.htmx:
        # Another configuration was chosen: what its options are, beside what was entered already.
        form = RunForm(None, user=request.user, initial=request.GET.dict() | _listed(request))
        return render(request, "training/_run_options.html", {"form": form})
    form = RunForm(request.POST or None, user=request.user, initial=_initial(request))
    unprepared = None
    if request.method == "POST" and form.is_valid():
        try:
            return redirect(_start(request, form))
        except NotPrepared as error:
            unprepared = error
        except JobError as error:
            messages.error(request, f"{error} {error.hint}")
    context = to_start_with(request, form, unprepared)
    return render(request, "training/run_create.html", context, status=200 if request.method == "GET" else 400)


def to_start_with(request: HttpRequest, form: forms.Form, unprepared: NotPrepared | None) -> dict[str, Any]:
    """What the pages that start one training, or several, show: the form, what there is, and what is not prepared."""
    return {
        "form": form,
        "unprepared": unprepared,
        "prepare_url": prepare_url(form.cleaned_data["dataset"], unprepared) if unprepared else "",
        "datasets": Dataset.objects.visible_to(request.user).filter(state=Dataset.State.PRESENT).for_pages(),
        "architectures": [(item, weights_state(item)) for item in ARCHITECTURES.values()],
    }


def dataset_to_start_with(request: HttpRequest) -> Any:
    """The dataset that the link named, otherwise the one that was prepared last."""
    if request.GET.get("dataset"):
        return request.GET["dataset"]
    prepared = Preparation.objects.visible_to(request.user).filter(state=Preparation.State.SUCCEEDED).first()
    return prepared and prepared.dataset_id


def _start(request: HttpRequest, form: RunForm) -> TrainingRun:
    with transaction.atomic():
        run = TrainingRun.create(
            form.cleaned_data["dataset"],
            form.cleaned_data["architecture"],
            form.run_configuration,
            request.user,
            preset=form.run_preset.recorded,
            initial=form.cleaned_data["initial"],
            version=form.cleaned_data["initial_version"],
        )
        run.enqueue()
    for warning in warnings_of(run.configuration, run.preparation.dataset.condition):
        messages.warning(request, warning)
    return run


def _listed(request: HttpRequest) -> dict[str, Any]:
    return {"preprocessing": request.GET.getlist("preprocessing") or None}


def _initial(request: HttpRequest) -> dict[str, object]:
    """What the link named: a run, all of whose options are taken over, or a dataset or a version."""
    if "run" in request.GET:
        return as_in(_run(request, row_number(request.GET["run"])), request.GET.get("hint", ""))
    return {
        "dataset": dataset_to_start_with(request),
        "architecture": "Custom_CNN",
        "configuration": "quick",
        **_initial_version(request),
    }


def _initial_version(request: HttpRequest) -> dict[str, object]:
    versions = ModelVersion.objects.to_start_from(request.user)
    version = versions.filter(pk=row_number(request.GET.get("version", ""))).first()
    if version is None:
        return {"initial": TrainingRun.Initial.AUTO}
    chosen = {"initial": TrainingRun.Initial.VERSION, "initial_version": version.pk}
    return {**chosen, "architecture": version.architecture}


@allow("training.view_trainingrun")
@require_GET
def pretrained_list(request: HttpRequest) -> HttpResponse:
    """Which architectures have their ImageNet weights on this server, and how the others get them."""
    architectures = [(item, weights_state(item)) for item in ARCHITECTURES.values()]
    missing = [item.id for item, state in architectures if state in ("absent", "damaged")]
    context = {"architectures": architectures, "example": missing[0] if missing else "EfficientNetB0"}
    return render(request, "training/pretrained_list.html", context)


def _run(request: HttpRequest, pk: int | None) -> TrainingRun:
    runs = TrainingRun.objects.visible_to(request.user).select_related(
        "preparation__dataset__condition", "version__condition", "created_by"
    )
    return get_object_or_404(runs, pk=pk)


@allow("training.view_trainingrun")
@require_GET
def run_detail(request: HttpRequest, pk: int) -> HttpResponse:
    run = _run(request, pk)
    notes = run.notes.select_related("author") if request.user.has_perm("training.view_runnote") else []
    return render(request, "training/run_detail.html", {**live_view(run), "notes": notes, "note_form": NoteForm()})


@allow("training.view_trainingrun")
@require_GET
def run_status(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """What changes while a run goes on; asks for a full reload once, when the run has ended."""
    run = _run(request, pk)
    # Where no worker is left to do it: a run that is to stop ends within the time that was promised.
    if run.cancel_requested and run.is_active and reap():
        run = _run(request, pk)
    response = render(request, "training/_run_status.html", live_view(run))
    if not run.is_active:
        response["HX-Refresh"] = "true"
    return response


@allow("training.view_epochmetric")
@require_GET
def run_curves(request: HttpRequest, pk: int) -> JsonResponse:
    return JsonResponse(_run(request, pk).curves)


@allow("training.cancel_trainingrun")
@require_POST
def run_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    run = _run(request, pk)
    if not run.request_cancel(request.user):
        messages.info(request, "The run had already ended.")
    return redirect(run)


@allow("training.add_trainingrun")
@require_POST
def run_resume(request: HttpRequest, pk: int) -> HttpResponse:
    run = _run(request, pk)
    try:
        run.resume(request.user)
    except JobError as error:
        messages.error(request, f"{error} {error.hint}")
    return redirect(run)


# -- What the network will see


@allow("training.view_trainingrun", "datasets.view_datasetimage")
@require_GET
def augmentation_preview(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """Some training images of a preparation as a network will see them: as prepared, and changed as in each epoch."""
    template = "training/_augmentation_preview.html" if request.htmx else "training/augmentation_preview.html"
    preparation = get_object_or_404(
        Preparation.objects.visible_to(request.user).select_related("dataset__condition"), pk=pk
    )
    presets = SavedPreset.objects.offered_to(request.user)
    chosen = presets.get(request.GET.get("configuration", "")) or presets["standard"]
    context = {"preparation": preparation, "presets": presets.items(), "chosen": chosen}
    context |= _shown(request, preparation, chosen.configuration)
    return render(request, template, context)


@allow("training.view_trainingrun", "datasets.view_datasetimage")
@require_GET
def strengths_preview(request: HtmxHttpRequest) -> HttpResponse:
    """The same for the options that are being entered on the page that starts a training, on its preparation."""
    form = RunForm(request.GET, user=request.user)
    form.is_valid()
    wrong = {name: form.errors[name] for name in SEEN if name in form.errors}
    dataset = form.cleaned_data.get("dataset")
    context: dict[str, Any] = {"dataset": dataset, "wrong": wrong}
    if dataset and not wrong:
        strengths = {name: value for name, value in form.chosen.items() if name in SEEN}
        configuration = form.run_preset.configuration.with_options(**strengths)
        context["warnings"] = warnings_of(configuration.to_json(), dataset.condition)
        try:
            preparation = preparation_for(dataset, configuration)
        except NotPrepared as error:
            context |= {"missing": error, "prepare_url": prepare_url(dataset, error)}
        else:
            context |= {"preparation": preparation} | _shown(request, preparation, configuration)
    return render(request, "training/_strengths_preview.html", context)


def _shown(request: HttpRequest, preparation: Preparation, configuration: Configuration) -> dict[str, Any]:
    """The pictures, or why there are none. A look at other pictures than a minute ago is a new look."""
    seed = request.GET.get("look", "")[:9]
    try:
        rows = changed_images(preparation, configuration, seed=int(seed) if seed.isdecimal() else 0)
    except CacheError as error:
        return {"error": str(error)}
    looks = AuditEntry.objects.filter(action="preparation.view_images", actor=request.user, after={"look": seed})
    of_this = looks.filter(object_type="preparation", object_id=str(preparation.pk))
    if not of_this.filter(at__gte=timezone.now() - LOOK_LASTS).exists():
        audit.record("preparation.view_images", preparation, actor=request.user, after={"look": seed})
    return {"rows": rows, "look": int(seed) + 1 if seed.isdecimal() else 1}
