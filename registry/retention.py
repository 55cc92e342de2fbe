"""Deleting a version: only one that is archived and that nothing refers to, with all that belongs to it.

Two steps, two decisions: whoever archives a version says that it is not needed, whoever deletes it looks again. Its
number is never given again. The rows go first, in one transaction; the files go after the commit, so that a crash
leaves files without a row, which `orphans` finds and which stand in nobody's way, and never a row without its files.
"""

import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from django.db import IntegrityError, models, transaction

from xrayplatform import audit
from xrayplatform.conditions import Condition

from . import backups, space
from .models import DeletedVersion, ModelVersion, ScheduledActivation, StateError
from .models.evaluation import file_of
from .models.integrity import MOUNT_IT, NOT_THERE, models_are_missing
from .models.state_change import known, record_refusal, require_reason
from .references import references

logger = logging.getLogger(__name__)

NOT_ARCHIVED = "it is not archived; archive it first"


class DeletionError(Exception):
    """The version stays. `reasons` says why, each in words that go on after its name."""

    def __init__(self, version: ModelVersion, reasons: Sequence[str]) -> None:
        super().__init__(f"{version} was not deleted: {'; '.join(reasons)}.")
        self.reasons = list(reasons)


def obstacles(versions: models.QuerySet) -> dict[int, list[str]]:
    """Why each of the versions cannot be deleted, in words, by primary key; none for one that can."""
    found = references(versions)
    states = versions.order_by().values_list("pk", "state")
    return {pk: found.get(pk, []) + [NOT_ARCHIVED] * (state != ModelVersion.State.ARCHIVED) for pk, state in states}


def delete(version: ModelVersion, *, by: Any, reason: str) -> DeletedVersion:
    """Delete a version with all that belongs to it, and remember that it was there. Raises DeletionError.

    by: None for the command line. What has to stay although the version goes is the training that made it and the
    import that brought it; they say that their version was deleted. Refusals are audited too.
    """
    try:
        kept = _required(version, reason)
        try:
            with transaction.atomic():
                # An activation, a plan and a change of state hold the same lock.
                Condition.objects.select_for_update().get(pk=version.condition_id)
                return _delete(version, by, kept)
        except (IntegrityError, models.ProtectedError) as error:
            raise DeletionError(version, ["something began to use it just now; look at it again"]) from error
    except DeletionError as error:
        record_refusal("version.delete", version, error, by=by)
        raise


def remove_tree(path: Path) -> None:
    """A file or a folder with all that is in it. What cannot be removed is logged and left for `orphans`."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        logger.exception("%s could not be removed; registry_check finds it", path)


def _required(version: ModelVersion, reason: str) -> str:
    try:
        return require_reason(reason)
    except StateError as error:
        raise DeletionError(version, [str(error).removeprefix("Nothing was changed: ").rstrip(".")]) from error


def _delete(version: ModelVersion, by: Any, reason: str) -> DeletedVersion:
    itself = ModelVersion.objects.filter(pk=version.pk)
    current = itself.select_related("condition").first()
    if current is None:
        raise DeletionError(version, ["somebody else has just deleted it"])
    against = obstacles(itself)[current.pk]
    if models_are_missing():
        # Its files would come back with the disk, and nothing would know them.
        against.append(f"{NOT_THERE} {MOUNT_IT}".rstrip("."))
    if against:
        raise DeletionError(current, against)
    answers = current.evaluations.values_list("key", flat=True)
    files = [current.folder, backups.folder_of(current), *map(file_of, answers)]
    takes = space.of(itself)[current.pk]
    gone = DeletedVersion.objects.create(
        version_key=current.pk,
        condition=current.condition,
        number=current.number,
        architecture=current.architecture,
        sha256=current.sha256,
        size=takes.total,
        made_at=current.created_at,
        reason=reason,
        by=known(by),
    )
    before = {"sha256": current.sha256, "architecture": current.architecture, "bytes": takes.total}
    audit.record("version.delete", current, actor=by, before=before, after={"reason": reason})
    ScheduledActivation.objects.filter(version=current).delete()
    current.evaluations.all().delete()
    current.threshold_sets.all().delete()
    itself.delete()
    transaction.on_commit(lambda: _remove(files), robust=True)
    return gone


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        remove_tree(path)
