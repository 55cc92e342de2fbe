"""The evaluation of a version on images of a dataset, as a job."""

import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db import models, transaction
from django.urls import reverse

from datasets.models import Dataset, Preparation, Scan
from registry.models import Evaluation, ModelVersion
from registry.models.evaluation import remove_orphans
from xrayplatform import audit
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.teams import TeamScopedQuerySet, visible

from .. import choosing

# Nobody writes an evaluation for so long before its row is there.
ORPHANED_AFTER = timedelta(days=1)


class EvaluationRunQuerySet(JobQuerySet, TeamScopedQuerySet):
    """A run names a version and a dataset with its files: only who may see both sees it."""

    team_path = "version__condition__team"

    def visible_to(self, user: Any) -> "EvaluationRunQuerySet":
        return visible(super().visible_to(user), "dataset__condition__team", user)


class EvaluationRun(Job):
    """Measures a version on a part of a preparation, or on all images of a dataset."""

    class Part(models.TextChoices):
        TEST = "test", "Test part"
        VALIDATION = "validation", "Validation part"
        ALL = "all", "All images"

    task = "inference.tasks.evaluate"

    version = models.ForeignKey(ModelVersion, models.CASCADE, related_name="evaluation_runs", editable=False)
    dataset = models.ForeignKey(Dataset, models.PROTECT, related_name="evaluation_runs", editable=False)
    preparation = models.ForeignKey(
        Preparation, models.PROTECT, null=True, related_name="evaluation_runs", editable=False
    )
    part = models.CharField(max_length=10, choices=Part, default=Part.ALL, editable=False)
    problems = models.JSONField(default=list, editable=False, help_text="images that could not be read")
    evaluation = models.OneToOneField(Evaluation, models.CASCADE, null=True, related_name="run", editable=False)

    objects = EvaluationRunQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Evaluation of {self.version} on {self.dataset}"

    def get_absolute_url(self) -> str:
        return reverse("inference:evaluation-run-detail", args=[self.pk])

    @property
    def images_in_words(self) -> str:
        """What it measures on."""
        return f"{self.get_part_display()} of {self.preparation or self.dataset}"

    @property
    def audit_name(self) -> str:
        return "evaluation"

    @property
    def kind(self) -> str:
        """Of its own division, where the preparation divides the images as they were for the training."""
        own = self.preparation is not None and self.preparation.split_digest == self.version.split_digest
        if own and self.part != self.Part.ALL:
            return str(self.part)
        return Evaluation.Kind.EXTERNAL.value

    @classmethod
    def create(
        cls,
        version: ModelVersion,
        dataset: Dataset,
        by: Any,
        *,
        preparation: Preparation | None = None,
        part: str = "all",
    ) -> "EvaluationRun":
        """Create the row and its audit entry. Raises JobError when the version cannot be measured on these images."""
        reap()
        cls.require_possible(
            version, dataset, by, preparation=preparation, part=part, scanning=Scan.under_way().exists()
        )
        with transaction.atomic():
            # Nobody removes the pixels of a preparation between the look and the row; and of two clicks at once the
            # second waits here, and sees the first one's row.
            Dataset.objects.select_for_update().get(pk=dataset.pk)
            if (
                cls.objects.active()
                .filter(version=version, dataset=dataset, preparation=preparation, part=part)
                .exists()
            ):
                raise JobError(f"{version} is already being measured on these images.", "Wait until that has ended.")
            run = cls.objects.create(
                version=version, dataset=dataset, preparation=preparation, part=part, created_by=by
            )
            after = {"run": run.pk, "dataset": dataset.name, "part": part}
            after |= {"preparation": preparation.pk} if preparation else {}
            audit.record("evaluation.create", version, actor=by, after=after)
        return run

    @staticmethod
    def require_possible(
        version: ModelVersion, dataset: Dataset, by: Any, *, preparation: Preparation | None, part: str, scanning: bool
    ) -> None:
        """Raises JobError when the version cannot be measured on these images. scanning: a scan is under way."""
        _check_team(version, dataset, by)
        _check_part(version, dataset, preparation, part)
        _check_classes(version, dataset, preparation, part)
        if preparation is not None and choosing.has_pixels_for(preparation, version):
            return
        if dataset.scanned_at is None or dataset.state != Dataset.State.PRESENT:
            raise JobError(f"The folder of {dataset} was not there at the last scan.", "Bring it back and scan again.")
        if preparation is None:
            _check_scanned(dataset, scanning)

    @property
    def scratch(self) -> Path:
        """Where the images are decoded, if the preparation does not have them as this version sees them."""
        return Preparation.cache_root() / f"evaluation-{self.pk}"

    @classmethod
    def sweep(cls) -> None:
        """Remove answers that no evaluation names, and what killed jobs have decoded."""
        remove_orphans(time.time() - ORPHANED_AFTER.total_seconds())
        running = {str(pk) for pk in cls.objects.active().values_list("pk", flat=True)}
        for folder in Preparation.cache_root().glob("evaluation-*"):
            if folder.stem.removeprefix("evaluation-") not in running:
                shutil.rmtree(folder, ignore_errors=True)


def _check_team(version: ModelVersion, dataset: Dataset, by: Any) -> None:
    """Who sees the version sees what it was measured on: name, numbers and figures of the dataset."""
    team = dataset.condition.team
    if team is None or team == version.condition.team or by is None or by.is_superuser:
        return
    seen_by = version.condition.team or "every team"
    raise JobError(
        f"{dataset} belongs to {team}, and its name and figures would be seen by {seen_by}, like {version}.",
        "Choose a dataset of the version's own team, or ask an administrator.",
    )


def _check_part(version: ModelVersion, dataset: Dataset, preparation: Preparation | None, part: str) -> None:
    if preparation is None and part != EvaluationRun.Part.ALL:
        raise JobError(f"{dataset} is not prepared, so that it has no {part} part.", "Choose all of its images.")
    if preparation is None:
        return
    if preparation.dataset_id != dataset.pk:
        raise JobError(f"{preparation} is not one of {dataset}.", "Choose a preparation of the dataset.")
    if preparation.state != Job.State.SUCCEEDED:
        raise JobError(f"{preparation} has not finished.", "Wait for it, or choose another one.")
    if part == EvaluationRun.Part.VALIDATION and preparation.split_digest != version.split_digest:
        raise JobError(
            f"{version} was trained with another division of its images, so that this validation part means nothing "
            "to it.",
            "Choose the test part, or all images.",
        )


def _check_classes(version: ModelVersion, dataset: Dataset, preparation: Preparation | None, part: str) -> None:
    names = class_names(dataset, preparation, part)
    if not names:
        raise JobError("There are no images to measure on.", "Choose another part, or another dataset.")
    problem = choosing.class_problem(names, version.classes)
    if problem:
        raise JobError(problem, choosing.CLASS_ADVICE)


def _check_scanned(dataset: Dataset, scanning: bool) -> None:
    """What a preparation has settled must be settled where there is none."""
    if scanning:
        raise JobError("A scan is under way, so that images and labels may change.", "Wait until it has finished.")
    if dataset.is_asking:
        raise JobError(
            f"The structure of {dataset} can be read in more than one way.",
            "Answer the question on its page, then evaluate.",
        )


def class_names(dataset: Dataset, preparation: Preparation | None, part: str) -> list[str]:
    """The classes that these images have, in the words of the dataset or of the preparation."""
    if preparation is None:
        return [name for name, count in dataset.counts.items() if count]
    parts = preparation.counts if part == EvaluationRun.Part.ALL else {part: preparation.counts.get(part, {})}
    return list(dict.fromkeys(name for counts in parts.values() for name, count in counts.items() if count))
