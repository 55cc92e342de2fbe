"""A prediction as other systems are told of it: what is stored of it, joined with the header of its image."""

import tomllib
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from django.conf import settings
from django.utils import timezone
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from datasets import imaging

from . import viewing
from .dicom_context import source_header
from .fhir import fhir_report
from .models import Prediction
from .results import Result

# Longer side in pixels of a secondary capture's picture: enough for its screen, a tenth of the radiograph's bytes.
PICTURE_SIDE = 1024


def result_of(prediction: Prediction) -> Result:
    """What others are told; nothing in it identifies a patient."""
    version = prediction.version
    return Result(
        prediction_id=prediction.pk,
        condition=version.condition.name,
        condition_slug=version.condition.slug,
        intended_use=version.condition.intended_use,
        version=str(version),
        sha256=version.sha256,
        probabilities=prediction.probabilities,
        decision=prediction.decision,
        positive_class=version.positive_class,
        threshold=prediction.threshold if version.positive_class else None,
        time=timezone.localtime(prediction.created_at),
        site=settings.SITE_NAME.strip(),
        software=_software(),
        cautions=tuple(verdict["text"] for verdict in prediction.gate if verdict["outcome"] != "pass"),
        study_uid=prediction.study_uid,
        series_uid=prediction.series_uid,
        sop_uid=prediction.sop_uid,
    )


def fhir(prediction: Prediction, url: str = "") -> dict[str, Any]:
    """The FHIR report, without a patient; url: of the result's page."""
    return fhir_report(result_of(prediction), url=url)


def report(prediction: Prediction, source: bytes) -> Dataset:
    """The structured report; `source`: the DICOM file that was analysed. Raises NotDicom, WrongSource, ImageError."""
    # It takes a second to import, which those who only read pages need not wait for.
    from .structured_report import structured_report

    return structured_report(result_of(prediction), source_header(source))


def capture(prediction: Prediction, source: bytes) -> Dataset:
    """The radiograph with the map of the decided class. Raises as `report` and viewing.NoMap, radiographs.NotKept."""
    from .secondary_capture import secondary_capture

    header = source_header(source)
    picture = _with_map(prediction, imaging.read(source).grey)
    return secondary_capture(result_of(prediction), header, picture, prediction.decision)


def _with_map(prediction: Prediction, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (rows, columns, 3)."""
    shown = prediction.version.classes.index(prediction.decision)
    colours = Image.open(BytesIO(viewing.map_of(prediction, shown, grey)))
    picture = Image.fromarray(grey)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    coloured = Image.alpha_composite(picture.convert("RGBA"), colours.resize(picture.size, Image.Resampling.BILINEAR))
    return np.asarray(coloured.convert("RGB"))


@cache
def _software() -> str:
    return str(tomllib.loads((settings.BASE_DIR / "pyproject.toml").read_text())["project"]["version"])
