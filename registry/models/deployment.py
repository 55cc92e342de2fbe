"""Which version of a condition is in service, and what was in service before."""

from typing import Any

from django.conf import settings
from django.db import models

from xrayplatform.conditions import Condition

from .threshold_set import ThresholdSet


class Deployment(models.Model):
    """Which version of a condition is in service, and at which threshold it decides.

    Every process compares `epoch` to know when to swap. threshold_set: None for the threshold that the training chose.
    """

    condition = models.OneToOneField(Condition, models.PROTECT, related_name="deployment")
    active = models.ForeignKey("registry.ModelVersion", models.PROTECT, null=True, related_name="+")
    previous = models.ForeignKey("registry.ModelVersion", models.PROTECT, null=True, related_name="+")
    threshold_set = models.ForeignKey(ThresholdSet, models.PROTECT, null=True, related_name="+")
    epoch = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.condition}: {self.active or 'nothing in service'}"

    @property
    def threshold(self) -> float | None:
        """From which probability on the version in service calls its positive class; None for several classes."""
        if self.threshold_set is not None:
            return self.threshold_set.threshold
        return self.active.threshold if self.active else None


class Activation(models.Model):
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

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("The history of activations is never changed.")
        super().save(*args, **kwargs)
