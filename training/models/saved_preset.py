"""Configurations that people saved under a name, for themselves and their team."""

from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.urls import reverse

from xrayplatform import audit
from xrayplatform.teams import Team, TeamScopedQuerySet

from ..configurations import OPTIONS, PRESETS, SAVED, Configuration, ConfigurationError, Preset


class SavedPresetQuerySet(TeamScopedQuerySet):
    def offered_to(self, actor: Any) -> dict[str, Preset]:
        """Every configuration that the actor may choose, by what it is chosen with: "quick", "saved:12"."""
        shared = self.seen_by(actor).select_related("team", "created_by")
        saved = [preset.as_preset() for preset in shared if not preset.complaint]
        return PRESETS | {preset.id: preset for preset in saved}

    def chosen(self, key: str, actor: Any) -> Preset:
        """The configuration behind "quick" or "saved:12". Raises ConfigurationError, naming those there are."""
        offered = self.offered_to(actor)
        if key in offered:
            return offered[key]
        known = ", ".join(
            f"{name} ({item.label})" if name.startswith(SAVED) else name for name, item in offered.items()
        )
        raise ConfigurationError("configuration", f"There is no configuration {key[:80]!r}; there are {known}.")


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

    objects = SavedPresetQuerySet.as_manager()

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

    def get_absolute_url(self) -> str:
        return reverse("training:preset-edit", args=[self.pk])

    @property
    def key(self) -> str:
        """What it is chosen with."""
        return f"{SAVED}{self.pk}"

    @property
    def complaint(self) -> str:
        """Why it cannot be used, which only a later release can bring about; empty otherwise."""
        try:
            Configuration.from_json(self.configuration)
        except ConfigurationError as error:
            return str(error)
        return ""

    @property
    def differences(self) -> list[tuple[str, str]]:
        """The options that are not as in Standard, with their values in words."""
        usual = PRESETS["standard"].configuration.to_json()
        own = self.configuration.items()
        return [
            (OPTIONS[name].label, OPTIONS[name].words(value))
            for name, value in own
            if name in OPTIONS and value != usual[name]
        ]

    def as_preset(self) -> Preset:
        """Raises ConfigurationError when this release does not know its options any more."""
        configuration = Configuration.from_json(self.configuration)
        description = self.description or f"{configuration.epochs} epochs, saved by {self.created_by or 'the server'}."
        whose = f"Shared by {self.team}." if self.team else "Shared by everybody."
        return Preset(self.key, self.name, description, whose, configuration)

    def clean(self) -> None:
        """A name that tells it from the others, also from those that everybody has."""
        taken = {item.lower() for preset in PRESETS.values() for item in (preset.id, preset.label)}
        if self.name.strip().lower() in taken or self.name.lower().startswith(SAVED):
            raise ValidationError({"name": f"{self.name} is the name of a configuration that everybody has."})
        others = SavedPreset.objects.filter(team=self.team, name=self.name).exclude(pk=self.pk)
        if others.exists():
            raise ValidationError(
                {"name": f"There is a preset {self.name} already. Change that one, or choose a name."}
            )

    # -- Every change with its audit entry

    def store(self, by: Any) -> None:
        """Create or change it. Raises ValidationError with the fields that are wrong."""
        before = SavedPreset.objects.filter(pk=self.pk).first()
        if before is None:
            self.created_by = by
        self.full_clean(exclude=["created_by", "configuration"])
        with transaction.atomic():
            self.save()
            verb = "change" if before else "add"
            earlier = before._audited() if before else None
            audit.record(f"savedpreset.{verb}", self, actor=by, before=earlier, after=self._audited())

    def remove(self, by: Any) -> None:
        """Runs that used it keep their own copy of the options."""
        with transaction.atomic():
            audit.record("savedpreset.delete", self, actor=by, before=self._audited())
            self.delete()

    def _audited(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "team": self.team and self.team.name,
            "description": self.description,
            "configuration": self.configuration,
        }
