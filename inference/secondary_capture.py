"""A prediction as a picture for any viewer: the image with the map of the model's evidence, and the result below it."""

import math
from typing import Any, Final

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from . import results
from .dicom_context import check_source, equipment, evidence, orientation_of, put_body_part, put_context
from .results import Result

SERIES_NUMBER: Final = 9502
# Smaller pictures are enlarged to this, because nobody could read the text under them.
SMALLEST: Final = 512
# DICOM stores rows and columns in 16 bits; no map needs as much.
LARGEST: Final = 8192
_FONT_SHARE: Final = 28
_TEXT, _BAND = (255, 255, 255), (0, 0, 0)


def secondary_capture(result: Result, source: Dataset, picture: NDArray[np.uint8], shown: str) -> Dataset:
    """The picture uint8 (rows, columns, 3), with the map of the class `shown` already on it, as a DICOM image.

    Secondary Capture, RGB, with the result written below the picture, in the study of the image whose header is
    `source`; the same arguments give the same instance. Raises NotDicom for an image without UIDs, WrongSource for the
    header of another image, ValueError for another kind of picture.
    """
    check_source(result, source)
    image = evidence(source)
    capture = SCImage(
        pixel_array=annotated(picture, caption(result, shown)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        # Required by the library; what the image itself says is written below.
        patient_orientation=("L", "F"),
        study_instance_uid=image.StudyInstanceUID,
        series_instance_uid=results.uid("capture-series", result.prediction_id),
        series_number=SERIES_NUMBER,
        sop_instance_uid=results.uid("capture", result.prediction_id),
        instance_number=1,
        **equipment(result),
    )
    put_context(capture, source, result)
    _describe(capture, result, source, shown)
    capture.SourceImageSequence = [_reference(image)]
    return capture


def caption(result: Result, shown: str) -> list[str]:
    """The lines below the picture, the notice that it is no reader's finding first."""
    chances = ", ".join(f"{name} {chance:.3f}" for name, chance in result.ranked)
    lines = [
        results.RESEARCH_USE,
        f"{result.condition}: {result.decision}",
        f"Probabilities: {chances}",
        f"Colours: evidence for {shown}",
        f"{result.version}, {result.time:%Y-%m-%d %H:%M}",
        *result.cautions,
    ]
    return [results.plain_text(line) for line in lines]


def annotated(picture: NDArray[np.uint8], lines: list[str]) -> NDArray[np.uint8]:
    """The picture uint8 (rows, columns, 3) with lines of text in a band below it, so that no anatomy is covered."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape) < 1:
        raise ValueError("The picture is to be uint8 with rows, columns and three colours.")
    if max(picture.shape[:2]) > LARGEST:
        raise ValueError(f"The picture has more than {LARGEST} rows or columns.")
    drawn = Image.fromarray(picture)
    times = math.ceil(SMALLEST / drawn.width)
    if times > 1:
        drawn = drawn.resize((drawn.width * times, drawn.height * times), Image.Resampling.BICUBIC)
    font: Any = ImageFont.load_default(max(12, drawn.width // _FONT_SHARE))
    wrapped = [part for line in lines for part in _wrapped(line, font, drawn.width * (1 - 2 / _FONT_SHARE))]
    margin = drawn.width // _FONT_SHARE
    height = math.ceil(sum(font.getmetrics()) * 1.15)
    canvas = Image.new("RGB", (drawn.width, drawn.height + 2 * margin + height * len(wrapped)), _BAND)
    canvas.paste(drawn)
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(wrapped):
        pen.text((margin, drawn.height + margin + number * height), line, fill=_TEXT, font=font)
    return np.asarray(canvas)


def _wrapped(line: str, font: Any, width: float) -> list[str]:
    lines: list[str] = []
    for word in line.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1:] = [longer]
    return lines


def _describe(capture: Dataset, result: Result, source: Dataset, shown: str) -> None:
    capture.ImageType = ["DERIVED", "SECONDARY"]
    # WSD: made by a workstation, not digitised from film (PS3.3 C.8.6.1).
    capture.ConversionType = "WSD"
    capture.SecondaryCaptureDeviceManufacturer = results.PLATFORM
    capture.PatientOrientation = orientation_of(source)
    put_body_part(capture, source)
    capture.BurnedInAnnotation = "YES"
    day, time = capture.ContentDate, capture.ContentTime
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = day, time
    capture.DerivationDescription = results.plain_text(
        f"Class activation map of {shown} laid over the image, with the result below. {result.sentence()} "
        f"{result.intended_use}"
    )
    if str(source.get("LossyImageCompression") or "") == "01":
        # Once lost, lost: a derived image says so too (PS3.3 C.7.6.1.1.5).
        capture.LossyImageCompression = "01"


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    reference.PurposeOfReferenceCodeSequence = [purpose]
    return reference
