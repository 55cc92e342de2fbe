"""Images that a user sends from the browser into a dataset folder, existing or new."""

import os
import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.urls import reverse
from django.utils import timezone

from xrayplatform import audit
from xrayplatform.jobs import Job, JobError, JobQuerySet, reap
from xrayplatform.system import GIB
from xrayplatform.teams import Team, TeamScopedQuerySet

from ..archives import MAX_NAME_BYTES, path_danger, same_name
from ..names import MAX_CLASS_NAME, MAX_DATASET_NAME, is_mask, shortened, split_of
from ..survey import HIDDEN
from .dataset import Dataset

# Files on their way in that no job has taken after so long never will be.
LEFT_OVER_AFTER = timedelta(days=1)
INCOMING = "incoming-"
# Of the folders below a dataset an upload may name: one for the split, one for the class, one for the patient.
MAX_CLASS_LEVELS = 3


class UploadQuerySet(JobQuerySet, TeamScopedQuerySet):
    def visible_to(self, user: Any) -> "UploadQuerySet":
        """Those into a dataset that the user sees. Before there is one: the creator's, and those of the own team."""
        if not user.is_authenticated:
            return self.none()
        if user.is_superuser:
            return self
        # Subqueries instead of joins: a user in two teams must not see a row twice.
        datasets = Dataset.objects.visible_to(user).values("pk")
        teams = Team.objects.filter(members=user).values("pk")
        own = models.Q(created_by=user) | models.Q(team__in=teams)
        return self.filter(models.Q(dataset__in=datasets) | models.Q(dataset__isnull=True) & own)


@dataclass(frozen=True)
class Quota:
    """Bytes that a team may add by uploads, and has added or is adding."""

    limit: int
    used: int

    @property
    def left(self) -> int:
        return max(self.limit - self.used, 0)


class Upload(Job):
    """Files sent for a dataset folder: received, checked one by one, and put there, all by one job."""

    task = "datasets.tasks.upload"

    dataset = models.ForeignKey(Dataset, models.PROTECT, null=True, related_name="uploads", editable=False)
    name = models.CharField(max_length=MAX_DATASET_NAME, editable=False, help_text="folder below DATASET_ROOT")
    class_folder = models.CharField(max_length=650, blank=True, editable=False, help_text="empty: as the zip says")
    team = models.ForeignKey(Team, models.SET_NULL, null=True, related_name="+", editable=False)
    files = models.PositiveIntegerField(default=0, editable=False, help_text="files and archives that were sent")
    size = models.BigIntegerField(default=0, editable=False, help_text="bytes: received, in the end those accepted")
    accepted = models.PositiveIntegerField(default=0, editable=False)
    refused = models.PositiveIntegerField(default=0, editable=False)
    refusals = models.JSONField(default=list, editable=False, help_text="name and reason of the first ones")
    notes = models.JSONField(default=list, editable=False, help_text="what is worth knowing, in sentences")

    objects = UploadQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["name"], condition=models.Q(state__in=Job.ACTIVE), name="one_active_upload_per_folder"
            )
        ]

    def __str__(self) -> str:
        return f"Upload {self.pk} into {self.name}"

    def get_absolute_url(self) -> str:
        return reverse("datasets:upload-detail", args=[self.pk])

    @staticmethod
    def root() -> Path:
        return Path(settings.MODEL_ROOT) / "uploads"

    @property
    def staging(self) -> Path:
        return self.root() / str(self.pk)

    @property
    def target(self) -> Path:
        return Path(settings.DATASET_ROOT) / self.name

    @property
    def found(self) -> Dataset | None:
        """The dataset that the files went into, or, for a new folder, what a scan has made of it."""
        return self.dataset or Dataset.objects.filter(name=self.name).first()

    @classmethod
    def quota(cls, team: Team | None, without: "Upload | None" = None) -> Quota:
        """What the team's uploads have added, also what was removed since by hand. Without a team: all such uploads."""
        counting = models.Q(state=Job.State.SUCCEEDED) | models.Q(state__in=Job.ACTIVE)
        uploads = cls.objects.filter(counting, team=team).exclude(pk=without and without.pk)
        used = uploads.aggregate(total=models.Sum("size"))["total"] or 0
        return Quota(int(settings.UPLOAD_QUOTA_GB * GIB), used)

    # -- Starting

    @classmethod
    def create(
        cls,
        inbox: Path,
        *,
        files: int,
        size: int,
        by: Any,
        dataset: Dataset | None = None,
        name: str = "",
        team: Team | None = None,
        class_folder: str = "",
    ) -> "Upload":
        """Create the row and its audit entry, and take over the folder of what was received. Raises JobError.

        dataset, or the name of a new folder and the team that it will belong to. files, size: how many and how many
        bytes there are in the inbox.
        """
        reap()
        cls.remove_left_over()
        name = dataset.name if dataset else checked_name(name)
        team = dataset.condition.team if dataset else team
        refusal = why_closed(dataset)
        if refusal:
            raise refusal
        class_folder = checked_class_folder(class_folder)
        _check_quota(cls.quota(team), size)
        try:
            with transaction.atomic():
                upload = cls.objects.create(
                    dataset=dataset,
                    name=name,
                    class_folder=class_folder,
                    team=team,
                    files=files,
                    size=size,
                    created_by=by,
                )
                after = {"folder": name, "class_folder": class_folder, "files": files, "bytes": size}
                audit.record("upload.create", upload, actor=by, after=after)
                inbox.rename(upload.staging)
        except IntegrityError as error:
            raise JobError(
                f"Another upload into {name} is under way.", "Wait until it has finished, or cancel it."
            ) from error
        return upload

    # -- Ending

    def request_cancel(self, by: Any) -> bool:
        asked = super().request_cancel(by)
        if not self.is_active:
            self.discard()
        return asked

    def discard(self) -> None:
        """Remove what was received; nothing in the dataset folder."""
        shutil.rmtree(self.staging, ignore_errors=True)

    @classmethod
    def remove_left_over(cls) -> None:
        """Remove what ended jobs left behind, and what has been lying there for a day without becoming a job."""
        if not cls.root().is_dir():
            return
        folders = {folder.name: folder for folder in cls.root().iterdir()}
        rows = cls.objects.filter(pk__in=[int(name) for name in folders if name.isdecimal()])
        states = {str(pk): state for pk, state in rows.values_list("pk", "state")}
        before = (timezone.now() - LEFT_OVER_AFTER).timestamp()
        for name, folder in folders.items():
            # Without a row it may be on its way in, or its row not committed yet.
            left_over = states[name] not in Job.ACTIVE if name in states else _changed(folder) < before
            if left_over:
                shutil.rmtree(folder, ignore_errors=True)

    # -- New folders

    @classmethod
    def adopt_found(cls) -> None:
        """Give datasets that a scan has found in uploaded folders to the teams that uploaded them.

        A dataset found for the first time has a condition of its own, which every team sees.
        """
        for upload in cls.objects.filter(dataset=None, state=Job.State.SUCCEEDED).select_related("team", "created_by"):
            inside = models.Q(name=upload.name) | models.Q(name__startswith=f"{upload.name}/")
            for dataset in Dataset.objects.filter(inside).select_related("condition"):
                upload.adopt(dataset)

    def adopt(self, dataset: Dataset) -> None:
        with transaction.atomic():
            if self.team and dataset.condition.team is None and dataset.condition.datasets.count() == 1:
                dataset.condition.team = self.team
                dataset.condition.save(update_fields=["team"])
            Upload.objects.filter(pk=self.pk, dataset=None).update(dataset=dataset)
            after = {"dataset": dataset.name, "team": str(self.team or "")}
            audit.record("upload.adopt", self, actor=self.created_by, after=after)


def why_closed(dataset: Dataset | None) -> JobError | None:
    """Why nothing can be uploaded into the dataset (None: into a new folder); None when it can."""
    read_only = dataset.is_read_only if dataset else settings.DATASET_READ_ONLY or not _root_is_writable()
    if dataset and (dataset.state != Dataset.State.PRESENT or not dataset.folder.is_dir()):
        return JobError(f"The folder of {dataset} is not there.", "Bring it back and scan again, then upload.")
    if read_only:
        return JobError(
            f"The folder of {dataset} is read-only here." if dataset else "The dataset folder cannot be written to.",
            "IT mounts it that way; ask them to put the images there, then scan.",
        )
    return None


def _root_is_writable() -> bool:
    return os.access(settings.DATASET_ROOT, os.W_OK)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _check_quota(quota: Quota, size: int) -> None:
    if size > quota.left:
        raise JobError(
            f"The upload has {size / GIB:.2f} GB, but of the {quota.limit / GIB:g} GB that the team may upload only "
            f"{quota.left / GIB:.2f} GB are left.",
            "Upload less, or ask an administrator to raise UPLOAD_QUOTA_GB.",
        )


# -- Names of folders that users choose


def checked_name(name: str) -> str:
    """The name of a new dataset folder, one or two levels below DATASET_ROOT. Raises JobError."""
    name = "/".join(part.strip() for part in name.strip().strip("/").split("/"))
    parts = name.split("/")
    problem = _folder_problem(name) or ("has more than two levels" if len(parts) > 2 else "")
    if not problem and (split_of(parts[-1]) or is_mask(parts[-1])):
        problem = "is what a part of a dataset is called"
    if problem:
        raise JobError(f"The name of the new folder {problem}: {shortened(name) or 'empty'}.", NEW_NAME_HINT)
    _check_free(parts)
    return name


NEW_NAME_HINT = "Give it a name like CHEST/new study: a plain name, and if you like a body part above it."


def _check_free(parts: list[str]) -> None:
    """The folder must be new, and in no folder that is a dataset itself: its images would become part of that."""
    above = [".", *("/".join(parts[:depth]) for depth in range(1, len(parts)))]
    holder = Dataset.objects.filter(name__in=above).first()
    if holder:
        raise JobError(
            f"The folder {holder.name} is a dataset itself, so a new one cannot lie in it.", "Choose another place."
        )
    folder = Path(settings.DATASET_ROOT)
    for depth, part in enumerate(parts):
        present = {same_name(entry.name): entry for entry in folder.iterdir()} if folder.is_dir() else {}
        entry = present.get(same_name(part))
        is_last = depth == len(parts) - 1
        if entry and (is_last or entry.name != part or entry.is_symlink() or not entry.is_dir()):
            raise JobError(
                f"There is already something called {shortened(entry.name)}.",
                "Choose another name; into a dataset that you see upload on its own page.",
            )
        folder = folder / part


def checked_class_folder(folder: str) -> str:
    """The folder below the dataset that images go into, such as "train/NORMAL"; "" as it is. Raises JobError."""
    folder = "/".join(part.strip() for part in folder.strip().strip("/").split("/"))
    if not folder:
        return ""
    problem = _folder_problem(folder)
    if not problem and len(folder.split("/")) > MAX_CLASS_LEVELS:
        problem = f"has more than {MAX_CLASS_LEVELS} levels"
    if not problem and is_mask(folder.rpartition("/")[2]):
        problem = "is what a folder of masks is called"
    if problem:
        raise JobError(f"The name of the class folder {problem}: {shortened(folder)}.", "Choose a plain name.")
    return folder


def _folder_problem(folder: str) -> str:
    """What is wrong with the path of a folder, to follow "the name"; "" when nothing is."""
    parts = folder.split("/")
    danger = path_danger(folder)
    if danger:
        return danger
    if any(part.startswith(HIDDEN) for part in parts):
        return "is that of a hidden folder"
    if any(part.endswith(".") for part in parts):
        return "ends with a dot"
    if any(char in part for part in parts for char in ':*?"<>|'):
        return 'has one of the characters : * ? " < > |, which other computers cannot store'
    if len(folder) > MAX_DATASET_NAME or any(_too_long(part) for part in parts):
        return "is too long"
    return ""


def _too_long(part: str) -> bool:
    return len(part) > MAX_CLASS_NAME or len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES
