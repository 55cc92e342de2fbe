"""Pages: train several at once, and compare what comes out."""

from itertools import zip_longest
from typing import Any

from django import forms
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from datasets.models import Dataset
from registry.models import ModelVersion
from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError

from .comparing import Comparison, compare
from .configurations import OPTIONS, ConfigurationError
from .forms import InitialWeightsForm
from .ml.architectures import ARCHITECTURES
from .models import NotPrepared, SavedPreset, Search, TrainingRun
from .search_preflight import outlook
from .searching import ETA, ETAS, MAX_RUNS, MAX_VARIED, VARIABLE, Plan, parse_values, plan
from .views import dataset_to_start_with, to_start_with

GROUPED_OPTIONS = [("", "Nothing")] + [
    (group, [(name, OPTIONS[name].label) for name in VARIABLE if OPTIONS[name].group == group])
    for group in dict.fromkeys(OPTIONS[name].group for name in VARIABLE)
]


class SearchForm(InitialWeightsForm):
    """Dataset, architectures, initial weights, a base configuration, and the values of up to three options."""

    dataset = forms.ModelChoiceField(Dataset.objects.none(), empty_label=None)
    name = forms.CharField(
        max_length=80, required=False, help_text="What you want to find out; left empty, it is what varies."
    )
    architectures = forms.MultipleChoiceField(choices=[(key, item.name) for key, item in ARCHITECTURES.items()])
    configuration = forms.ChoiceField(label="Configuration of all runs")
    mode = forms.ChoiceField(choices=Search.Mode)
    eta = forms.TypedChoiceField(
        label="Runs that go on",
        coerce=int,
        required=False,
        empty_value=ETA,
        choices=[(eta, f"the best of every {eta}") for eta in ETAS],
        help_text="After each comparison. The fewer go on, the sooner it ends, and the easier a slow starter is lost.",
    )

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        datasets = Dataset.objects.visible_to(user).filter(state=Dataset.State.PRESENT)
        self.fields["dataset"].queryset = datasets
        self.offer_versions(user)
        self.presets = SavedPreset.objects.select_related("team", "created_by").offered_to(user)
        self.fields["configuration"].choices = [(key, preset.label) for key, preset in self.presets.items()]
        for number in range(1, MAX_VARIED + 1):
            self.fields[f"option_{number}"] = forms.ChoiceField(
                label=f"Option {number}", choices=GROUPED_OPTIONS, required=False
            )
            self.fields[f"values_{number}"] = forms.CharField(
                label=f"Values of option {number}", required=False, max_length=400
            )

    @property
    def varied_fields(self) -> list[tuple[Any, Any]]:
        return [(self[f"option_{number}"], self[f"values_{number}"]) for number in range(1, MAX_VARIED + 1)]

    @property
    def starts_from(self) -> dict[str, Any]:
        """What all runs start from, as `Search.start` takes it."""
        return {"initial": self.cleaned_data["initial"], "version": self.cleaned_data["initial_version"]}

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if {"architectures", "configuration", "mode"} <= cleaned.keys():
            try:
                self.plan = self._plan(cleaned)
            except ConfigurationError as error:
                self.add_error(self._field_of(error.field), str(error))
        return cleaned

    def _plan(self, cleaned: dict[str, Any]) -> Plan:
        preset = self.presets[cleaned["configuration"]]
        return plan(
            cleaned["architectures"],
            preset.configuration,
            self._values(cleaned),
            preset=preset.recorded,
            eta=cleaned.get("eta", ETA) if cleaned["mode"] == Search.Mode.HALVING else None,
        )

    def _values(self, cleaned: dict[str, Any]) -> dict[str, list[Any]]:
        values: dict[str, list[Any]] = {}
        for number in range(1, MAX_VARIED + 1):
            option, text = cleaned.get(f"option_{number}"), cleaned.get(f"values_{number}", "")
            if not option and text:
                raise ConfigurationError(f"option_{number}", "Choose the option that these are the values of.")
            if option in values:
                raise ConfigurationError(f"option_{number}", "This option varies already; add the values there.")
            if option:
                values[option] = parse_values(option, text)
        return values

    def _field_of(self, name: str) -> str | None:
        """The field of the form beside which a complaint about an option belongs."""
        if name in self.fields:
            return name
        numbers = range(1, MAX_VARIED + 1)
        return next(
            (f"values_{number}" for number in numbers if self.cleaned_data.get(f"option_{number}") == name), None
        )


@allow("training.view_search")
@require_GET
def search_list(request: HttpRequest) -> HttpResponse:
    searches = Search.objects.visible_to(request.user).with_counts().order_by("-pk")
    searches = searches.select_related("preparation__dataset", "created_by")
    page = Paginator(searches, 25).get_page(request.GET.get("page"))
    return render(request, "training/search_list.html", {"page": page})


@allow("training.add_search")
@require_http_methods(["GET", "POST"])
def search_create(request: HtmxHttpRequest) -> HttpResponse:
    """The form; asked by htmx with the form's values it answers with what would come out."""
    if request.htmx:
        return _what_comes_out(request, SearchForm(request.GET, user=request.user))
    form = SearchForm(request.POST or None, user=request.user, initial=_initial(request))
    unprepared = None
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            search = Search.start(data["dataset"], form.plan, request.user, name=data["name"], **form.starts_from)
            return redirect(search)
        except NotPrepared as error:
            unprepared = error
        except JobError as error:
            messages.error(request, f"{error} {error.hint}")
    context = to_start_with(request, form, unprepared)
    context |= {"chosen": form["architectures"].value() or [], "max_runs": MAX_RUNS}
    return render(request, "training/search_create.html", context, status=200 if request.method == "GET" else 400)


def _initial(request: HttpRequest) -> dict[str, object]:
    return {
        "dataset": dataset_to_start_with(request),
        "architectures": ["Custom_CNN"],
        "configuration": "standard",
        "option_1": "learning_rate",
        "values_1": "0.0005, 0.001, 0.002",
        "mode": Search.Mode.HALVING,
        "eta": ETA,
        "initial": TrainingRun.Initial.AUTO,
    }


def _what_comes_out(request: HttpRequest, form: SearchForm) -> HttpResponse:
    context: dict[str, Any] = {"form": form}
    if form.is_valid():
        context["outlook"] = outlook(form.cleaned_data["dataset"], form.plan, request.user, **form.starts_from)
    return render(request, "training/_search_plan.html", context)


def _search(request: HttpRequest, pk: int) -> Search:
    searches = Search.objects.visible_to(request.user).select_related("preparation__dataset__condition", "created_by")
    return get_object_or_404(searches, pk=pk)


@allow("training.view_search")
@require_GET
def search_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """The comparison; the part that changes is asked for by htmx, and the whole page once when all have ended."""
    search = _search(request, pk)
    comparison = compare(search)
    template = "training/_search_status.html" if request.htmx else "training/search_detail.html"
    context = {
        "search": search,
        "comparison": comparison,
        "curve_tables": curve_tables(comparison),
        "base": base_options(search),
        "initial": TrainingRun.Initial(search.parameters.get("initial") or TrainingRun.Initial.AUTO).label,
        "initial_version": _initial_version(search),
    }
    response = render(request, template, context)
    if request.htmx and not comparison.is_active:
        response["HX-Refresh"] = "true"
    return response


def _initial_version(search: Search) -> ModelVersion | None:
    """The version that all runs start from, if it was one."""
    return ModelVersion.objects.select_related("condition").filter(pk=search.parameters.get("initial_version")).first()


def base_options(search: Search) -> dict[str, Any]:
    """The options that all runs share."""
    base = search.parameters.get("base", {})
    return {name: base[name] for name in OPTIONS if name in base and name not in search.varied}


def curve_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """The charts as tables: one column a run, one row an epoch; in the order of the runs, which does not change."""
    curves = sorted(comparison.curves, key=lambda curve: curve["run"])
    return [
        {
            "id": f"{series}-rows",
            "caption": caption,
            "runs": [curve["run"] for curve in curves],
            "rows": list(enumerate(zip_longest(*(curve[series] for curve in curves)), start=1)),
        }
        for series, caption in (("val_loss", "Validation loss"), ("val_auc", "Validation AUC"))
    ]


@allow("training.view_search", "training.view_epochmetric")
@require_GET
def search_curves(request: HttpRequest, pk: int) -> JsonResponse:
    return JsonResponse({"runs": compare(_search(request, pk)).curves})


@allow("training.cancel_trainingrun")
@require_POST
def search_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    search = _search(request, pk)
    if not search.cancel(request.user):
        messages.info(request, "All its runs had already ended.")
    return redirect(search)
