"""`manage.py prune_versions`: say which versions could go and why; with --yes archive and delete them."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from registry import retention, space
from registry.models import ModelVersion, StateError
from registry.retention import DeletionError
from registry.space import Proposal, Step
from xrayplatform.commands import PlatformCommand

NEEDED = ("registry.delete_modelversion", "registry.change_state_modelversion")


class Command(PlatformCommand):
    permission = "registry.view_modelversion"
    help = (
        "Propose what could go: archived versions that nothing refers to are deleted, old candidates that are not the "
        "best of their condition are archived, to be proposed again after the same time. Nothing happens without --yes."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--condition", help="only versions of this condition, by its slug")
        parser.add_argument(
            "--older-than", type=int, default=space.DAYS, metavar="DAYS", help="default: %(default)s days"
        )
        parser.add_argument("--yes", action="store_true", help="do what is proposed, with --reason")
        parser.add_argument("--reason", default="", help="kept for good")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        if options["older_than"] < 0:
            raise CommandError("An age has no sign: give the days as a whole number from 0 on.")
        if options["yes"]:
            _require_right(actor, options["reason"])
        versions = ModelVersion.objects.seen_by(actor)
        if options["condition"]:
            versions = versions.filter(condition__slug=options["condition"])
        proposals = space.proposals(versions, options["older_than"])
        rows = [one.to_json() for one in proposals]
        if options["yes"]:
            rows = [_carry_out(one, row, actor, options["reason"]) for one, row in zip(proposals, rows, strict=True)]
        deleted = [row for row in rows if row["step"] == Step.DELETE and row.get("done")]
        return {
            "older_than": options["older_than"],
            "proposals": rows,
            "freed": sum(row["frees"] for row in deleted),
            "failed": sum("error" in row for row in rows),
        }

    def show(self, result: dict[str, Any]) -> None:
        if not result["proposals"]:
            self.stdout.write(f"Nothing that is older than {result['older_than']} days could go.")
        for row in result["proposals"]:
            outcome = row.get("error") or ("done" if row.get("done") else f"would free {row['frees'] / 1e6:,.1f} MB")
            self.stdout.write(f"{row['step']} {row['condition']} v{row['number']}: {row['why']} ({outcome})")
        if result["freed"]:
            self.stdout.write(f"{result['freed'] / 1e6:,.1f} MB are free again.")


def _require_right(actor: Any, reason: str) -> None:
    if not reason.strip():
        raise CommandError("Give the reason with --reason; it is kept.")
    if actor is not None and not actor.has_perms(NEEDED):
        raise CommandError(f"{actor} has no role that allows this ({', '.join(NEEDED)}).")


def _carry_out(proposal: Proposal, row: dict[str, Any], actor: Any, reason: str) -> dict[str, Any]:
    act = retention.delete if proposal.step == Step.DELETE else ModelVersion.archive
    try:
        act(proposal.version, by=actor, reason=reason)
    except (DeletionError, StateError) as error:
        return {**row, "error": str(error)}
    return {**row, "done": True}
