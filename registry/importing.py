"""From a received package to a version: unpacked aside, proved by rebuilding it, registered with its origin."""

from collections.abc import Callable
from typing import Any

from django.db import transaction

from xrayplatform.conditions import Condition, free_slug
from xrayplatform.jobs import JobError

from . import artifacts, claims, packages, rebuilding
from .models import ModelVersion, PackageImport, ReceivedPackage, TrustedOrigin
from .models.package import require_same_classes
from .signing import SignatureState

# Of the progress bar: unpacking, then the rebuild, of which nobody knows how far it is.
UNPACKED = 0.4
REBUILT = 0.9
REBUILDING = "Rebuilding the network and comparing its answers"


def import_package(job: PackageImport) -> None:
    """Do the work of a claimed job. A package that is refused ends it, with the reason in the audit log."""
    job.clean_staging()
    try:
        _import(job)
    except packages.PackageError as error:
        job.refused(error)
    except artifacts.ArtifactError as error:
        raise JobError(str(error), "Then import the package again.") from error


def _import(job: PackageImport) -> None:
    if _succeed_if_known(job):
        return
    package = packages.read(
        job.package.file,
        job.staging / "package",
        trusted=TrustedOrigin.objects.trusted_keys(),
        accept=[SignatureState(job.accepted)] if job.accepted else [],
        progress=_progress(job),
    )
    if package.label.sha256 != job.package.sha256:
        raise packages.PackageError("changed", "The package was changed after its label was read. Upload it again.")
    manifest = claims.manifest(package.documents[packages.MANIFEST])
    if package.documents[packages.GOLDEN] != package.documents[packages.MANIFEST].get("golden"):
        raise packages.PackageError("malformed", "The package tells two different golden outputs.")
    documents = {
        "card": claims.card(package.documents[packages.CARD]),
        "evaluations": claims.evaluations(package.documents[packages.EVALUATIONS]),
    }
    if job.condition is not None:
        require_same_classes(job.condition, manifest["classes"])
    job.renew(progress=UNPACKED, message=REBUILDING)
    staged = job.staging / "version"
    report = job.reporter()
    sha256 = rebuilding.rebuild(package.folder, manifest, staged, lambda: report(int(100 * UNPACKED), 100, REBUILDING))
    manifest = artifacts.load(staged, sha256).manifest
    job.renew(progress=REBUILT, message="Registering the version")
    with transaction.atomic():
        # Of two imports of the same package the second waits here, and finds the version of the first.
        list(ReceivedPackage.objects.select_for_update().filter(sha256=job.package.sha256).order_by("pk"))
        if not _succeed_if_known(job):
            _register(job, staged, sha256, manifest, documents)


def _succeed_if_known(job: PackageImport) -> bool:
    """End the job with the version that this very package was imported as before, if there is one."""
    existing = job.package.known_to(job.created_by)
    if existing is not None:
        job.succeed(f"It had been imported before, as {existing}", after={"version": str(existing)})
    return existing is not None


def _progress(job: PackageImport) -> Callable[[int, int], None]:
    report = job.reporter()

    def progress(done: int, total: int) -> None:
        report(int(UNPACKED * done), total, "Unpacking and checking")

    return progress


def _register(
    job: PackageImport, staged: Any, sha256: str, manifest: dict[str, Any], documents: dict[str, Any]
) -> None:
    told = job.package.description
    lineage = claims.lineage(told)
    condition = job.condition or _new_condition(job, told["condition"])
    origin = job.package.origin
    version = ModelVersion.objects.register(
        condition,
        staged,
        sha256=sha256,
        manifest=manifest,
        by=job.created_by,
        dataset_name=f"not told by {origin}",
        dataset_digest=lineage["dataset"],
        split_digest=lineage["split"],
        synthetic=claims.label(told)["synthetic"],
        origin=f"imported from {origin[:150]}, there v{told['version']['number']}",
        parent=None,
    )
    job.write(version=version, condition=condition, documents=documents)
    job.succeed(f"Version {version.number} of {condition}", after={**job.package.facts, "version": str(version)})


def _new_condition(job: PackageImport, told: dict[str, str]) -> Condition:
    """What every result says about its use comes from the package only where its origin is trusted."""
    trusted = {} if job.accepted else {"intended_use": told["intended_use"]}
    return Condition.objects.create(
        slug=free_slug(told["slug"].lower()[:90]),
        name=told["name"] or told["slug"],
        body_part=told["body_part"],
        team=job.team,
        **trusted,
    )
