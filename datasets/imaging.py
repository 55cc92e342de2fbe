"""One radiograph file (JPEG, PNG or DICOM) to grey pixels, and grey pixels to a network's input.

This is the only pixel code of the platform: training and serving both call `read` and `to_model_input`, so a model
sees in use exactly what it saw in training. Files are judged by their content, never by their name, and whatever is
wrong with one ends as an `ImageError` whose text can be shown to a user.
"""

import contextlib
import hashlib
import os
import re
import stat
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
import pydicom.config
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

MAX_PIXELS: Final = 40_000_000
MAX_FILE_BYTES: Final = 256 * 1024**2
MAX_INFLATED_BYTES: Final = 256 * 1024**2
# Grey values outside these percentiles are saturated when a DICOM file says nothing about its window.
PERCENTILES: Final = (0.5, 99.5)
PIPELINE: Final[dict[str, Any]] = {"id": "grey-pad", "version": 1, "fit": "pad"}
FITS: Final = ("pad", "stretch")

# Pillow only warns about huge pictures; here that is an error before any pixel is decoded.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Otherwise pydicom's warnings quote the offending value, which may be a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


class ImageError(Exception):
    """A file that cannot be used as a radiograph. `code` is stable, the text is for users."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Radiograph:
    """A decoded radiograph, as a reader would see it (bone bright on dark).

    pixels: float32 (height, width), grey, 0 black to 1 white. digest: hex sha256 of these pixels at 8 bits and of
    their shape, so that a copy in another file format is recognised. steps: what was done to the stored values, in
    words. patient: issuer and PatientID; identifies a person, so it must be hashed before it is stored.
    """

    pixels: Floats
    format: str
    width: int
    height: int
    digest: str
    steps: tuple[str, ...] = ()
    patient: str | None = None
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    body_part: str = ""
    modality: str = ""


def read(source: Path | bytes) -> Radiograph:
    """Decode a radiograph from a path or from the bytes of a file. Raises ImageError."""
    data = source if isinstance(source, bytes) else read_bytes(source)
    if _format(data) == "DICOM":
        return _read_dicom(data)
    return _read_picture(data)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_FILE_BYTES; its format is not looked at.

    Raises ImageError for anything else: a folder, a device, a file that is too large or cannot be opened. A named
    pipe is refused too, at once, because the file is opened without blocking.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _regular_bytes(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImageError("unreadable", f"The file cannot be opened: {reason}.") from error


def to_model_input(pixels: Floats, size: int, fit: str = "pad") -> NDArray[np.uint8]:
    """Bring grey pixels 0..1 of shape (H, W) to uint8 (size, size); a network's input is this divided by 255.

    fit "pad" keeps the proportions and adds black bars on both sides, "stretch" ignores them. The resize is
    anti-aliased (triangle filter with a support that grows with the reduction) and the result is rounded once.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {FITS}, not {fit!r}")
    height, width = pixels.shape
    longest = max(height, width)
    inner = (size, size)
    if fit == "pad":
        inner = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    picture = Image.fromarray(pixels)
    if picture.size != inner:
        picture = picture.resize(inner, Image.Resampling.BILINEAR)
    square = np.zeros((size, size), np.uint8)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    square[top : top + inner[1], left : left + inner[0]] = _quantise(np.asarray(picture))
    return square


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 (H, W) or (H, W, 3) pixels as a PNG file, for previews."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _quantise(pixels: Floats) -> NDArray[np.uint8]:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _digest(pixels: Floats) -> str:
    content = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
    content.update(_quantise(pixels).tobytes())
    return content.hexdigest()


# --- From a file to its format ---------------------------------------------------------------------------------------

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
FOREIGN: Final = (
    (b"GIF8", "a GIF picture"),
    (b"BM", "a Windows bitmap"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\0\0\0\x0cjP", "a JPEG 2000 picture outside DICOM"),
    (b"RIFF", "a WebP picture or a sound or video file"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive or an Office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a Linux program"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\xca\xfe\xba\xbe", "a macOS program or a Java class"),
    (b"#!", "a script"),
)
MARKUP: Final = ((b"<svg", "an SVG drawing"), (b"<!doctype html", "a web page"), (b"<html", "a web page"))


def _regular_bytes(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not-a-file", "This is not a regular file (a folder, pipe or device).")
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError("too-large", _too_many_bytes(status.st_size))
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_FILE_BYTES)


def _too_many_bytes(count: int) -> str:
    return f"The file has {count / 1024**2:.0f} MB; at most {MAX_FILE_BYTES // 1024**2} MB are read."


def _format(data: bytes) -> str:
    if not data:
        raise ImageError("empty", "The file is empty (0 bytes).")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError("too-large", _too_many_bytes(len(data)))
    if data[128:132] == b"DICM":
        return "DICOM"
    if data.startswith(JPEG_SIGNATURE):
        return "JPEG"
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data[:4] in (b"\x02\0\0\0", b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0"):
        raise ImageError(
            "no-preamble",
            "This looks like DICOM without its file header (128 bytes and the letters DICM). "
            "Export the study again as DICOM files (Part 10).",
        )
    raise ImageError("not-an-image", f"This is {_kind(data)}, not a JPEG, PNG or DICOM file.")


def _kind(data: bytes) -> str:
    """What a file that is no radiograph is, in words."""
    for signature, kind in FOREIGN:
        if data.startswith(signature):
            return kind
    head = data[:4096]
    lowered = head.lower()
    for signature, kind in MARKUP:
        if signature in lowered:
            return kind
    with contextlib.suppress(UnicodeDecodeError):
        if head[:-3].decode().replace("\r", "").replace("\n", "").replace("\t", "").isprintable():
            return "a text file"
    return "a file of an unknown kind"


def _check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError("no-pixels", f"The file says that its picture is {width} x {height} pixels.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too-large",
            f"The picture has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are decoded.",
        )


# --- JPEG and PNG ----------------------------------------------------------------------------------------------------


def _read_picture(data: bytes) -> Radiograph:
    try:
        picture = _open_picture(data)
        steps = ["first frame only"] if getattr(picture, "n_frames", 1) > 1 else []
        kind = "JPEG" if picture.format == "MPO" else str(picture.format)
        picture.load()
        pixels = _grey(_upright(picture, steps), steps)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too-large", f"The picture has more than {MAX_PIXELS // 10**6} million pixels.") from None
    except Exception as error:  # decoders raise whatever they like on hostile input
        raise _undecodable(error) from error
    height, width = pixels.shape
    return Radiograph(pixels, kind, width, height, _digest(pixels), tuple(steps))


def _open_picture(data: bytes) -> Image.Image:
    """Open without decoding, after the checks that need no decoding."""
    picture = Image.open(BytesIO(data), formats=("JPEG", "PNG"))
    _check_size(*picture.size)
    if picture.format == "PNG":
        # Only this compares the checksums, and only this notices a file cut behind its last pixel.
        with Image.open(BytesIO(data), formats=("PNG",)) as twin:
            twin.verify()
    return picture


def _undecodable(error: Exception) -> ImageError:
    text = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text:
        return ImageError("truncated", "The file ends too early, the picture is incomplete. Copy or export it again.")
    return ImageError("damaged", "The picture is damaged and cannot be decoded. Copy or export it again.")


def _upright(picture: Image.Image, steps: list[str]) -> Image.Image:
    try:
        turned = ImageOps.exif_transpose(picture)
    except Exception:  # unreadable EXIF data says nothing against the pixels
        steps.append("orientation unreadable, left as stored")
        return picture
    if picture.getexif().get(0x0112, 1) in range(2, 9):
        steps.append("turned upright by EXIF")
    return turned


def _grey(picture: Image.Image, steps: list[str]) -> Floats:
    """Luma by ITU-R BT.601 (0.299 R + 0.587 G + 0.114 B) over black where transparent, scaled to 0..1."""
    if picture.mode.startswith("I"):
        return _sixteen_bits(picture, steps)
    if picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture.convert("RGBA"))
        steps.append("transparency laid over black")
    if picture.mode not in ("L", "1"):
        picture = picture.convert("RGB").convert("L")
        steps.append("colour to grey")
    return np.asarray(picture.convert("L"), np.float32) / np.float32(255)


def _sixteen_bits(picture: Image.Image, steps: list[str]) -> Floats:
    """16-bit PNG often holds 10, 12 or 14 bits: the smallest of these ranges that holds the maximum is white."""
    values = np.asarray(picture).astype(np.float32)
    largest = int(values.max())
    bits = next(bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits)
    steps.append(f"{bits} of 16 bits used")
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 0
        steps.append("transparency laid over black")
    return values / np.float32(2**bits - 1)


# --- DICOM -----------------------------------------------------------------------------------------------------------

TRANSFER_SYNTAXES: Final = frozenset(
    {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.5",
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.57",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.80",
        "1.2.840.10008.1.2.4.81",
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.91",
    }
)
# Nothing else is read from a file, so nothing else can end up in a message or a log.
TAGS: Final = [
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "BodyPartExamined",
    "PatientID",
    "IssuerOfPatientID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "PresentationLUTShape",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
]
PIXEL_DATA: Final = b"\xe0\x7f\x10\0"  # tag (7FE0,0010) in little endian
PREAMBLES: Final = (
    *FOREIGN[6:],
    (b"\xfe\xed\xfa", "a macOS program"),
    (b"<", "a web page"),
    (JPEG_SIGNATURE, "a JPEG picture"),
    (PNG_SIGNATURE, "a PNG picture"),
)


def _read_dicom(data: bytes) -> Radiograph:
    try:
        return _render_dicom(data)
    except ImageError:
        raise
    except RecursionError:
        raise ImageError("damaged", "The DICOM file nests its sequences too deeply.") from None
    except Exception as error:  # `from None`: the text of the cause may quote values of the file
        raise ImageError("damaged", f"The DICOM file is damaged ({type(error).__name__}). Export it again.") from None


def _render_dicom(data: bytes) -> Radiograph:
    _check_preamble(data)
    syntax = _transfer_syntax(data)
    dataset = pydicom.dcmread(BytesIO(data), specific_tags=TAGS)
    if "PixelData" not in dataset and PIXEL_DATA in data:
        raise _undecodable(EOFError())
    _check_header(dataset)
    _check_pixel_data(dataset, syntax)
    stored = _decode(dataset, syntax)
    steps = [str(syntax.name)]
    pixels = _render(dataset, stored, steps)
    height, width = pixels.shape
    return Radiograph(
        pixels,
        "DICOM",
        width,
        height,
        _digest(pixels),
        tuple(steps),
        patient=_patient(dataset),
        study_uid=_uid(dataset, "StudyInstanceUID"),
        series_uid=_uid(dataset, "SeriesInstanceUID"),
        sop_uid=_uid(dataset, "SOPInstanceUID"),
        body_part=_word(dataset, "BodyPartExamined"),
        modality=_word(dataset, "Modality"),
    )


def _check_preamble(data: bytes) -> None:
    for signature, kind in PREAMBLES:
        if data.startswith(signature):
            raise ImageError("executable-preamble", f"The DICOM file begins like {kind}. It is not opened.")


def _transfer_syntax(data: bytes) -> UID:
    """Transfer syntax of a DICOM file; refuses those that cannot be decoded, and deflate bombs, by name."""
    buffer = BytesIO(data)
    buffer.seek(132)
    meta = read_dataset(buffer, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    value = str(meta.get("TransferSyntaxUID", "")).strip("\0 ")
    if not re.fullmatch(r"[0-9.]{1,64}", value):
        raise ImageError("unsupported-transfer-syntax", "The DICOM file does not name its transfer syntax.")
    syntax = UID(value)
    if syntax not in TRANSFER_SYNTAXES:
        name = value if syntax.name == value else f"{syntax.name} ({value})"
        raise ImageError(
            "unsupported-transfer-syntax",
            f"The transfer syntax {name} is not supported. "
            "Export the image uncompressed, or as JPEG Lossless, JPEG-LS or JPEG 2000.",
        )
    if syntax == DeflatedExplicitVRLittleEndian:
        _check_deflated(data[buffer.tell() :])
    return syntax


def _check_deflated(data: bytes) -> None:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = len(inflater.decompress(data, MAX_INFLATED_BYTES))
    if inflated >= MAX_INFLATED_BYTES:
        raise ImageError("too-large", f"The deflated DICOM file unpacks to over {MAX_INFLATED_BYTES // 1024**2} MB.")


def _check_header(dataset: Dataset) -> None:
    """Everything that can be refused before a pixel is decoded."""
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise ImageError("unsupported-pixels", "The DICOM file holds floating-point pixels; a radiograph has integers.")
    if not dataset.get("PixelData"):
        raise ImageError(
            "no-pixels", "The DICOM file holds no pixel data: it is a report or an index, or it was cut off."
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError("multi-frame", f"The DICOM file holds {frames} frames; a radiograph has one.")
    photometric = _word(dataset, "PhotometricInterpretation")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(
            "colour-dicom", f"The DICOM file is a colour picture ({photometric or 'not stated'}), not a radiograph."
        )
    _check_size(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0))
    allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        raise ImageError("unsupported-pixels", f"{stored} bits stored in {allocated} are not supported.")


def _check_pixel_data(dataset: Dataset, syntax: UID) -> None:
    """Compare the header's dimensions with the pixel data's own, so that neither can lie."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if syntax.is_encapsulated:
        if syntax == RLELossless:
            return  # has no dimensions of its own
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        found = _codestream_size(frame)
        if found is not None and found != (rows, columns):
            raise ImageError(
                "wrong-length", f"The header says {columns} x {rows} pixels, the compressed picture has others."
            )
        return
    expected = rows * columns * int(dataset.BitsAllocated) // 8
    actual = len(dataset.PixelData)
    if actual < expected:
        raise ImageError("truncated", f"The pixel data ends after {actual} of {expected} bytes. Export the file again.")
    if actual > expected + expected % 2:
        raise ImageError("wrong-length", f"The pixel data has {actual} bytes where the header says {expected}.")


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream states, None when it states none."""
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if siz >= 0:
        x1, y1, x0, y0 = (int.from_bytes(frame[siz + at : siz + at + 4], "big") for at in (8, 12, 16, 20))
        return y1 - y0, x1 - x0
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _decode(dataset: Dataset, syntax: UID) -> NDArray[Any]:
    """Stored values, (rows, columns), of an integer type."""
    try:
        return np.asarray(get_decoder(syntax).as_array(dataset, index=0)[0])
    except Exception:  # as for pictures; the text of the cause may quote values of the file
        raise ImageError(
            "damaged", f"The pixel data ({syntax.name}) is damaged or incomplete. Export the file again."
        ) from None


def _render(dataset: Dataset, stored: NDArray[Any], steps: list[str]) -> Floats:
    """The grey-scale chain of DICOM PS3.3 C.11.1 (modality), C.11.2 (VOI) and C.7.6.3.1.2 (photometric)."""
    padding = _padding(dataset, stored)
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = _voi(dataset, _modality(dataset, stored, steps), padding, steps)
    if not np.isfinite(pixels).all():
        raise ImageError("bad-rescale", "The DICOM file scales its values beyond what a number can hold.")
    inverted = _word(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    if inverted or _word(dataset, "PresentationLUTShape") == "INVERSE":
        # VOI output spans 0..1 by definition, whatever this image's own extremes are.
        pixels = _unit(1 - pixels)
        steps.append("inverted")
    if padding is not None:
        pixels[padding] = 0
        steps.append("padding blackened")
    return pixels


def _padding(dataset: Dataset, stored: NDArray[Any]) -> Mask | None:
    if dataset.get("PixelPaddingValue") is None:
        return None
    bits = 8 * stored.dtype.itemsize
    first = _as_stored(int(dataset.PixelPaddingValue), bits, stored)
    limit = dataset.get("PixelPaddingRangeLimit")
    last = first if limit is None else _as_stored(int(limit), bits, stored)
    mask = (stored >= min(first, last)) & (stored <= max(first, last))
    return None if mask.all() or not mask.any() else mask


def _as_stored(value: int, bits: int, stored: NDArray[Any]) -> int:
    """The value as the signedness of the pixels reads it; the tag's own type is often the wrong one."""
    value %= 2**bits
    signed = stored.dtype.kind == "i"
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


def _modality(dataset: Dataset, stored: NDArray[Any], steps: list[str]) -> Floats:
    sequence = dataset.get("ModalityLUTSequence")
    if sequence:
        steps.append("modality table")
        return _Table(sequence[0], dataset.is_little_endian is not False).look_up(stored)
    slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ImageError("bad-rescale", f"The DICOM file rescales its values by {slope:g} and {intercept:g}.")
    if (slope, intercept) != (1.0, 0.0):
        steps.append("rescaled")
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _voi(dataset: Dataset, values: Floats, padding: Mask | None, steps: list[str]) -> Floats:
    """Values of interest to 0..1: the file's table first, then its window, else robust percentiles."""
    sequence = dataset.get("VOILUTSequence")
    if sequence:
        steps.append("value table of the file")
        table = _Table(sequence[0], dataset.is_little_endian is not False)
        return _unit(table.look_up(np.rint(values).astype(np.int64)) / table.white)
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None:
        steps.append("window from percentiles")
        return _stretch(values if padding is None else values[~padding], values)
    function = _word(dataset, "VOILUTFunction") or "LINEAR"
    steps.append(f"window of the file ({function.lower().replace('_', ' ')})")
    return _window(values, center, width, function)


def _stretch(sample: Floats, values: Floats) -> Floats:
    low, high = np.percentile(sample, PERCENTILES)
    if low == high:
        low, high = float(sample.min()), float(sample.max())
    if low == high:
        return np.zeros_like(values)
    return _unit((values - np.float32(low)) / np.float32(high - low))


def _unit(pixels: NDArray[Any]) -> Floats:
    clipped: NDArray[Any] = np.clip(pixels, 0, 1)
    return clipped.astype(np.float32, copy=False)


def _window(values: Floats, center: float, width: float, function: str) -> Floats:
    """Window of DICOM PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3 (SIGMOID, LINEAR_EXACT), to 0..1."""
    if not np.isfinite([center, width]).all() or width <= 0 or (function == "LINEAR" and width < 1):
        raise ImageError("bad-window", f"The DICOM file has a display window {width:g} wide at {center:g}.")
    offset = values - np.float32(center)
    if function == "SIGMOID":
        return _unit(1 / (1 + np.exp(np.float32(-4 / width) * offset)))
    if function == "LINEAR_EXACT":
        return _unit(offset / np.float32(width) + np.float32(0.5))
    offset += np.float32(0.5)
    return _unit(offset > 0 if width == 1 else offset / np.float32(width - 1) + np.float32(0.5))


class _Table:
    """A look-up table of a modality or VOI LUT sequence item (DICOM PS3.3 C.11.1.1)."""

    def __init__(self, item: Dataset, little_endian: bool) -> None:
        count, self.first, bits = (int(number) for number in item.LUTDescriptor)
        count = count % 2**16 or 2**16
        data = item.LUTData
        if isinstance(data, bytes):
            word = "u1" if len(data) < 2 * count else "<u2" if little_endian else ">u2"
            data = np.frombuffer(data, word)
        self.entries = np.atleast_1d(np.asarray(data)).astype(np.float32)[:count]
        if len(self.entries) < count:
            raise ImageError("damaged", "A look-up table of the DICOM file is shorter than it says.")
        self.white = 2 ** max(bits, int(self.entries.max()).bit_length()) - 1

    def look_up(self, values: NDArray[Any]) -> Floats:
        first = self.first - 2**16 if self.first >= 2**15 and values.min() < 0 else self.first
        found: Floats = self.entries[np.clip(values.astype(np.int64) - first, 0, len(self.entries) - 1)]
        return found


def _number(dataset: Dataset, keyword: str, default: Any = None) -> Any:
    """The first value of a numeric element as float, the default when it is absent or empty."""
    value = dataset.get(keyword)
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        value = value[0] if len(value) else None
    return default if value is None or value == "" else float(value)


def _word(dataset: Dataset, keyword: str) -> str:
    """A code string, reduced to the characters that DICOM allows in one."""
    value = dataset.get(keyword)
    return re.sub(r"[^A-Z0-9 _]", "", str(value or "").upper()).strip()[:16]


def _uid(dataset: Dataset, keyword: str) -> str:
    value = str(dataset.get(keyword) or "")
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else ""


def _patient(dataset: Dataset) -> str | None:
    number = str(dataset.get("PatientID") or "").strip()
    issuer = str(dataset.get("IssuerOfPatientID") or "").strip()
    return f"{issuer}|{number}" if number else None
