"""`manage.py import_model FILE`: a version from a package of another site, as the Import page does."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from registry.models import ModelVersion, PackageImport, ReceivedPackage
from registry.package_tasks import run_import
from registry.packages import PackageError
from registry.signing import SignatureState
from xrayplatform.commands import PlatformCommand
from xrayplatform.conditions import Condition
from xrayplatform.jobs import JobError
from xrayplatform.teams import Team


class Command(PlatformCommand):
    permission = "registry.add_packageimport"
    help = "Import a model version from a package. It is proved by rebuilding it; nothing in service changes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("file", type=Path, help="what the export of a version gave")
        where = parser.add_mutually_exclusive_group()
        where.add_argument(
            "--condition", help="slug (default: the one that the package names if it fits, or a new one)"
        )
        where.add_argument("--new-condition", action="store_true", help="make a new condition for it")
        parser.add_argument("--team", help="name of the team of a new condition (default: every team sees it)")
        accept = parser.add_mutually_exclusive_group()
        for state, words in (
            (SignatureState.UNSIGNED, "answer for a package that nobody signed; it is audited"),
            (SignatureState.UNKNOWN_KEY, "answer for a package of a key that is not trusted; it is audited"),
        ):
            accept.add_argument(
                f"--accept-{state.value}", dest="accept", action="store_const", const=state.value, help=words
            )

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        try:
            with options["file"].open("rb") as file:
                package = ReceivedPackage.objects.receive(file, by=by)
        except OSError as error:
            raise CommandError(f"{options['file']} cannot be read: {error.strerror}.") from error
        except PackageError as error:
            raise CommandError(f"The package is refused ({error.reason}): {error}") from error
        existing = package.known_to(by)
        if existing is not None:
            package.discard()
            return _result(existing, package, new=False)
        job = self._start(package, by, options)
        job.listener = self.tell_progress
        run_import(job, job.attempt)
        if job.version is None:
            refused = f"The package is refused ({job.reason}): " if job.reason else ""
            raise CommandError(f"{refused}{job.error or job.message} {job.hint}".strip())
        return _result(job.version, package, new=True)

    def _start(self, package: ReceivedPackage, by: Any, options: dict[str, Any]) -> PackageImport:
        try:
            PackageImport.require_yes(package, options["accept"] or "", by=by)
            with transaction.atomic():
                condition = _condition(package, by, options)
                team = None if condition else _team(by, options["team"])
                return PackageImport.create(
                    package, by, condition=condition, team=team, accepted=options["accept"] or ""
                )
        except JobError as error:
            package.discard()
            raise CommandError(f"{error} {error.hint}".strip()) from error
        except CommandError:
            package.discard()
            raise

    def show(self, result: dict[str, Any]) -> None:
        words = "is" if result["new"] else "had been imported before: it is"
        self.stdout.write(
            f"v{result['number_there']} of {result['origin']} {words} version {result['version']} of "
            f"{result['condition']}."
        )


def _condition(package: ReceivedPackage, by: Any, options: dict[str, Any]) -> Condition | None:
    slug = options["condition"]
    if slug is not None:
        condition = Condition.objects.seen_by(by).filter(slug=slug).first()
        if condition is None:
            raise CommandError(f"There is no condition {slug}.")
        return condition
    if not options["new_condition"]:
        fitting = {one.slug: one for one in package.conditions_for(by)}
        condition = fitting.get(package.description["condition"]["slug"])
        if condition is not None:
            return condition
    if by is not None and not by.has_perm("xrayplatform.add_condition"):
        raise CommandError("Name a condition with --condition: the user's role does not allow new ones.")
    return None


def _team(by: Any, name: str | None) -> Team | None:
    teams = Team.objects.all() if by is None else by.teams.all()
    if name is None:
        if by is not None and len(teams) > 1:
            raise CommandError(f"{by} is in several teams: name one with --team.")
        return None if by is None else teams.first()
    team = teams.filter(name=name).first()
    if team is None:
        raise CommandError(f"There is no team {name}.")
    return team


def _result(version: ModelVersion, package: ReceivedPackage, *, new: bool) -> dict[str, Any]:
    return {
        "condition": version.condition.slug,
        "version": version.number,
        "new": new,
        "origin": package.origin,
        "number_there": package.description["version"]["number"],
        "package": package.sha256,
        "sha256": version.sha256,
    }
