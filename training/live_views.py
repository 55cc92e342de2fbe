"""Pages and fragments around a training: the checks before it, speed tests, and notes on runs."""

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from datasets.models import IMAGE_SIZES
from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError

from .configurations import OPTIONS
from .forms import RunForm
from .ml.architectures import ARCHITECTURES
from .models import RunNote, SpeedTest, TrainingRun
from .preflight import preflight

_NOTE = RunNote._meta.get_field("text")


class NoteForm(forms.Form):
    text = forms.CharField(label="Note", max_length=_NOTE.max_length, widget=forms.Textarea({"rows": 3}))


class SpeedTestForm(forms.Form):
    """What is to be measured."""

    architecture = forms.ChoiceField(choices=[(key, item.name) for key, item in ARCHITECTURES.items()])
    image_size = forms.TypedChoiceField(choices=[(size, size) for size in IMAGE_SIZES], coerce=int)
    batch_size = forms.IntegerField(min_value=1, max_value=int(OPTIONS["batch_size"].range.high))
    fine_tuning = forms.BooleanField(required=False)


@allow("training.add_trainingrun")
@require_GET
def run_preflight(request: HtmxHttpRequest) -> HttpResponse:
    """What the form on the page of a new training would lead to, as it stands. Starts nothing."""
    form = RunForm(request.GET, user=request.user)
    found = None
    if form.is_valid():
        chosen = form.cleaned_data
        found = preflight(
            chosen["dataset"],
            chosen["architecture"],
            form.run_configuration,
            request.user,
            initial=chosen["initial"],
            version=chosen["initial_version"],
        )
    return render(request, "training/_preflight_result.html", {"form": form, "preflight": found})


@allow("training.add_speedtest")
@require_POST
def speed_test_start(request: HtmxHttpRequest) -> HttpResponse:
    form = SpeedTestForm(request.POST)
    if not form.is_valid():
        return HttpResponse("This cannot be measured.", status=400, content_type="text/plain")
    chosen = form.cleaned_data
    try:
        test = SpeedTest.request(
            chosen["architecture"],
            chosen["image_size"],
            chosen["batch_size"],
            request.user,
            fine_tuning=chosen["fine_tuning"],
        )
    except JobError as error:
        return render(request, "training/_speed_test.html", {"refused": error}, status=409)
    if request.htmx:
        return render(request, "training/_speed_test.html", {"test": test})
    return redirect("training:speed-test-detail", test.pk)


@allow("training.view_speedtest")
@require_GET
def speed_test_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """The fragment that follows a test; the page that asked for it is told when there is a result."""
    test = get_object_or_404(SpeedTest, pk=pk)
    template = "training/_speed_test.html" if request.htmx else "training/speed_test_detail.html"
    response = render(request, template, {"test": test})
    if test.state == test.State.SUCCEEDED:
        response["HX-Trigger"] = "measured"
    return response


@allow("training.add_runnote")
@require_POST
def run_note(request: HttpRequest, pk: int) -> HttpResponse:
    run = get_object_or_404(TrainingRun.objects.visible_to(request.user), pk=pk)
    form = NoteForm(request.POST)
    if form.is_valid():
        run.note(form.cleaned_data["text"], request.user)
    else:
        messages.error(request, "The note was not stored: " + " ".join(form.errors.get("text", [])))
    return redirect(f"{run.get_absolute_url()}#notes")
