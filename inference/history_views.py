"""Pages: earlier analyses."""

from collections.abc import Callable
from typing import Any

from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from xrayplatform import audit
from xrayplatform.access import allow

from .forms import HistoryForm
from .looking_views import KEPT_NOWHERE
from .models import Prediction, Verdict
from .result_page import with_verdicts

ROWS_ON_A_PAGE = 50
FIELDS = {
    "condition": "version__condition",
    "version": "version",
    "decision": "decision",
    "since": "created_at__date__gte",
    "until": "created_at__date__lte",
    "who": "created_by__username__iexact",
    "channel": "channel",
}


@allow("inference.view_prediction")
@require_GET
def prediction_list(request: HttpRequest) -> HttpResponse:
    """Answers that were shown, newest first; by condition, version, decision, verdict, day, person and way."""
    form = HistoryForm(request.GET, user=request.user)
    chosen = form.chosen
    predictions = Prediction.objects.visible_to(request.user).select_related("version__condition", "created_by")
    rows = with_verdicts(_filtered(predictions, chosen, request.user).defer("activation", "gate", "measures"))
    page = Paginator(rows, ROWS_ON_A_PAGE).get_page(request.GET.get("page"))
    with transaction.atomic():
        said = {name: str(value) for name, value in chosen.items()}
        audit.record("prediction.list", actor=request.user, after={"page": page.number} | said)
    context = {"page": page, "form": form, "is_filtered": bool(chosen) or not form.is_valid()}
    response = render(request, "inference/prediction_list.html", context)
    response["Cache-Control"] = KEPT_NOWHERE
    return response


def _filtered(predictions: QuerySet, chosen: dict[str, Any], user: Any) -> QuerySet:
    predictions = predictions.filter(**{FIELDS[name]: value for name, value in chosen.items() if name in FIELDS})
    return BY_VERDICT[chosen["verdict"]](predictions, user) if "verdict" in chosen else predictions


def _verdicts(**conditions: Any) -> Exists:
    return Exists(Verdict.objects.counting().filter(prediction=OuterRef("pk"), **conditions))


BY_VERDICT: dict[str, Callable[[QuerySet, Any], QuerySet]] = {
    "given": lambda predictions, user: predictions.filter(_verdicts()),
    "none": lambda predictions, user: predictions.filter(~_verdicts()),
    "not mine": lambda predictions, user: predictions.filter(~_verdicts(by=user)),
    "disagreed": lambda predictions, user: predictions.filter(_verdicts(agrees=False)),
}
