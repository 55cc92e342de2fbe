"""Pages: putting a version in service now or later, going back, and looking after its files."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST

from xrayplatform.access import allow

from .backups import BackupError
from .models import (
    Activation,
    ActivationError,
    Deployment,
    IntegrityCheck,
    ModelVersion,
    ScheduledActivation,
)
from .models.deployment import require_two_persons
from .outlook import outlook
from .service_forms import ActivateForm, RollbackForm

MOST_ACTIVATIONS = 10


def service_of(version: ModelVersion, user: Any) -> dict[str, Any]:
    """What the page of a version shows about service and files."""
    deployment = _deployment(version)
    activations = Activation.objects.filter(condition=version.condition_id)
    may_switch = user.has_perm("registry.activate_modelversion")
    active = deployment.active if deployment else None
    before = deployment.before if deployment and active == version else None
    return {
        "deployment": deployment,
        "activations": activations.select_related(
            "to_version__condition", "from_version__condition", "threshold_set", "by"
        )[:MOST_ACTIVATIONS],
        "integrity": IntegrityCheck.objects.filter(version=version).first(),
        "planned": ScheduledActivation.objects.waiting()
        .filter(version__condition=version.condition_id)
        .select_related("version__condition", "by"),
        "before": before,
        "outlook": outlook(active, version) if may_switch else None,
        "form": ActivateForm(version, deployment),
        "rollback_form": RollbackForm(deployment),
        "obstacle": _obstacle(version, user),
        "rollback_obstacle": _obstacle(before.to_version, user, way_back=True) if before else "",
    }


@allow("registry.activate_modelversion")
@require_POST
def version_activate(request: HttpRequest, pk: int) -> HttpResponse:
    version = _version(request, pk)
    form = ActivateForm(version, _deployment(version), request.POST)
    if not form.is_valid():
        messages.error(request, form.problems)
        return redirect(version)
    wish = {
        "by": request.user,
        "reason": form.cleaned_data["reason"],
        "threshold_set": form.cleaned_data.get("threshold_set"),
        "seen_epoch": form.cleaned_data["epoch"],
    }
    at = form.cleaned_data["at"]
    if at:
        done = f"{version} goes into service at {at:%Y-%m-%d %H:%M %Z}, if nothing else does until then."
        return _try(request, version, lambda: ScheduledActivation.objects.plan(version, at, **wish), done)
    done = f"{version} is in service for {version.condition}. No restart is needed."
    return _try(request, version, lambda: version.activate(**wish), done)


@allow("registry.activate_modelversion")
@require_POST
def version_rollback(request: HttpRequest, pk: int) -> HttpResponse:
    """From the version in service, which the address names, back to the one before."""
    version = _version(request, pk)
    form = RollbackForm(_deployment(version), request.POST)
    if not form.is_valid():
        messages.error(request, form.problems)
        return redirect(version)
    reason, epoch = form.cleaned_data["reason"], form.cleaned_data["epoch"]
    return _try(
        request,
        version,
        lambda: version.roll_back(by=request.user, reason=reason, seen_epoch=epoch),
        f"{version} is out of service; what was in service before answers again.",
    )


@allow("registry.activate_modelversion")
@require_POST
def scheduled_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    rows = ScheduledActivation.objects.visible_to(request.user).select_related("version__condition")
    planned = get_object_or_404(rows, pk=pk)
    done = f"{planned.version} will not go into service by itself."
    return _try(request, planned.version, lambda: planned.cancel(by=request.user), done)


@allow("registry.activate_modelversion")
@require_POST
def version_verify(request: HttpRequest, pk: int) -> HttpResponse:
    version = _version(request, pk)
    check = version.verify(by=request.user)
    level = messages.ERROR if check.is_damaged else messages.SUCCESS
    messages.add_message(request, level, check.verdict)
    return redirect(version)


@allow("registry.activate_modelversion")
@require_POST
def version_restore(request: HttpRequest, pk: int) -> HttpResponse:
    version = _version(request, pk)
    done = f"The files of {version} were put back from the backup and are what was registered."
    return _try(request, version, lambda: version.restore(by=request.user), done)


def _try(request: HttpRequest, version: ModelVersion, action: Callable[[], Any], done: str) -> HttpResponse:
    try:
        action()
    except (ActivationError, BackupError) as error:
        messages.error(request, str(error))
    else:
        messages.success(request, done)
    return redirect(version)


def _obstacle(version: ModelVersion, user: Any, *, way_back: bool = False) -> str:
    """Why this person may not put the version in service, where its state or the two-person rule is in the way."""
    try:
        require_two_persons(version, user, way_back=way_back)
        version.require_state(way_back=way_back)
    except ActivationError as error:
        return str(error)
    return ""


def _deployment(version: ModelVersion) -> Deployment | None:
    deployments = Deployment.objects.select_related("active__condition", "previous__condition", "threshold_set")
    return deployments.filter(condition=version.condition_id).first()


def _version(request: HttpRequest, pk: int) -> ModelVersion:
    versions = ModelVersion.objects.visible_to(request.user).select_related("condition", "created_by")
    return get_object_or_404(versions, pk=pk)
