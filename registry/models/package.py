"""Packages on their way into the registry: whom this site trusts, what was received, and the job that imports it."""

import shutil
import uuid
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.system import NotEnoughDisk, require_disk
from xrayplatform.teams import Team, TeamScopedQuerySet

from .. import announcing, claims, packages, signing
from ..signing import SignatureState
from .version import ModelVersion, staging_folder

# A package that nobody decided about for so long is removed.
UNDECIDED_AFTER = timedelta(days=1)
_BLOCK = 1024**2


class TrustedOriginQuerySet(models.QuerySet):
    def trusted_keys(self) -> dict[str, str]:
        """The public keys of the origins that are trusted now, by their ids."""
        return dict(self.filter(active=True).values_list("key_id", "public_key"))


class TrustedOrigin(models.Model):
    """A site whose packages are taken without a question."""

    name = models.CharField(max_length=200, unique=True, help_text="who it is, in your own words")
    public_key = models.CharField(
        max_length=200,
        unique=True,
        help_text="64 digits and letters; ask the site for it on another way than the one the package came",
    )
    key_id = models.CharField(max_length=16, unique=True, editable=False)
    active = models.BooleanField(default=True, help_text="an origin that is not active is not trusted any more")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TrustedOriginQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """The key in one form, so that it is not there twice."""
        try:
            self.public_key = signing.read_public_key(self.public_key)
        except signing.SigningError as error:
            raise ValidationError({"public_key": str(error)}) from error
        self.key_id = signing.key_id(self.public_key)

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.clean()
        super().save(*args, **kwargs)


class ReceivedPackageQuerySet(models.QuerySet):
    def receive(self, source: BinaryIO, *, by: Any) -> "ReceivedPackage":
        """Keep a copy of a file and read its label; nothing is unpacked.

        Raises PackageError when it is refused, which is audited, and nothing is kept then; JobError when it cannot be
        written.
        """
        key = uuid.uuid4()
        path = file_of(key)
        try:
            size = _copy(source, path)
            label = packages.read_label(path, trusted=TrustedOrigin.objects.trusted_keys())
            return self._keep(key, size, label, by)
        except packages.PackageError as error:
            refuse(error, by=by)
            raise
        except OSError as error:
            raise JobError(
                f"The package could not be written: {error.strerror}.", "Tell an administrator; the disk may be full."
            ) from error
        finally:
            if not self.filter(key=key).exists():
                path.unlink(missing_ok=True)

    def _keep(self, key: uuid.UUID, size: int, label: packages.Label, by: Any) -> "ReceivedPackage":
        with transaction.atomic():
            package = self.create(
                key=key,
                sha256=label.sha256,
                description={name: value for name, value in label.description.items() if name in KEPT},
                signature=label.signature.state.value,
                key_id=label.signature.key_id,
                public_key=label.signature.public_key,
                size=size,
                unpacked=label.size,
                created_by=by,
            )
            audit.record("package.receive", package, actor=by, after=package.facts)
        return package

    def waiting(self) -> "ReceivedPackageQuerySet":
        """Those whose file is still needed: nobody has decided about them, or they are being imported."""
        active = PackageImport.objects.active().values("pk")
        return self.filter(models.Q(imports__isnull=True) | models.Q(imports__in=active))

    def undecided_by(self, user: Any) -> "ReceivedPackageQuerySet":
        return self.filter(created_by=user, imports__isnull=True)


# What of package.json is kept.
KEPT = ("format", "origin", "condition", "version", "lineage")


def refuse(error: packages.PackageError, *, by: Any, **about: Any) -> None:
    """Write into the audit log that a package was refused, and why."""
    audit.record(
        "package.refuse",
        actor=by,
        outcome=audit.AuditEntry.Outcome.REFUSED,
        after={"reason": error.reason, "error": str(error), **about},
    )


def folder() -> Path:
    return Path(settings.MODEL_ROOT) / "packages"


def file_of(key: uuid.UUID) -> Path:
    return folder() / f"{key}.zip"


def _copy(source: BinaryIO, target: Path) -> int:
    """A copy of at most what a package may have; the number of its bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with target.open("xb") as out:
        while block := source.read(_BLOCK):
            size += len(block)
            if size > packages.LIMITS.total_bytes:
                raise packages.PackageError("too-large", "The file is larger than any package may be.")
            _require_disk(len(block))
            out.write(block)
    return size


def _require_disk(needed: int) -> None:
    try:
        require_disk(needed)
    except NotEnoughDisk as error:
        raise JobError(str(error), "Ask an administrator to free some space, then import again.") from error


class ReceivedPackage(models.Model):
    """A package whose label was read. It is nothing yet but a file: somebody decides whether it is imported."""

    key = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    sha256 = models.CharField(max_length=64, db_index=True, help_text="equal for packages of the same content")
    description = models.JSONField(help_text="what it says about itself")
    signature = models.CharField(max_length=20, help_text="what its signature said when it was received")
    key_id = models.CharField(max_length=16, blank=True)
    public_key = models.CharField(max_length=64, blank=True)
    size = models.BigIntegerField(help_text="bytes")
    unpacked = models.BigIntegerField(help_text="bytes")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ReceivedPackageQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        told = self.description
        return f"{told['condition']['slug']} v{told['version']['number']} of {self.origin}"[:300]

    def get_absolute_url(self) -> str:
        return reverse("registry:package-confirm", args=[self.pk])

    @property
    def file(self) -> Path:
        return file_of(self.key)

    @property
    def origin(self) -> str:
        return str(self.description["origin"]["name"]) or "a site without a name"

    @property
    def trusted_as(self) -> TrustedOrigin | None:
        """The trusted origin whose key signed it, as of now."""
        return TrustedOrigin.objects.filter(active=True, public_key=self.public_key).first()

    @property
    def signature_now(self) -> SignatureState:
        """What the signature says now: an origin may have been added, or taken away, since it was received."""
        if self.signature == SignatureState.UNSIGNED:
            return SignatureState.UNSIGNED
        return SignatureState.TRUSTED if self.trusted_as else SignatureState.UNKNOWN_KEY

    @property
    def label(self) -> dict[str, Any]:
        return claims.label(self.description)

    @property
    def facts(self) -> dict[str, Any]:
        """For the audit log."""
        told = self.description
        return {
            "package": self.sha256,
            "origin": self.origin,
            "condition": told["condition"]["slug"],
            "number": told["version"]["number"],
            "signature": self.signature,
            "key": self.key_id,
        }

    def discard(self) -> None:
        """Forget a package that nobody imports."""
        self.file.unlink(missing_ok=True)
        self.delete()

    def known_to(self, user: Any) -> ModelVersion | None:
        """The version that this very package was imported as before, if `user` may see it."""
        versions = ModelVersion.objects.seen_by(user).select_related("condition")
        return versions.filter(package_import__package__sha256=self.sha256).order_by("pk").first()

    def conditions_for(self, user: Any) -> list[Condition]:
        """Those that it can be imported into: their versions, if there are any, tell the same classes apart."""
        classes = set(self.label["classes"])
        conditions = Condition.objects.seen_by(user)
        return [one for one in conditions if _classes_of(one) in (set(), classes)]


def _classes_of(condition: Condition) -> set[str]:
    newest = ModelVersion.objects.filter(condition=condition).order_by("-number").values_list("classes", flat=True)
    return set(newest.first() or [])


def require_same_classes(condition: Condition, classes: list[str]) -> None:
    """Raises JobError when the versions of the condition tell other classes apart."""
    there = _classes_of(condition)
    if there and there != set(classes):
        raise JobError(
            f"{condition} tells apart {', '.join(sorted(there))}; the package tells apart {', '.join(classes)}.",
            "Choose another condition, or a new one.",
        )


class PackageImportQuerySet(JobQuerySet, TeamScopedQuerySet):
    def visible_to(self, user: Any) -> "PackageImportQuerySet":
        """Those into a condition that the user sees; before there is one, the own ones and those of the own teams."""
        if not user.is_authenticated:
            return self.none()
        if user.is_superuser:
            return self
        conditions = Condition.objects.visible_to(user).values("pk")
        teams = Team.objects.filter(members=user).values("pk")
        own = models.Q(created_by=user) | models.Q(team__in=teams)
        return self.filter(models.Q(condition__in=conditions) | models.Q(condition__isnull=True) & own)


class PackageImport(Job):
    """Makes a version of a received package: unpacked aside, proved by rebuilding it, then registered."""

    task = "registry.package_tasks.import_package"

    package = models.ForeignKey(ReceivedPackage, models.PROTECT, related_name="imports", editable=False)
    condition = models.ForeignKey(Condition, models.PROTECT, null=True, related_name="imports", editable=False)
    # Of the condition that is made for the package.
    team = models.ForeignKey(Team, models.PROTECT, null=True, related_name="+", editable=False)
    accepted = models.CharField(
        max_length=20, blank=True, editable=False, help_text="unsigned or unknown-key, if somebody answers for it"
    )
    reason = models.CharField(max_length=40, blank=True, editable=False, help_text="code, when it was refused")
    documents = models.JSONField(default=dict, editable=False, help_text="card and figures as the origin told them")
    version = models.OneToOneField(
        ModelVersion, models.SET_NULL, null=True, related_name="package_import", editable=False
    )

    objects = PackageImportQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["package"], condition=models.Q(state__in=Job.ACTIVE), name="one_active_import_per_package"
            )
        ]

    def __str__(self) -> str:
        return f"Import of {self.package}"

    def get_absolute_url(self) -> str:
        return reverse("registry:import-detail", args=[self.pk])

    @property
    def audit_name(self) -> str:
        return "package"

    @property
    def staging(self) -> Path:
        return staging_folder(f"import-{self.pk}")

    @staticmethod
    def require_yes(package: ReceivedPackage, accepted: str, *, by: Any) -> None:
        """Refuse, with an audit entry, a package whose origin is not trusted and nobody answers for. Raises JobError.

        To be called outside of the transaction that creates the import, which the refusal would take along.
        """
        error = untrusted(package, accepted)
        if error is not None:
            refuse(error, by=by, **package.facts)
            raise JobError(str(error), UNTRUSTED_HINT)

    @classmethod
    def create(
        cls,
        package: ReceivedPackage,
        by: Any,
        *,
        condition: Condition | None,
        team: Team | None = None,
        accepted: str = "",
    ) -> "PackageImport":
        """Create the row and its audit entry. condition: None for a new one, of `team`. Raises JobError.

        accepted: the explicit yes to a package whose origin is not trusted: `unsigned` or `unknown-key`.
        """
        reap()
        state = package.signature_now
        if untrusted(package, accepted) is not None:
            raise JobError(_untrusted(package, state), UNTRUSTED_HINT)
        if condition is not None:
            require_same_classes(condition, package.label["classes"])
        _require_disk(3 * package.unpacked)
        with transaction.atomic():
            # Of two clicks at once the second waits here, and sees the first one's row.
            ReceivedPackage.objects.select_for_update().get(pk=package.pk)
            if package.imports.filter(state__in=(*Job.ACTIVE, Job.State.SUCCEEDED)).exists():
                raise JobError("This package is being imported already.", "See how far it is.")
            job = cls.objects.create(
                package=package,
                condition=condition,
                team=team,
                accepted="" if state == SignatureState.TRUSTED else state.value,
                created_by=by,
            )
            after = {**package.facts, "accepted": job.accepted, "into": condition.slug if condition else "a new one"}
            audit.record("package.import", job, actor=by, after=after)
        return job

    def refused(self, error: packages.PackageError) -> None:
        """End as refused, with the reason in the audit log."""
        with transaction.atomic():
            self.write(reason=error.reason)
            refuse(error, by=self.created_by, **self.package.facts)
            self.fail(str(error), "Nothing was imported, and nothing of the package is left here.")

    def _on_end(self) -> None:
        self.clean_up()
        announcing.tell_import_end(self)

    def end_remains(self, token: uuid.UUID | None) -> None:
        self.clean_up()

    def clean_staging(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def clean_up(self) -> None:
        """Nothing of a package stays but the version that was made of it."""
        self.clean_staging()
        self.package.file.unlink(missing_ok=True)

    @classmethod
    def sweep(cls) -> None:
        """Remove what crashes have left, and packages that nobody decided about."""
        active = set(cls.objects.active().values_list("pk", flat=True))
        for left in staging_folder("").glob("import-*"):
            if left.name.removeprefix("import-").split(".")[0] not in {str(pk) for pk in active}:
                shutil.rmtree(left, ignore_errors=True)
        long_ago = timezone.now() - UNDECIDED_AFTER
        _remove_old(exports_folder(), long_ago.timestamp())
        ReceivedPackage.objects.filter(imports__isnull=True, created_at__lt=long_ago).delete()
        needed = {str(key) for key in ReceivedPackage.objects.waiting().values_list("key", flat=True)}
        _remove_old(folder(), long_ago.timestamp(), needed)


def exports_folder() -> Path:
    return Path(settings.MODEL_ROOT) / "exports"


def _remove_old(where: Path, before: float, needed: Collection[str] = ()) -> None:
    for file in where.glob("*"):
        if file.stem not in needed and file.stat().st_mtime < before:
            file.unlink(missing_ok=True)


UNTRUSTED_HINT = "Import it only if you know where it comes from, and say so."


def untrusted(package: ReceivedPackage, accepted: str) -> packages.PackageError | None:
    """Why the package is not imported on its signature alone; None when it is, or when somebody answers for it."""
    state = package.signature_now
    if state in (SignatureState.TRUSTED, accepted):
        return None
    return packages.PackageError(state.value, _untrusted(package, state))


def _untrusted(package: ReceivedPackage, state: SignatureState) -> str:
    if state == SignatureState.UNSIGNED:
        return "The package is not signed, so that anybody can have made it."
    return f"The package is signed with the key {package.key_id}, which is not one of the trusted origins."
