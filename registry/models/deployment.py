"""Which version of a condition is in service, and what was in service before."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import models, transaction

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

from .. import announcing
from .integrity import IntegrityCheck
from .state_change import record_refusal
from .threshold_set import ThresholdSet


class ActivationError(Exception):
    """The version cannot be put in service; what is in service stays."""


class ActivationConflict(ActivationError):
    """Somebody else changed what is in service since the page was shown."""


def epoch_of(deployment: "Deployment | None") -> int:
    """What a form or a client has seen: 0 while nothing was ever in service."""
    return deployment.epoch if deployment else 0


def require_another_person(
    version: Any, by: Any, *, does: str = "activates", has_to: str = "put it in service"
) -> None:
    """With TWO_PERSON_RULE nobody decides about what they trained, superusers included. Raises ActivationError.

    does, has_to: the decision in words, for the message.
    """
    if not settings.TWO_PERSON_RULE:
        return
    if by is None:
        raise ActivationError(f"The two-person rule is on: say who {does}, with --user.")
    if version.created_by_id == by.pk:
        made = "imported" if hasattr(version, "package_import") else "started the training of"
        raise ActivationError(
            f"The two-person rule is on, and {by} {made} {version}. Another model manager has to {has_to}."
        )


def refresh_state(version: Any) -> None:
    """Its state as it is now; the caller holds the lock of the condition. Raises ActivationError."""
    try:
        version.refresh_from_db(fields=["state"])
    except type(version).DoesNotExist as error:
        raise ActivationError(f"{version} was deleted meanwhile; nothing was changed.") from error


def require_two_persons(version: Any, by: Any, *, way_back: bool = False) -> None:
    """With TWO_PERSON_RULE two people stand behind what goes into service. Raises ActivationError.

    Who made it and who activates it; or, where nobody knows who made it, as on the command line without --user, who
    approved it and who activates it. A way back only leads to what people had put in service before.
    """
    require_another_person(version, by)
    if not settings.TWO_PERSON_RULE or version.created_by_id is not None or way_back:
        return
    approval = version.state_changes.first()
    if version.state != version.State.APPROVED or approval is None or approval.by_id in (None, by.pk):
        raise ActivationError(
            f"The two-person rule is on, and nobody knows who made {version}: it was made on the command line. Another "
            f"model manager than {by} has to approve it first."
        )


class DeploymentQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"

    def put_in_service(
        self,
        version: Any,
        threshold_set: ThresholdSet | None,
        *,
        by: Any,
        reason: str,
        seen_epoch: int | None = None,
        back_from: Any = None,
        within: Callable[[], None] | None = None,
    ) -> "Deployment":
        """Switch to a version that was verified, with the history and the audit entry, in one transaction.

        seen_epoch: what the deployment was at when whoever decides looked at it; None for who did not look.
        back_from: set for a rollback, the version that it leaves. within: what else belongs to the transaction.
        Raises ActivationError, and ActivationConflict when the deployment has moved on.
        """
        with transaction.atomic():
            Condition.objects.select_for_update().get(pk=version.condition_id)
            refresh_state(version)
            version.require_state(way_back=back_from is not None)
            damaged = IntegrityCheck.objects.filter(version=version).exclude(reason="").first()
            if damaged is not None:
                raise ActivationError(f"{version} was not activated: {damaged.message} The version in service stays.")
            deployment, _ = self.select_related("active__condition", "threshold_set").get_or_create(
                condition=version.condition
            )
            if within is not None:
                within()
            if not deployment.was_left_by(by, version, threshold_set):
                deployment.require_epoch(seen_epoch)
                deployment._require_way_back(version, back_from)
            if not deployment.is_at(version, threshold_set):
                deployment._switch(version, threshold_set, by=by, reason=reason, rollback=back_from is not None)
        return deployment


class Deployment(models.Model):
    """Which version of a condition is in service, and at which threshold it decides.

    Every process compares `epoch` to know when to swap. threshold_set: None for the threshold that the training chose.
    """

    condition = models.OneToOneField(Condition, models.PROTECT, related_name="deployment")
    active = models.ForeignKey("registry.ModelVersion", models.PROTECT, null=True, related_name="+")
    previous = models.ForeignKey("registry.ModelVersion", models.PROTECT, null=True, related_name="+")
    threshold_set = models.ForeignKey(ThresholdSet, models.PROTECT, null=True, related_name="+")
    epoch = models.PositiveIntegerField(default=0)

    objects = DeploymentQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.condition}: {self.active or 'nothing in service'}"

    @property
    def threshold(self) -> float | None:
        """From which probability on the version in service calls its positive class; None for several classes."""
        if self.threshold_set is not None:
            return self.threshold_set.threshold
        return self.active.threshold if self.active else None

    @property
    def before(self) -> "Activation | None":
        """When the previous version was last put in service, with the threshold that it had; None without any."""
        if self.previous_id is None:
            return None
        activations = Activation.objects.filter(condition=self.condition_id, to_version=self.previous_id)
        return activations.select_related("to_version__condition", "threshold_set").first()

    def roll_back(self, *, by: Any, reason: str, seen_epoch: int | None = None) -> "Deployment":
        """Go back to the version that was in service before, with the threshold it had. Raises ActivationError."""
        before = self.before
        if before is None or self.active is None:
            error = ActivationError(f"Nothing was in service for {self.condition} before; there is no way back.")
            record_refusal("version.rollback", self.active or self, error, by=by)
            raise error
        return before.to_version.activate(
            by=by, reason=reason, threshold_set=before.threshold_set, seen_epoch=seen_epoch, back_from=self.active
        )

    def is_at(self, version: Any, threshold_set: ThresholdSet | None) -> bool:
        return self.active == version and self.threshold_set == threshold_set

    def was_left_by(self, user: Any, version: Any, threshold_set: ThresholdSet | None) -> bool:
        """Whether it is the same person's own second click."""
        last = Activation.objects.filter(condition=self.condition_id).first()
        return last is not None and last.by == user and self.is_at(version, threshold_set)

    def require_epoch(self, seen_epoch: int | None) -> None:
        """Raise ActivationConflict, naming who did what, when the deployment is not what somebody looked at."""
        if seen_epoch is None or seen_epoch == self.epoch:
            return
        last = Activation.objects.filter(condition=self.condition_id).select_related("to_version__condition").first()
        if last is None:
            raise ActivationConflict("Nothing is in service. Load the page again and decide anew.")
        raise ActivationConflict(
            f"{last.by or 'The command line'} put {last.to_version} in service at {last.at:%Y-%m-%d %H:%M} UTC "
            f"(“{last.reason}”), after what you looked at. Nothing was changed: look again and decide anew."
        )

    def _require_way_back(self, version: Any, back_from: Any) -> None:
        if back_from is not None and (self.active, self.previous) != (back_from, version):
            raise ActivationConflict(f"{version} is not what was in service before any more. Look again.")

    def _switch(
        self, version: Any, threshold_set: ThresholdSet | None, *, by: Any, reason: str, rollback: bool
    ) -> None:
        before, threshold = self.active, self.threshold
        if before != version:
            self.previous, self.active = before, version
        self.threshold_set = threshold_set
        self.epoch += 1
        self.save()
        Activation.objects.create(
            condition=self.condition,
            from_version=before,
            to_version=version,
            threshold_set=threshold_set,
            by=by,
            reason=reason,
        )
        audit.record(
            "version.rollback" if rollback else "version.activate",
            version,
            actor=by,
            before={"active": str(before) if before else None, "threshold": threshold},
            after={"active": str(version), "threshold": self.threshold, "reason": reason},
        )
        announcing.tell_activation(self, before, by=by, reason=reason, rollback=rollback)


def in_service(versions: models.QuerySet) -> dict[int, list[str]]:
    """Where each of the versions is in service, in words, by primary key; for `USES`."""
    rows = Deployment.objects.filter(active__in=versions).values_list("active", "condition__name")
    return {pk: [f"it is in service for {name}; put another version there first"] for pk, name in rows}


class Activation(Immutable):
    """The history of what was in service; rows are only ever added."""

    condition = models.ForeignKey(Condition, models.PROTECT, related_name="activations")
    at = models.DateTimeField(auto_now_add=True)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    from_version = models.ForeignKey("registry.ModelVersion", models.PROTECT, null=True, related_name="+")
    to_version = models.ForeignKey("registry.ModelVersion", models.PROTECT, related_name="activations")
    threshold_set = models.ForeignKey(ThresholdSet, models.PROTECT, null=True, related_name="activations")
    reason = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.to_version}"

    @property
    def threshold(self) -> float | None:
        """From which probability on the version called its positive class from then on; None for several classes."""
        return self.threshold_set.threshold if self.threshold_set else self.to_version.threshold
