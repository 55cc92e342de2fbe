"""What of the answers keeps a version from being deleted."""

from django.db.models import Exists, OuterRef, QuerySet

from registry.models import ModelVersion

from .models import EvaluationRun, Prediction


def references(versions: QuerySet) -> dict[int, list[str]]:
    """Predictions that name a version, and evaluations of it that have not ended."""
    # Not the rows themselves: of predictions there are many.
    rows = ModelVersion.objects.filter(pk__in=versions).order_by()
    answered = rows.filter(Exists(Prediction.objects.filter(version=OuterRef("pk")))).values_list("pk", flat=True)
    found = {pk: ["predictions name it, and they stay readable"] for pk in answered}
    measured = EvaluationRun.objects.active().filter(version__in=versions).order_by()
    for pk in measured.values_list("version", flat=True).distinct():
        found.setdefault(pk, []).append("it is being evaluated; wait until that has ended, or cancel it")
    return found
