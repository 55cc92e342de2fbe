"""What of the trainings keeps a version from being deleted."""

from django.db.models import QuerySet

from .models import TrainingRun


def references(versions: QuerySet) -> dict[int, tuple[str, ...]]:
    """Runs that started from a version, or are to. The run that made it keeps nothing: it stays without it."""
    runs = TrainingRun.objects.filter(initial_version__in=versions).order_by()
    found = runs.values_list("initial_version", flat=True)
    return dict.fromkeys(found, ("a training started from its weights, or is to, and its record stays readable",))
