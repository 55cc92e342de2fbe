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

from ..names import printable, shortened
from ..quality import CODES, LABELS, Kind
from .dataset import FLAGGED_LABEL, LABEL_CONFLICT, Dataset, checked_reason

# What a DICOM file may say of the patient and the place, and the words for its codes of the sex.
ATTRIBUTES = {"sex": "Sex", "age": "Age", "site": "Site"}
COMMENT_LENGTH, DETAIL_LENGTH = 200, 800
SEXES = {"F": "female", "M": "male", "O": "other"}


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
    attributes = models.JSONField(
        default=dict, help_text="sex, age band and site as a pseudonym, where a file has them"
    )
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
        permissions = [("flag_datasetimage", "Can say that the label of an image is wrong")]

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
    def attribute_rows(self) -> list[tuple[str, str]]:
        """What the file says of the patient and the place, with its name, in words."""
        rows = [(label, self.attributes.get(name, "")) for name, label in ATTRIBUTES.items()]
        return [(label, SEXES.get(value, value)) for label, value in rows if value]

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

    # -- Labels that somebody calls wrong

    @property
    def other_labels(self) -> list[str]:
        """What the image could be labelled as instead."""
        return [name for name in self.dataset.classes if name != self.label]

    def flag_label(self, suggestion: str, comment: str, *, by: Any, seen: str = "") -> "Finding":
        """Say that the label is wrong, for a curator to judge. Changes no label. Raises JobError.

        suggestion: the right class; "" for just wrong. seen: where it was noticed, in whole sentences.
        """
        if suggestion and suggestion not in self.other_labels:
            others = ", ".join(self.other_labels)
            raise JobError(f"{shortened(suggestion)} is none of the other classes.", f"There are: {others}.")
        with transaction.atomic():
            self.dataset.lock("class_choices", "classes")
            earlier = self.label_flag
            if earlier is not None:
                raise JobError(f"{earlier.flagged_by or 'The command line'} has called this label wrong already.")
            finding = self.findings.create(
                dataset=self.dataset,
                code=FLAGGED_LABEL,
                detail=self._flag_in_words(suggestion, " ".join(printable(comment).split()), by, seen)[:DETAIL_LENGTH],
                suggestion=suggestion,
                flagged_by=by,
                flagged_at=timezone.now(),
            )
            after = {"dataset": self.dataset.name, "label": self.label, "suggestion": suggestion}
            audit.record("image.flag_label", self, actor=by, after=after | {"detail": finding.detail})
        return finding

    def _flag_in_words(self, suggestion: str, comment: str, by: Any, seen: str) -> str:
        label = shortened(self.label or self.class_name)
        right = f"this is {shortened(suggestion)}, not {label}" if suggestion else f"the label {label} is wrong"
        told = f": {comment[:COMMENT_LENGTH]}" if comment else ""
        end = "" if told.endswith((".", "!", "?")) else "."
        return f"{by or 'The command line'} says that {right}{told}{end} {seen}".strip()

    @property
    def label_flag(self) -> "Finding | None":
        """What somebody said who calls the label wrong."""
        return self.findings.filter(code=FLAGGED_LABEL).select_related("flagged_by").first()

    def withdraw_flag(self, *, by: Any) -> bool:
        """Take back that the label is wrong. False when nobody said so. Raises JobError for who may not."""
        with transaction.atomic():
            self.dataset.lock("class_choices")
            finding = self.label_flag
            if finding is None:
                return False
            if not finding.can_be_withdrawn(by):
                raise JobError(
                    f"Only {finding.flagged_by or 'the command line'}, who said so, or a data scientist can take it "
                    "back."
                )
            before = {"dataset": self.dataset.name, "detail": finding.detail}
            audit.record("image.withdraw_flag", self, actor=by, before=before)
            finding.delete()
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
    """A suspicion about one image, for a person to judge. Scans and trainings write theirs anew, people say theirs.

    suggestion, flagged_by, flagged_at: of a label that somebody calls wrong.
    """

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="findings")
    image = models.ForeignKey(DatasetImage, models.CASCADE, related_name="findings")
    code = models.CharField(max_length=30)
    value = models.FloatField(null=True)
    detail = models.CharField(max_length=DETAIL_LENGTH, blank=True)
    suggestion = models.CharField(max_length=200, blank=True)
    flagged_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    flagged_at = models.DateTimeField(null=True)

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

    def can_be_withdrawn(self, user: Any) -> bool:
        """Whether the user (None: the command line) may take back what somebody said of a label."""
        if self.code != FLAGGED_LABEL:
            return False
        return user is None or self.flagged_by_id == user.pk or user.has_perm("datasets.curate_dataset")


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
