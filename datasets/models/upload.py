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
from ..placing import JOURNAL, Journal
from ..survey import HIDDEN
from .dataset import Dataset

# Files on their way in that no job has taken after so long never will be.
LEFT_OVER_AFTER = timedelta(days=1)
INCOMING = "incoming-"
# Owns a dataset that has come of the folders of several teams, until an administrator says whose it is.
SEVERAL_TEAMS = "Images of several teams"
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
    # Protected: with its team the upload would lose who may see what a scan finds in its folder.
    team = models.ForeignKey(Team, models.PROTECT, null=True, related_name="+", editable=False)
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
    def journal(self) -> Path:
        """What the job has put into the dataset folder; see `placing`."""
        return self.staging / JOURNAL

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
        """Remove what was received, and from the dataset folder what a job that did not succeed has left there."""
        succeeded = Upload.objects.filter(pk=self.pk, state=Job.State.SUCCEEDED).exists()
        # Where the folder is not to be reached now, the journal stays for the next time.
        if succeeded or not self.journal.exists() or self._is_undone():
            shutil.rmtree(self.staging, ignore_errors=True)

    def _is_undone(self) -> bool:
        return Path(settings.DATASET_ROOT).is_dir() and Journal.read(self.journal, self.target).undo()

    @classmethod
    def remove_left_over(cls) -> None:
        """Remove what ended jobs left behind, and what has been lying there for a day without becoming a job."""
        if not cls.root().is_dir():
            return
        folders = {folder.name: folder for folder in cls.root().iterdir()}
        rows = cls.objects.filter(pk__in=[int(name) for name in folders if name.isdecimal()])
        uploads = {str(upload.pk): upload for upload in rows}
        before = (timezone.now() - LEFT_OVER_AFTER).timestamp()
        for name, folder in folders.items():
            if name in uploads:
                if not uploads[name].is_active:
                    uploads[name].discard()
            # Without a row it may be on its way in, or its row not committed yet.
            elif _changed(folder) < before:
                shutil.rmtree(folder, ignore_errors=True)

    # -- New folders

    @classmethod
    def adopt(cls, dataset: Dataset) -> None:
        """Give a dataset found for the first time to the team in whose uploaded folder it lies, if it lies in one.

        It has a condition of its own, which without a team everybody sees. To be called in the transaction that creates
        it: what a team uploaded is visible to no other, not even while it is scanned.
        """
        upload = cls._around(dataset.name)
        below = [] if upload else cls._below(dataset.name)
        if upload:
            cls.objects.filter(pk=upload.pk, dataset=None).update(dataset=dataset)
            team = upload.team
        elif below:
            upload, team = below[0], _team_of_all(dataset, below)
        else:
            return
        dataset.condition.team = team
        dataset.condition.save(update_fields=["team"])
        after = {"dataset": dataset.name, "team": str(team)}
        audit.record("upload.adopt", upload, actor=upload.created_by, after=after)

    @classmethod
    def _around(cls, name: str) -> "Upload | None":
        """The upload of a team whose folder this is or lies in: the innermost, of those the newest."""
        uploads = cls._with_files().filter(name__in=_at_or_above(name))
        return max(uploads, key=lambda upload: (len(upload.name), upload.pk), default=None)

    @classmethod
    def _below(cls, name: str) -> list["Upload"]:
        """Uploads of teams whose folders lie in this one: beside others they may be read as classes of one dataset."""
        return list(cls._with_files().filter(_lies_in(name)))

    @classmethod
    def _with_files(cls) -> models.QuerySet:
        """Those of teams that have put files into their folders, are about to, or may have until a moment ago.

        A scan may have seen the files of one that has just failed.
        """
        recently = models.Q(finished_at__gte=timezone.now() - LEFT_OVER_AFTER, started_at__isnull=False)
        placing = models.Q(state__in=[*Job.ACTIVE, Job.State.SUCCEEDED])
        return cls.objects.filter(placing | recently).exclude(team=None).select_related("team", "created_by")

    @classmethod
    def adopt_found(cls) -> None:
        """Tell uploads into new folders, which have no dataset yet, what a scan has found there."""
        for upload in cls.objects.filter(dataset=None, state=Job.State.SUCCEEDED):
            inside = models.Q(name=upload.name) | _lies_in(upload.name)
            cls.objects.filter(pk=upload.pk, dataset=None).update(dataset=Dataset.objects.filter(inside).first())


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


def _team_of_all(dataset: Dataset, uploads: list[Upload]) -> Team | None:
    """The team of all uploads and datasets in the dataset's folder; of several, one that nobody is in."""
    datasets = Dataset.objects.filter(_lies_in(dataset.name)).exclude(condition__team=None)
    teams = {upload.team_id for upload in uploads} | set(datasets.values_list("condition__team", flat=True))
    return uploads[0].team if len(teams) == 1 else Team.objects.get_or_create(name=SEVERAL_TEAMS)[0]


def _lies_in(name: str) -> models.Q:
    return ~models.Q(name=".") if name == "." else models.Q(name__startswith=f"{name}/")


def _at_or_above(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


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


def checked_name(name: str, without: Upload | None = None) -> str:
    """The name of a new dataset folder, one or two levels below DATASET_ROOT. Raises JobError.

    without: the upload that asks for it.
    """
    name = "/".join(part.strip() for part in name.strip().strip("/").split("/"))
    parts = name.split("/")
    problem = _folder_problem(name) or ("has more than two levels" if len(parts) > 2 else "")
    if not problem and (split_of(parts[-1]) or is_mask(parts[-1])):
        problem = "is what a part of a dataset is called"
    if problem:
        raise JobError(f"The name of the new folder {problem}: {shortened(name) or 'empty'}.", NEW_NAME_HINT)
    check_free(name, without)
    _check_free_on_disk(parts)
    return name


NEW_NAME_HINT = "Give it a name like CHEST/new study: a plain name, and if you like a body part above it."
# Whose it is, and whether it is a folder, a dataset or an upload, is not for everybody.
NAME_TAKEN = ("The name is taken.", "Choose another name; into a dataset that you see upload on its own page.")


def check_free(name: str, without: Upload | None = None) -> None:
    """The name must be new: neither in nor around a dataset or an upload. Raises JobError.

    Also of a dataset whose folder is not there: when it comes back, the images would be in it.
    """
    datasets = Dataset.objects.values_list("name", flat=True)
    if any(_overlap(name, other) for other in [*datasets.iterator(), *_names_of_uploads(without)]):
        raise JobError(*NAME_TAKEN)


def _names_of_uploads(without: Upload | None) -> models.QuerySet:
    """Names that uploads have; of two at a time the first has it."""
    uploads = Upload.objects.filter(state__in=[*Job.ACTIVE, Job.State.SUCCEEDED])
    if without:
        uploads = uploads.exclude(pk=without.pk).exclude(pk__gt=without.pk, state__in=Job.ACTIVE)
    return uploads.values_list("name", flat=True).distinct().order_by()


def _overlap(name: str, other: str) -> bool:
    """Whether one is the other or lies in it, however they are spelled. The root, ".", holds everything."""
    one, two = f"{same_name(name)}/", f"{same_name(other)}/"
    return other == "." or one.startswith(two) or two.startswith(one)


def _check_free_on_disk(parts: list[str]) -> None:
    folder = Path(settings.DATASET_ROOT)
    for depth, part in enumerate(parts):
        present = {same_name(entry.name): entry for entry in folder.iterdir()} if folder.is_dir() else {}
        entry = present.get(same_name(part))
        is_last = depth == len(parts) - 1
        if entry and (is_last or entry.name != part or entry.is_symlink() or not entry.is_dir()):
            raise JobError(*NAME_TAKEN)
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
