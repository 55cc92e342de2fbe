"""Requests that got no answer from a model, and why; what was in the file is not kept."""

from django.conf import settings
from django.db import models

from registry.models import ModelVersion
from xrayplatform.conditions import Condition
from xrayplatform.teams import TeamScopedQuerySet

from .batch import Batch
from .experiment import Experiment
from .prediction import Prediction


class UnansweredQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"

    def nobody_answered(self) -> "UnansweredQuerySet":
        """Without what challengers of experiments failed or left out: who asked got the champion's answer."""
        return self.filter(variant="")


class Unanswered(models.Model):
    """variant: challenger where only the challenger of an experiment gave no answer; empty where nobody did."""

    class Kind(models.TextChoices):
        UNREADABLE = "unreadable", "Not a usable radiograph"
        REFUSED = "refused", "Refused by the input gate"
        NO_MODEL = "no model", "No model in service"
        BUSY = "busy", "Too many requests"
        FAILED = "failed", "The model failed"

    condition = models.ForeignKey(Condition, models.PROTECT, related_name="unanswered")
    version = models.ForeignKey(ModelVersion, models.PROTECT, null=True, related_name="unanswered")
    experiment = models.ForeignKey(Experiment, models.PROTECT, null=True, related_name="unanswered")
    batch = models.ForeignKey(Batch, models.PROTECT, null=True, related_name="unanswered")
    variant = models.CharField(max_length=10, choices=Prediction.Variant, blank=True)
    kind = models.CharField(max_length=12, choices=Kind)
    code = models.CharField(max_length=40, blank=True, help_text="of the error or of the check that refused")
    text = models.CharField(max_length=500, help_text="what the user was told")
    channel = models.CharField(max_length=10, choices=Prediction.Channel)
    file_digest = models.CharField(max_length=64, blank=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    request_id = models.CharField(max_length=64)

    objects = UnansweredQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        verbose_name_plural = "unanswered requests"

    def __str__(self) -> str:
        return f"{self.condition}: {self.get_kind_display()}"
