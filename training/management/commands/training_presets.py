"""`manage.py training_presets [list|save|change|delete]`: training options under a name, as on their page."""

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.core.management.base import CommandError

from training.arguments import add_options, given_options
from training.configurations import OPTIONS, Configuration, ConfigurationError
from training.models import SavedPreset, TrainingRun
from xrayplatform import audit
from xrayplatform.commands import PlatformCommand
from xrayplatform.http import row_number
from xrayplatform.teams import Team

PERMISSIONS = {"list": "view", "save": "add", "change": "change", "delete": "delete"}


class Command(PlatformCommand):
    help = "List, save, change and delete training options under a name."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("action", nargs="?", default="list", choices=list(PERMISSIONS))
        parser.add_argument("name", nargs="?", help="a new name to save under; saved:NUMBER to change or delete")
        parser.add_argument(
            "--from", dest="source", help="start with quick, standard, intensive, saved:NUMBER or run:NUMBER"
        )
        parser.add_argument("--rename", metavar="NAME", help="change: the new name")
        parser.add_argument("--description")
        parser.add_argument("--team", help="who sees it (default: the first team of --user, else everybody)")
        parser.add_argument(
            "--reset", action="append", default=[], choices=list(OPTIONS), metavar="OPTION",
            help="change: put this option (such as batch_size) back to that of Standard; can be repeated",
        )  # fmt: skip
        add_options(parser)

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        self.permission = f"training.{PERMISSIONS[options['action']]}_savedpreset"
        by = self.actor(options)
        try:
            return getattr(self, f"_{options['action']}")(options, by)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        except PermissionDenied as error:
            refused = {"command": "training_presets", "action": options["action"], "preset": options["name"]}
            audit.record("access.refused", actor=by, outcome=audit.AuditEntry.Outcome.REFUSED, after=refused)
            raise CommandError(str(error)) from error

    def _list(self, options: dict[str, Any], by: Any) -> dict[str, Any]:
        presets = SavedPreset.objects.seen_by(by).select_related("team")
        return {"presets": [preset_json(preset) for preset in presets]}

    def _save(self, options: dict[str, Any], by: Any) -> dict[str, Any]:
        preset = SavedPreset(name=_needed(options), team=by.teams.first() if by else None)
        preset.configuration = _base(options["source"] or "standard", by).to_json()
        return self._store(preset, options, by)

    def _change(self, options: dict[str, Any], by: Any) -> dict[str, Any]:
        preset = _found(_needed(options), by)
        preset.name = options["rename"] or preset.name
        if options["source"]:
            preset.configuration = _base(options["source"], by).to_json()
        return self._store(preset, options, by)

    def _delete(self, options: dict[str, Any], by: Any) -> dict[str, Any]:
        preset = _found(_needed(options), by)
        answer = {"deleted": preset_json(preset)}
        preset.remove(by)
        return answer

    def _store(self, preset: SavedPreset, options: dict[str, Any], by: Any) -> dict[str, Any]:
        preset.set_options(_given(options))
        if options["description"] is not None:
            preset.description = options["description"]
        if options["team"]:
            preset.team = _team(options["team"], by)
        preset.store(by)
        return {"saved": preset_json(preset)}

    def show(self, result: dict[str, Any]) -> None:
        for word in ("saved", "deleted"):
            if word in result:
                self.stdout.write(f"{word.capitalize()}: {result[word]['key']} {result[word]['name']}")
        for preset in result.get("presets", []):
            whose = preset["team"] or "everybody"
            self.stdout.write(f"{preset['key']:10} {preset['name']} ({whose}) {preset['description']}".rstrip())
        if result.get("presets") == []:
            self.stdout.write("Nothing is saved yet.")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are set, and None for those that are reset."""
    given = given_options(options)
    both = [name for name in options["reset"] if name in given]
    if both:
        raise CommandError(f"{both[0]} cannot be set and reset at once.")
    return given | dict.fromkeys(options["reset"])


def _needed(options: dict[str, Any]) -> str:
    if not options["name"]:
        raise CommandError(f"Say which: training_presets {options['action']} NAME")
    return str(options["name"])


def _found(key: str, by: Any) -> SavedPreset:
    preset = SavedPreset.objects.seen_by(by).filter(pk=row_number(key.removeprefix("saved:"))).first()
    if preset is None:
        raise CommandError(f"There is no preset {key!r}; `training_presets list` shows those there are.")
    return preset


def _base(source: str, by: Any) -> Configuration:
    if not source.startswith("run:"):
        return SavedPreset.objects.chosen(source, by).configuration
    number = source.removeprefix("run:")
    run = TrainingRun.objects.seen_by(by).filter(pk=row_number(number)).first()
    if run is None:
        raise CommandError(f"There is no run {number!r}.")
    return Configuration.from_json(run.configuration)


def _team(name: str, by: Any) -> Team:
    teams = Team.objects.all() if by is None else by.teams.all()
    team = teams.filter(name=name).first()
    if team is None:
        raise CommandError(f"There is no team {name!r}; there are {', '.join(map(str, teams)) or 'none'}.")
    return team


def preset_json(preset: SavedPreset) -> dict[str, Any]:
    return {
        "id": preset.pk,
        "key": preset.key,
        "name": preset.name,
        "description": preset.description,
        "team": preset.team.name if preset.team else None,
        "configuration": preset.configuration,
    }
