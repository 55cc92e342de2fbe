"""At which precision a version is used: float32, unless a stored check says that a lower one keeps its answers.

What is compared are the version's answers on its own validation images at both precisions, where the queue runs.
"""

from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from registry.models import Deployment, ModelVersion
from xrayplatform import audit

from . import referencing
from .engine import FULL_PRECISION, EngineError, PrecisionCheck, load, precision_check
from .models import LowerPrecision

# Of any probability of any image, before the temperature.
TOLERANCE: Final = 0.01
# Of the golden outputs, whose images are noise; what counts is the check on radiographs.
GOLDEN_TOLERANCE: Final = 0.05


def precision_of(version: ModelVersion) -> str:
    """Of `engine.PRECISIONS`, the one to load the version at."""
    wanted = str(settings.ENGINE_PRECISION)
    if wanted == FULL_PRECISION:
        return wanted
    proved = LowerPrecision.objects.filter(version=version, precision=wanted, keeps_the_answers=True)
    return wanted if proved.exists() else FULL_PRECISION


def unchecked() -> QuerySet[ModelVersion]:
    """The versions whose answers at the wanted precision nobody has compared; none where float32 is wanted."""
    if settings.ENGINE_PRECISION == FULL_PRECISION:
        return ModelVersion.objects.none()
    checked = LowerPrecision.objects.filter(precision=settings.ENGINE_PRECISION)
    return ModelVersion.objects.exclude(pk__in=checked.values("version"))


def check(version: ModelVersion, *, by: Any = None) -> LowerPrecision | None:
    """Compare the version's answers at the wanted precision with those at float32, and store the result.

    None where float32 is wanted, or the version's images are not here.
    """
    pixels = None if settings.ENGINE_PRECISION == FULL_PRECISION else referencing.validation_images(version)
    if pixels is None:
        return None
    fields: dict[str, Any] = {"tolerance": TOLERANCE, "keeps_the_answers": False, "images_count": 0}
    try:
        found = _compared(version, pixels)
    except EngineError as error:
        fields["problem"] = str(error)[:500]
    else:
        fields |= {
            "images_count": found.images,
            "largest_difference": found.largest_difference,
            "changed_decisions": found.changed_decisions,
            "keeps_the_answers": found.keeps_the_answers,
            "problem": "",
        }
    with transaction.atomic():
        row, _ = LowerPrecision.objects.update_or_create(
            version=version, precision=settings.ENGINE_PRECISION, defaults=fields
        )
        audit.record("lowerprecision.check", row, actor=by, after={"version": str(version), **fields})
    return row


def _compared(version: ModelVersion, pixels: Any) -> PrecisionCheck:
    """Raises EngineError."""
    exact = load(version.folder, version.sha256).predict(pixels)
    lower = load(version.folder, version.sha256, precision=settings.ENGINE_PRECISION, tolerance=GOLDEN_TOLERANCE)
    deployment = Deployment.objects.select_related("active", "threshold_set").filter(active=version).first()
    return precision_check(
        lower,
        pixels,
        exact,
        positive_class=version.positive_class or None,
        threshold=deployment.threshold if deployment else version.threshold,
        tolerance=TOLERANCE,
    )
