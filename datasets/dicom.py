"""One DICOM file to a radiograph: what may be in it, the stored values, and the grey-scale chain to what a reader sees.

The chain is that of DICOM PS3.3 C.11.1 (modality), C.11.2 (values of interest) and C.7.6.3.1.2 (photometric). It is our
own because pydicom 3.0.2 windows downwards when the slope is negative and inverts by the image's own maximum. Whatever
a file claims is checked before memory is spent on it. No value of a file gets into a message but numbers and UIDs.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from datetime import date
from io import BytesIO
from struct import Struct
from typing import Any, Final

import numpy as np
import pydicom
import pydicom.config
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from .radiograph import Floats, ImageError, Radiograph, check_scans, check_size, to_grey, too_much_memory, truncated

Mask = NDArray[np.bool_]

MAX_INFLATED_BYTES: Final = 256 * 1024**2
MAX_PIXEL_BYTES: Final = 128 * 1024**2
MAX_META_BYTES: Final = 1024**2
MAX_ELEMENTS: Final = 100_000
MAX_DEPTH: Final = 32
# Grey values outside these percentiles are saturated when a file says nothing about its window.
PERCENTILES: Final = (0.5, 99.5)

# Otherwise pydicom's warnings quote the offending value, which may be a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

TRANSFER_SYNTAXES: Final = frozenset(
    {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.5",
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.4.57",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.80",
        "1.2.840.10008.1.2.4.81",
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.91",
    }
)
# Nothing else is read from a file, so nothing else can end up in a message or a log.
KEYWORDS: Final = [
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "BodyPartExamined",
    "PatientID",
    "IssuerOfPatientID",
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "AcquisitionDate",
    "StudyDate",
    "InstitutionName",
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
    "BurnedInAnnotation",
]
TAGS: Final = [Tag(keyword) for keyword in KEYWORDS]
PIXEL_DATA: Final = 0x7FE00010
LOSSLESS: Final = (RLELossless, JPEGLossless, JPEGLosslessSV1)


def read(data: bytes) -> Radiograph:
    """Decode the bytes of a DICOM file (Part 10, with its preamble). Raises ImageError."""
    try:
        return _radiograph(data)
    except ImageError:
        raise
    except RecursionError:
        raise _nested_too_deeply() from None
    except MemoryError:
        raise too_much_memory() from None
    except Exception as error:  # `from None`: the text of the cause may quote values of the file
        raise ImageError("damaged", f"The DICOM file is damaged ({type(error).__name__}). Export it again.") from None


def header(data: bytes) -> Dataset:
    """All elements of a DICOM file before its pixel data, the patient's too: for a result that goes back to the
    sender. Nothing of it is to be stored or logged. Raises ImageError."""
    try:
        syntax, body = _transfer_syntax(data)
        _check_structure(body, syntax)
        dataset = read_dataset(
            BytesIO(body),
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=lambda tag, vr, length: tag >= PIXEL_DATA,
        )
    except ImageError:
        raise
    except RecursionError:
        raise _nested_too_deeply() from None
    except Exception as error:  # `from None`: the text of the cause may quote values of the file
        raise ImageError("damaged", f"The DICOM file is damaged ({type(error).__name__}). Export it again.") from None
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _radiograph(data: bytes) -> Radiograph:
    syntax, body = _transfer_syntax(data)
    dataset = _dataset(body, syntax)
    _check_header(dataset)
    stored = _stored_values(dataset, syntax)
    steps = [f"DICOM, {syntax.name}, {int(dataset.BitsStored)} bit grey"]
    pixels = _render(dataset, stored, steps)
    return Radiograph(
        to_grey(pixels),
        "DICOM",
        tuple(steps),
        pixels,
        burned_in=code_string(dataset, "BurnedInAnnotation") == "YES",
        patient=_patient(dataset),
        institution=" ".join(_text(dataset, "InstitutionName").split()) or None,
        sex=_sex(dataset),
        age=_age_band(dataset),
        study_uid=_uid(dataset, "StudyInstanceUID"),
        series_uid=_uid(dataset, "SeriesInstanceUID"),
        sop_uid=_uid(dataset, "SOPInstanceUID"),
        body_part=code_string(dataset, "BodyPartExamined"),
        modality=code_string(dataset, "Modality"),
    )


# --- From a file to its elements -------------------------------------------------------------------------------------


def _transfer_syntax(data: bytes) -> tuple[UID, bytes]:
    """Transfer syntax of a file and the bytes of its data set; refuses what cannot be decoded by name."""
    buffer = BytesIO(data[: 132 + MAX_META_BYTES])
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
    body = data[buffer.tell() :]
    return syntax, _inflate(body) if syntax == DeflatedExplicitVRLittleEndian else body


def _inflate(body: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(body, MAX_INFLATED_BYTES)
    if len(inflated) >= MAX_INFLATED_BYTES:
        raise ImageError("too-large", f"The deflated DICOM file unpacks to over {MAX_INFLATED_BYTES // 1024**2} MB.")
    if not inflater.eof:
        raise truncated()
    return inflated


def _dataset(body: bytes, syntax: UID) -> Dataset:
    """The elements of KEYWORDS. pydicom recurses into sequences, so their depth is looked at first."""
    _check_structure(body, syntax)
    dataset = read_dataset(BytesIO(body), syntax.is_implicit_VR, syntax.is_little_endian, specific_tags=TAGS)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    if "PixelData" not in dataset and _tag_bytes(PIXEL_DATA, syntax) in body:
        raise truncated()
    return dataset


def _tag_bytes(tag: int, syntax: UID) -> bytes:
    return struct.pack("<HH" if syntax.is_little_endian else ">HH", tag >> 16, tag & 0xFFFF)


ITEM: Final = 0xFFFEE000
DELIMITERS: Final = (0xFFFEE00D, 0xFFFEE0DD)
UNDEFINED: Final = 0xFFFFFFFF
# DICOM PS3.5 7.1.2: these have a length of 32 bits behind two reserved bytes.
LONG_VRS: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})


def _check_structure(body: bytes, syntax: UID) -> None:
    """Refuse a data set with too many elements or sequences within sequences, before the pixel data.

    What is wrong in any other way is left to pydicom, which judges it all the same.
    """
    for count, depth in enumerate(_depths(body, syntax), 1):
        if depth > 2 * MAX_DEPTH:  # a sequence and its item are a level each
            raise _nested_too_deeply()
        if count > MAX_ELEMENTS:
            raise ImageError("too-many-elements", f"The DICOM file has more than {MAX_ELEMENTS:,} elements.")


def _nested_too_deeply() -> ImageError:
    return ImageError(
        "nested-too-deeply", "The DICOM file nests its sequences too deeply for a radiograph. Export it again."
    )


def _depths(body: bytes, syntax: UID) -> Iterator[int]:
    """The number of open sequences and items at each element, up to the pixel data."""
    heads = _Heads(body, syntax)
    # Where each open sequence or item ends, and whether it holds the fragments of a compressed picture.
    inside: list[tuple[int, bool]] = [(len(body), False)]
    at = 0
    while at + 8 <= len(body):
        while len(inside) > 1 and at >= inside[-1][0]:
            inside.pop()
        tag, vr, length, at = heads.read(at)
        yield len(inside) - 1
        if tag == PIXEL_DATA and len(inside) == 1:
            return
        end, fragments = inside[-1]
        if tag in DELIMITERS:
            inside = inside[:-1] or inside
        elif not fragments and heads.opens(tag, vr, length, at):
            inside.append((end if length == UNDEFINED else min(at + length, end), vr in LONG_VRS - {b"SQ", b"UN"}))
        else:
            at = min(at + length, end)


class _Heads:
    """Tag, VR and length of the elements of a data set."""

    def __init__(self, body: bytes, syntax: UID) -> None:
        order = "<" if syntax.is_little_endian else ">"
        self.body, self.implicit = body, syntax.is_implicit_VR
        self.item = _tag_bytes(ITEM, syntax)
        self.words, self.short, self.long = Struct(f"{order}HHL"), Struct(f"{order}H"), Struct(f"{order}L")

    def read(self, at: int) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty when it is not stated), length and the place of the value."""
        group, element, length = self.words.unpack_from(self.body, at)
        tag, vr = group << 16 | element, self.body[at + 4 : at + 6]
        if self.implicit or group == 0xFFFE or not vr.isupper() or not vr.isalpha():
            return tag, b"", length, at + 8
        if vr not in LONG_VRS:
            return tag, vr, self.short.unpack_from(self.body, at + 6)[0], at + 8
        length = self.long.unpack_from(self.body, at + 8)[0] if at + 12 <= len(self.body) else 0
        return tag, vr, length, at + 12

    def opens(self, tag: int, vr: bytes, length: int, at: int) -> bool:
        """Whether this is a sequence or an item. A sequence without a VR is known by its first item."""
        if tag == ITEM or vr == b"SQ" or length == UNDEFINED:
            return True
        return vr in (b"", b"UN") and self.body.startswith(self.item, at)


# What a message may name: any other value of this element could be anything.
COLOURS: Final = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "HSV", "CMYK")


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
    photometric = code_string(dataset, "PhotometricInterpretation")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        kind = photometric if photometric in COLOURS else "of an unknown kind"
        raise ImageError("colour-dicom", f"The DICOM file is a colour picture ({kind}), not a radiograph.")
    _check_pixel_bytes(dataset)


def _check_pixel_bytes(dataset: Dataset) -> None:
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    check_size(columns, rows)
    allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        raise ImageError("unsupported-pixels", f"{stored} bits stored in {allocated} are not supported.")
    if rows * columns * allocated // 8 > MAX_PIXEL_BYTES:
        raise ImageError(
            "too-large",
            f"The picture has {columns} x {rows} pixels of {allocated} bits; "
            f"at most {MAX_PIXEL_BYTES // 1024**2} MB are decoded.",
        )


# --- From the pixel data to stored values ----------------------------------------------------------------------------


def _stored_values(dataset: Dataset, syntax: UID) -> NDArray[Any]:
    """Stored values, (rows, columns), of an integer type. What the file claims of their size is compared first."""
    if not syntax.is_encapsulated:
        _check_length(dataset)
        return np.asarray(get_decoder(syntax).as_array(dataset, index=0)[0])
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    if syntax != RLELossless:  # which states no dimensions of its own
        _check_codestream(dataset, syntax, frame)
    try:
        decoded = _decompress(dataset, syntax, frame)
    except MemoryError:
        raise
    except Exception:  # as for pictures; the text of the cause may quote values of the file
        raise _damaged(syntax) from None
    return _as_declared(dataset, decoded, syntax)


def _check_length(dataset: Dataset) -> None:
    expected = int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    actual = len(dataset.PixelData)
    if actual < expected:
        raise ImageError("truncated", f"The pixel data ends after {actual} of {expected} bytes. Export the file again.")
    if actual > expected + expected % 2:
        raise ImageError("wrong-length", f"The pixel data has {actual} bytes where the header says {expected}.")


def _check_codestream(dataset: Dataset, syntax: UID, frame: bytes) -> None:
    """Compare the file's header with the compressed picture's own, so that neither can lie, and look for its end.

    Decoders fill what is missing with grey, and say so only on standard error.
    """
    if syntax in JPEG2000TransferSyntaxes:
        found = _jpeg2000_size(frame)
    else:
        check_scans(frame)
        found = _jpeg_size(frame)
    if found is None:
        raise _damaged(syntax)
    rows, columns, components, bits = found
    if (rows, columns) != (int(dataset.Rows), int(dataset.Columns)):
        raise ImageError(
            "wrong-length",
            f"The header says {int(dataset.Columns)} x {int(dataset.Rows)} pixels, the compressed picture has others.",
        )
    if components != 1 or bits > int(dataset.BitsAllocated):
        raise ImageError(
            "unsupported-pixels",
            f"The compressed picture has {components} x {bits} bits a pixel, the header says less.",
        )
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) and dataset.get("PixelRepresentation") == 1:
        # DICOM PS3.5 8.2.1 forbids it: in two's complement -1 and 0 are far apart, and a lossy codec blurs that step.
        raise ImageError(
            "unsupported-pixels", f"Signed values in {syntax.name} are not supported. Export uncompressed."
        )
    if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise truncated()


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """(rows, columns, components, bits) of a JPEG 2000 codestream (ISO 15444-1 A.5.1), bare or in a JP2 box."""
    start = 0 if frame.startswith(b"\xff\x4f") else frame.find(b"jp2c\xff\x4f\xff\x51", 0, 4096) + 4
    siz = frame[start : start + 43]
    if len(siz) < 43 or siz[:4] != b"\xff\x4f\xff\x51":
        return None
    x1, y1, x0, y0 = (int.from_bytes(siz[at : at + 4], "big") for at in (8, 12, 16, 20))
    return y1 - y0, x1 - x0, int.from_bytes(siz[40:42], "big"), (siz[42] & 0x7F) + 1


def _jpeg_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """(rows, columns, components, bits) of a JPEG or JPEG-LS codestream, from its frame header (ISO 10918-1 B.2.2)."""
    at = 2
    while frame.startswith(b"\xff\xd8") and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = (int.from_bytes(frame[at + n : at + n + 2], "big") for n in (5, 7))
            return rows, columns, frame[at + 9], frame[at + 4]
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _damaged(syntax: UID) -> ImageError:
    return ImageError("damaged", f"The pixel data ({syntax.name}) is damaged or incomplete. Export the file again.")


def _decompress(dataset: Dataset, syntax: UID, frame: bytes) -> NDArray[Any]:
    """imagecodecs has libjpeg-turbo 3 (8, 12 and 16 bits, lossless too), CharLS and OpenJPEG.

    pydicom's own plugins would need gdcm, which ends the whole process on some damaged JPEG files and cannot decode
    JPEG Extended of 12 bits.
    """
    import imagecodecs  # for compressed files only

    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if syntax == RLELossless:
        # pydicom's decoder unpacks whatever a frame unpacks to, this one no more than there is room for.
        unsigned = np.dtype(f"<u{int(dataset.BitsAllocated) // 8}")
        room = bytearray(rows * columns * unsigned.itemsize)
        return np.frombuffer(imagecodecs.dicomrle_decode(frame, unsigned, out=room), unsigned).reshape(rows, columns)
    decoded: NDArray[Any]
    if syntax in JPEG2000TransferSyntaxes:
        decoded = imagecodecs.jpeg2k_decode(frame)
    elif syntax in JPEGLSTransferSyntaxes:
        decoded = imagecodecs.jpegls_decode(frame)
    else:
        decoded = imagecodecs.jpeg8_decode(frame)
    return decoded.reshape(rows, columns)


def _as_declared(dataset: Dataset, decoded: NDArray[Any], syntax: UID) -> NDArray[Any]:
    """Decoded values with the sign that the header gives them, as most codecs know none.

    Bits above those stored are no part of a value: old files keep overlays there. Only a lossy codec may exceed them a
    little, which is white and must not become black.
    """
    bits = int(dataset.BitsAllocated)
    signed = dataset.get("PixelRepresentation") == 1
    values: NDArray[Any] = decoded.astype(f"{'i' if signed else 'u'}{bits // 8}", copy=False)
    if signed or decoded.dtype.kind == "i" or syntax in LOSSLESS:
        unused = bits - int(dataset.BitsStored)
        values = values << unused >> unused
    return values


# --- From stored values to grey --------------------------------------------------------------------------------------


FUNCTIONS: Final = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def _render(dataset: Dataset, stored: NDArray[Any], steps: list[str]) -> Floats:
    """Stored values to 0 black .. 1 white."""
    padding = _padding(dataset, stored)
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = _voi(dataset, _modality(dataset, stored, steps), padding, steps)
    _check_finite(pixels)
    photometric, shape = code_string(dataset, "PhotometricInterpretation"), code_string(dataset, "PresentationLUTShape")
    if photometric == "MONOCHROME1" or shape == "INVERSE":
        # VOI output spans 0..1 by definition, whatever this image's own extremes are.
        np.subtract(1, pixels, out=pixels)
        steps.append(f"inverted ({photometric if photometric == 'MONOCHROME1' else 'presentation shape INVERSE'})")
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
        steps.append("modality table applied")
        return _Table(sequence[0], _is_little_endian(dataset)).look_up(stored)
    slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ImageError("bad-rescale", f"The DICOM file rescales its values by {slope:g} and {intercept:g}.")
    values: Floats = stored.astype(np.float32)
    if (slope, intercept) != (1.0, 0.0):
        steps.append(f"rescaled (slope {slope:g}, intercept {intercept:g})")
        values *= np.float32(slope)
        values += np.float32(intercept)
        _check_finite(values)
    return values


def _check_finite(values: Floats) -> None:
    if not np.isfinite(values).all():
        raise ImageError("bad-rescale", "The DICOM file scales its values beyond what a number can hold.")


def _voi(dataset: Dataset, values: Floats, padding: Mask | None, steps: list[str]) -> Floats:
    """Values of interest to 0..1: the file's table first, then its window, else robust percentiles."""
    sequence = dataset.get("VOILUTSequence")
    if sequence:
        steps.append("value table of the file applied")
        table = _Table(sequence[0], _is_little_endian(dataset))
        found = table.look_up(np.rint(values))
        found /= np.float32(table.white)
        return _unit(found)
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None:
        return _stretch(values if padding is None else values[~padding], values, steps)
    function = code_string(dataset, "VOILUTFunction")
    function = function if function in FUNCTIONS else "LINEAR"
    kind = function.lower().replace("_", " ")
    steps.append(f"window of the file ({kind}): {width:g} wide at {center:g}")
    return _window(values, center, width, function)


def _stretch(sample: Floats, values: Floats, steps: list[str]) -> Floats:
    low, high = np.percentile(sample, PERCENTILES)
    if low == high:
        low, high = float(sample.min()), float(sample.max())
    share = PERCENTILES[1] - PERCENTILES[0]
    steps.append(f"no window in the file: the middle {share:g} % of its values shown, {low:g} to {high:g}")
    if low == high:
        return np.zeros_like(values)
    values -= np.float32(low)
    values /= np.float32(high - low)
    return _unit(values)


def _window(values: Floats, center: float, width: float, function: str) -> Floats:
    """Window of DICOM PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3 (SIGMOID, LINEAR_EXACT), to 0..1, in place."""
    if not np.isfinite([center, width]).all() or width <= 0 or (function == "LINEAR" and width < 1):
        raise ImageError("bad-window", f"The DICOM file has a display window {width:g} wide at {center:g}.")
    values -= np.float32(center)
    if function == "SIGMOID":
        return _unit(1 / (1 + np.exp(np.float32(-4 / width) * values)))
    if function == "LINEAR_EXACT":
        values /= np.float32(width)
        values += np.float32(0.5)
        return _unit(values)
    values += np.float32(0.5)
    if width == 1:
        return (values > 0).astype(np.float32)
    values /= np.float32(width - 1)
    values += np.float32(0.5)
    return _unit(values)


def _unit(values: Floats) -> Floats:
    return np.clip(values, 0, 1, out=values)


def _is_little_endian(dataset: Dataset) -> bool:
    return bool(UID(dataset.file_meta.TransferSyntaxUID).is_little_endian)


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
        places = values.astype(np.int64)
        places -= first
        found: Floats = self.entries[np.clip(places, 0, len(self.entries) - 1, out=places)]
        return found


def _number(dataset: Dataset, keyword: str, default: Any = None) -> Any:
    """The first value of a numeric element as float, the default when it is absent or empty."""
    value = dataset.get(keyword)
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        value = value[0] if len(value) else None
    return default if value is None or value == "" else float(value)


def code_string(dataset: Dataset, keyword: str) -> str:
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


# --- Who is on the picture: only as much as groups need, and never a date ---------------------------------------------

# First year of each band; the last has no end, because very old patients are few enough to be known by their age.
AGE_BANDS: Final = {0: "0-17", 18: "18-39", 40: "40-59", 60: "60-79", 80: "80+"}
# Nearly nobody is older: a birth date of 1 January 1900, or an age of 999 years, stands for an unknown one.
MAX_AGE: Final = 110
DAYS_OF_A_YEAR: Final = 365.25
# Units of an age string (DICOM PS3.5 6.2, AS) in years.
AGE_UNITS: Final = {"Y": 1, "M": 1 / 12, "W": 7 / DAYS_OF_A_YEAR, "D": 1 / DAYS_OF_A_YEAR}


def _text(dataset: Dataset, keyword: str) -> str:
    """An element that no picture depends on, as text; "" when it is absent or cannot be read."""
    try:
        return str(dataset.get(keyword) or "").strip("\0 ")
    except Exception:  # pydicom raises whatever it likes on a value that is not of its kind
        return ""


def _sex(dataset: Dataset) -> str:
    sex = _text(dataset, "PatientSex").upper()
    return sex if sex in ("F", "M", "O") else ""


def _age_band(dataset: Dataset) -> str:
    """The band of the age that the file states, else of that on the day of the picture; "" where neither is told."""
    age = _stated_age(dataset)
    if age is None:
        age = _age_by_dates(dataset)
    if age is None or not 0 <= age <= MAX_AGE:
        return ""
    return AGE_BANDS[max(first for first in AGE_BANDS if first <= age)]


def _stated_age(dataset: Dataset) -> float | None:
    stated = re.fullmatch(r"([0-9]{1,3})([DWMY])", _text(dataset, "PatientAge").upper())
    if stated is None:
        return None
    # Rounded, because 216 twelfths must be 18.
    return round(int(stated[1]) * AGE_UNITS[stated[2]], 6)


def _age_by_dates(dataset: Dataset) -> int | None:
    """Full years. The acquisition comes first: the date of a study may be that of a later import."""
    born = _date(dataset, "PatientBirthDate")
    taken = _date(dataset, "AcquisitionDate") or _date(dataset, "StudyDate")
    if born is None or taken is None:
        return None
    return taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))


def _date(dataset: Dataset, keyword: str) -> date | None:
    """YYYYMMDD, or YYYY.MM.DD as files from before 1993 have it (DICOM PS3.5 6.2, DA)."""
    found = re.fullmatch(r"([0-9]{4})(\.?)([0-9]{2})\2([0-9]{2})", _text(dataset, keyword))
    try:
        return date(int(found[1]), int(found[3]), int(found[4])) if found else None
    except ValueError:
        return None
