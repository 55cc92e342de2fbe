"""The part of a result that is the image's own: patient, study, and where it stands in the hospital's archive.

It is read from the header of the image when the result is written and goes straight into the result. Values that no
reader of the standard could make sense of are left empty, not guessed, and none gets into a message or a log.
"""

import re
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import UID

from datasets.dicom import header

from .results import PLATFORM, RESEARCH_USE, Result, long_string

# The patient and study modules of PS3.3 C.7.1.1 and C.7.2.1 that other systems match a result by.
_TEXTS: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "PatientAge",
)
_PATTERNS: Final = {
    "PatientBirthDate": r"[0-9]{8}",
    "StudyDate": r"[0-9]{8}",
    "StudyTime": r"[0-9]{2,6}(\.[0-9]{1,6})?",
    "PatientSex": r"[FMO]",
}
# Type 2 in both: present in every result, empty when the image does not tell (PS3.3 C.7.1.1, C.7.2.1).
_REQUIRED: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
# Endings of the body parts of PS3.16 L that a body has one of, as radiographs show them.
_UNPAIRED: Final = ("CHEST", "ABDOMEN", "PELVIS", "SPINE", "SKULL", "HEAD", "NECK", "STERNUM", "SACRUM", "COCCYX")


class NotDicom(Exception):
    """The image was no DICOM image, so that there is no study that a DICOM result could belong to."""


class WrongSource(Exception):
    """The header is that of another image than the one that was analysed."""


def source_header(data: bytes) -> Dataset:
    """The header of a DICOM image, to write its result with. Raises NotDicom for other files, ImageError for damage."""
    if data[128:132] != b"DICM":
        raise NotDicom("The file is no DICOM file: a report or a picture needs the study that its header names.")
    return header(data)


def check_source(result: Result, source: Dataset) -> None:
    """Raise NotDicom or WrongSource unless `source` is the header of the very image that was analysed.

    A result that goes to another patient's study is the worst that could happen here.
    """
    if not (result.study_uid and result.series_uid and result.sop_uid):
        raise NotDicom(
            "The analysed file was no DICOM image with a study, series and instance UID, so that no DICOM result "
            "can be written. Use the FHIR report instead, or analyse the DICOM original."
        )
    claimed = (result.study_uid, result.series_uid, result.sop_uid)
    if claimed != tuple(_uid(source, f"{level}InstanceUID") for level in ("Study", "Series", "SOP")):
        raise WrongSource("The image is not the one that was analysed: its study, series or instance UID differs.")
    if not _uid(source, "SOPClassUID"):
        raise NotDicom("The image does not name its SOP class, so that no DICOM result can refer to it.")


def evidence(source: Dataset) -> Dataset:
    """The image as a result refers to it: UIDs and size, and nothing about the patient."""
    image = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(image, keyword, UID(_uid(source, keyword)))
    for keyword in _REQUIRED:
        setattr(image, keyword, "")
    image.Rows, image.Columns = int(source.get("Rows") or 0), int(source.get("Columns") or 0)
    image.Modality = ""
    orientation, spacing = orientation_of(source), _spacing(source)
    if orientation and spacing:
        # Only then is a projection radiograph described by its kind.
        image.Modality = _text(source, "Modality")[:16]
        image.PatientOrientation, image.ImagerPixelSpacing = orientation, spacing
    return image


def orientation_of(source: Dataset) -> list[str]:
    """Patient orientation of rows and columns, such as L and F (PS3.3 C.7.6.1.1.1); empty when not told."""
    values = _values(source, "PatientOrientation")
    return values if len(values) == 2 and all(re.fullmatch(r"[ALPRHF]{1,3}", value) for value in values) else []


def put_body_part(target: Dataset, source: Dataset) -> None:
    """Write which part and side of the body is shown (PS3.3 C.7.3.1); the side is empty when it is not told.

    Parts that there is one of have no side at all.
    """
    part = _text(source, "BodyPartExamined").upper()
    if re.fullmatch(r"[A-Z0-9 _]{1,16}", part):
        target.BodyPartExamined = part
    if not part.endswith(_UNPAIRED):
        told = _text(source, "ImageLaterality") or _text(source, "Laterality")
        target.Laterality = told if told in ("L", "R") else ""


def put_context(target: Dataset, source: Dataset, result: Result) -> None:
    """Write patient and study of the image, and when and by what the result was made, into the result."""
    target.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _TEXTS:
        value = _text(source, keyword)
        if value or keyword in _REQUIRED:
            setattr(target, keyword, value)
    for keyword, pattern in _PATTERNS.items():
        value = _text(source, keyword)
        setattr(target, keyword, value if re.fullmatch(pattern, value) else "")
    for item in target.get("ContributingEquipmentSequence", []):
        item.ContributionDateTime = result.time.strftime("%Y%m%d%H%M%S")
    day, time = result.time.strftime("%Y%m%d"), result.time.strftime("%H%M%S")
    for keyword in ("InstanceCreationDate", "ContentDate", "SeriesDate"):
        setattr(target, keyword, day)
    for keyword in ("InstanceCreationTime", "ContentTime", "SeriesTime"):
        setattr(target, keyword, time)


def equipment(result: Result) -> dict[str, Any]:
    """What made the result, in the words of the general equipment module (PS3.3 C.7.5.1)."""
    return {
        "manufacturer": PLATFORM,
        "manufacturer_model_name": long_string(result.version),
        "software_versions": long_string(result.software) or "unknown",
        "device_serial_number": result.sha256[:64],
        "institution_name": long_string(result.site) or None,
        "series_description": long_string(f"{RESEARCH_USE}: {result.condition}"),
    }


def _values(source: Dataset, keyword: str) -> list[str]:
    value = source.get(keyword)
    if value is None or isinstance(value, str):
        return []
    try:
        return [str(item) for item in value]
    except TypeError:
        return []


def _spacing(source: Dataset) -> list[float]:
    try:
        spacing = [float(value) for value in _values(source, "ImagerPixelSpacing")]
    except ValueError:
        return []
    return spacing if len(spacing) == 2 and all(0 < value < 100 for value in spacing) else []


def _text(source: Dataset, keyword: str) -> str:
    try:
        value = str(source.get(keyword) or "")
    except Exception:  # pydicom raises whatever it likes on a value that is not of its kind
        return ""
    return "".join(character for character in value if character.isprintable()).strip()


def _uid(source: Dataset, keyword: str) -> str:
    value = _text(source, keyword).strip("\0 ")
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else ""
