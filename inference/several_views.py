"""Page: measure all versions of a comparison on the same images."""

from urllib.parse import urlencode

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from registry.image_sets import ComparisonError, chosen_versions
from registry.models import ModelVersion
from xrayplatform.access import allow

from . import several


@allow("inference.add_evaluationrun")
@require_http_methods(["GET", "POST"])
def evaluation_run_several(request: HttpRequest) -> HttpResponse:
    """What all of the versions can be measured on; what is chosen there is started for those that lack it."""
    given = request.POST if request.method == "POST" else request.GET
    visible = ModelVersion.objects.visible_to(request.user).select_related("condition__team")
    try:
        versions = chosen_versions(visible, given.getlist("version"))
    except ModelVersion.DoesNotExist as error:
        raise Http404 from error
    except ComparisonError as error:
        messages.warning(request, str(error))
        return redirect("registry:version-compare")
    offered = several.common_offers(versions, request.user)
    address = f"{reverse('registry:version-compare')}?{urlencode([('version', version.pk) for version in versions])}"
    if request.method == "POST":
        _start(request, versions, offered)
        return redirect(address)
    context = {
        "versions": versions,
        "condition": versions[0].condition,
        "usable": [one for one in offered if not one.problems],
        "unusable": [one for one in offered if one.problems],
        "back": address,
    }
    return render(request, "inference/evaluation_run_several.html", context)


def _start(request: HttpRequest, versions: list[ModelVersion], offered: list[several.CommonOffer]) -> None:
    value = request.POST.get("choice", "")
    chosen = next((one for one in offered if one.offer.value == value and not one.problems), None)
    if chosen is None:
        messages.warning(request, "Choose images that all of the versions can be measured on.")
        return
    started = several.start(versions, chosen.offer, request.user)
    if started.runs:
        count = len(started.runs)
        told = "1 evaluation was" if count == 1 else f"{count} evaluations were"
        messages.success(
            request, f"{told} started. When all have ended, choose these images here to compare the versions on them."
        )
    if started.measured:
        names = ", ".join(f"v{version.number}" for version in started.measured)
        messages.info(request, f"Measured on these images already: {names}.")
    for sentence in started.refused:
        messages.warning(request, sentence)
