"""Operating points of a version that people chose, beside the one that its training chose."""

from typing import Any

from django.conf import settings
from django.db import models, transaction

from xrayplatform import audit
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

from .state_change import GONE_WITH_ITS_VERSION


class ThresholdError(Exception):
    """The threshold cannot be saved. The message says why and what to do."""


class ThresholdSetQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"

    def add(self, version: Any, threshold: float, *, by: Any, reason: str, **chosen: Any) -> "ThresholdSet":
        """Save an operating point under the next number of the version, with its audit entry.

        It changes nothing in service: an activation puts it there. chosen: criterion, target, prevalence and the
        figures at the threshold on validation and test. Raises ThresholdError.
        """
        if len(version.classes) != 2 or not version.positive_class:
            raise ThresholdError("Only a version that tells one positive class from another has a threshold.")
        if not 0 < threshold < 1:
            raise ThresholdError(f"A threshold lies between 0 and 1, and {threshold:g} does not.")
        if not reason.strip():
            raise ThresholdError("Give the reason why this threshold is the right one; it is kept.")
        with transaction.atomic():
            # Under the lock no number is given twice.
            if not type(version).objects.select_for_update().filter(pk=version.pk).values_list("pk"):
                raise ThresholdError(f"{version} was deleted meanwhile.")
            newest = self.filter(version=version).aggregate(models.Max("number"))["number__max"] or 0
            point = self.create(
                version=version, number=newest + 1, threshold=threshold, reason=reason.strip(), created_by=by, **chosen
            )
            after = {"threshold_set": point.number, "threshold": threshold, "reason": point.reason}
            audit.record("version.threshold", version, actor=by, before={"threshold": version.threshold}, after=after)
        return point


class ThresholdSet(Immutable):
    """A threshold for the positive class, why it was chosen, and what it does. Rows are only ever added."""

    class Criterion(models.TextChoices):
        YOUDEN = "youden", "Largest sum of sensitivity and specificity (Youden)"
        SENSITIVITY = "sensitivity", "A sensitivity to reach"
        SPECIFICITY = "specificity", "A specificity to reach"
        COST = "cost", "Lowest cost of errors"
        BY_HAND = "by hand", "Set by hand"

    deletable_when = GONE_WITH_ITS_VERSION

    version = models.ForeignKey("registry.ModelVersion", models.PROTECT, related_name="threshold_sets")
    number = models.PositiveIntegerField()
    threshold = models.FloatField(help_text="the positive class is called from this probability on")
    criterion = models.CharField(max_length=20, choices=Criterion)
    target = models.FloatField(null=True, help_text="the sensitivity or specificity to reach, or the cost ratio")
    prevalence = models.FloatField(null=True, help_text="share of positives among those who are examined")
    validation = models.JSONField(default=dict, help_text="figures at the threshold on the part it was chosen on")
    test = models.JSONField(default=dict, help_text="figures at the threshold on the test part")
    reason = models.CharField(max_length=500)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ThresholdSetQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["version", "number"], name="one_threshold_set_per_number")]

    def __str__(self) -> str:
        return f"threshold set {self.number} of {self.version}"
