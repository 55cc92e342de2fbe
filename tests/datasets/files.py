"""Small radiograph files made on the spot: JPEG, PNG and DICOM with any tag set to any value."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

SHARED = Path(__file__).parents[2].parent / "shared" / "xray"
NO_SHARED = f"the real radiographs are not at {Path('..') / 'shared' / 'xray'} beside the repository"
# A left half darker than the right one: shows every flip, turn and inversion.
HALVES = np.repeat(np.array([[40, 200]], np.uint8), 16, axis=1).repeat(32, axis=0)


def gradient(height: int = 24, width: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture that differs for every seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    wave = np.sin(rows * rng.uniform(0.1, 0.4)) + np.cos(columns * rng.uniform(0.1, 0.4))
    return np.uint8(30 + 190 * (wave - wave.min()) / np.ptp(wave))


def encode(picture: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a JPEG or PNG file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def save(path: Path, data: bytes | None = None, seed: int = 0) -> Path:
    """A file with these bytes, or with a small picture in the format that its name says, and all its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        kind = {".png": "PNG", ".dcm": "DICOM"}.get(path.suffix.lower(), "JPEG")
        picture = gradient(seed=seed)
        data = dicom(picture.astype(np.uint16)) if kind == "DICOM" else encode(picture, kind)
    path.write_bytes(data)
    return path


def dataset(values: NDArray[Any], **tags: Any) -> Dataset:
    """A monochrome DICOM data set of these stored values; a tag set to None is left out."""
    bits = 8 * values.dtype.itemsize
    made = Dataset()
    made.file_meta = FileMetaDataset()
    defaults: dict[str, Any] = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": "2.25.1",
        "StudyInstanceUID": "2.25.2",
        "SeriesInstanceUID": "2.25.3",
        "Modality": "DX",
        "PatientName": "Doe^Secret",
        "PatientID": "P1",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
        "PixelData": values.tobytes(),
    }
    for keyword, value in (defaults | tags).items():
        if value is not None:
            setattr(made, keyword, value)
    return made


def write_dicom(made: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The bytes of a DICOM file. A compressed syntax is only written into the header."""
    made.file_meta.TransferSyntaxUID = syntax
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
    buffer = BytesIO()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    made.save_as(buffer, enforce_file_format=True, implicit_vr=implicit, little_endian=little)
    return buffer.getvalue()


def dicom(values: NDArray[Any], syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """The bytes of an uncompressed DICOM file with these stored values."""
    return write_dicom(dataset(values, **tags), syntax)
