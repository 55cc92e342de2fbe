"""Immutable model versions, and how one of them goes into service."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

from .. import announcing, artifacts, backups
from ..reports import Question
from .deleted import DeletedVersion
from .deployment import (
    ActivationConflict,
    ActivationError,
    Deployment,
    in_service,
    require_another_person,
    require_two_persons,
)
from .evaluation import Evaluation, Measured
from .integrity import BEGIN_ANEW, NOT_THERE, UNUSABLE, IntegrityCheck, models_are_missing
from .label import MOST_TAGS, LabelError, VersionNote, VersionTag, tidy_note, tidy_tag
from .scheduled import planned
from .state_change import StateChange, StateError, known, record_refusal, require_reason
from .threshold_set import ThresholdSet

# What another app wants to be proved of a version before it goes into service (inference: that it loads and answers
# as it did when it was saved). A check raises ActivationError.
ACTIVATION_CHECKS: list[Callable[["ModelVersion"], None]] = []
# What is done with versions just now, in words ("it answers in experiment 4"), by primary key, asked for all of a
# query at once: while they do, a version is neither archived nor deleted.
USES: list[Callable[[models.QuerySet], Mapping[int, Sequence[str]]]] = [in_service, planned]


class ModelVersionQuerySet(TeamScopedQuerySet):
    team_path = "condition__team"

    def numbered(self, condition: str, number: int) -> "ModelVersion":
        """A version by its condition's slug and its number. Raises DoesNotExist, naming those there are."""
        versions = self.select_related("condition")
        version = versions.filter(condition__slug=condition, number=number).first()
        if version is None:
            known = ", ".join(str(known) for known in versions.order_by("pk")) or "none; train one first"
            raise ModelVersion.DoesNotExist(f"There is no version {number} of {condition!r}. Known versions: {known}.")
        return version

    def to_start_from(self, user: Any) -> "ModelVersionQuerySet":
        """The versions whose weights a training of `user` may start from."""
        return self.visible_to(user).exclude(state=ModelVersion.State.ARCHIVED).select_related("condition")

    def with_activity(self) -> "ModelVersionQuerySet":
        """Annotated with `is_active`: in service for its condition."""
        return self.annotate(is_active=models.Exists(Deployment.objects.filter(active=models.OuterRef("pk"))))

    def for_list(self) -> "ModelVersionQuerySet":
        """With what lists show of each version; the figures of its epochs, the longest of it, stay in the database."""
        versions = self.select_related("condition", "created_by", "integrity").prefetch_related("tags")
        return versions.defer("history").with_activity()

    def register(
        self,
        condition: Condition,
        staged: Path,
        *,
        sha256: str,
        manifest: dict[str, Any],
        by: Any,
        measured: Sequence[Measured] = (),
        **fields: Any,
    ) -> "ModelVersion":
        """Give a staged artifact folder the condition's next number and move it into the registry.

        measured: what it was measured on; these evaluations appear with it.

        The row, the folder and the audit entry appear together: the condition is locked until the commit, so that
        no number is given twice, and a folder that a crash left under an unused number is replaced. Raises
        ArtifactError (missing) when the disk of the models is not there: the version would be lost below it, and all
        others would be taken for damaged.
        """
        with transaction.atomic():
            Condition.objects.select_for_update().get(pk=condition.pk)
            if models_are_missing():
                raise artifacts.ArtifactError("missing", f"{NOT_THERE} No version was added. {BEGIN_ANEW}")
            version = ModelVersion(
                condition=condition,
                number=self._next_number(condition),
                sha256=sha256,
                architecture=manifest["architecture"],
                image_size=manifest["image_size"],
                classes=manifest["classes"],
                positive_class=manifest["positive_class"] or "",
                preprocessing=manifest["preprocessing"],
                threshold=manifest["threshold"],
                temperature=manifest["temperature"],
                metrics=manifest["metrics"]["test"],
                validation_metrics=manifest["metrics"]["validation"],
                configuration=manifest["configuration"],
                history=manifest.get("history", []),
                initial_weights=manifest["initial_weights"],
                environment=manifest["environment"],
                created_by=by,
                **fields,
            )
            artifacts.place(staged, version.folder)
            version.size = sum(path.stat().st_size for path in version.folder.rglob("*") if path.is_file())
            version.save()
            audit.record("version.register", version, actor=by, after={"sha256": sha256})
            for one in measured:
                Evaluation.objects.store(version, one, by=by)
            announcing.tell_new_version(version)
        return version

    def _next_number(self, condition: Condition) -> int:
        """One more than any that was ever given, to a version that was deleted as well."""
        given = [self.filter(condition=condition), DeletedVersion.objects.filter(condition=condition)]
        return 1 + max(rows.aggregate(models.Max("number"))["number__max"] or 0 for rows in given)


class ModelVersion(Immutable):
    """One trained model of a condition. Its content never changes; only `state` does."""

    class State(models.TextChoices):
        CANDIDATE = "candidate", "Candidate"
        APPROVED = "approved", "Approved"
        ARCHIVED = "archived", "Archived"

    mutable_fields = frozenset({"state"})
    deletable_when = "EXISTS (SELECT 1 FROM registry_deletedversion WHERE version_key = OLD.id)"

    condition = models.ForeignKey(Condition, models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    architecture = models.CharField(max_length=60)
    image_size = models.PositiveSmallIntegerField()
    classes = models.JSONField()
    positive_class = models.CharField(max_length=200, blank=True)
    preprocessing = models.JSONField()
    threshold = models.FloatField(null=True)
    temperature = models.FloatField(default=1.0)
    metrics = models.JSONField(help_text="on the locked test part")
    validation_metrics = models.JSONField(default=dict, help_text="on the part that chose epoch and threshold")
    accuracy = models.FloatField(null=True, help_text="test accuracy, for search and order")
    auc = models.FloatField(null=True, help_text="test area under the ROC curve, for search and order")
    configuration = models.JSONField()
    history = models.JSONField(default=list, help_text="figures of each epoch of the training")
    initial_weights = models.CharField(max_length=100)
    environment = models.JSONField()
    sha256 = models.CharField(max_length=64, help_text="of the manifest, which lists every file's own digest")
    size = models.BigIntegerField(help_text="bytes")
    parent = models.ForeignKey("self", models.PROTECT, null=True, blank=True, related_name="children")
    dataset_name = models.CharField(max_length=400)
    dataset_digest = models.CharField(max_length=64)
    split_digest = models.CharField(max_length=64)
    synthetic = models.BooleanField(default=False, help_text="trained on synthetic sample images")
    origin = models.CharField(max_length=200)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    state = models.CharField(max_length=10, choices=State, default=State.CANDIDATE)

    objects = ModelVersionQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["condition", "number"], name="one_version_per_number")]
        indexes = [
            # All that lists are filtered and sorted by, so that they need not read the rows, which are a hundred times
            # as wide.
            models.Index(
                fields=[
                    "condition", "state", "architecture", "created_at", "created_by", "accuracy", "auc", "number",
                    "size", "dataset_name", "sha256",
                ],
                name="versions_as_listed",
            )
        ]  # fmt: skip
        permissions = [
            ("activate_modelversion", "Can put a version in service"),
            ("export_modelversion", "Can take a version along as a file"),
            ("change_state_modelversion", "Can approve, archive and reopen a version"),
            ("label_modelversion", "Can tag a version and write notes about it"),
        ]

    def __str__(self) -> str:
        return f"{self.condition.slug} v{self.number}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if self._state.adding:
            self.accuracy, self.auc = self.metrics.get("accuracy"), self.metrics.get("auc")
        super().save(*args, **kwargs)

    def get_absolute_url(self) -> str:
        return reverse("registry:version-detail", args=[self.pk])

    @property
    def folder(self) -> Path:
        return Path(settings.MODEL_ROOT) / "registry" / self.condition.slug / str(self.number)

    @property
    def lineage(self) -> "Iterator[ModelVersion]":
        """The version, the one whose weights it started from, and so on."""
        one: ModelVersion | None = self
        while one is not None:
            yield one
            one = one.parent

    @property
    def question(self) -> Question:
        """What it was trained to answer, and how its answers become decisions."""
        return Question(
            classes=tuple(self.classes),
            positive_class=self.positive_class,
            threshold=self.threshold,
            temperature=self.temperature,
            ordinal="quadratic_kappa" in self.metrics,
        )

    @property
    def curves(self) -> dict[str, list[Any]]:
        """The figures of the training's epochs, one list a quantity; empty for versions whose training kept none."""
        names = dict.fromkeys(name for row in self.history for name in row)
        return {name: [row.get(name) for row in self.history] for name in names}

    # -- Integrity

    def verify(self, *, by: Any = None) -> IntegrityCheck:
        """Look at every file now and keep what was found; damage is told to people once.

        Where the files of all versions are gone, nothing is kept of this one: the disk is not mounted.
        Large files are read without a lock. A restoration may put them back meanwhile: then they are read again.
        """
        while True:
            folder = self._folder_now()
            damage = self._damage()
            if damage is not None and models_are_missing():
                return IntegrityCheck.objects.of_missing_models(self)
            with transaction.atomic():
                Condition.objects.select_for_update().get(pk=self.condition_id)
                if damage is None or folder == self._folder_now():
                    return IntegrityCheck.objects.note(self, damage, by=by)

    def report_unusable(self, message: str) -> None:
        """Keep, and tell once, that a process that was to answer with this version could not load it."""
        if self.verify().is_damaged:
            return
        try:
            self._prove()
        except ActivationError:
            IntegrityCheck.objects.note(self, artifacts.ArtifactError(UNUSABLE, message))

    def restore(self, *, by: Any) -> IntegrityCheck:
        """Put the files back from the backup. Raises BackupError; a version that is whole stays as it is."""
        if not self.verify(by=by).is_damaged:
            raise backups.BackupError(f"{self} is whole; there is nothing to restore.")
        staged = staging_folder(f"restore-{self.pk}-{uuid.uuid4().hex[:8]}")
        backups.stage(self, staged)
        with transaction.atomic():
            Condition.objects.select_for_update().get(pk=self.condition_id)
            if not type(self).objects.filter(pk=self.pk).exists():
                shutil.rmtree(staged, ignore_errors=True)
                raise backups.BackupError(f"{self} was deleted meanwhile.")
            artifacts.place(staged, self.folder)
            audit.record("version.restore", self, actor=by, after={"sha256": self.sha256})
        return self.verify(by=by)

    def _folder_now(self) -> tuple[int, int] | None:
        """What tells the folder from another one that took its place; None where there is none."""
        try:
            found = self.folder.stat()
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns

    def _damage(self) -> artifacts.ArtifactError | None:
        """What is wrong with the files; of a version that could not be put to work also whether that is so still."""
        try:
            artifacts.load(self.folder, self.sha256)
            if IntegrityCheck.objects.filter(version=self, reason=UNUSABLE).exists():
                self._prove()
        except artifacts.ArtifactError as error:
            return error
        except ActivationError as error:
            return artifacts.ArtifactError(UNUSABLE, str(error))
        return None

    def _prove(self) -> None:
        for check in ACTIVATION_CHECKS:
            check(self)

    # -- State

    def approve(self, *, by: Any, reason: str) -> StateChange:
        """Say that this version may go into service. Raises StateError; with TWO_PERSON_RULE for who trained it."""
        return self._change_state(self.State.APPROVED, "version.approve", by=by, reason=reason)

    def archive(self, *, by: Any, reason: str) -> StateChange:
        """Put it away: it is listed no more by default and cannot go into service. Raises StateError while in use."""
        return self._change_state(self.State.ARCHIVED, "version.archive", by=by, reason=reason)

    def reopen(self, *, by: Any, reason: str) -> StateChange:
        """Make it a candidate again, whether it was archived or approved. Raises StateError."""
        return self._change_state(self.State.CANDIDATE, "version.reopen", by=by, reason=reason)

    def _change_state(self, state: str, action: str, *, by: Any, reason: str) -> StateChange:
        try:
            kept = require_reason(reason)
            with transaction.atomic():
                # An activation holds the same lock, so that nothing in service is archived.
                Condition.objects.select_for_update().get(pk=self.condition_id)
                self._refresh_state()
                self._require_change(self.State(state), by)
                before, self.state = self.state, state
                self.save(update_fields=["state"])
                change = StateChange.objects.create(
                    version=self, from_state=before, to_state=state, reason=kept, by=known(by)
                )
                announcing.tell_state_change(change)
                audit.record(action, self, actor=by, before={"state": before}, after={"state": state, "reason": kept})
        except StateError as error:
            record_refusal(action, self, error, by=by)
            raise
        return change

    def _refresh_state(self) -> None:
        try:
            self.refresh_from_db(fields=["state"])
        except type(self).DoesNotExist as error:
            raise StateError(f"{self} was deleted meanwhile.") from error

    def state_obstacle(self, state: str, by: Any) -> str:
        """Why this person may not give it that state now, in words; empty where nothing is in the way."""
        try:
            self._require_change(self.State(state), by)
        except StateError as error:
            return str(error)
        return ""

    def _require_change(self, state: State, by: Any) -> None:
        if self.state == state:
            words = "a candidate" if state == self.State.CANDIDATE else state.label.lower()
            raise StateError(f"{self} is {words} already.")
        if self.state == self.State.ARCHIVED and state == self.State.APPROVED:
            raise StateError(f"{self} is archived. Reopen it first, then look at it again and approve it.")
        if state == self.State.APPROVED:
            self._require_approvable(by)
        uses = self.uses if state == self.State.ARCHIVED else []
        if uses:
            raise StateError(f"{self} cannot be archived: {'; '.join(uses)}.")

    def _require_approvable(self, by: Any) -> None:
        check = IntegrityCheck.objects.filter(version=self).first()
        if check is not None and check.is_damaged:
            raise StateError(f"{self} cannot be approved: {check.message}")
        try:
            require_another_person(self, by, does="approves", has_to="approve it")
        except ActivationError as error:
            raise StateError(f"{self} cannot be approved: {error}") from error

    @property
    def uses(self) -> list[str]:
        """What it is needed for just now, in words; a version with any is neither archived nor deleted."""
        itself = type(self).objects.filter(pk=self.pk).order_by().values("pk")
        return [words for look in USES for words in look(itself).get(self.pk, ())]

    # -- Tags and notes

    def tag(self, name: str, *, by: Any) -> VersionTag:
        """Raises LabelError. A tag that is there already stays as it is."""
        tidy = tidy_tag(name)
        with transaction.atomic():
            self._hold()
            # Not `self.tags`, which may have been read before the lock.
            tags = VersionTag.objects.filter(version=self)
            there = tags.filter(name=tidy).first()
            if there is not None:
                return there
            if tags.count() >= MOST_TAGS:
                raise LabelError(f"{self} has {MOST_TAGS} tags, the most there can be; remove one first.")
            tag = self.tags.create(name=tidy, by=known(by))
            audit.record("version.tag", self, actor=by, after={"tag": tidy})
        return tag

    def untag(self, name: str, *, by: Any) -> None:
        """Raises LabelError when there is no such tag."""
        tidy = tidy_tag(name)
        with transaction.atomic():
            if not self.tags.filter(name=tidy).delete()[0]:
                raise LabelError(f"{self} has no tag “{tidy}”.")
            audit.record("version.untag", self, actor=by, before={"tag": tidy})

    def add_note(self, text: str, *, by: Any) -> VersionNote:
        """Raises LabelError."""
        tidy = tidy_note(text)
        with transaction.atomic():
            self._hold()
            note = self.notes.create(text=tidy, by=known(by))
            audit.record("version.note", self, actor=by, after={"note": tidy[:500]})
        return note

    def _hold(self) -> None:
        """Lock the row, so that it is there until the commit. Raises LabelError when it was deleted meanwhile."""
        if not type(self).objects.select_for_update().filter(pk=self.pk).values_list("pk"):
            raise LabelError(f"{self} was deleted meanwhile.")

    # -- Going into service

    def threshold_set_numbered(self, number: int | None) -> ThresholdSet | None:
        """None for the threshold of the training. Raises ThresholdSet.DoesNotExist with words for people."""
        if number is None:
            return None
        point = self.threshold_sets.filter(number=number).first()
        if point is None:
            raise ThresholdSet.DoesNotExist(f"{self} has no threshold set {number}.")
        return point

    def roll_back(self, *, by: Any, reason: str, seen_epoch: int | None = None) -> Deployment:
        """Take this version out of service and put the one before it back. Raises ActivationError."""
        deployments = Deployment.objects.select_related("active__condition", "condition")
        deployment = deployments.filter(condition=self.condition_id).first()
        try:
            if deployment is not None:
                deployment.require_epoch(seen_epoch)
            if deployment is None or deployment.active != self:
                raise ActivationConflict(f"{self} is not in service, so that there is nothing to go back from.")
        except ActivationConflict as error:
            record_refusal("version.rollback", self, error, by=by)
            raise
        return deployment.roll_back(by=by, reason=reason, seen_epoch=seen_epoch)

    def require_state(self, *, way_back: bool = False) -> None:
        """Raise ActivationError unless its state lets it go into service; a way back needs no approval."""
        if self.state == self.State.ARCHIVED:
            raise ActivationError(f"{self} is archived. Only candidates and approved versions go into service.")
        if settings.REQUIRE_APPROVAL and self.state != self.State.APPROVED and not way_back:
            raise ActivationError(f"{self} is not approved, and only approved versions go into service here.")

    def require_activatable(
        self, *, by: Any, reason: str, threshold_set: ThresholdSet | None = None, way_back: bool = False
    ) -> None:
        """Raise ActivationError unless this version may go into service by this person: rules, files and proof."""
        if threshold_set is not None and threshold_set.version_id != self.pk:
            raise ActivationError(f"{threshold_set} belongs to another version than {self}.".capitalize())
        if not reason.strip():
            raise ActivationError(f"{self} was not activated: give the reason, which is kept in the history.")
        require_two_persons(self, by, way_back=way_back)
        self.require_state(way_back=way_back)
        try:
            self.require_whole(by=by)
        except ActivationError as error:
            raise ActivationError(f"{self} was not activated: {error} The version in service stays.") from error

    def require_whole(self, *, by: Any) -> None:
        """Raise ActivationError unless its files are what was registered and it answers as it did when it was saved."""
        check = self.verify(by=by)
        if check.is_damaged:
            raise ActivationError(check.message)
        self._prove()

    def activate(
        self,
        *,
        by: Any,
        reason: str,
        threshold_set: ThresholdSet | None = None,
        seen_epoch: int | None = None,
        back_from: "ModelVersion | None" = None,
        within: Callable[[], None] | None = None,
    ) -> Deployment:
        """Put this version in service for its condition. Raises ActivationError and leaves things as they are.

        threshold_set: where it decides; None for the threshold that its training chose. The other arguments are those
        of `put_in_service`.

        The files are verified, and those of the version it replaces backed up, before the transaction; then the
        condition is locked, so that of two managers who click at once the second is told what the first chose.
        """
        try:
            way_back = back_from is not None
            self.require_activatable(by=by, reason=reason, threshold_set=threshold_set, way_back=way_back)
            deployment = Deployment.objects.filter(condition=self.condition_id).select_related("active").first()
            replaced = deployment.active if deployment and deployment.active != self else None
            backups.keep_both(replaced, self)
            return Deployment.objects.put_in_service(
                self,
                threshold_set,
                by=by,
                reason=reason.strip(),
                seen_epoch=seen_epoch,
                back_from=back_from,
                within=within,
            )
        except ActivationError as error:
            record_refusal("version.activate" if back_from is None else "version.rollback", self, error, by=by)
            raise


def staging_folder(name: str) -> Path:
    """A place on the registry's own file system, so that moving a version from there is one rename."""
    return Path(settings.MODEL_ROOT) / "registry" / ".staging" / name
