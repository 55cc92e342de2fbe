"""Telling whoever started a training, or a search, how it ended."""

from collections import Counter
from typing import TYPE_CHECKING

from django.db import transaction

from xrayplatform.audit import AuditEntry
from xrayplatform.notifications import Notification, notify

if TYPE_CHECKING:
    from .models import Search, TrainingRun

# Below this a figure of the test part says little.
FEW_TEST_IMAGES = 100


def tell_end(run: "TrainingRun") -> None:
    """Tell who started the run how it ended, unless they ended it themselves. Call it inside the ending transaction.

    The runs of a search are told of together, once, when the last of them has ended.
    """
    if run.search is not None:
        transaction.on_commit(lambda: tell_end_of_search(run.search), robust=True)
    elif not _ended_by_owner(run):
        notify(run.created_by, _words(run), run.get_absolute_url())


def tell_end_of_search(search: "Search") -> None:
    """Tell who started the search that all its runs have ended: once, and after its decisions."""
    with transaction.atomic():
        type(search).objects.select_for_update().get(pk=search.pk)
        url = search.get_absolute_url()
        runs = list(search.runs.select_related("version"))
        told = Notification.objects.filter(user=search.created_by, url=url).exists()
        if told or any(run.is_active for run in runs) or all(_ended_by_owner(run) for run in runs):
            return
        notify(search.created_by, _words_of_search(search, runs), url)


def _words(run: "TrainingRun") -> str:
    what = f"{run.architecture} on {run.preparation.dataset}"
    if run.state == run.State.SUCCEEDED and run.version is not None:
        auc = run.version.auc
        figure = "" if auc is None else f", test AUC {auc:.3f}"
        return f"Run {run.pk} has finished: {what} is {run.version}{figure}{_caveats(run)}."
    if run.state == run.State.FAILED:
        return f"Run {run.pk} has failed and needs your attention: {what}. {run.error}"
    return f"Run {run.pk} was cancelled by {_who_cancelled(run) or 'somebody else'}: {what}."


def _caveats(run: "TrainingRun") -> str:
    """Why the figure must not be believed too readily, in brackets; "" where it may be."""
    images = run.preparation.split_total("test")
    few = f"only {images} test image{'' if images == 1 else 's'}" if images < FEW_TEST_IMAGES else ""
    found = [words for words in ("synthetic images" if run.preparation.synthetic else "", few) if words]
    return f" ({', '.join(found)})" if found else ""


def _words_of_search(search: "Search", runs: "list[TrainingRun]") -> str:
    finished = [run for run in runs if run.version is not None]
    failed = sum(run.state == run.State.FAILED for run in runs)
    words = [f"{search} has ended: {len(finished)} of {len(runs)} runs finished"]
    if failed:
        words.append(f"{failed} failed")
    theirs = [run for run in runs if run.state == run.State.CANCELLED and not _ended_by_owner(run)]
    cancelled = Counter(_who_cancelled(run) for run in theirs)
    # Those that the search itself stopped were cancelled by nobody.
    words += [f"{count} cancelled by {name}" for name, count in cancelled.items() if name]
    return f"{', '.join(words)}."


def _cancellation(run: "TrainingRun") -> AuditEntry | None:
    asked = AuditEntry.objects.filter(
        action=f"{run.audit_name}.cancel", object_type=run.audit_name, object_id=str(run.pk)
    )
    return asked.first()


def _ended_by_owner(run: "TrainingRun") -> bool:
    if run.state != run.State.CANCELLED or run.created_by_id is None:
        return False
    entry = _cancellation(run)
    return entry is not None and entry.actor_id == run.created_by_id


def _who_cancelled(run: "TrainingRun") -> str:
    entry = _cancellation(run)
    return entry.actor_name if entry is not None else ""
