"""Pages: approving, archiving and reopening a version."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from xrayplatform.access import allow

from .models import ModelVersion, StateChange, StateError

CHANGE_STATE = "registry.change_state_modelversion"
MOST_CHANGES = 20
State = ModelVersion.State
# From each state: address, the state that it leads to, and the words on the button.
WAYS = {
    State.CANDIDATE: [
        ("registry:version-approve", State.APPROVED, "Approve"),
        ("registry:version-archive", State.ARCHIVED, "Archive"),
    ],
    State.APPROVED: [
        ("registry:version-reopen", State.CANDIDATE, "Withdraw the approval"),
        ("registry:version-archive", State.ARCHIVED, "Archive"),
    ],
    State.ARCHIVED: [("registry:version-reopen", State.CANDIDATE, "Reopen as a candidate")],
}


@dataclass(frozen=True)
class Way:
    """A change of the state that the page offers, or says why it does not."""

    label: str
    url: str
    obstacle: str


def state_of(version: ModelVersion, user: Any) -> dict[str, Any]:
    """What the page of a version shows about its state."""
    ways = _ways(version, user) if user.has_perm(CHANGE_STATE) else []
    return {
        "state_changes": version.state_changes.select_related("by")[:MOST_CHANGES],
        "ways": [way for way in ways if not way.obstacle],
        "obstacles": [way.obstacle for way in ways if way.obstacle],
        "approval_required": settings.REQUIRE_APPROVAL,
    }


def _ways(version: ModelVersion, user: Any) -> list[Way]:
    return [
        Way(label, reverse(name, args=[version.pk]), version.state_obstacle(state, user))
        for name, state, label in WAYS[State(version.state)]
    ]


@allow(CHANGE_STATE)
@require_POST
def version_approve(request: HttpRequest, pk: int) -> HttpResponse:
    return _change(request, pk, ModelVersion.approve, "is approved.")


@allow(CHANGE_STATE)
@require_POST
def version_archive(request: HttpRequest, pk: int) -> HttpResponse:
    return _change(request, pk, ModelVersion.archive, "is archived and cannot go into service.")


@allow(CHANGE_STATE)
@require_POST
def version_reopen(request: HttpRequest, pk: int) -> HttpResponse:
    return _change(request, pk, ModelVersion.reopen, "is a candidate again.")


def _change(request: HttpRequest, pk: int, change: Callable[..., StateChange], done: str) -> HttpResponse:
    versions = ModelVersion.objects.visible_to(request.user).select_related("condition", "created_by")
    version = get_object_or_404(versions, pk=pk)
    try:
        change(version, by=request.user, reason=request.POST.get("reason", ""))
    except StateError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{version} {done}")
    return redirect(version)
