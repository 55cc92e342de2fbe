"""What serving needs beside the model: the reference of its images, the rules of a condition, who serves what."""

from collections.abc import Iterable
from typing import Any

from django.db import models, transaction
from django.utils import timezone

from registry.models import ModelVersion
from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.teams import TeamScopedQuerySet

from .. import gate
from .serving_process import ServingProcessQuerySet


class ServingReferenceQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"


class ServingReference(models.Model):
    """What the images that a version learned from look like to it; none for versions whose images are not here.

    reference: see `gate.Reference.to_bytes`. distributions: of measures and probabilities on the validation part, which
    the weeks in use are compared with; none yet while images_count is 0. problem: why there is no reference, in words.
    created_at: when the last try began. See `reference_work`.
    """

    version = models.OneToOneField(ModelVersion, models.CASCADE, related_name="serving_reference")
    reference = models.BinaryField(default=bytes)
    distributions = models.JSONField(default=dict)
    images_count = models.PositiveIntegerField(default=0)
    false_alarm_rate = models.FloatField(null=True, help_text="share of validation images beyond the limit")
    problem = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ServingReferenceQuerySet.as_manager()

    def __str__(self) -> str:
        return f"reference of {self.version}"


class LowerPrecision(models.Model):
    """How a version answers at a lower precision on its validation images, beside float32; see `precisions`.

    Fields as of `engine.PrecisionCheck`; images_count is 0 and problem says why where nothing could be compared.
    """

    version = models.ForeignKey(ModelVersion, models.CASCADE, related_name="lower_precisions")
    precision = models.CharField(max_length=10)
    images_count = models.PositiveIntegerField(default=0)
    largest_difference = models.FloatField(null=True, help_text="of any probability")
    changed_decisions = models.PositiveIntegerField(default=0)
    tolerance = models.FloatField(help_text="that the largest difference may have")
    keeps_the_answers = models.BooleanField(default=False)
    problem = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "precision"], name="one_check_of_a_precision")]

    def __str__(self) -> str:
        return f"{self.version} at {self.precision}"


class Response(models.TextChoices):
    WARN = "warn", "Warn"
    REFUSE = "refuse", "Refuse"


def _response(default: Response, check: str) -> models.CharField:
    return models.CharField(gate.CHECKS[check], max_length=10, choices=Response, default=default)


class ServingPolicyQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"

    def of(self, condition: Condition) -> "ServingPolicy":
        """The condition's own, or the defaults."""
        return next(iter(self.filter(condition=condition)), None) or ServingPolicy(condition=condition)


class ServingPolicy(models.Model):
    """Which checks before the model refuse a radiograph when they fail, and when people are told about drift.

    A check that fails without refusing, and one that only warns, is shown and stored with the answer.
    """

    condition = models.OneToOneField(Condition, models.PROTECT, related_name="serving_policy")
    on_size = _response(Response.WARN, "size")
    on_contrast = _response(Response.REFUSE, "contrast")
    on_picture = _response(Response.REFUSE, "picture")
    on_colour = _response(Response.REFUSE, "colour")
    on_modality = _response(Response.REFUSE, "modality")
    on_body_part = _response(Response.REFUSE, "body-part")
    on_inverted = _response(Response.WARN, "inverted")
    on_unlike = _response(Response.WARN, "unlike")
    max_refusal_share = models.FloatField(default=0.2, help_text="share of a week's requests that the gate may refuse")
    max_error_share = models.FloatField(default=0.02, help_text="share of a week's requests that may fail")
    max_latency_ms = models.FloatField(default=2000, help_text="95th percentile of a week, in milliseconds")
    max_psi = models.FloatField(default=0.25, help_text="population stability index of a measure or of probabilities")
    min_agreement = models.FloatField(default=0.8, help_text="share of a week's answers that readers agree with")

    objects = ServingPolicyQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "serving policies"

    def __str__(self) -> str:
        return f"serving of {self.condition}"

    def refusals(self, verdicts: Iterable[gate.Verdict]) -> list[gate.Verdict]:
        """The verdicts that keep the radiograph from being answered here."""
        failed = [verdict for verdict in verdicts if verdict.outcome == "fail"]
        return [one for one in failed if getattr(self, f"on_{one.check.replace('-', '_')}") == Response.REFUSE]


class ServingProcess(models.Model):
    """Which version a process answers with; written by the request that swaps."""

    host = models.CharField(max_length=200)
    pid = models.PositiveIntegerField()
    condition = models.ForeignKey(Condition, models.CASCADE, related_name="+")
    version = models.ForeignKey(ModelVersion, models.CASCADE, related_name="+")
    epoch = models.PositiveIntegerField()
    at = models.DateTimeField(auto_now=True)

    objects = ServingProcessQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["host", "pid", "condition"], name="one_row_per_process")]

    def __str__(self) -> str:
        return f"{self.host} {self.pid}: {self.version}"


class MonitoringAlertQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"


class MonitoringAlert(models.Model):
    """A figure of a week in use that went beyond what the condition allows; told once."""

    condition = models.ForeignKey(Condition, models.PROTECT, related_name="monitoring_alerts")
    version = models.ForeignKey(ModelVersion, models.CASCADE, null=True, related_name="+")
    week = models.DateField(help_text="its Monday")
    measure = models.CharField(max_length=60)
    value = models.FloatField()
    limit = models.FloatField()
    text = models.CharField(max_length=500)
    created_at = models.DateTimeField(auto_now_add=True)
    seen_by = models.ForeignKey("auth.User", models.PROTECT, null=True, related_name="+", editable=False)
    seen_at = models.DateTimeField(null=True, editable=False)
    comment = models.CharField(max_length=500, blank=True)

    objects = MonitoringAlertQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(fields=["condition", "version", "week", "measure"], name="one_alert_a_week")
        ]

    def __str__(self) -> str:
        return self.text

    def acknowledge(self, comment: str, *, by: Any) -> bool:
        """Somebody looked at it. False when somebody had done so before; their word stays."""
        comment = comment.strip()[:500]
        with transaction.atomic():
            unseen = MonitoringAlert.objects.filter(pk=self.pk, seen_at__isnull=True)
            if not unseen.update(seen_by=by, seen_at=timezone.now(), comment=comment):
                return False
            self.refresh_from_db()
            audit.record("monitoringalert.acknowledge", self, actor=by, after={"comment": comment})
        return True
