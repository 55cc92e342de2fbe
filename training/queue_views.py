"""Pages: the training queue, its order, and pausing it."""

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError

from .models import TrainingQueue, TrainingRun
from .waiting import overview


class PauseForm(forms.Form):
    reason = forms.CharField(
        max_length=300, help_text="Everybody who waits reads it: what for, and until when, as far as you know."
    )


class PriorityForm(forms.Form):
    priority = forms.TypedChoiceField(choices=TrainingRun.Priority, coerce=int)


@allow("training.view_trainingqueue")
@require_GET
def queue_detail(request: HtmxHttpRequest) -> HttpResponse:
    return _page(request, PauseForm())


def _page(request: HtmxHttpRequest, form: PauseForm, status: int = 200) -> HttpResponse:
    template = "training/_queue.html" if request.htmx else "training/queue_detail.html"
    context = {"overview": overview(request.user), "form": form, "priorities": TrainingRun.Priority.choices}
    return render(request, template, context, status=status)


@allow("training.pause_trainingqueue")
@require_POST
def queue_pause(request: HtmxHttpRequest) -> HttpResponse:
    form = PauseForm(request.POST)
    if not form.is_valid():
        return _page(request, form, status=400)
    if not TrainingQueue.pause(request.user, form.cleaned_data["reason"]):
        messages.info(request, "The queue was paused already, for the same reason.")
    return redirect("training:queue-detail")


@allow("training.pause_trainingqueue")
@require_POST
def queue_open(request: HttpRequest) -> HttpResponse:
    if not TrainingQueue.open(request.user):
        messages.info(request, "The queue was open already.")
    return redirect("training:queue-detail")


@allow("training.prioritise_trainingrun")
@require_POST
def run_prioritise(request: HttpRequest, pk: int) -> HttpResponse:
    run = get_object_or_404(TrainingRun.objects.visible_to(request.user), pk=pk)
    form = PriorityForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Choose low, normal or high.")
        return redirect("training:queue-detail")
    try:
        run.prioritise(form.cleaned_data["priority"], request.user)
    except JobError as error:
        messages.info(request, f"{error} {error.hint}")
    return redirect("training:queue-detail")
