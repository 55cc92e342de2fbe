"""Datasets found below DATASET_ROOT, their images, and their frozen preparations."""

import hashlib
import hmac
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.urls import reverse

from xrayplatform import audit
from xrayplatform.conditions import Condition, free_slug, name_for, slug_for
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.teams import TeamScopedQuerySet

IMAGE_SIZES = (64, 128, 224, 299)
MAX_SEED = 2**31 - 1


class Scan(Job):
    """One walk over DATASET_ROOT."""

    task = "datasets.tasks.scan"

    root = models.CharField(max_length=500, editable=False)
    images = models.PositiveIntegerField(default=0, editable=False)
    problems = models.JSONField(default=list, editable=False, help_text="folders in which nothing usable was found")

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["root"], condition=models.Q(state__in=Job.ACTIVE), name="one_active_scan_per_root"
            )
        ]

    def __str__(self) -> str:
        return f"Scan {self.pk}"

    @classmethod
    def waiting(cls) -> "Scan | None":
        """The scan of this root that no worker has taken yet."""
        return cls.objects.filter(root=str(settings.DATASET_ROOT), state=Job.State.QUEUED).first()

    @classmethod
    def create(cls, by: Any) -> "Scan":
        """Create the row and its audit entry. Raises JobError when a scan of this root is under way."""
        reap()
        root = str(settings.DATASET_ROOT)
        running = cls.objects.active().filter(root=root).first()
        if running:
            raise JobError(
                f"{running} is already under way (since {running.created_at:%H:%M} UTC).",
                "Wait until it has finished, or cancel it.",
            )
        try:
            with transaction.atomic():
                scan = cls.objects.create(root=root, created_by=by)
                audit.record("dataset.scan", scan, actor=by)
        except IntegrityError as error:
            # Somebody else's click came between the look and the row; the constraint lets one in.
            raise JobError(
                "Another scan has just been started.", "Wait until it has finished, or cancel it."
            ) from error
        return scan


class DatasetQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"

    def for_pages(self) -> "DatasetQuerySet":
        """With what lists show of each: its condition and its preparations, in two queries for all."""
        return self.select_related("condition").prefetch_related("preparations")

    def named(self, name: str) -> "Dataset":
        """The dataset at that path below DATASET_ROOT. Raises JobError, naming those there are."""
        dataset = self.select_related("condition").filter(name=name.strip("/") or ".").first()
        if dataset is None:
            names = ", ".join(self.values_list("name", flat=True)) or "none"
            raise JobError(f"There is no dataset {name!r}. Known datasets: {names}.", "Scan first if it is new.")
        return dataset


class Dataset(models.Model):
    """A folder of radiographs with class labels. Its name is its path below DATASET_ROOT."""

    class State(models.TextChoices):
        PRESENT = "present", "Present"
        OFFLINE = "offline", "Offline"

    name = models.CharField(max_length=400, unique=True, editable=False)
    condition = models.ForeignKey(Condition, models.PROTECT, related_name="datasets")
    layout = models.CharField(max_length=40, editable=False)
    layout_label = models.CharField(max_length=100, editable=False)
    because = models.TextField(blank=True, editable=False)
    classes = models.JSONField(default=list, editable=False, help_text="class names, in the order of the outputs")
    positive_class = models.CharField(max_length=200, blank=True, editable=False)
    ordinal = models.BooleanField(default=False, editable=False)
    synthetic = models.BooleanField(default=False, editable=False)
    counts = models.JSONField(default=dict, editable=False, help_text="readable images per class")
    images_count = models.PositiveIntegerField(default=0, editable=False)
    unreadable_count = models.PositiveIntegerField(default=0, editable=False)
    problems = models.JSONField(default=list, editable=False, help_text="the first of them; problems_count counts all")
    problems_count = models.PositiveIntegerField(default=0, editable=False)
    digest = models.CharField(max_length=64, blank=True, editable=False)
    read_with = models.CharField(
        max_length=64, blank=True, editable=False, help_text="pixel code and patient key of the last scan"
    )
    state = models.CharField(max_length=10, choices=State, default=State.PRESENT, editable=False)
    scanned_at = models.DateTimeField(null=True, editable=False)

    objects = DatasetQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        permissions = [
            ("scan_dataset", "Can scan the dataset folder"),
            ("prepare_dataset", "Can prepare a dataset for training"),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("datasets:dataset-detail", args=[self.pk])

    @property
    def folder(self) -> Path:
        return Path(settings.DATASET_ROOT) / self.name

    @property
    def preparation(self) -> "Preparation | None":
        """The newest finished preparation, which training uses."""
        return next((item for item in self.preparations.all() if item.state == Job.State.SUCCEEDED), None)

    @property
    def active_preparation(self) -> "Preparation | None":
        return next((item for item in self.preparations.all() if item.is_active), None)

    @property
    def imbalance(self) -> float | None:
        """Images of the largest class for one of the smallest; None when a class is empty."""
        sizes = [self.counts.get(name, 0) for name in self.classes]
        return max(sizes) / min(sizes) if sizes and min(sizes) else None

    @property
    def class_rows(self) -> list[dict[str, Any]]:
        total = self.images_count or 1
        return [
            {"name": name, "count": self.counts.get(name, 0), "percent": 100 * self.counts.get(name, 0) / total}
            for name in self.classes
        ]

    @staticmethod
    def new_condition(name: str, body_part: str) -> Condition:
        """A condition of its own for a dataset that is found for the first time.

        Never one that exists: two folders with like names may ask different questions, or belong to different teams.
        """
        slug = free_slug(slug_for(name))
        return Condition.objects.create(slug=slug, name=name_for(name), body_part=body_part[:40])


def patient_key(patient: str) -> str:
    """Pseudonym of a patient: HMAC-SHA256 under a key derived from SECRET_KEY; the id itself is never stored."""
    key = hashlib.sha256(b"patient-key" + settings.SECRET_KEY.encode()).digest()
    return hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:32]


def patient_key_fingerprint() -> str:
    """Tells whether pseudonyms were made with the present key; says nothing about the key."""
    return patient_key("fingerprint of the key")[:12]


class DatasetImage(models.Model):
    """One readable radiograph of a dataset."""

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="images")
    path = models.CharField(max_length=700, help_text="relative to the dataset's folder")
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
    excluded = models.BooleanField(default=False)
    exclusion_reason = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["dataset", "path"], name="one_row_per_image")]

    def __str__(self) -> str:
        return self.path


class PreparationQuerySet(JobQuerySet, TeamScopedQuerySet):
    team_path = "dataset__condition__team"


class Preparation(Job):
    """A dataset frozen for training: which image is in which split, and their pixels decoded once."""

    class Fit(models.TextChoices):
        AUTO = "auto", "Automatic"
        PAD = "pad", "Keep the proportions"
        STRETCH = "stretch", "Squeeze to a square"

    task = "datasets.tasks.prepare"

    dataset = models.ForeignKey(Dataset, models.PROTECT, related_name="preparations", editable=False)
    seed = models.PositiveIntegerField(default=0)
    image_size = models.PositiveSmallIntegerField(default=224)
    fit = models.CharField(max_length=10, choices=Fit, default=Fit.AUTO, help_text="how images become square")
    classes = models.JSONField(default=list, editable=False)
    positive_class = models.CharField(max_length=200, blank=True, editable=False)
    ordinal = models.BooleanField(default=False, editable=False)
    synthetic = models.BooleanField(default=False, editable=False)
    pipeline = models.JSONField(default=dict, editable=False)
    group_key = models.CharField(max_length=100, blank=True, editable=False)
    group_description = models.TextField(blank=True, editable=False)
    counts = models.JSONField(default=dict, editable=False, help_text="images per split and class")
    class_weights = models.JSONField(default=dict, editable=False)
    warnings = models.JSONField(default=list, editable=False)
    shared_patients = models.PositiveIntegerField(null=True, editable=False)
    excluded = models.PositiveIntegerField(default=0, editable=False)
    dataset_digest = models.CharField(max_length=64, blank=True, editable=False)
    split_digest = models.CharField(max_length=64, blank=True, editable=False)
    cache_digest = models.CharField(max_length=64, blank=True, editable=False)
    cache_bytes = models.BigIntegerField(default=0, editable=False)

    objects = PreparationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["dataset"], condition=models.Q(state__in=Job.ACTIVE), name="one_active_preparation_per_dataset"
            )
        ]

    def __str__(self) -> str:
        return f"Preparation {self.pk} of {self.dataset}"

    def get_absolute_url(self) -> str:
        return reverse("datasets:preparation-detail", args=[self.pk])

    @property
    def cache_folder(self) -> Path:
        return Path(settings.MODEL_ROOT) / "cache" / f"preparation-{self.pk}"

    @property
    def is_ready(self) -> bool:
        return self.state == self.State.SUCCEEDED and (self.cache_folder / "cache.json").exists()

    def split_total(self, split: str) -> int:
        return sum(self.counts.get(split, {}).values())

    @property
    def split_rows(self) -> list[dict[str, Any]]:
        """One row a split for pages: name, images per class in class order, total."""
        return [
            {
                "split": split,
                "counts": [self.counts.get(split, {}).get(name, 0) for name in self.classes],
                "total": self.split_total(split),
            }
            for split in ("train", "validation", "test")
        ]

    @classmethod
    def create(
        cls, dataset: Dataset, by: Any, *, seed: int = 0, image_size: int = 224, fit: str = Fit.AUTO
    ) -> "Preparation":
        """Create the row and its audit entry. Raises JobError when the dataset cannot be prepared now."""
        reap()
        already = JobError(f"{dataset} is already being prepared.", "Wait until it has finished, or cancel it.")
        if not 0 <= seed <= MAX_SEED:
            raise JobError(f"The seed must be a whole number from 0 to {MAX_SEED}, not {seed}.")
        if cls.objects.active().filter(dataset=dataset).exists():
            raise already
        if dataset.scanned_at is None or Scan.objects.active().filter(root=str(settings.DATASET_ROOT)).exists():
            raise JobError(f"{dataset} is still being scanned.", "Wait until the scan has finished.")
        if dataset.state != Dataset.State.PRESENT:
            raise JobError(
                f"The folder of {dataset} was not there at the last scan.",
                "Bring the folder back below DATASET_ROOT and scan again.",
            )
        options = {"seed": seed, "image_size": image_size, "fit": fit}
        try:
            with transaction.atomic():
                preparation = cls.objects.create(dataset=dataset, created_by=by, **options)
                audit.record("dataset.prepare", dataset, actor=by, after={"preparation": preparation.pk, **options})
        except IntegrityError as error:
            # As for scans: two clicks at once.
            raise already from error
        return preparation


class PreparedImage(models.Model):
    """The split manifest: one row an image of a preparation, kept when the dataset changes later."""

    preparation = models.ForeignKey(Preparation, models.CASCADE, related_name="manifest")
    row = models.PositiveIntegerField(help_text="row in the pixel cache")
    path = models.CharField(max_length=700)
    digest = models.CharField(max_length=64)
    class_name = models.CharField(max_length=200)
    split = models.CharField(max_length=10)
    group = models.PositiveIntegerField(help_text="number of the patient (or the next best key) in this preparation")

    class Meta:
        ordering = ["preparation", "row"]
        constraints = [models.UniqueConstraint(fields=["preparation", "row"], name="one_manifest_row_per_image")]

    def __str__(self) -> str:
        return f"{self.path} ({self.split})"
