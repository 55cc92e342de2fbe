"""Pages: the images of a dataset, one image as the model sees it, and the pictures themselves."""

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_POST

from xrayplatform import audit
from xrayplatform.access import allow
from xrayplatform.jobs import JobError

from .. import quality, rendering
from ..forms import DecisionForm, FlagForm
from ..models import Dataset, DatasetImage, Decision
from ..names import MAX_IMAGE_PATH
from .datasets import visible_dataset

IMAGES_ON_A_PAGE = 24
# One entry in the audit log stands for the thumbnails that a user fetches within this time.
ONE_ENTRY_FOR = timedelta(minutes=5)
SPLITS = ("train", "validation", "test")


def visible_image(request: HttpRequest, pk: int) -> DatasetImage:
    images = DatasetImage.objects.visible_to(request.user).with_exclusion().select_related("dataset__condition")
    return get_object_or_404(images, pk=pk)


@allow("datasets.view_datasetimage")
@require_GET
def image_list(request: HttpRequest, pk: int) -> HttpResponse:
    """The dataset's images, by class, split, kind of finding, exclusion or a part of the path."""
    dataset = visible_dataset(request, pk)
    chosen = {
        name: request.GET.get(name, "")[:MAX_IMAGE_PATH]
        for name in ("class", "split", "finding", "cluster", "excluded", "path")
    }
    page = Paginator(_filtered(dataset, chosen), IMAGES_ON_A_PAGE).get_page(request.GET.get("page"))
    audit.record("dataset.view_images", dataset, actor=request.user, after={"page": page.number} | chosen)
    context = {
        "dataset": dataset,
        "page": page,
        "chosen": chosen,
        "kinds": quality.CODES,
        "splits": SPLITS,
        "decision_form": DecisionForm(),
        "tab": "images",
    }
    return render(request, "datasets/image_list.html", context)


def _filtered(dataset: Any, chosen: dict[str, str]) -> Any:
    images = dataset.images.with_exclusion().with_decision(chosen["finding"] or Decision.BY_HAND)
    images = images.select_related("dataset").prefetch_related("findings")
    if chosen["class"]:
        sources = [name for name in dataset.source_classes if chosen["class"] in (name, dataset.label_of(name))]
        images = images.filter(class_name__in=sources)
    if chosen["split"]:
        images = images.filter(source_split=chosen["split"])
    if chosen["finding"]:
        images = images.filter(findings__code=chosen["finding"])
        images = images.order_by("cluster", "path") if chosen["finding"] == "near-duplicate" else images
    if chosen["cluster"].isdecimal():
        images = images.filter(cluster=int(chosen["cluster"][:18]))
    if chosen["excluded"]:
        images = images.filter(excluded=chosen["excluded"] == "yes")
    if chosen["path"]:
        images = images.filter(path__icontains=chosen["path"])
    return images


@allow("datasets.view_datasetimage")
@require_GET
def image_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """The radiograph beside what a model sees, with the steps between in words."""
    image = visible_image(request, pk)
    view = rendering.view_of(image)
    audit.record("image.view", image, actor=request.user, after={"dataset": image.dataset.name})
    findings = list(image.findings.with_decision().select_related("flagged_by"))
    codes = {finding.code for finding in findings}
    decisions = [decision for decision in image.decisions if decision.digest == image.digest]
    relatives = image.dataset.images.filter(cluster=image.cluster).exclude(pk=pk) if image.cluster else []
    context = {
        "image": image,
        "dataset": image.dataset,
        "view": view,
        "findings": findings,
        "flag": next((finding for finding in findings if finding.flagged_at), None),
        "by_hand": next((decision for decision in decisions if decision.code == Decision.BY_HAND), None),
        # The finding is gone, because a training or a scan wrote them anew, but what was decided holds.
        "earlier": [decision for decision in decisions if decision.code not in codes | {Decision.BY_HAND}],
        "relatives": relatives[:12],
        "decision_form": DecisionForm(),
        "tab": "images",
    }
    return render(request, "datasets/image_detail.html", context)


@allow("datasets.view_datasetimage")
@require_GET
def image_thumbnail(request: HttpRequest, pk: int) -> HttpResponse:
    """A small PNG for grids. In the audit log there is one entry for all that are fetched within minutes."""
    image = visible_image(request, pk)
    _record_thumbnails(request, image.dataset)
    try:
        picture = rendering.picture(image, rendering.THUMBNAIL)
    except rendering.NotShown as error:
        raise Http404 from error
    # A radiograph stays in no cache, neither the browser's nor a proxy's.
    return HttpResponse(picture, content_type="image/png", headers={"Cache-Control": "no-store"})


def _record_thumbnails(request: HttpRequest, dataset: Dataset) -> None:
    """Pictures may be fetched without the page around them, but not without an entry."""
    recent = audit.AuditEntry.objects.filter(
        actor=request.user,
        action="dataset.view_images",
        object_type=dataset._meta.model_name,
        object_id=str(dataset.pk),
        at__gte=timezone.now() - ONE_ENTRY_FOR,
    )
    if not recent.exists():
        audit.record("dataset.view_images", dataset, actor=request.user, after={"thumbnails": True})


@allow("datasets.curate_dataset")
@require_POST
def image_decide(request: HttpRequest, pk: int) -> HttpResponse:
    """Exclude the image, keep it in spite of a finding, or take a decision back."""
    image = visible_image(request, pk)
    form = DecisionForm(request.POST)
    if not form.is_valid():
        messages.warning(request, "Choose whether the image is left out or kept, and say why.")
        return back(request, image)
    data = form.cleaned_data
    try:
        if data["action"] == "withdraw":
            image.withdraw(data["code"], by=request.user)
        else:
            image.decide(data["code"], data["action"], data["reason"], by=request.user)
        messages.success(request, f"Saved for {image.path}. The next preparation honours it.")
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
    return back(request, image)


@allow("datasets.flag_datasetimage")
@require_POST
def image_flag(request: HttpRequest, pk: int) -> HttpResponse:
    """Say that the label of the image is wrong, or take that back."""
    image = visible_image(request, pk)
    flag_or_withdraw(request, image)
    return back(request, image)


def flag_or_withdraw(request: HttpRequest, image: DatasetImage, seen: str = "") -> None:
    """Do what the form on a page says, with a message about it. seen: where the label was noticed, in sentences."""
    form = FlagForm(request.POST)
    if not form.is_valid():
        messages.warning(request, "Nothing was saved. Choose another class or none, and comment in one or two lines.")
        return
    data = form.cleaned_data
    try:
        if data["action"] == "withdraw":
            image.withdraw_flag(by=request.user)
            messages.success(request, f"Taken back for {image.path}.")
        else:
            image.flag_label(data["suggestion"], data["comment"], by=request.user, seen=seen)
            messages.success(
                request,
                f"Noted for {image.path}. Its label stays as it is until a curator has looked at it in the quality "
                "report.",
            )
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")


def back(request: HttpRequest, image: DatasetImage) -> HttpResponse:
    """To the page that the form was on, or to the image's own."""
    target = request.POST.get("next", "")
    if target.startswith("/") and url_has_allowed_host_and_scheme(target, {request.get_host()}, request.is_secure()):
        return HttpResponseRedirect(target)
    return redirect(image)
