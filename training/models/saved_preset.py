"""Configurations that people saved under a name, for themselves and their team."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, models, transaction
from django.urls import reverse

from xrayplatform import audit
from xrayplatform.teams import Team, TeamScopedQuerySet

from ..configurations import OPTIONS, PRESETS, SAVED, Configuration, ConfigurationError, Preset

ADMINISTRATOR = "administrator"


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

    def set_options(self, given: Mapping[str, Any]) -> None:
        """Change some options; None puts one back to that of Standard.

        Raises ConfigurationError, also for one that is stored, not given, and no longer allowed.
        """
        usual = PRESETS["standard"].configuration.to_json()
        wanted = {name: usual.get(name) if value is None else value for name, value in given.items()}
        try:
            self.configuration = Configuration.from_json({**(self.configuration or usual), **wanted}).to_json()
        except ConfigurationError as error:
            if error.field in given:
                raise
            raise ConfigurationError(
                error.field, f"What is stored: {error} Change or reset that option too."
            ) from error

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
        """Create or change it. Raises ValidationError with the fields that are wrong, and PermissionDenied."""
        before = SavedPreset.objects.filter(pk=self.pk).first()
        if before is None:
            self.created_by = by
        elif self.team is not None:
            before.require_owner(by)
        self.full_clean(exclude=["created_by", "configuration"])
        try:
            with transaction.atomic():
                self.save()
                verb = "change" if before else "add"
                earlier = before._audited() if before else None
                audit.record(f"savedpreset.{verb}", self, actor=by, before=earlier, after=self._audited())
        except IntegrityError:
            # Somebody took the name after it was looked for.
            self.clean()
            raise

    def may_be_taken_away_by(self, actor: Any) -> bool:
        """Whether the actor may take it from others, by deleting it or by giving it to one team.

        What everybody has, only who created it and administrators may; the command line itself (None) may all.
        """
        if self.team_id is not None or actor is None or actor.is_superuser:
            return True
        return actor.pk == self.created_by_id or actor.groups.filter(name=ADMINISTRATOR).exists()

    def require_owner(self, actor: Any) -> None:
        """Raises PermissionDenied unless the actor may take it away from others."""
        if not self.may_be_taken_away_by(actor):
            raise PermissionDenied(
                f"Everybody has {self.name}: only who created it or an administrator may delete it or give it to a "
                "team. Save a copy under another name instead."
            )

    def remove(self, by: Any) -> None:
        """Runs that used it keep their own copy of the options. Raises PermissionDenied."""
        self.require_owner(by)
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
