"""A result as the platform tells others of it, and the header of the image that it is about."""

from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset

from inference.dicom_context import source_header
from inference.results import Result
from tests.datasets.files import dicom, gradient

# What a hospital's image has besides its pixels. The UIDs are those of no other image.
TAGS: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.101",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.102",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.103",
    "PatientName": "Müller^Änne",
    "PatientBirthDate": "19510203",
    "PatientSex": "F",
    "StudyDate": "20260228",
    "StudyTime": "101500",
    "StudyID": "S1",
    "AccessionNumber": "A-17",
    "ReferringPhysicianName": "Ward^Seven",
    "PatientOrientation": ["L", "F"],
    "ImagerPixelSpacing": [0.15, 0.15],
    "BodyPartExamined": "CHEST",
}


def image(**tags: Any) -> bytes:
    """The bytes of a small DICOM radiograph; a tag set to None is left out."""
    return dicom(gradient().astype("uint16"), **(TAGS | tags))


def source(**tags: Any) -> Dataset:
    """The header of that radiograph."""
    return source_header(image(**tags))


def result(about: Dataset | None = None, **changes: Any) -> Result:
    """A positive answer about the image with the header `about`."""
    header = about if about is not None else source()
    values: dict[str, Any] = {
        "prediction_id": UUID("6f7f6a52-1b1f-4a55-9f4e-0d4bd5c9f001"),
        "condition": "Chest pneumonia",
        "condition_slug": "chest-pneumonia",
        "intended_use": "For research only, not for diagnosis.",
        "version": "Chest pneumonia v3",
        "sha256": "ab" * 32,
        "probabilities": {"NORMAL": 0.07, "PNEUMONIA": 0.93},
        "decision": "PNEUMONIA",
        "positive_class": "PNEUMONIA",
        "threshold": 0.42,
        "time": datetime(2026, 3, 1, 10, 5, 7, tzinfo=ZoneInfo("Europe/Berlin")),
        "site": "St. Example",
        "software": "1.0",
        "cautions": ("The image is unlike those that the model learned from.",),
        "study_uid": str(header.get("StudyInstanceUID", "")),
        "series_uid": str(header.get("SeriesInstanceUID", "")),
        "sop_uid": str(header.get("SOPInstanceUID", "")),
    }
    return Result(**(values | changes))
