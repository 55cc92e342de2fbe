"""Activations that wait for their time."""

import logging
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.utils import timezone

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.teams import TeamScopedQuerySet

from .. import announcing
from .deployment import ActivationError, Deployment, epoch_of, refresh_state, require_two_persons
from .threshold_set import ThresholdSet

logger = logging.getLogger(__name__)

# A worker is ended by the queue after ten minutes; then another one may try.
CLAIM_LASTS = timedelta(minutes=11)


class ScheduledActivationQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"

    def waiting(self) -> "ScheduledActivationQuerySet":
        return self.filter(state=ScheduledActivation.State.WAITING)

    def due(self) -> "ScheduledActivationQuerySet":
        """Those whose time has come and that no worker is at."""
        now = timezone.now()
        free = models.Q(claimed_until__isnull=True) | models.Q(claimed_until__lt=now)
        return self.waiting().filter(free, at__lte=now).order_by("at", "pk")

    def plan(
        self,
        version: Any,
        at: datetime,
        *,
        by: Any,
        reason: str,
        threshold_set: ThresholdSet | None = None,
        seen_epoch: int | None = None,
    ) -> "ScheduledActivation":
        """Put `version` in service at a time in the future, if nothing else was activated until then.

        Its files are verified now and again at that time. Raises ActivationError; a refusal is audited.
        """
        try:
            return self._plan(version, at, by=by, reason=reason, threshold_set=threshold_set, seen_epoch=seen_epoch)
        except ActivationError as error:
            after = {"reason": str(error)[:500], "at": at.isoformat()}
            audit.record("version.schedule", version, actor=by, outcome=audit.AuditEntry.Outcome.REFUSED, after=after)
            raise

    def _plan(
        self,
        version: Any,
        at: datetime,
        *,
        by: Any,
        reason: str,
        threshold_set: ThresholdSet | None,
        seen_epoch: int | None,
    ) -> "ScheduledActivation":
        if at <= timezone.now():
            raise ActivationError("The time of a planned activation lies in the future.")
        version.require_activatable(by=by, reason=reason, threshold_set=threshold_set)
        with transaction.atomic():
            Condition.objects.select_for_update().get(pk=version.condition_id)
            # Somebody may have archived it while its files were read.
            refresh_state(version)
            version.require_state()
            deployment = Deployment.objects.filter(condition=version.condition_id).first()
            if deployment is not None:
                deployment.require_epoch(seen_epoch)
            other = self.waiting().filter(version__condition=version.condition_id).select_related("version").first()
            if other is not None:
                raise ActivationError(
                    f"{other.version} is to go into service at {other.at:%Y-%m-%d %H:%M} UTC. Cancel that first."
                )
            planned = self.create(
                version=version,
                threshold_set=threshold_set,
                at=at,
                reason=reason.strip(),
                by=by,
                epoch=epoch_of(deployment),
            )
            after = {"scheduled": planned.pk, "at": at.isoformat(), "reason": planned.reason}
            audit.record("version.schedule", version, actor=by, after=after)
        return planned


class ScheduledActivation(models.Model):
    """A version that is to go into service at a time; `epoch` is what the deployment was at when this was decided."""

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        DONE = "done", "Done"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    version = models.ForeignKey("registry.ModelVersion", models.PROTECT, related_name="scheduled_activations")
    threshold_set = models.ForeignKey(ThresholdSet, models.PROTECT, null=True, related_name="+")
    at = models.DateTimeField()
    reason = models.CharField(max_length=500)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    epoch = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=State, default=State.WAITING, db_index=True)
    message = models.CharField(max_length=500, blank=True)
    claimed_until = models.DateTimeField(null=True, help_text="a worker that is at it is waited for until then")
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True)

    objects = ScheduledActivationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.version} at {self.at:%Y-%m-%d %H:%M}"

    def get_absolute_url(self) -> str:
        return str(self.version.get_absolute_url())

    def run(self) -> bool:
        """Put the version in service, or end as failed and say why, if it is time and no other worker does.

        Whether it went into service.
        """
        claimed = type(self).objects.due().filter(pk=self.pk)
        if not claimed.update(claimed_until=timezone.now() + CLAIM_LASTS):
            return False
        try:
            self._require_right()
            self.version.activate(
                by=self.by,
                reason=self.reason,
                threshold_set=self.threshold_set,
                seen_epoch=self.epoch,
                within=lambda: self._end(self.State.DONE),
            )
        except ActivationError as error:
            self._fail(str(error))
            return False
        except Exception:
            logger.exception("Planned activation %s failed", self.pk)
            self._fail("An unexpected error occurred; the details are in the worker's log. What is in service stays.")
            return False
        return True

    def cancel(self, *, by: Any) -> None:
        """Raises ActivationError when it has ended already."""
        with transaction.atomic():
            self._end(self.State.CANCELLED)
            audit.record("version.unschedule", self.version, actor=by, before={"at": self.at.isoformat()})

    def _require_right(self) -> None:
        """Who planned it may have left since, or lost the role."""
        if self.by is None:
            return
        visible = type(self.version).objects.visible_to(self.by).filter(pk=self.version_id).exists()
        if not (self.by.is_active and visible and self.by.has_perm("registry.activate_modelversion")):
            raise ActivationError(f"{self.by} planned this activation and may not activate any more.")
        require_two_persons(self.version, self.by)

    def _end(self, state: str, message: str = "") -> None:
        """Leave the waiting state exactly once, inside the caller's transaction."""
        now = timezone.now()
        waiting = type(self).objects.waiting().filter(pk=self.pk)
        if not waiting.update(state=state, message=message[:500], ended_at=now):
            raise ActivationError("This planned activation has ended already.")
        self.state, self.message, self.ended_at = state, message[:500], now

    def _fail(self, message: str) -> None:
        try:
            with transaction.atomic():
                self._end(self.State.FAILED, message)
                outcome = audit.AuditEntry.Outcome.FAILED
                after = {"scheduled": self.pk, "error": message}
                audit.record("version.schedule", self.version, actor=self.by, outcome=outcome, after=after)
                announcing.tell_missed_activation(self.version, message, self.by)
        except ActivationError:
            # Somebody cancelled it, or another worker was faster.
            logger.info("Planned activation %s had ended already", self.pk)


def planned(versions: models.QuerySet) -> dict[int, tuple[str, ...]]:
    """The versions whose activation is planned, in words, by primary key; for `USES`."""
    rows = ScheduledActivation.objects.waiting().filter(version__in=versions).values_list("version", flat=True)
    return dict.fromkeys(rows, ("its activation is planned; cancel that first",))
