"""What of the answers and experiments keeps a version from being deleted."""

from django.db.models import Exists, OuterRef, Q, QuerySet

from registry.models import ModelVersion

from .models import EvaluationRun, Experiment, Prediction, Unanswered

# By what is said of it, the rows that name the version and stay readable.
_NAMED = {
    "predictions name it, and they stay readable": Prediction.objects.filter(version=OuterRef("pk")),
    "an experiment compared it with another version": Experiment.objects.filter(
        Q(champion=OuterRef("pk")) | Q(challenger=OuterRef("pk"))
    ),
    "requests that it could not answer name it": Unanswered.objects.filter(version=OuterRef("pk")),
}


def references(versions: QuerySet) -> dict[int, list[str]]:
    """Predictions, experiments and failed requests that name a version, and evaluations of it that have not ended."""
    # Not the rows themselves: of predictions there are many.
    rows = ModelVersion.objects.filter(pk__in=versions).order_by()
    found: dict[int, list[str]] = {}
    for words, named in _NAMED.items():
        for pk in rows.filter(Exists(named)).values_list("pk", flat=True):
            found.setdefault(pk, []).append(words)
    measured = EvaluationRun.objects.active().filter(version__in=versions).order_by()
    for pk in measured.values_list("version", flat=True).distinct():
        found.setdefault(pk, []).append("it is being evaluated; wait until that has ended, or cancel it")
    return found
