"""Predictions: every answer the platform gave, with the version that gave it."""

import hashlib
import logging
import time
import uuid
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from django.conf import settings
from django.db import DatabaseError, models, transaction
from django.urls import reverse

from datasets import imaging
from datasets.enhancement import STEPS
from registry.models import Activation, ActivationError, Deployment, ModelVersion
from registry.statistics import decide
from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

from ..engine import Engine, EngineError, LoadedModel, Served, load

logger = logging.getLogger(__name__)

# The compiled models of this process, one a condition.
ENGINE = Engine()


class NoActiveModel(Exception):
    """The condition has no version in service."""


@dataclass(frozen=True)
class Analysis:
    """A stored prediction and, only for the answer to this request, the picture the model saw (PNG).

    notice: why an older version answered than the one in service; empty otherwise.
    """

    prediction: "Prediction"
    preview: bytes
    steps: tuple[str, ...]
    notice: str = ""


class PredictionQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"

    def analyse(self, condition: Condition, source: bytes, *, by: Any) -> Analysis:
        """Read one radiograph, ask the version in service, store the answer with its audit entry.

        Raises imaging.ImageError for a file that is not a usable radiograph, NoActiveModel, EngineError.
        The image itself is not stored, only digests of its bytes and pixels.
        """
        start = time.perf_counter()
        version, served, threshold = model_in_service(condition)
        radiograph = imaging.read(source)
        treatment = version.preprocessing
        pixels = imaging.model_input(radiograph, version.image_size, treatment["fit"], treatment.get("steps", ()))
        probabilities = served.model.answer(pixels[None])[0]
        prediction = Prediction(
            version=version,
            probabilities=dict(zip(version.classes, map(float, probabilities), strict=True)),
            threshold=threshold,
            decision=decide(probabilities[None], version.classes, version.positive_class or None, threshold)[0],
            file_digest=hashlib.sha256(source).hexdigest(),
            image_digest=radiograph.digest,
            file_format=radiograph.format,
            study_uid=radiograph.study_uid[:64],
            series_uid=radiograph.series_uid[:64],
            sop_uid=radiograph.sop_uid[:64],
            latency_ms=1000 * (time.perf_counter() - start),
            created_by=by,
            request_id=audit.current_context().request_id,
        )
        with transaction.atomic():
            prediction.save()
            audit.record("prediction.create", prediction, actor=by, after={"version": str(version)})
        notice = (
            f"{version} answered: the version in service could not be loaded. {served.failure}"
            if served.failure
            else ""
        )
        treated = [STEPS[step] for step in treatment.get("steps", ()) if step in STEPS]
        return Analysis(prediction, imaging.to_png(pixels), (*radiograph.steps, *treated), notice)


class InService(NamedTuple):
    """The version that answers, its compiled model, and from which probability on it calls the positive class."""

    version: ModelVersion
    served: Served
    threshold: float | None


def model_in_service(condition: Condition) -> InService:
    """What answers now; swapped when the deployment's epoch has moved on. Raises NoActiveModel and EngineError."""
    deployments = Deployment.objects.select_related("active__condition", "previous__condition", "threshold_set")
    deployment = deployments.filter(condition=condition).first()
    if deployment is None or deployment.active is None:
        raise NoActiveModel(
            f"No model is in service for {condition}. A model manager activates one under Model Management."
        )
    active = deployment.active
    try:
        served = ENGINE.get(condition.slug, active.pk, deployment.epoch, lambda: _loaded(active))
    except EngineError as error:
        served = _served_before(deployment, error)
    if served.version_id == active.pk:
        return InService(active, served, deployment.threshold)
    return _still_in_service(served)


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
    try:
        return load(version.folder, version.sha256)
    except EngineError as error:
        _alert(version, str(error))
        raise


def _alert(version: ModelVersion, message: str) -> None:
    try:
        version.report_unusable(message)
    except DatabaseError:
        # The older version answers, whether or not this could be written.
        logger.exception("That %s cannot be loaded could not be recorded", version)


def _still_in_service(served: Served) -> InService:
    """An older version, because the new one cannot be loaded: with the threshold that it had when it was activated."""
    version = ModelVersion.objects.select_related("condition").get(pk=served.version_id)
    last = version.activations.select_related("threshold_set", "to_version").first()
    return InService(version, served, last.threshold if last else version.threshold)


def prove(version: ModelVersion) -> None:
    """Load the version aside and compare its golden outputs. Raises ActivationError."""
    try:
        load(version.folder, version.sha256)
    except EngineError as error:
        raise ActivationError(str(error)) from error


class Prediction(Immutable):
    """One answer of one version about one radiograph. Rows are only ever added."""

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
    latency_ms = models.FloatField()
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    request_id = models.CharField(max_length=64)

    objects = PredictionQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.version}: {self.decision}"

    def get_absolute_url(self) -> str:
        return reverse("inference:prediction-detail", args=[self.pk])

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """Classes with their probabilities, most probable first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])
