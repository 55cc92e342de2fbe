"""What came of a version: the answers that it gave, only counted, and evaluations that are under way."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import Count, Max, Min
from django.urls import reverse

from registry.lineage import Kind, Step, in_words, may, moment
from registry.models import ModelVersion

from .models import EvaluationRun, Prediction


def downstream(versions: Sequence[ModelVersion], user: Any) -> Mapping[int, list[Step]]:
    found: dict[int, list[Step]] = defaultdict(list)
    for steps in (_under_way(versions, user), _predictions(versions, user)):
        for pk, step in steps:
            found[pk].append(step)
    return found


def _under_way(versions: Sequence[ModelVersion], user: Any) -> list[tuple[int, Step]]:
    """Those that have ended well are evaluations of the registry; of the others nothing came."""
    if not may(user, "inference.view_evaluationrun"):
        return []
    runs = EvaluationRun.objects.seen_by(user).active().filter(version__in=[version.pk for version in versions])
    return [(run.version_id, _run(run)) for run in runs.select_related("dataset", "preparation__dataset", "created_by")]


def _run(run: EvaluationRun) -> Step:
    return Step(
        Kind.EVALUATION_RUN,
        run.images_in_words,
        run.pk,
        run.get_absolute_url(),
        when=run.created_at,
        by=in_words(run.created_by),
    )


def _predictions(versions: Sequence[ModelVersion], user: Any) -> list[tuple[int, Step]]:
    if not may(user, "inference.view_prediction"):
        return []
    shown = Prediction.objects.seen_by(user).shown()
    answers = shown.filter(version__in=[version.pk for version in versions]).order_by()
    counted = answers.values("version").annotate(number=Count("pk"), first=Min("created_at"), last=Max("created_at"))
    return [(row["version"], _counted(row)) for row in counted]


def _counted(row: dict[str, Any]) -> Step:
    number = row["number"]
    return Step(
        Kind.PREDICTIONS,
        f"{number:,} prediction{'' if number == 1 else 's'}",
        url=reverse("inference:prediction-list", query={"version": row["version"]}),
        when=row["last"],
        facts={"First": moment(row["first"]), "Newest": moment(row["last"])},
        count=number,
    )
