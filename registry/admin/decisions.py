"""Actions on several rows that somebody confirms with a reason; each goes by the model's own rules and audit entry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from xrayplatform.admin import ReadOnlyAdmin
from xrayplatform.http import row_number

from .. import retention
from ..models import ModelVersion, StateError
from ..retention import DeletionError
from ..storage_forms import ReasonForm
from ..storage_views import against_deletion, against_state

MOST = 100
# What the page that asks sends along with the reason.
DECIDED = "decided"


def is_decided(request: HttpRequest) -> bool:
    """Whether the page that asks was sent, and not the list."""
    return DECIDED in request.POST


class DecidingAdmin(ReadOnlyAdmin):
    """Read-only rows with actions, each of which asks first."""

    def response_action(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        """Numbers that no row can have would be errors of the database."""
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if any(row_number(number) is None for number in chosen):
            messages.error(request, "What was chosen is not in the list. Nothing was changed.")
            return None
        return super().response_action(request, queryset)

    def ask(
        self, request: HttpRequest, action: str, title: str, shown: dict[str, Any], template: str = ""
    ) -> HttpResponse:
        """The page on which somebody decides, which sends the action again. `shown` has the form."""
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "chosen": [row_number(number) for number in request.POST.getlist(ACTION_CHECKBOX_NAME)],
            "checkbox": ACTION_CHECKBOX_NAME,
            "decided": DECIDED,
            "action": action,
            **shown,
        }
        status = 400 if shown["form"].is_bound else 200
        request.current_app = self.admin_site.name
        template = f"admin/registry/{self.opts.model_name}/{template or action}.html"
        return TemplateResponse(request, template, context, status=status)

    def only_one(self, request: HttpRequest, queryset: QuerySet) -> Any:
        """The one row that was chosen; None, with a message, for none or several."""
        rows = list(queryset[:2])
        if len(rows) == 1:
            return rows[0]
        messages.error(request, f"Choose exactly one {self.opts.verbose_name} for this. Nothing was changed.")
        return None

    def several(self, request: HttpRequest, queryset: QuerySet, most: int = MOST) -> list[Any]:
        """The rows that were chosen; none, with a message, for too many."""
        rows = list(queryset[: most + 1])
        if len(rows) > most:
            messages.error(request, f"Choose at most {most} at once. Nothing was changed.")
            return []
        missing = len(set(request.POST.getlist(ACTION_CHECKBOX_NAME))) - len(rows)
        if missing > 0:
            messages.warning(
                request, f"{missing} of those chosen are not in the list any more, and nothing was done with them."
            )
        return rows


@dataclass(frozen=True)
class Decision:
    """What happens to each version that was chosen. action: its name in the admin.

    obstacles: why it cannot happen to some of them, in words, by primary key.
    """

    action: str
    title: str
    done: str
    meaning: str
    act: Callable[..., Any]
    obstacles: Callable[[list[ModelVersion], Any], dict[int, str]]


APPROVE = Decision(
    "approve",
    "Approve",
    "approved",
    "An approved version may go into service. The approval can be withdrawn by reopening it.",
    ModelVersion.approve,
    against_state(ModelVersion.State.APPROVED),
)
ARCHIVE = Decision(
    "archive",
    "Archive",
    "archived",
    "An archived version is listed no more by default, cannot go into service, and no training starts from it. It can "
    "be reopened.",
    ModelVersion.archive,
    against_state(ModelVersion.State.ARCHIVED),
)
REOPEN = Decision(
    "reopen",
    "Reopen",
    "made a candidate again",
    "A version that was archived, or approved, is a candidate again.",
    ModelVersion.reopen,
    against_state(ModelVersion.State.CANDIDATE),
)
DELETE = Decision(
    "delete_versions",
    "Delete",
    "deleted",
    "With each version go its files and their backup, its evaluations with their answers, threshold sets, tags, notes "
    "and the history of its state. This cannot be undone. Its number will never be given again.",
    retention.delete,
    against_deletion,
)


def decide(admin: DecidingAdmin, request: HttpRequest, queryset: QuerySet, decision: Decision) -> HttpResponse | None:
    """Ask for a reason and say which versions stay as they are, and why; then act on one after the other."""
    versions = admin.several(request, queryset)
    if not versions:
        return None
    form = ReasonForm(request.POST if is_decided(request) else None)
    if form.is_valid():
        _act(request, decision, versions, form.cleaned_data["reason"])
        return None
    obstacles = decision.obstacles(versions, request.user)
    rows = [(version, obstacles.get(version.pk, "")) for version in versions]
    possible = [version.pk for version, obstacle in rows if not obstacle]
    title = f"{decision.title} {len(versions)} version{'' if len(versions) == 1 else 's'}?"
    shown = {"decision": decision, "rows": rows, "chosen": possible, "may_decide": possible, "form": form}
    return admin.ask(request, decision.action, title, shown, template="decide")


def _act(request: HttpRequest, decision: Decision, versions: list[ModelVersion], reason: str) -> None:
    """What fails is told with its reason and keeps none of the others."""
    done = []
    for version in versions:
        try:
            decision.act(version, by=request.user, reason=reason)
        except (DeletionError, StateError) as error:
            messages.error(request, str(error))
        else:
            done.append(str(version))
    if done:
        messages.success(request, f"{', '.join(done)} {'was' if len(done) == 1 else 'were'} {decision.done}.")
