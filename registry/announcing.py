"""Telling people about versions: new ones, what goes into service, and damage.

Told are those who may put a version in service and may see its condition, without whoever did it. Call these inside
the transaction of what happened.
"""

from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Q, QuerySet
from django.urls import reverse

from xrayplatform.conditions import Condition
from xrayplatform.notifications import STARTED_IT, notify

from .models.webhook import Event, tell_systems

WHY = "You get this message because you may put models in service, or look after the platform."
ADMINISTRATOR = "administrator"


def all_managers() -> QuerySet:
    """Active users who may activate versions, whatever their teams."""
    return get_user_model()._default_manager.with_perm(
        "registry.activate_modelversion", backend="django.contrib.auth.backends.ModelBackend"
    )


def managers(condition: Condition) -> QuerySet:
    """Active users who may activate versions of the condition."""
    users = all_managers()
    if condition.team_id is None:
        return users
    return users.filter(Q(is_superuser=True) | Q(teams=condition.team_id)).distinct()


def administrators() -> set[Any]:
    return set(get_user_model()._default_manager.filter(is_active=True, groups__name=ADMINISTRATOR))


def tell_new_version(version: Any) -> None:
    figure = "" if version.auc is None else f", test AUC {version.auc:.3f}"
    _tell(
        managers(version.condition),
        f"New version: {version} ({version.architecture}{figure}).",
        version.get_absolute_url(),
        but=version.created_by,
    )
    tell_systems(Event.NEW, version, architecture=version.architecture)


def tell_import_end(job: Any) -> None:
    """To who started the import. A cancelled one tells nobody: somebody clicked, and nothing was made."""
    if job.state == job.State.SUCCEEDED:
        url = job.version.get_absolute_url() if job.version else job.get_absolute_url()
        notify(job.created_by, f"{job} has finished: {job.message}.", url)
    elif job.state == job.State.FAILED:
        notify(job.created_by, f"{job} has failed: {job.error}", job.get_absolute_url())


def tell_export_end(job: Any) -> None:
    """To who started the export. A cancelled one tells nobody: somebody clicked, and nothing was made."""
    if job.state == job.State.SUCCEEDED:
        notify(job.created_by, f"{job} has finished: {job.message}.", job.get_absolute_url())
    elif job.state == job.State.FAILED:
        notify(job.created_by, f"{job} has failed: {job.error}", job.get_absolute_url())


def tell_activation(deployment: Any, before: Any, *, by: Any, reason: str, rollback: bool) -> None:
    """To the managers, and to who trained the version."""
    version = deployment.active
    instead = "" if before is None or before == version else f" instead of {before}"
    what = "went back into service" if rollback else "is in service"
    trainer = version.created_by
    others = [] if trainer is None or not _sees(trainer, version) else [trainer]
    _tell(
        {*managers(version.condition), *others},
        f"{version} {what}{instead}, by {by or 'the command line'}: {reason}",
        version.get_absolute_url(),
        but=by,
    )
    event = Event.ROLLED_BACK if rollback else Event.ACTIVATED
    tell_systems(event, version, instead_of=before.number if before else None, epoch=deployment.epoch)


def tell_damage(version: Any, message: str) -> None:
    """To the managers, and to administrators, who may see the condition or not: a file of the server is broken."""
    text = f"{version} is damaged and is not used: {message}"
    told = set(managers(version.condition))
    _tell(told, text, version.get_absolute_url())
    for user in administrators() - told:
        url = version.get_absolute_url() if _sees(user, version) else reverse("xrayplatform:system-status")
        notify(user, text, url, why=WHY)
    tell_systems(Event.DAMAGED, version, message=message)


def tell_missing_models(text: str) -> None:
    """To every manager and administrator, whatever their teams: no version can be loaded."""
    _tell({*all_managers(), *administrators()}, text, reverse("xrayplatform:system-status"))


def tell_missed_activation(version: Any, message: str, planner: Any) -> None:
    """To the managers, and to who planned it, unless they may not see the condition any more."""
    planners = [planner] if planner and _sees(planner, version) else []
    _tell(
        {*managers(version.condition), *planners},
        f"The planned activation of {version} did not happen: {message}",
        version.get_absolute_url(),
    )


def tell_alert(condition: Condition, version: Any, text: str, url: str, **more: Any) -> None:
    """A figure of a week in use lies beyond what the condition allows; version: None when nothing was in service."""
    _tell(managers(condition), text, url)
    if version is not None:
        tell_systems(Event.ALERT, version, message=text, **more)


def tell_state_change(change: Any) -> None:
    """To who trained the version."""
    version = change.version
    trainer = version.created_by
    if trainer is None or not _sees(trainer, version):
        return
    what = {"approved": "was approved", "archived": "was archived"}.get(change.to_state, "is a candidate again")
    text = f"{version} {what}, by {change.by or 'the command line'}: {change.reason}"
    _tell([trainer], text, version.get_absolute_url(), but=change.by, why=STARTED_IT)


def _sees(user: Any, version: Any) -> bool:
    return bool(type(version).objects.visible_to(user).filter(pk=version.pk).exists())


def _tell(users: Any, text: str, url: str, *, but: Any = None, why: str = WHY) -> None:
    for user in sorted(set(users), key=lambda user: user.pk):
        if user != but:
            notify(user, text, url, why=why)
