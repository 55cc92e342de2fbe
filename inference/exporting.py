"""Predictions to take along: as FHIR JSON, DICOM structured report or DICOM secondary capture."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.db import transaction
from pydicom.dataset import Dataset

from datasets import imaging
from datasets.imaging import ImageError
from xrayplatform import audit

from . import fhir, radiographs, reporting, viewing
from .dicom_context import NotDicom, WrongSource, check_source, source_header
from .models import Prediction

DICOM: Final = "application/dicom"


class NoSource(Exception):
    """A DICOM result repeats the header of the image, and that is not here any more."""


# Why there is nothing to take along, each with a text for users.
REFUSALS: Final = (NoSource, NotDicom, WrongSource, ImageError, viewing.NoMap, radiographs.NotKept)


@dataclass(frozen=True)
class File:
    """A file for the browser or a program."""

    name: str
    media_type: str
    content: bytes


def take_fhir(prediction: Prediction, *, by: Any, url: str) -> File:
    """The FHIR report; url: of the result's page."""
    content = json.dumps(reporting.fhir(prediction, url), ensure_ascii=False, indent=1).encode()
    return _noted(prediction, "fhir", by, File(f"{prediction.pk}.fhir.json", fhir.MEDIA_TYPE, content))


def take_report(prediction: Prediction, *, by: Any, given: bytes | None = None) -> File:
    """The structured report. given: the file that was analysed, where somebody sends it again. Raises REFUSALS."""
    return _dicom(prediction, "sr", by, given, reporting.report)


def take_capture(prediction: Prediction, *, by: Any, given: bytes | None = None) -> File:
    """The secondary capture. As `take_report`."""
    return _dicom(prediction, "sc", by, given, reporting.capture)


def is_source_kept(prediction: Prediction, by: Any) -> bool:
    """Whether the file came over the DICOM network, is still here, and is for this user to learn who its patient is.

    Only who analyses radiographs may, and the command line (None): to others the platform never tells a name.
    """
    received = getattr(prediction, "received", None)
    is_reader = by is None or by.has_perm("inference.add_prediction")
    return received is not None and bool(received.file) and is_reader


def _dicom(
    prediction: Prediction, kind: str, by: Any, given: bytes | None, write: Callable[[Prediction, bytes], Dataset]
) -> File:
    # It loads the whole network stack, which no page needs.
    from .sending import encoded

    source = _kept(prediction, by) if given is None else _checked(prediction, given)
    content = encoded(write(prediction, source))
    return _noted(prediction, kind, by, File(f"{prediction.pk}.{kind}.dcm", DICOM, content))


def _kept(prediction: Prediction, by: Any) -> bytes:
    if not prediction.sop_uid:
        raise NotDicom(
            "The analysed file was no DICOM image, so that there is no study that a DICOM result could belong to. Use "
            "the FHIR report instead."
        )
    source = prediction.received.read() if is_source_kept(prediction, by) else None
    if source is None:
        raise NoSource(
            "A DICOM result names the patient and the study of its image, which the platform does not keep, or not for "
            "your role. Send the DICOM file that was analysed again, and the result is written for it."
        )
    return source


def _checked(prediction: Prediction, given: bytes) -> bytes:
    """The file, when it is the one that was analysed: by its digest, or by its UIDs and the digest of its pixels."""
    check_source(reporting.result_of(prediction), source_header(given))
    if hashlib.sha256(given).hexdigest() == prediction.file_digest:
        return given
    if imaging.read(given).digest != prediction.image_digest:
        raise WrongSource("The image is not the one that was analysed: its pixels differ.")
    return given


def _noted(prediction: Prediction, kind: str, by: Any, file: File) -> File:
    with transaction.atomic():
        audit.record("prediction.export", prediction, actor=by, after={"as": kind})
    return file
