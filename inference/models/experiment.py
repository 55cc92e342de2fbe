"""A version tried beside the one in service: on a share of the studies (A/B), or on all, unseen (shadow)."""

import secrets
from typing import Any

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.urls import reverse
from django.utils import timezone

from registry import announcing
from registry.models import ActivationError, Deployment, IntegrityCheck, ModelVersion
from registry.models.deployment import require_another_person
from registry.models.state_change import LONGEST_REASON, known
from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.notifications import notify
from xrayplatform.teams import TeamScopedQuerySet

WHY = "You get this message because you started this experiment, or may put models in service."
EVERYBODY = 100
REFUSED = audit.AuditEntry.Outcome.REFUSED


class ExperimentError(ActivationError):
    """The experiment cannot be started, stopped or decided like that; everything stays as it is."""


class ExperimentQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"

    def running(self) -> "ExperimentQuerySet":
        return self.filter(state=Experiment.State.RUNNING)

    def with_names(self) -> "ExperimentQuerySet":
        return self.select_related(
            "condition", "champion__condition", "challenger__condition", "created_by", "ended_by"
        )

    def start(
        self,
        condition: Condition,
        challenger: ModelVersion,
        *,
        kind: str,
        by: Any,
        reason: str,
        share: int = 10,
        seen_epoch: int | None = None,
        **limits: Any,
    ) -> "Experiment":
        """Try `challenger` beside what is in service. Raises ExperimentError, and ActivationConflict as activations do.

        share: per cent of the studies that the challenger answers; of a shadow it does not count. seen_epoch: what the
        deployment was at when whoever decides looked at it. limits: max_error_rate, max_latency_ratio, min_requests.

        The files are verified before the condition is locked, as before an activation.
        """
        asked = Experiment(
            condition=condition,
            challenger=challenger,
            kind=kind,
            share=EVERYBODY if kind == Experiment.Kind.SHADOW else share,
            salt=secrets.token_hex(32),
            reason=reason.strip(),
            created_by=known(by),
            **limits,
        )
        try:
            asked.require_sensible()
            asked.require_fit(by)
            return self._start(asked, by, seen_epoch)
        except ActivationError as error:
            audit.record("experiment.start", challenger, actor=by, outcome=REFUSED, after={"reason": str(error)[:500]})
            raise

    def _start(self, asked: "Experiment", by: Any, seen_epoch: int | None) -> "Experiment":
        with transaction.atomic():
            # Activations and changes of state hold the same lock.
            Condition.objects.select_for_update().get(pk=asked.condition_id)
            deployment = (
                Deployment.objects.select_related("active__condition").filter(condition=asked.condition).first()
            )
            if deployment is None or deployment.active is None:
                raise ExperimentError(
                    f"Nothing is in service for {asked.condition}, so there is nothing to compare with."
                )
            deployment.require_epoch(seen_epoch)
            asked.champion, asked.epoch = deployment.active, deployment.epoch
            asked.challenger.refresh_from_db(fields=["state"])
            asked.require_comparable()
            self.filter(condition=asked.condition).end_outdated()
            self._require_no_other(asked.condition)
            try:
                with transaction.atomic():
                    asked.save()
            except IntegrityError as error:
                raise ExperimentError(ONE_AT_A_TIME) from error
            audit.record("experiment.start", asked, actor=by, after=asked.in_brief())
            asked.tell(f"{asked} has begun, by {by or 'the command line'}: {asked.reason}", but=by)
        return asked

    def _require_no_other(self, condition: Condition) -> None:
        other = self.running().with_names().filter(condition=condition).first()
        if other is not None:
            raise ExperimentError(f"{other} (experiment {other.pk}) is running. {ONE_AT_A_TIME}")

    def end_outdated(self) -> int:
        """End those whose condition has had an activation since; returns how many."""
        moved_on = self.running().exclude(condition__deployment__epoch=models.F("epoch"))
        return sum(experiment._end_outdated() for experiment in moved_on.with_names())


ONE_AT_A_TIME = "A condition has one experiment at a time: stop or decide that first."


class Experiment(models.Model):
    """One trial of a challenger against the champion, the version in service when it began.

    share: per cent of the studies that the challenger answers; of a shadow always 100, and nobody sees its answers.
    epoch: what the deployment was at when it began; an activation ends the experiment.
    """

    class Kind(models.TextChoices):
        AB = "ab", "A/B"
        SHADOW = "shadow", "Shadow"

    class State(models.TextChoices):
        RUNNING = "running", "Running"
        STOPPED = "stopped", "Stopped"
        PROMOTED = "promoted", "Challenger promoted"

    condition = models.ForeignKey(Condition, models.PROTECT, related_name="experiments")
    kind = models.CharField(max_length=10, choices=Kind)
    champion = models.ForeignKey(ModelVersion, models.PROTECT, related_name="+")
    challenger = models.ForeignKey(ModelVersion, models.PROTECT, related_name="+")
    share = models.PositiveSmallIntegerField(help_text="per cent of the studies that the challenger answers")
    salt = models.CharField(max_length=64, editable=False)
    epoch = models.PositiveIntegerField(editable=False)
    reason = models.CharField(max_length=500)
    max_error_rate = models.FloatField(default=0.05, help_text="share of the challenger's requests that may fail")
    max_latency_ratio = models.FloatField(default=3.0, help_text="challenger's median latency by the champion's")
    min_requests = models.PositiveIntegerField(default=20, help_text="before a guard rail may stop the experiment")
    state = models.CharField(max_length=10, choices=State, default=State.RUNNING, db_index=True, editable=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+", editable=False
    )
    created_at = models.DateTimeField(auto_now_add=True)
    ended_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+", editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)
    ended_reason = models.CharField(max_length=500, blank=True, editable=False)

    objects = ExperimentQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["condition"], condition=models.Q(state="running"), name="one_running_experiment"
            )
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.challenger} against {self.champion}"

    def get_absolute_url(self) -> str:
        return reverse("inference:experiment-detail", args=[self.pk])

    @property
    def is_running(self) -> bool:
        return self.state == self.State.RUNNING

    @property
    def is_shadow(self) -> bool:
        return self.kind == self.Kind.SHADOW

    def in_brief(self) -> dict[str, Any]:
        """What the audit log keeps of how it was set up."""
        limits = ("max_error_rate", "max_latency_ratio", "min_requests")
        return {
            "champion": str(self.champion),
            "challenger": str(self.challenger),
            "kind": self.kind,
            "share": self.share,
            "epoch": self.epoch,
            "reason": self.reason,
            **{name: getattr(self, name) for name in limits},
        }

    # -- Before it begins

    def require_sensible(self) -> None:
        """Raise ExperimentError for a wish that makes no sense, whatever the versions are."""
        _require_reason(self.reason)
        if self.kind not in self.Kind.values:
            raise ExperimentError(
                f"There is no experiment of kind {self.kind}; there are {', '.join(self.Kind.values)}."
            )
        if self.kind == self.Kind.AB and not 1 <= self.share < EVERYBODY:
            raise ExperimentError("The challenger of an A/B experiment answers 1 to 99 per cent of the studies.")
        if not 0 <= self.max_error_rate < 1:
            raise ExperimentError("The share of requests that may fail lies between 0 and 1; 1 would never stop it.")
        if not self.max_latency_ratio >= 1:
            raise ExperimentError("The challenger may take at least as long as the champion: 1 or more times.")
        if self.min_requests < 1:
            raise ExperimentError("A guard rail needs at least one request to judge by.")

    def require_fit(self, by: Any) -> None:
        """Raise ActivationError unless the challenger may take part: files and proof, for A/B the rules of service too.

        The answers of an A/B experiment are acted on, so it puts a version in service for a share of the studies.
        """
        if self.challenger.condition_id != self.condition_id:
            raise ExperimentError(f"{self.challenger} does not belong to {self.condition}.")
        if self.kind == self.Kind.AB:
            require_another_person(self.challenger, by)
            self.challenger.require_state()
        self._require_not_archived()
        try:
            self.challenger.require_whole(by=by)
        except ActivationError as error:
            raise ExperimentError(f"{self.challenger} cannot be tried: {error}") from error

    def require_comparable(self) -> None:
        """Raise ActivationError unless challenger and champion answer the same question, and the challenger still may.

        To be called under the condition's lock: it may have been archived or damaged since it was verified.
        """
        champion, challenger = self.champion, self.challenger
        if champion == challenger:
            raise ExperimentError(f"{challenger} is in service itself; there is nothing to compare it with.")
        # Of equal probabilities the first class is taken, but that two lists differ in order only changes nothing else.
        if set(champion.classes) != set(challenger.classes):
            raise ExperimentError(
                f"{challenger} tells apart {', '.join(challenger.classes)}, and {champion}, which is in service, "
                f"{', '.join(champion.classes)}. Only versions with the same classes can be compared."
            )
        if champion.positive_class != challenger.positive_class:
            raise ExperimentError(
                f"{challenger} takes {challenger.positive_class or 'no class'} for the finding, and {champion}, which "
                f"is in service, {champion.positive_class or 'no class'}."
            )
        self._require_not_archived()
        if self.kind == self.Kind.AB:
            challenger.require_state()
        damaged = IntegrityCheck.objects.filter(version=challenger).exclude(reason="").first()
        if damaged is not None:
            raise ExperimentError(f"{challenger} cannot be tried: {damaged.message}")

    def _require_not_archived(self) -> None:
        if self.challenger.state == ModelVersion.State.ARCHIVED:
            raise ExperimentError(f"{self.challenger} is archived. Reopen it before you try it.")

    # -- How it ends

    def stop(self, *, by: Any, reason: str) -> None:
        """End it; the champion answers everything again. Raises ExperimentError when it has ended already."""
        try:
            kept = _require_reason(reason)
            with transaction.atomic():
                self._end(self.State.STOPPED, by, kept)
                audit.record("experiment.stop", self, actor=by, after={"reason": kept})
        except ExperimentError as error:
            self._note_refusal("experiment.stop", by, error)
            raise

    def stop_by_itself(self, reason: str) -> bool:
        """End it because of what was measured, and tell people; False when it had ended already."""
        try:
            with transaction.atomic():
                self._end(self.State.STOPPED, None, reason)
                audit.record("experiment.stop", self, after={"reason": self.ended_reason, "by_itself": True})
                self.tell(f"{self} was stopped by itself: {reason}")
        except ExperimentError:
            return False
        return True

    def promote(self, *, by: Any, reason: str) -> Deployment:
        """Put the challenger in service, at the threshold that it had here. Raises ActivationError.

        The activation and the end of the experiment are one transaction; an activation by somebody else since it began
        is a conflict.
        """
        try:
            kept = _require_reason(reason)
            if not self.is_running:
                raise ExperimentError(self._how_it_ended())
            return self.challenger.activate(
                by=by, reason=kept, seen_epoch=self.epoch, within=lambda: self._end_promoted(by, kept)
            )
        except ActivationError as error:
            self.refresh_from_db()
            self._note_refusal("experiment.promote", by, error)
            raise

    def _end_promoted(self, by: Any, reason: str) -> None:
        self._end(self.State.PROMOTED, by, reason)
        audit.record("experiment.promote", self, actor=by, after={"reason": reason})

    def _end_outdated(self) -> bool:
        deployment = Deployment.objects.select_related("active__condition").filter(condition=self.condition_id).first()
        active = deployment.active if deployment else None
        return self.stop_by_itself(
            f"What is in service was changed to {active or 'nothing'} after it began, and it compares with "
            f"{self.champion} as it was in service then."
        )

    def _end(self, state: str, by: Any, reason: str) -> None:
        """Leave the running state exactly once, inside the caller's transaction."""
        now, kept = timezone.now(), reason[:LONGEST_REASON]
        running = type(self).objects.running().filter(pk=self.pk)
        if not running.update(state=state, ended_by=known(by), ended_at=now, ended_reason=kept):
            raise ExperimentError(self._how_it_ended())
        self.state, self.ended_by, self.ended_at, self.ended_reason = self.State(state), known(by), now, kept

    def _how_it_ended(self) -> str:
        ended = type(self).objects.select_related("ended_by").get(pk=self.pk)
        what = "promoted its challenger" if ended.state == self.State.PROMOTED else "stopped it"
        return (
            f"This experiment has ended already: {ended.ended_by or 'the platform'} {what} at "
            f"{ended.ended_at:%Y-%m-%d %H:%M} UTC (“{ended.ended_reason}”). Nothing was changed."
        )

    def _note_refusal(self, action: str, by: Any, error: Exception) -> None:
        audit.record(action, self, actor=by, outcome=REFUSED, after={"reason": str(error)[:500]})

    def tell(self, text: str, *, but: Any = None) -> None:
        """To those who may put versions in service, and to who started it; inside the transaction of what happened."""
        starter = self.created_by
        sees = starter is not None and type(self).objects.visible_to(starter).filter(pk=self.pk).exists()
        for user in sorted(
            {*announcing.managers(self.condition), *([starter] if sees else [])}, key=lambda user: user.pk
        ):
            if user != but:
                notify(user, text, self.get_absolute_url(), why=WHY)


def uses_of(versions: models.QuerySet) -> dict[int, list[str]]:
    """In which running experiments versions take part, in words, for `registry.models.USES`."""
    found: dict[int, list[str]] = {}
    for side in ("champion", "challenger"):
        running = Experiment.objects.running().filter(**{f"{side}__in": versions}).order_by()
        for version, number in running.values_list(side, "pk"):
            found.setdefault(version, []).append(f"it takes part in experiment {number}; stop that first")
    return found


def _require_reason(reason: str) -> str:
    kept = reason.strip()
    if not kept:
        raise ExperimentError("Give the reason; it is kept in the history.")
    if len(kept) > LONGEST_REASON:
        raise ExperimentError(f"The reason is too long; {LONGEST_REASON} characters at most.")
    return kept
