"""What refers to versions, so that they have to stay: each reason in words that go on after the version's name."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from django.db import models

from .models import USES, Activation, Deployment, ModelVersion

# Why versions have to stay, by primary key; versions that nothing refers to may be left out. One call is for all
# versions at once (a subquery with their keys), so that the number of queries does not grow with them. Other apps
# append theirs.
Look = Callable[[models.QuerySet], Mapping[int, Sequence[str]]]
REFERENCES: list[Look] = []


def references(versions: models.QuerySet) -> dict[int, list[str]]:
    """Why each of the versions has to stay, whatever its state: what it does now first, then what it did."""
    chosen = versions.order_by().values("pk")
    found: dict[int, list[str]] = defaultdict(list)
    for look in (*USES, _way_back, _was_in_service, _learned_from, *REFERENCES):
        for pk, words in look(chosen).items():
            found[pk].extend(words)
    return dict(found)


def _way_back(versions: models.QuerySet) -> dict[int, tuple[str, ...]]:
    rows = Deployment.objects.filter(previous__in=versions).values_list("previous", flat=True)
    return dict.fromkeys(rows, ("a rollback of its condition would go back to it",))


def _was_in_service(versions: models.QuerySet) -> dict[int, tuple[str, ...]]:
    arrived = Activation.objects.filter(to_version__in=versions).values_list("to_version", flat=True)
    left = Activation.objects.filter(from_version__in=versions).values_list("from_version", flat=True)
    return dict.fromkeys({*arrived, *left}, ("it was in service, and that history stays readable",))


def _learned_from(versions: models.QuerySet) -> dict[int, tuple[str, ...]]:
    # Neither their names nor their number: they may be another team's.
    rows = ModelVersion.objects.filter(parent__in=versions).order_by().values_list("parent", flat=True).distinct()
    return dict.fromkeys(rows, ("versions started from its weights",))
