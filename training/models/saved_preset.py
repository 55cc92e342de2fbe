"""Configurations that people saved under a name, for themselves and their team."""

from django.conf import settings
from django.db import models

from xrayplatform.teams import Team, TeamScopedQuerySet


class SavedPreset(models.Model):
    """A named configuration of a team (or, without a team, of everybody)."""

    name = models.CharField(max_length=60)
    description = models.CharField(max_length=300, blank=True)
    team = models.ForeignKey(Team, models.PROTECT, null=True, blank=True, related_name="training_presets")
    configuration = models.JSONField()
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, editable=False, related_name="+"
    )
    changed_at = models.DateTimeField(auto_now=True)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["team", "name"], name="one_preset_per_team_and_name"),
            # SQLite takes two empty teams for different ones.
            models.UniqueConstraint(
                fields=["name"], condition=models.Q(team__isnull=True), name="one_preset_of_everybody_per_name"
            ),
        ]

    def __str__(self) -> str:
        return self.name
