"""Immutable model versions, and how one of them goes into service."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.teams import TeamScopedQuerySet

from .. import artifacts
from ..reports import Question
from .deployment import Activation, Deployment
from .evaluation import Evaluation, Measured
from .threshold_set import ThresholdSet

# What another app wants to be proved of a version before it goes into service (inference: that it loads and answers
# as it did when it was saved). A check raises ActivationError.
ACTIVATION_CHECKS: list[Callable[["ModelVersion"], None]] = []


class ActivationError(Exception):
    """The version cannot be put in service; what is in service stays."""


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
        no number is given twice, and a folder that a crash left under an unused number is replaced.
        """
        with transaction.atomic():
            Condition.objects.select_for_update().get(pk=condition.pk)
            newest = self.filter(condition=condition).aggregate(models.Max("number"))["number__max"] or 0
            version = ModelVersion(
                condition=condition,
                number=newest + 1,
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
        return version


class ModelVersion(models.Model):
    """One trained model of a condition. Its content never changes; only `state` does."""

    class State(models.TextChoices):
        CANDIDATE = "candidate", "Candidate"
        APPROVED = "approved", "Approved"
        ARCHIVED = "archived", "Archived"

    MUTABLE = {"state"}

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
        permissions = [("activate_modelversion", "Can put a version in service")]

    def __str__(self) -> str:
        return f"{self.condition.slug} v{self.number}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        changing = set(kwargs.get("update_fields") or ["everything"])
        if not self._state.adding and not changing <= self.MUTABLE:
            raise TypeError("The content of a model version never changes; train or import a new version.")
        if self._state.adding:
            self.accuracy, self.auc = self.metrics.get("accuracy"), self.metrics.get("auc")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("A model version is never deleted; archive it.")

    def get_absolute_url(self) -> str:
        return reverse("registry:version-detail", args=[self.pk])

    @property
    def folder(self) -> Path:
        return Path(settings.MODEL_ROOT) / "registry" / self.condition.slug / str(self.number)

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

    def activate(self, *, by: Any, reason: str = "", threshold_set: ThresholdSet | None = None) -> Deployment:
        """Put this version in service for its condition. Raises ActivationError and leaves things as they are.

        threshold_set: where it decides; None for the threshold that its training chose.

        The files are verified before the transaction; then the deployment row is locked, so that of two managers who
        click at once the second sees the first's choice in the history.
        """
        if threshold_set is not None and threshold_set.version_id != self.pk:
            raise ActivationError(f"{threshold_set} belongs to another version than {self}.".capitalize())
        try:
            artifacts.load(self.folder, self.sha256)
            for check in ACTIVATION_CHECKS:
                check(self)
        except (artifacts.ArtifactError, ActivationError) as error:
            raise ActivationError(f"{self} was not activated: {error} The version in service stays.") from error
        with transaction.atomic():
            Condition.objects.select_for_update().get(pk=self.condition_id)
            self.refresh_from_db(fields=["state"])
            if self.state == self.State.ARCHIVED:
                raise ActivationError(f"{self} is archived. Only candidates and approved versions go into service.")
            deployment, _ = Deployment.objects.get_or_create(condition=self.condition)
            before, threshold = deployment.active, deployment.threshold
            if before == self and deployment.threshold_set == threshold_set:
                return deployment
            if before != self:
                deployment.previous, deployment.active = before, self
            deployment.threshold_set = threshold_set
            deployment.epoch += 1
            deployment.save()
            Activation.objects.create(
                condition=self.condition,
                from_version=before,
                to_version=self,
                threshold_set=threshold_set,
                by=by,
                reason=reason,
            )
            audit.record(
                "version.activate",
                self,
                actor=by,
                before={"active": str(before) if before else None, "threshold": threshold},
                after={"active": str(self), "threshold": deployment.threshold, "reason": reason},
            )
        return deployment


def staging_folder(name: str) -> Path:
    """A place on the registry's own file system, so that moving a version from there is one rename."""
    return Path(settings.MODEL_ROOT) / "registry" / ".staging" / name
