"""Pages: training options that a team saved under a name."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from xrayplatform.access import allow
from xrayplatform.http import row_number

from .configurations import PRESETS
from .forms import PresetForm, RunForm, shown
from .models import SavedPreset, TrainingRun


@allow("training.view_savedpreset")
@require_GET
def preset_list(request: HttpRequest) -> HttpResponse:
    presets = SavedPreset.objects.visible_to(request.user).select_related("team", "created_by")
    for preset in presets:
        preset.may_go = preset.may_be_taken_away_by(request.user)
    return render(request, "training/preset_list.html", {"presets": presets})


@allow("training.add_savedpreset")
@require_http_methods(["GET", "POST"])
def preset_create(request: HttpRequest) -> HttpResponse:
    """Empty, from the options of a run (`?run=`), or from those entered on the page that starts a training."""
    preset = SavedPreset()
    if request.method == "GET" or "prefill" in request.POST:
        team = request.user.teams.first()
        start = {"team": team and team.pk} | _options_to_save(request)
        form = PresetForm(None, user=request.user, preset=preset, initial=start)
        return render(request, "training/preset_edit.html", {"form": form})
    return _saved(request, preset)


@allow("training.change_savedpreset")
@require_http_methods(["GET", "POST"])
def preset_edit(request: HttpRequest, pk: int) -> HttpResponse:
    preset = get_object_or_404(SavedPreset.objects.visible_to(request.user), pk=pk)
    if request.method == "POST":
        return _saved(request, preset)
    words = {"name": preset.name, "description": preset.description, "team": preset.team_id}
    form = PresetForm(None, user=request.user, preset=preset, initial=words | shown(preset.configuration))
    return render(request, "training/preset_edit.html", {"form": form, "preset": preset})


@allow("training.delete_savedpreset")
@require_POST
def preset_delete(request: HttpRequest, pk: int) -> HttpResponse:
    preset = get_object_or_404(SavedPreset.objects.visible_to(request.user), pk=pk)
    preset.remove(request.user)
    messages.success(request, f"{preset.name} is deleted. Runs that used it keep their options.")
    return redirect("training:preset-list")


def _options_to_save(request: HttpRequest) -> dict[str, Any]:
    if request.method == "POST":
        form = RunForm(request.POST, user=request.user)
        form.is_valid()
        # What is wrong is shown as it was entered, for its own form to complain about.
        return shown(form.run_preset.configuration.to_json()) | _entered(request, form)
    if not request.GET.get("run", "").isdecimal():
        return shown(PRESETS["standard"].configuration.to_json())
    run = get_object_or_404(TrainingRun.objects.visible_to(request.user), pk=row_number(request.GET["run"]))
    return shown(run.configuration)


def _entered(request: HttpRequest, form: RunForm) -> dict[str, Any]:
    entered = {name: request.POST[name] for name in form.option_names if request.POST.get(name)}
    return entered | ({"preprocessing": form.chosen["preprocessing"]} if "preprocessing" in form.chosen else {})


def _saved(request: HttpRequest, preset: SavedPreset) -> HttpResponse:
    form = PresetForm(request.POST, user=request.user, preset=preset)
    if form.is_valid() and form.store():
        messages.success(request, f"{preset.name} is saved and can be chosen when a training is started.")
        return redirect("training:preset-list")
    return render(request, "training/preset_edit.html", {"form": form, "preset": preset}, status=400)
