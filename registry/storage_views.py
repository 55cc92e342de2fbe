"""Pages: the space that versions take, what could go, and the one page on which somebody decides that it goes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from xrayplatform.access import allow
from xrayplatform.http import row_number
from xrayplatform.system import resources

from . import orphans, retention, space
from .models import ModelVersion, StateError
from .retention import DeletionError
from .space import Space, Step
from .storage_forms import ReasonForm, StorageForm

# How many versions are decided about at once, and how many of each proposal are shown.
MOST = 100
MOST_DELETED = 20


@dataclass(frozen=True)
class Row:
    """A version with its space; obstacle: the first reason why it cannot be deleted, empty if it can."""

    version: ModelVersion
    space: Space
    obstacle: str = ""


@dataclass(frozen=True)
class Plan:
    """What the confirming page does to each version that was chosen.

    obstacles: why it cannot happen to some of them, in words, by primary key.
    """

    step: Step
    title: str
    done: str
    act: Callable[..., Any]
    obstacles: Callable[[list[ModelVersion], Any], dict[int, str]]


@allow("registry.view_modelversion")
@require_GET
def storage(request: HttpRequest) -> HttpResponse:
    form = StorageForm(request.user, request.GET)
    visible = ModelVersion.objects.visible_to(request.user)
    versions = visible.filter(condition=form.only) if form.only else visible
    spaces = space.of(visible)
    proposals = space.proposals(versions, form.age, spaces=spaces)
    context = {
        "form": form,
        "totals": space.totals(visible, spaces),
        "whole": sum(spaces.values(), Space()),
        "resources": resources(),
        "days": form.age,
        "deletions": [one for one in proposals if one.step == Step.DELETE],
        "archivings": [one for one in proposals if one.step == Step.ARCHIVE],
        "most": MOST,
        **_largest(request, versions, spaces),
        "deleted": space.history(request.user)[:MOST_DELETED],
        # Of every team, and so without names.
        "left": orphans.look() if request.user.has_perm("xrayplatform.view_system") else None,
    }
    return render(request, "registry/storage.html", context)


@allow("registry.delete_modelversion")
@require_http_methods(["GET", "POST"])
def versions_delete(request: HttpRequest) -> HttpResponse:
    return _decide(request, DELETE)


@allow("registry.change_state_modelversion")
@require_http_methods(["GET", "POST"])
def versions_archive(request: HttpRequest) -> HttpResponse:
    return _decide(request, ARCHIVE)


def _decide(request: HttpRequest, plan: Plan) -> HttpResponse:
    """Show what was chosen and why some of it stays; with a reason, do it to one version after the other."""
    versions = _chosen(request)
    if versions is None:
        messages.warning(request, f"Choose the versions to {plan.title.lower()}, {MOST} at most at once.")
        return redirect("registry:storage")
    form = ReasonForm(request.POST or None)
    if form.is_valid():
        for version in versions:
            _act(request, plan, version, form.cleaned_data["reason"])
        return redirect("registry:storage")
    spaces, against = space.of(versions), plan.obstacles(list(versions), request.user)
    rows = [Row(version, spaces[version.pk], against.get(version.pk, "")) for version in versions]
    context = {
        "plan": plan,
        "form": form,
        "rows": rows,
        "possible": [row for row in rows if not row.obstacle],
        "frees": sum((row.space for row in rows if not row.obstacle), Space()).total,
    }
    return render(request, "registry/clean_up.html", context, status=400 if form.is_bound else 200)


def _act(request: HttpRequest, plan: Plan, version: ModelVersion, reason: str) -> None:
    try:
        plan.act(version, by=request.user, reason=reason)
    except (DeletionError, StateError) as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{version} was {plan.done}.")


def _chosen(request: HttpRequest) -> QuerySet | None:
    """The versions that the address or the form names; None for none or too many."""
    given = request.POST if request.method == "POST" else request.GET
    numbers = {row_number(number) for number in given.getlist("version")}
    if not 0 < len(numbers) <= MOST:
        return None
    versions = ModelVersion.objects.visible_to(request.user).filter(pk__in=numbers - {None})
    if versions.count() < len(numbers):
        raise Http404
    return versions.select_related("condition", "created_by").order_by("condition__name", "number")


def _largest(request: HttpRequest, versions: QuerySet, spaces: dict[int, Space]) -> dict[str, Any]:
    """A page of the versions, the largest first, each with the first reason why it has to stay."""
    measured = [pk for pk in versions.order_by().values_list("pk", flat=True) if pk in spaces]
    keys = sorted(measured, key=lambda pk: (-spaces[pk].total, pk))
    page = Paginator(keys, 25).get_page(request.GET.get("page"))
    shown = ModelVersion.objects.filter(pk__in=list(page))
    found = {version.pk: version for version in shown.select_related("condition").defer("history", "metrics")}
    against = retention.obstacles(shown)
    rows = [Row(found[pk], spaces[pk], next(iter(against[pk]), "")) for pk in page if pk in found and pk in against]
    return {"page": page, "rows": rows}


def against_deletion(versions: list[ModelVersion], user: Any) -> dict[int, str]:
    """Why each of the versions cannot be deleted, by primary key; empty for one that can."""
    rows = ModelVersion.objects.filter(pk__in=[version.pk for version in versions])
    return {pk: "; ".join(reasons) for pk, reasons in retention.obstacles(rows).items()}


def against_state(state: str) -> Callable[[list[ModelVersion], Any], dict[int, str]]:
    """Why each of the versions cannot get that state, by primary key; empty for one that can."""
    return lambda versions, user: {version.pk: version.state_obstacle(state, user) for version in versions}


DELETE = Plan(Step.DELETE, "Delete", "deleted", retention.delete, against_deletion)
ARCHIVE = Plan(Step.ARCHIVE, "Archive", "archived", ModelVersion.archive, against_state(ModelVersion.State.ARCHIVED))
