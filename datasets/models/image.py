"""What a scan found: images, files that cannot be used, what is suspicious, and what people decided about it."""

from typing import Any

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models.functions import Collate
from django.urls import reverse
from django.utils import timezone

from xrayplatform import audit
from xrayplatform.jobs import JobError
from xrayplatform.teams import TeamScopedQuerySet

from ..quality import CODES, LABELS, Kind
from .dataset import LABEL_CONFLICT, Dataset, checked_reason


class DatasetImageQuerySet(TeamScopedQuerySet):
    team_path = "dataset__condition__team"

    def with_exclusion(self) -> "DatasetImageQuerySet":
        """Annotated with `excluded`: a person left the image out, and its pixels are still those that were judged."""
        return self.annotate(excluded=models.Exists(_valid_decisions(Decision.Action.EXCLUDE)))

    def with_decision(self, code: str) -> "DatasetImageQuerySet":
        """Annotated with what was decided about the finding of that kind: `decided` (an action or None), `reason`."""
        outer = models.OuterRef
        decisions = Decision.objects.filter(
            dataset=outer("dataset"), path=outer("path"), digest=outer("digest"), code=code
        )
        return self.annotate(
            decided=models.Subquery(decisions.values("action")[:1]),
            reason=models.Subquery(decisions.values("reason")[:1]),
        )

    def in_byte_order(self) -> "DatasetImageQuerySet":
        """By path, the same on every database: digests and splits must not depend on a server's language."""
        return self.order_by(Collate("path", "C" if connection.vendor == "postgresql" else "BINARY"))

    def repeated_pixels(self) -> dict[str, list[tuple[int, str, str]]]:
        """Images (number, path, class found) with equal pixels, by their digest; only digests that come twice."""
        images = self.order_by()
        repeated = images.values("digest").annotate(n=models.Count("pk")).filter(n__gt=1).values("digest")
        groups: dict[str, list[tuple[int, str, str]]] = {}
        rows = images.filter(digest__in=repeated).values_list("digest", "pk", "path", "class_name")
        for digest, *row in rows.iterator(2000):
            groups.setdefault(digest, []).append(tuple(row))
        return groups

    def included(self) -> "DatasetImageQuerySet":
        return self.exclude(models.Exists(_valid_decisions(Decision.Action.EXCLUDE)))


def _valid_decisions(action: str) -> models.QuerySet:
    outer = models.OuterRef
    return Decision.objects.filter(dataset=outer("dataset"), path=outer("path"), digest=outer("digest"), action=action)


class DatasetImage(models.Model):
    """One readable radiograph of a dataset. Its class is the one that folders or a CSV file name (see `Dataset`)."""

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="images")
    path = models.CharField(max_length=700, help_text="relative to the dataset's folder")
    folder = models.CharField(max_length=700, blank=True, help_text="the part of the path before the file's name")
    size = models.BigIntegerField(help_text="bytes")
    mtime_ns = models.BigIntegerField()
    digest = models.CharField(max_length=64, db_index=True, help_text="SHA-256 of the decoded pixels")
    class_name = models.CharField(max_length=200)
    source_split = models.CharField(max_length=20, blank=True)
    patient_key = models.CharField(max_length=64, blank=True)
    patient_source = models.CharField(max_length=10, blank=True, help_text="dicom, csv or folder")
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    format = models.CharField(max_length=10)
    measures = models.JSONField(default=dict, help_text="what quality.measure found")
    fingerprint = models.BinaryField(default=bytes, help_text="finds near-duplicates, whatever their rotation")
    cluster = models.BigIntegerField(null=True, help_text="near-duplicates share it: the row number of one of them")

    objects = DatasetImageQuerySet.as_manager()

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["dataset", "path"], name="one_row_per_image")]
        indexes = [
            models.Index(fields=["dataset", "folder"]),
            models.Index(fields=["dataset", "class_name"]),
            models.Index(fields=["dataset", "cluster"]),
        ]

    def __str__(self) -> str:
        return self.path

    def get_absolute_url(self) -> str:
        return reverse("datasets:image-detail", args=[self.pk])

    @property
    def label(self) -> str:
        """The class under which the image is used; empty when its class was dropped."""
        return self.dataset.label_of(self.class_name)

    @property
    def measure_rows(self) -> list[tuple[str, float]]:
        """What was measured, with its name in words."""
        return [(label, self.measures[name]) for name, label in LABELS.items() if name in self.measures]

    @property
    def decisions(self) -> "models.QuerySet[Decision]":
        return Decision.objects.filter(dataset=self.dataset_id, path=self.path).select_related("decided_by")

    def decide(self, code: str, action: str, reason: str, *, by: Any) -> "Decision":
        """Exclude the image, or keep it in spite of a finding. The next preparation honours it. Raises JobError."""
        reason = checked_reason(code, reason, Decision.CODES)
        with transaction.atomic():
            self.dataset.lock("class_choices")
            other = self.dataset.kept_otherwise(self) if (code, action) == (LABEL_CONFLICT, "keep") else ""
            if other:
                raise JobError(
                    f"{other} has the same pixels and was kept under another label.",
                    "Take that decision back first, or leave this image out.",
                )
            old = Decision.objects.filter(dataset=self.dataset, path=self.path, code=code).first()
            decision, _ = Decision.objects.update_or_create(
                dataset=self.dataset,
                path=self.path,
                code=code,
                defaults={
                    "digest": self.digest,
                    "action": action,
                    "reason": reason,
                    "decided_by": by,
                    "decided_at": timezone.now(),
                },
            )
            audit.record(
                f"image.{action}",
                self,
                actor=by,
                before=old.to_json() if old else None,
                after={"dataset": self.dataset.name, "code": code, "reason": reason},
            )
            self.dataset.write_conflicts(self.digest)
        return decision

    def withdraw(self, code: str, *, by: Any) -> bool:
        """Take a decision back. False when there was none."""
        with transaction.atomic():
            self.dataset.lock("class_choices")
            old = Decision.objects.filter(dataset=self.dataset, path=self.path, code=code).first()
            if old is None:
                return False
            audit.record("image.withdraw", self, actor=by, before=old.to_json() | {"dataset": self.dataset.name})
            old.delete()
            self.dataset.write_conflicts(self.digest)
        return True


class FileProblem(models.Model):
    """A file of a dataset that cannot be used, and why; not opened again before it changes."""

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="file_problems")
    path = models.CharField(max_length=700, help_text="printable, relative to the dataset's folder")
    folder = models.CharField(max_length=700, blank=True)
    code = models.CharField(max_length=40)
    reason = models.TextField()
    size = models.BigIntegerField(default=-1)
    mtime_ns = models.BigIntegerField(default=-1)

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["dataset", "path"], name="one_problem_per_file")]
        indexes = [models.Index(fields=["dataset", "folder"])]

    def __str__(self) -> str:
        return f"{self.path}: {self.code}"


class ScannedFolder(models.Model):
    """The names, sizes and times that a folder had when all of its files had been looked at."""

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="folders")
    path = models.CharField(max_length=700, blank=True, help_text="relative to the dataset's folder")
    signature = models.CharField(max_length=64)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["dataset", "path"], name="one_row_per_folder")]

    def __str__(self) -> str:
        return self.path or "."


class FindingQuerySet(models.QuerySet):
    def with_decision(self) -> "FindingQuerySet":
        """Annotated with what was decided about this finding of this image ("exclude", "keep" or None) and why."""
        outer = models.OuterRef
        decisions = Decision.objects.filter(
            dataset=outer("dataset"), path=outer("image__path"), digest=outer("image__digest"), code=outer("code")
        )
        return self.annotate(
            action=models.Subquery(decisions.values("action")[:1]),
            reason=models.Subquery(decisions.values("reason")[:1]),
        )

    def undecided(self, code: str) -> "FindingQuerySet":
        """Those of this kind that nobody has judged."""
        return self.filter(code=code).with_decision().filter(action__isnull=True)


class Finding(models.Model):
    """A suspicion about one image, for a person to judge. Scans and trainings write it anew."""

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="findings")
    image = models.ForeignKey(DatasetImage, models.CASCADE, related_name="findings")
    code = models.CharField(max_length=30)
    value = models.FloatField(null=True)
    detail = models.CharField(max_length=400, blank=True)

    objects = FindingQuerySet.as_manager()

    class Meta:
        ordering = ["code", "pk"]
        constraints = [models.UniqueConstraint(fields=["image", "code"], name="one_finding_per_kind")]
        indexes = [models.Index(fields=["dataset", "code"])]

    def __str__(self) -> str:
        return f"{self.code}: {self.image_id}"

    @property
    def kind(self) -> Kind:
        """What the finding is called, what it means and what to do."""
        return CODES[self.code]


class Decision(models.Model):
    """What a person decided about an image. It holds for these pixels, and outlives scans that do not see the file."""

    class Action(models.TextChoices):
        EXCLUDE = "exclude", "Excluded"
        KEEP = "keep", "Kept"

    BY_HAND = "by-hand"
    CODES = (BY_HAND, *CODES)

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="decisions")
    path = models.CharField(max_length=700)
    digest = models.CharField(max_length=64)
    code = models.CharField(max_length=30, default=BY_HAND)
    action = models.CharField(max_length=10, choices=Action)
    reason = models.CharField(max_length=300)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["path", "code"]
        constraints = [models.UniqueConstraint(fields=["dataset", "path", "code"], name="one_decision_per_finding")]

    def __str__(self) -> str:
        return f"{self.path}: {self.action} ({self.code})"

    @property
    def title(self) -> str:
        """What the decision is about."""
        return CODES[self.code].title if self.code in CODES else "Your own judgement"

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "action": self.action, "reason": self.reason, "digest": self.digest}
