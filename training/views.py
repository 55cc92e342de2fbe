"""Pages: Model Training, one run with its live view, and the fragments that keep it live."""

import base64
from typing import Any

import numpy as np
from django.contrib import messages
from django.core.paginator import Paginator
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from datasets.cache import CacheError, open_cache
from datasets.imaging import to_png
from datasets.models import Dataset, Preparation
from xrayplatform import audit
from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError
from xrayplatform.system import resources

from .configurations import PRESETS
from .forms import RunForm
from .ml import augmentation
from .ml.architectures import ARCHITECTURES, pretrained_weights
from .models import NotPrepared, TrainingRun
from .supervisor import pretrained_folder

# Images of the preview, and how often each is shown changed.
PREVIEWED, VARIANTS = 4, 3


@allow("training.view_trainingrun")
@require_GET
def run_list(request: HttpRequest) -> HttpResponse:
    runs = TrainingRun.objects.visible_to(request.user).select_related(
        "preparation__dataset__condition", "version__condition", "created_by"
    )
    return render(request, "training/run_list.html", {"page": Paginator(runs, 25).get_page(request.GET.get("page"))})


@allow("training.add_trainingrun")
@require_http_methods(["GET", "POST"])
def run_create(request: HttpRequest) -> HttpResponse:
    form = RunForm(request.POST or None, user=request.user, initial=_initial(request))
    unprepared = None
    if request.method == "POST" and form.is_valid():
        try:
            with transaction.atomic():
                run = TrainingRun.create(
                    form.cleaned_data["dataset"],
                    form.cleaned_data["architecture"],
                    form.run_configuration,
                    request.user,
                    preset=form.cleaned_data["configuration"],
                )
                run.enqueue()
            return redirect(run)
        except NotPrepared:
            unprepared = form.cleaned_data["dataset"]
        except JobError as error:
            messages.error(request, f"{error} {error.hint}")
    context = {
        "form": form,
        "unprepared": unprepared,
        "datasets": Dataset.objects.visible_to(request.user).filter(state=Dataset.State.PRESENT).for_pages(),
        "architectures": [
            (item, pretrained_weights(key, pretrained_folder()) is not None) for key, item in ARCHITECTURES.items()
        ],
        "presets": PRESETS.items(),
    }
    return render(request, "training/run_create.html", context, status=200 if request.method == "GET" else 400)


def _initial(request: HttpRequest) -> dict[str, object]:
    """The dataset that the link named, otherwise the one that was prepared last."""
    prepared = Preparation.objects.visible_to(request.user).filter(state=Preparation.State.SUCCEEDED).first()
    return {
        "dataset": request.GET.get("dataset") or (prepared.dataset_id if prepared else None),
        "architecture": "Custom_CNN",
        "configuration": "quick",
    }


def _run(request: HttpRequest, pk: int) -> TrainingRun:
    runs = TrainingRun.objects.visible_to(request.user).select_related(
        "preparation__dataset__condition", "version__condition", "created_by"
    )
    return get_object_or_404(runs, pk=pk)


def _live_view(run: TrainingRun) -> dict[str, object]:
    return {"run": run, "resources": resources(), "log": run.log_tail(), "metrics": run.metrics.all()}


@allow("training.view_trainingrun")
@require_GET
def run_detail(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "training/run_detail.html", _live_view(_run(request, pk)))


@allow("training.view_trainingrun")
@require_GET
def run_status(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """What changes while a run goes on; asks for a full reload once, when the run has ended."""
    run = _run(request, pk)
    response = render(request, "training/_run_status.html", _live_view(run))
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


@allow("training.view_trainingrun", "datasets.view_datasetimage")
@require_GET
def augmentation_preview(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """Some training images of a preparation as a network will see them: as prepared, and changed as in each epoch."""
    template = "training/_augmentation_preview.html" if request.htmx else "training/augmentation_preview.html"
    preparation = get_object_or_404(Preparation.objects.visible_to(request.user).select_related("dataset"), pk=pk)
    name = request.GET.get("configuration", "standard")
    preset = PRESETS.get(name) or PRESETS["standard"]
    try:
        rows = _changed_images(preparation, preset.configuration)
    except CacheError as error:
        return render(request, template, {"preparation": preparation, "error": str(error)})
    audit.record("preparation.view_images", preparation, actor=request.user)
    context = {"preparation": preparation, "rows": rows, "presets": PRESETS.items(), "chosen": preset}
    return render(request, template, context)


def _changed_images(preparation: Preparation, configuration: Any) -> list[dict[str, Any]]:
    data = open_cache(preparation.cache_folder)
    random = np.random.default_rng()
    train = data.indices("train")
    shown = []
    for row in sorted(random.choice(train, min(PREVIEWED, len(train)), replace=False).tolist()):
        repeated = np.repeat(data.images[row][None], VARIANTS, axis=0)
        changes = augmentation.draw(random, VARIANTS, data.image_size, configuration)
        pictures = np.rint(augmentation.apply_here(repeated, changes) * 255).astype(np.uint8)
        shown.append(
            {
                "label": data.classes[data.labels[row]],
                "pictures": [base64.b64encode(to_png(picture)).decode() for picture in (data.images[row], *pictures)],
            }
        )
    return shown
