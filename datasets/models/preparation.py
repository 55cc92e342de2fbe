"""A dataset frozen for training: which image is in which split, and where their decoded pixels lie."""

import shutil
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils import timezone

from xrayplatform import audit
from xrayplatform.jobs import Job, JobError, JobQuerySet, active_jobs_of, reap
from xrayplatform.teams import TeamScopedQuerySet

from ..cache import is_usable
from ..enhancement import STEPS, ordered
from .dataset import Dataset
from .scan import Scan

MAX_SEED = 2**31 - 1
# Smallest and largest value of what can be chosen freely.
# Of all images, for validation and test together.
MAX_HELD_BACK = 0.60
FIELD_LIMITS = {"seed": (0, MAX_SEED), "validation_share": (0.05, 0.40), "test_share": (0.05, 0.40)}


class PreparationQuerySet(JobQuerySet, TeamScopedQuerySet):
    team_path = "dataset__condition__team"

    def with_pixels(self) -> "PreparationQuerySet":
        """Those that still take up space with decoded pixels."""
        return self.filter(state=Job.State.SUCCEEDED, removed_at__isnull=True)


class Preparation(Job):
    """A dataset frozen for training: which image is in which split, and their pixels decoded once."""

    class Fit(models.TextChoices):
        AUTO = "auto", "Automatic"
        PAD = "pad", "Keep the proportions"
        STRETCH = "stretch", "Squeeze to a square"

    class SourceSplits(models.TextChoices):
        HONOUR = "honour", "Keep the folders' division, and mend it"
        IGNORE = "ignore", "Divide all images anew"

    task = "datasets.tasks.prepare"

    dataset = models.ForeignKey(Dataset, models.PROTECT, related_name="preparations", editable=False)
    seed = models.PositiveIntegerField(default=0)
    image_size = models.PositiveSmallIntegerField(default=224)
    fit = models.CharField(max_length=10, choices=Fit, default=Fit.AUTO, help_text="how images become square")
    steps = models.JSONField(default=list, editable=False, help_text="preprocessing beyond the usual, by name")
    validation_share = models.FloatField(default=0.15, help_text="of the images")
    test_share = models.FloatField(default=0.15, help_text="of the images")
    source_splits = models.CharField(max_length=10, choices=SourceSplits, default=SourceSplits.HONOUR)
    pattern = models.CharField(max_length=200, blank=True, help_text="of the patient in file names; empty: built-in")
    classes = models.JSONField(default=list, editable=False)
    positive_class = models.CharField(max_length=200, blank=True, editable=False)
    ordinal = models.BooleanField(default=False, editable=False)
    synthetic = models.BooleanField(default=False, editable=False)
    class_choices = models.JSONField(default=dict, editable=False, help_text="class used by class found")
    pipeline = models.JSONField(default=dict, editable=False)
    group_key = models.CharField(max_length=100, blank=True, editable=False)
    group_description = models.TextField(blank=True, editable=False)
    group_counts = models.JSONField(default=dict, editable=False, help_text="patients (or next best keys) per split")
    counts = models.JSONField(default=dict, editable=False, help_text="images per split and class")
    class_weights = models.JSONField(default=dict, editable=False)
    warnings = models.JSONField(default=list, editable=False)
    shared_patients = models.PositiveIntegerField(null=True, editable=False)
    excluded = models.PositiveIntegerField(default=0, editable=False)
    left_out = models.JSONField(default=dict, editable=False, help_text="images left out, by reason")
    dataset_digest = models.CharField(max_length=64, blank=True, editable=False)
    split_digest = models.CharField(max_length=64, blank=True, editable=False)
    cache_digest = models.CharField(max_length=64, blank=True, editable=False)
    cache_bytes = models.BigIntegerField(default=0, editable=False)
    pixels = models.CharField(max_length=80, blank=True, editable=False, help_text="folder that preparations may share")
    removed_at = models.DateTimeField(null=True, editable=False, help_text="when the decoded pixels were removed")

    objects = PreparationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["dataset"], condition=models.Q(state__in=Job.ACTIVE), name="one_active_preparation_per_dataset"
            )
        ]
        permissions = [("remove_pixels", "Can remove the decoded pixels of preparations")]

    def __str__(self) -> str:
        return f"Preparation {self.pk} of {self.dataset}"

    def get_absolute_url(self) -> str:
        return reverse("datasets:preparation-detail", args=[self.pk])

    @staticmethod
    def cache_root() -> Path:
        return Path(settings.MODEL_ROOT) / "cache"

    @property
    def cache_folder(self) -> Path:
        return self.cache_root() / f"preparation-{self.pk}"

    @property
    def is_ready(self) -> bool:
        """Whether a training can begin: also one of an earlier release may have pixels that this one cannot read."""
        return self.state == self.State.SUCCEEDED and is_usable(self.cache_folder)

    @property
    def patients_are_known(self) -> bool:
        """Whether anything but the pictures themselves told patients apart, for most images."""
        return self.group_key not in ("image", "near-duplicate")

    @property
    def steps_in_words(self) -> list[str]:
        """What happened to the pixels beyond the usual, in order."""
        return [STEPS.get(step, step) for step in self.pipeline.get("steps", [])]

    def split_total(self, split: str) -> int:
        return sum(self.counts.get(split, {}).values())

    @property
    def split_rows(self) -> list[dict[str, Any]]:
        """One row a split for pages: name, images per class in class order, total, patients (None: not counted)."""
        return [
            {
                "split": split,
                "counts": [self.counts.get(split, {}).get(name, 0) for name in self.classes],
                "total": self.split_total(split),
                "groups": self.group_counts.get(split),
            }
            for split in ("train", "validation", "test")
        ]

    @classmethod
    def create(cls, dataset: Dataset, by: Any, **options: Any) -> "Preparation":
        """Create the row and its audit entry. Raises JobError when the dataset cannot be prepared now.

        What the team chose (classes, pattern) is taken when the work begins, all of one moment.

        options: seed, image_size, fit, steps, validation_share, test_share, source_splits; what is missing has its
        default.
        """
        reap()
        _check_options(options)
        if "steps" in options:
            options["steps"] = _checked_steps(options["steps"])
        already = JobError(f"{dataset} is already being prepared.", "Wait until it has finished, or cancel it.")
        try:
            with transaction.atomic():
                # Nobody removes pixels between the look and the row.
                _check_dataset(Dataset.objects.select_for_update().get(pk=dataset.pk))
                if cls.objects.active().filter(dataset=dataset).exists():
                    raise already
                preparation = cls.objects.create(dataset=dataset, created_by=by, **options)
                audit.record("dataset.prepare", dataset, actor=by, after={"preparation": preparation.pk, **options})
        except IntegrityError as error:
            # As for scans: two clicks at once.
            raise already from error
        return preparation

    # -- Space

    def remove_pixels(self, *, by: Any) -> int:
        """Delete the decoded pixels; the split and its proof stay. Returns the bytes that became free.

        Pixels that another preparation uses as well stay for it. Raises JobError while a job uses this one.
        """
        with transaction.atomic():
            self._check_unused()
            if not Preparation.objects.with_pixels().filter(pk=self.pk).update(removed_at=timezone.now()):
                raise JobError(f"{self} has no decoded pixels.", "Nothing needs to be removed.")
            audit.record("preparation.remove_pixels", self, actor=by, before={"bytes": self.cache_bytes})
            # Under the lock only renamed: what is created from now on does not find them.
            removed = [_moved_away(folder) for folder in self._own_folders() if folder.is_dir()]
        freed = sum(path.stat().st_size for folder in removed for path in folder.glob("*") if path.is_file())
        for folder in removed:
            shutil.rmtree(folder, ignore_errors=True)
        self.refresh_from_db()
        return freed

    def hold(self) -> None:
        """Call it in the transaction that creates a job with this preparation: its pixels are not removed meanwhile.

        Raises JobError when they were removed just before.
        """
        Dataset.objects.select_for_update().get(pk=self.dataset_id)
        if not Preparation.objects.with_pixels().filter(pk=self.pk).exists():
            raise JobError(f"{self} has no decoded pixels any more.", "Prepare the dataset again.")

    def _check_unused(self) -> None:
        """Lock the dataset, as whoever creates a job does, and look at the jobs that there are."""
        Dataset.objects.select_for_update().get(pk=self.dataset_id)
        if self.is_active or active_jobs_of(self):
            raise JobError(f"{self} is in use by a job.", "Wait until the job has ended, or cancel it.")
        if Preparation.objects.active().filter(dataset=self.dataset_id).exists():
            # It may be about to use the same pixels.
            raise JobError(f"{self.dataset} is being prepared.", "Wait until that has finished, or cancel it.")

    def _own_folders(self) -> list[Path]:
        """What no other preparation needs."""
        shared = Preparation.objects.with_pixels().exclude(pk=self.pk).filter(pixels=self.pixels).exists()
        return (
            [self.cache_folder] if shared or not self.pixels else [self.cache_folder, self.cache_root() / self.pixels]
        )

    @classmethod
    def unused_since(cls, moment: Any) -> "PreparationQuerySet":
        """Preparations with pixels that ended before `moment` and are not the newest of their dataset."""
        newest = cls.objects.with_pixels().filter(dataset=models.OuterRef("dataset")).order_by("-pk").values("pk")[:1]
        older = cls.objects.with_pixels().annotate(ended=Coalesce("finished_at", "created_at"))
        return older.filter(ended__lt=moment).exclude(pk=models.Subquery(newest))


def _moved_away(folder: Path) -> Path:
    target = folder.with_name(folder.name + ".removed")
    shutil.rmtree(target, ignore_errors=True)
    return folder.rename(target)


def _check_options(options: dict[str, Any]) -> None:
    for name, (low, high) in FIELD_LIMITS.items():
        value = options.get(name, low)
        if not low <= value <= high:
            raise JobError(f"The {name.replace('_', ' ')} must be from {low} to {high}, not {value}.")
    held_back = options.get("validation_share", 0) + options.get("test_share", 0)
    if held_back > MAX_HELD_BACK:
        raise JobError(
            f"Validation and test share are {held_back:.2f} together, at most {MAX_HELD_BACK:.2f} can be held back.",
            "Leave more images to learn from.",
        )


def _checked_steps(steps: list[str]) -> list[str]:
    try:
        return list(ordered(steps))
    except ValueError as error:
        raise JobError(str(error)) from error


def _check_dataset(dataset: Dataset) -> None:
    if dataset.scanned_at is None or Scan.under_way().exists():
        raise JobError(f"{dataset} is still being scanned.", "Wait until the scan has finished.")
    if dataset.state != Dataset.State.PRESENT:
        raise JobError(
            f"The folder of {dataset} was not there at the last scan.",
            "Bring the folder back below DATASET_ROOT and scan again.",
        )
    if dataset.is_asking:
        raise JobError(
            f"The structure of {dataset} can be read in more than one way.",
            "Answer the question on its page, then prepare it.",
        )
    if dataset.question and dataset.answer != dataset.question.get("used", dataset.answer):
        raise JobError(
            f"The question about the structure of {dataset} was answered after the last scan.",
            "Scan again, so that the answer is used, then prepare it.",
        )


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
