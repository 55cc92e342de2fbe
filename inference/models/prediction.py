"""Predictions: every answer the platform gave, with the version that gave it."""

import logging
import sys
import uuid
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from django.conf import settings
from django.db import DatabaseError, connection, models
from django.urls import reverse
from numpy.typing import NDArray

from datasets import imaging
from registry.models import Activation, ActivationError, Deployment, ModelVersion
from xrayplatform.conditions import Condition
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

from ..engine import FULL_PRECISION, Engine, EngineError, LoadedModel, Served, give_back_memory, load
from ..turns import Turns
from .serving import ServingProcess

logger = logging.getLogger(__name__)

# The compiled models of this process, and who may decode and compute in it now.
ENGINE = Engine(settings.ENGINE_MODELS)
TURNS = Turns(settings.ENGINE_AT_ONCE, settings.ENGINE_WAITING)
# SQLite lets in one writer at a time, and others sleep and try again in no order, some of them for seconds. So the
# threads of a process come one after the other. PostgreSQL writes side by side.
WRITING = Turns(1 if connection.vendor == "sqlite" else settings.WEB_THREADS, sys.maxsize)


class NoActiveModel(Exception):
    """The condition has no version in service."""


@dataclass(frozen=True)
class Analysis:
    """A stored prediction and, only for the answer to this request, the picture the model saw.

    pixels: uint8 (S, S), the network's input. notice: why an older version answered than the one in service; empty
    otherwise.
    """

    prediction: "Prediction"
    pixels: NDArray[np.uint8]
    notice: str = ""

    @cached_property
    def preview(self) -> bytes:
        """The picture as a PNG file; who shows none does not pay for it."""
        return imaging.to_png(self.pixels)


class PredictionQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"

    def shown(self) -> "PredictionQuerySet":
        """Without the answers of shadows, which nobody acts on."""
        return self.filter(shown=True)

    def visible_to(self, user: Any) -> "PredictionQuerySet":
        """What `user` may see. Nobody sees the answer of a shadow, not even its number."""
        return super().visible_to(user).filter(shown=True)

    def audited_by(self, user: Any) -> "PredictionQuerySet":
        """As `visible_to`, with the answers of shadows: for auditors."""
        return super().visible_to(user)

    def analyse(self, condition: Condition, source: bytes, *, by: Any, **way: Any) -> Analysis:
        """Read one radiograph, ask the version in service, store the answer with its audit entry.

        way: `channel` and `batch`, on which way it came. Raises imaging.ImageError for a file that is not a usable
        radiograph, analysing.GateRefused for one that is not fit for the model, NoActiveModel, EngineError and, of
        these, Busy when too many wait already; each is written down. What is kept of the picture: see `radiographs`.
        """
        # The way to an answer needs the tables that this module defines.
        from ..analysing import analyse

        return analyse(condition, source, by=by, **way)


class InService(NamedTuple):
    """The version that answers, its compiled model, and from which probability on it calls the positive class."""

    version: ModelVersion
    served: Served
    threshold: float | None
    deployment: Deployment


def model_in_service(condition: Condition) -> InService:
    """What answers now; swapped when the deployment's epoch has moved on. Raises NoActiveModel and EngineError."""
    deployments = Deployment.objects.select_related("active", "threshold_set").filter(condition=condition)
    # Not `first`: to put one row in order costs as much as to read it.
    deployment = next(iter(deployments), None)
    if deployment is None or deployment.active is None:
        raise NoActiveModel(
            f"No model is in service for {condition}. A model manager activates one under Model Management."
        )
    active = deployment.active
    deployment.condition = active.condition = condition
    try:
        served = ENGINE.get(condition.slug, active.pk, deployment.epoch, lambda: _loaded(active))
    except EngineError as error:
        served = _served_before(deployment, error)
    ServingProcess.objects.tell(condition, served.version_id, served.epoch)
    if served.version_id == active.pk:
        return InService(active, served, deployment.threshold, deployment)
    return _still_in_service(served, deployment)


def _served_before(deployment: Deployment, error: EngineError) -> Served:
    """What a process that has no model yet answers with when the one in service is damaged. Raises EngineError.

    Not a version that was taken out again, be it by a rollback: somebody had a reason.
    """
    previous = deployment.previous
    if previous is None or _was_taken_out(deployment):
        raise error
    try:
        # An epoch too low, so that the version in service is tried again in a while.
        served = ENGINE.get(deployment.condition.slug, previous.pk, deployment.epoch - 1, lambda: _loaded(previous))
    except EngineError:
        raise error from None
    return replace(served, failure=str(error))


def _was_taken_out(deployment: Deployment) -> bool:
    """Whether the version in service had been in service before the previous one, and came back."""
    arrivals = Activation.objects.filter(condition=deployment.condition_id, to_version=deployment.active_id)
    return arrivals.exclude(from_version=deployment.active_id).count() > 1


def _loaded(version: ModelVersion) -> LoadedModel:
    """The version, ready to answer; where that fails it is told to those who can help. Raises EngineError."""
    from ..precisions import GOLDEN_TOLERANCE, precision_of

    threads, precision = settings.ENGINE_THREADS or None, precision_of(version)
    if precision != FULL_PRECISION:
        try:
            return load(
                version.folder, version.sha256, precision=precision, tolerance=GOLDEN_TOLERANCE, threads=threads
            )
        except EngineError:
            # It kept the answers where it was checked; this processor may be another one.
            logger.exception("%s is used at %s instead of %s", version, FULL_PRECISION, precision)
    try:
        return load(version.folder, version.sha256, threads=threads)
    except EngineError as error:
        _alert(version, str(error))
        raise


def _alert(version: ModelVersion, message: str) -> None:
    try:
        version.report_unusable(message)
    except DatabaseError:
        # The older version answers, whether or not this could be written.
        logger.exception("That %s cannot be loaded could not be recorded", version)


def _still_in_service(served: Served, deployment: Deployment) -> InService:
    """An older version, because the new one cannot be loaded: with the threshold that it had when it was activated."""
    version = ModelVersion.objects.select_related("condition").get(pk=served.version_id)
    last = version.activations.select_related("threshold_set", "to_version").first()
    return InService(version, served, last.threshold if last else version.threshold, deployment)


def model_of(version: ModelVersion) -> LoadedModel:
    """A version by itself, whatever is in service; loaded aside and kept as long as it is used. Raises EngineError."""
    return ENGINE.of_version(version.pk, lambda: _loaded(version))


def prove(version: ModelVersion) -> None:
    """Load the version aside and compare its golden outputs. Raises ActivationError."""
    try:
        load(version.folder, version.sha256)
    except EngineError as error:
        raise ActivationError(str(error)) from error
    finally:
        give_back_memory()


class Prediction(Immutable):
    """One answer of one version about one radiograph. Rows are only ever added."""

    class Channel(models.TextChoices):
        WEB = "web", "Web page"
        API = "api", "API"
        BATCH = "batch", "Batch"
        DICOM = "dicom", "DICOM network"
        COMMAND = "command", "Command line"

    class Variant(models.TextChoices):
        CHAMPION = "champion", "Champion"
        CHALLENGER = "challenger", "Challenger"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, models.PROTECT, related_name="predictions")
    probabilities = models.JSONField()
    threshold = models.FloatField(null=True)
    decision = models.CharField(max_length=200)
    file_digest = models.CharField(max_length=64, db_index=True)
    image_digest = models.CharField(max_length=64, db_index=True)
    file_format = models.CharField(max_length=10)
    study_uid = models.CharField(max_length=64, blank=True)
    series_uid = models.CharField(max_length=64, blank=True)
    sop_uid = models.CharField(max_length=64, blank=True)
    modality = models.CharField(max_length=16, blank=True)
    body_part = models.CharField(max_length=40, blank=True)
    patient_key = models.CharField(max_length=64, blank=True, help_text="keyed digest, as of a dataset's images")
    width = models.PositiveIntegerField(default=0, help_text="pixels")
    height = models.PositiveIntegerField(default=0, help_text="pixels")
    gate = models.JSONField(default=list, help_text="what the checks before the model said")
    steps = models.JSONField(default=list, help_text="what was done to the pixels, in words")
    measures = models.JSONField(default=dict, help_text="of the picture, for monitoring")
    # Of the same pass as the probabilities: a map of any class can be drawn later without the model.
    activation = models.BinaryField(default=bytes, help_text="float16 (classes, rows, columns), as of Reading")
    activation_frame = models.JSONField(null=True, help_text="rows and columns, and where the cells lie on the image")
    channel = models.CharField(max_length=10, choices=Channel, default=Channel.WEB)
    batch = models.ForeignKey("inference.Batch", models.PROTECT, null=True, related_name="predictions", editable=False)
    experiment = models.ForeignKey(
        "inference.Experiment", models.PROTECT, null=True, related_name="predictions", editable=False
    )
    variant = models.CharField(max_length=10, choices=Variant, blank=True)
    shown = models.BooleanField(default=True, help_text="false: the answer of a shadow, which nobody acts on")
    paired_with = models.ForeignKey("self", models.PROTECT, null=True, related_name="shadows", editable=False)
    latency_ms = models.FloatField()
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    request_id = models.CharField(max_length=64)

    objects = PredictionQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        # The guard rails of an experiment look at its newest answers after each one.
        indexes = [models.Index(fields=["experiment", "variant", "-created_at"], name="newest_of_experiment")]

    def __str__(self) -> str:
        return f"{self.version}: {self.decision}"

    def get_absolute_url(self) -> str:
        return reverse("inference:prediction-detail", args=[self.pk])

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """Classes with their probabilities, most probable first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])
