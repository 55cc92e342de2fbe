"""Who approved, archived or reopened a version, when and why."""

from typing import Any

from django.conf import settings
from django.db import models

from xrayplatform import audit
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

LONGEST_REASON = 500
# Of a version that was deleted, what belonged to it goes with it.
GONE_WITH_ITS_VERSION = "EXISTS (SELECT 1 FROM registry_deletedversion WHERE version_key = OLD.version_id)"


class StateError(Exception):
    """The version keeps its state. The message says why and what to do."""


class StateChangeQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"

    def approvals(self) -> "StateChangeQuerySet":
        """Newest first. Those before the last reopening are history and approve nothing any more."""
        return self.filter(to_state="approved").select_related("by")


class StateChange(Immutable):
    """One change of a version's state. Rows are only ever added."""

    deletable_when = GONE_WITH_ITS_VERSION

    version = models.ForeignKey("registry.ModelVersion", models.CASCADE, related_name="state_changes")
    from_state = models.CharField(max_length=10)
    to_state = models.CharField(max_length=10)
    reason = models.CharField(max_length=LONGEST_REASON)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    objects = StateChangeQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.version}: {self.from_state} to {self.to_state}"


def require_reason(reason: str) -> str:
    """The reason without white space around it. Raises StateError when there is none, or one that cannot be kept."""
    tidy = reason.strip()
    if not tidy:
        raise StateError("Nothing was changed: give the reason, which is kept in the history.")
    if len(tidy) > LONGEST_REASON or "\0" in tidy:
        raise StateError(
            f"Nothing was changed: a reason has at most {LONGEST_REASON} characters, and only those that can be "
            "printed."
        )
    return tidy


def record_refusal(action: str, version: models.Model, error: Exception, *, by: Any) -> None:
    """The audit entry of a decision that was not carried out; call it outside of the transaction that failed."""
    refused = audit.AuditEntry.Outcome.REFUSED
    audit.record(action, version, actor=by, outcome=refused, after={"reason": str(error)[:500]})


def known(user: Any) -> Any:
    """The user to keep; None for the command line."""
    return user if user is not None and user.is_authenticated else None
