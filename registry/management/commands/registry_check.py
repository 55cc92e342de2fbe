"""`manage.py registry_check`: rows without their files and files without a row; exit status 1 when there are any."""

from argparse import ArgumentParser
from typing import Any

from registry import orphans
from xrayplatform.commands import PlatformCommand


class Command(PlatformCommand):
    # What lies about belongs to every team, and a folder without a row to none.
    permission = "registry.delete_modelversion"
    help = (
        "Look for versions, evaluations and packages whose files are not there, and for files of versions, backups, "
        "evaluations and packages that no row knows. `verify_models` looks into the files."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--remove", action="store_true", help="remove the files that no row knows")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        actor = self.actor(options)
        found = orphans.look()
        gone = orphans.remove(found, by=actor) if options["remove"] else []
        return {
            "orphans": [one.to_json() | {"removed": one in gone} for one in found.orphans],
            "obstacle": found.obstacle,
            "removed": len(gone),
            "freed": sum(one.bytes for one in gone),
            "failed": len(found.orphans) - len(gone) + bool(found.obstacle),
        }

    def show(self, result: dict[str, Any]) -> None:
        if result["obstacle"]:
            self.stdout.write(result["obstacle"])
        for row in result["orphans"]:
            end = "removed" if row["removed"] else row["advice"] or f"{row['bytes'] / 1e6:,.1f} MB; --remove removes it"
            self.stdout.write(f"{orphans.Kind(row['kind']).label}: {row['what']}. {end}")
        if not result["orphans"] and not result["obstacle"]:
            self.stdout.write("Every row has its files, and every file its row.")
        if result["removed"]:
            self.stdout.write(f"{result['removed']} removed, {result['freed'] / 1e6:,.1f} MB are free again.")
