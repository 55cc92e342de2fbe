"""What the result page says about a prediction, besides what stands in its row."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlencode

from django.db.models import Prefetch, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse

from registry.lineage import activation_at, origin_of
from registry.models import Deployment

from . import gate, maps, radiographs
from .forms import VerdictForm
from .models import Analysis, BatchItem, Prediction, Verdict
from .windowing import Window

OTHER_ANSWERS: Final = 20
# How serious, in which words and with which sign; the first is the most serious.
OUTCOMES: Final = {
    "fail": ("Not fit", "bi-x-octagon-fill"),
    "warn": ("Look", "bi-exclamation-triangle-fill"),
    "unknown": ("Not known", "bi-question-circle"),
    "pass": ("Passed", "bi-check-circle"),
}


@dataclass(frozen=True)
class Check:
    """One verdict of the gate as the page shows it."""

    title: str
    outcome: str
    word: str
    icon: str
    text: str


@dataclass(frozen=True)
class Checks:
    """serious: to be read before the answer. others: passed or not known. summary: of the others, in words."""

    serious: list[Check]
    others: list[Check]

    @property
    def summary(self) -> str:
        unknown = sum(check.outcome == "unknown" for check in self.others)
        passed = len(self.others) - unknown
        if not self.serious and not unknown:
            return "All checks of the picture passed"
        return f"{_counted(passed, 'check')} passed, {unknown} could not be told" if unknown else f"{passed} passed"


@dataclass(frozen=True)
class Viewer:
    """What the viewer starts with. picture: its address, "" when there is none and `problem` says why.

    addresses: of the picture and of its map, which take more in their query. window: what the page's address asks for.
    classes: those a map can be drawn of; chosen: the one whose map is shown, "" for none. of_input: shown is what the
    model saw, because nothing is kept.
    """

    picture: str
    picture_address: str
    map_address: str
    width: int
    height: int
    window: Window
    classes: Sequence[str] = ()
    chosen: str = ""
    problem: str = ""
    of_input: bool = False

    @property
    def map(self) -> str:
        """The address of the map that is shown."""
        query = {"class": self.chosen} | ({"of": "input"} if self.of_input else {})
        return f"{self.map_address}?{urlencode(query)}" if self.chosen else ""

    @property
    def legend(self) -> list[tuple[int, str]]:
        return list(enumerate(maps.legend()))


def page_of(request: HttpRequest, prediction: Prediction, analysis: Analysis | None = None) -> dict[str, Any]:
    """The context of the page. analysis: when it is shown as the answer to the upload."""
    version = prediction.version
    return {
        "prediction": prediction,
        "version": version,
        "notice": analysis.notice if analysis else "",
        "in_service": _in_service(prediction),
        "checks": checks_of(prediction.gate),
        "viewer": viewer_of(request, prediction, analysis),
        "bars": [_bar(prediction, name, probability) for name, probability in prediction.ranked],
        "decision_in_words": decision_in_words(prediction),
        "steps": prediction.steps,
        "others": other_answers(request.user, prediction),
        "next_of_batch": _next_of_batch(prediction),
        **_way_back(request, prediction),
    } | verdicts_of(request, prediction)


def _way_back(request: HttpRequest, prediction: Prediction) -> dict[str, Any]:
    """From the answer to the images that its version learned from."""
    if not request.user.has_perm("registry.view_modelversion"):
        return {}
    activation = activation_at(prediction.version, prediction.created_at, request.user)
    return {"lineage": origin_of(prediction.version, request.user), "activation": activation}


def verdicts_of(request: HttpRequest, prediction: Prediction) -> dict[str, Any]:
    """The context of the part about verdicts."""
    verdicts = list(prediction.verdicts.select_related("by"))
    newest: dict[int, Verdict] = {}
    for verdict in verdicts:
        newest.setdefault(verdict.by_id, verdict)
    counting = list(newest.values())
    return {
        "verdicts": counting,
        "replaced": [verdict for verdict in verdicts if verdict not in counting],
        "mine": newest.get(request.user.pk),
        "verdict_form": VerdictForm(prediction=prediction),
        "other_classes": [name for name in prediction.version.classes if name != prediction.decision],
    }


def checks_of(verdicts: Iterable[dict[str, Any]]) -> Checks:
    """The gate's verdicts as they are stored, the most serious first."""
    order = list(OUTCOMES)
    checks = [
        Check(gate.CHECKS.get(one["check"], one["check"]), one["outcome"], *OUTCOMES[one["outcome"]], one["text"])
        for one in sorted(verdicts, key=lambda one: order.index(one["outcome"]))
    ]
    serious = [check for check in checks if check.outcome in ("fail", "warn")]
    return Checks(serious, [check for check in checks if check not in serious])


def viewer_of(request: HttpRequest, prediction: Prediction, analysis: Analysis | None) -> Viewer:
    """The radiograph that was kept; without it, and only as the answer to the upload, what the model saw."""
    address, map_address = (reverse(f"inference:prediction-{name}", args=[prediction.pk]) for name in ("image", "map"))
    window = _window(request)
    viewer = Viewer("", address, map_address, prediction.width, prediction.height, window)
    if radiographs.is_there(prediction.image_digest):
        query = {"center": window.center, "width": window.width} | ({"invert": 1} if window.inverted else {})
        viewer = replace(viewer, picture=f"{address}?{urlencode(query)}")
    elif analysis is not None:
        size = prediction.version.image_size
        preview = "data:image/png;base64," + base64.b64encode(analysis.preview).decode()
        viewer = replace(viewer, picture=preview, picture_address="", width=size, height=size, of_input=True)
    else:
        return replace(viewer, problem=radiographs.why_missing())
    if not prediction.activation_frame:
        return viewer
    return replace(viewer, classes=prediction.version.classes, chosen=_chosen_map(request, prediction))


def _window(request: HttpRequest) -> Window:
    """What the address asks for; the whole range where it asks for nothing that there is."""
    try:
        return window_of(request)
    except ValueError:
        return Window()


def window_of(request: HttpRequest) -> Window:
    """What the address asks for. Raises ValueError."""
    asked = request.GET
    return Window.parsed(asked.get("center", ""), asked.get("width", ""), asked.get("invert", "") not in ("", "0"))


def _chosen_map(request: HttpRequest, prediction: Prediction) -> str:
    """Of what was decided, unless the address asks for another class or for none."""
    asked = request.GET.get("map", prediction.decision)
    return asked if asked in prediction.version.classes else "" if asked == "" else prediction.decision


def decision_in_words(prediction: Prediction) -> str:
    """How the decision came of the probabilities."""
    positive = prediction.version.positive_class
    if not positive or prediction.threshold is None:
        return f"{prediction.decision} is the most probable class."
    found = f"The probability of {positive} is {_percent(prediction.probabilities[positive])}"
    threshold = _percent(prediction.threshold)
    if prediction.decision == positive:
        return f"{found}, which reaches the threshold of {threshold}: called {positive}."
    return f"{found}, below the threshold of {threshold}: called {prediction.decision}."


def _bar(prediction: Prediction, name: str, probability: float) -> dict[str, Any]:
    """Widths in per cent; `mark` where the threshold lies, on the bar of the class that it is about."""
    has_mark = prediction.threshold is not None and name == prediction.version.positive_class
    mark = 100 * prediction.threshold if has_mark else None
    return {"name": name, "probability": probability, "width": 100 * probability, "mark": mark}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _in_service(prediction: Prediction) -> Any:
    """The version in service now, if it is another. Not within an experiment: it would tell which side answered."""
    if prediction.experiment_id is not None:
        return None
    deployment = Deployment.objects.select_related("active__condition").filter(
        condition=prediction.version.condition, active__isnull=False
    )
    active = next((found.active for found in deployment), None)
    return active if active is not None and active.pk != prediction.version_id else None


def with_verdicts(predictions: QuerySet) -> QuerySet:
    """With `counting`: the verdicts that count, of each reader the newest."""
    counting = Verdict.objects.counting().select_related("by")
    return predictions.prefetch_related(Prefetch("verdicts", counting, to_attr="counting"))


def other_answers(user: Any, prediction: Prediction) -> list[Prediction]:
    """The newest answers about the same study, or about the same pixels, of those that the user may see."""
    same = Q(image_digest=prediction.image_digest)
    if prediction.study_uid:
        same |= Q(study_uid=prediction.study_uid)
    visible = Prediction.objects.visible_to(user).filter(same).exclude(pk=prediction.pk)
    rows = visible.select_related("version__condition", "created_by").defer("activation", "gate", "measures")
    return list(with_verdicts(rows)[:OTHER_ANSWERS])


def _next_of_batch(prediction: Prediction) -> Prediction | None:
    """The next answer of the batch that this one belongs to."""
    if prediction.batch_id is None:
        return None
    here = BatchItem.objects.filter(batch=prediction.batch_id, prediction=prediction).values("position")[:1]
    later = BatchItem.objects.filter(batch=prediction.batch_id, prediction__isnull=False, position__gt=here)
    item = later.select_related("prediction").first()
    return item.prediction if item else None


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
