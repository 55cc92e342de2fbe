"""What of the trainings keeps a version from being archived and deleted."""

from django.db.models import QuerySet

from .models import TrainingRun


def uses(versions: QuerySet) -> dict[int, tuple[str, ...]]:
    """Runs that wait or train, and read the weights of a version, at each attempt anew."""
    runs = TrainingRun.objects.active().filter(initial_version__in=versions).order_by()
    found = runs.values_list("initial_version", flat=True).distinct()
    return dict.fromkeys(found, ("a training starts from its weights; wait until that has ended, or cancel it",))


def references(versions: QuerySet) -> dict[int, tuple[str, ...]]:
    """Runs that started from a version. The run that made it keeps nothing: it stays without it."""
    runs = TrainingRun.objects.exclude(state__in=TrainingRun.ACTIVE).filter(initial_version__in=versions).order_by()
    found = runs.values_list("initial_version", flat=True).distinct()
    return dict.fromkeys(found, ("a training started from its weights, and its record stays readable",))
