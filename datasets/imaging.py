"""One radiograph file (JPEG, PNG or DICOM) to grey pixels, and grey pixels to a network's input.

This is the only pixel code of the platform: training and serving both call `read` and `model_input`, so a model
sees in use exactly what it saw in training. Files are judged by their content, never by their name, and whatever is
wrong with one ends as an `ImageError` whose text can be shown to a user.
"""

import contextlib
import errno
import os
import stat
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import dicom, enhancement
from .radiograph import (
    MAX_PIXELS,
    Bytes,
    Floats,
    ImageError,
    Radiograph,
    check_scans,
    check_size,
    to_grey,
    too_much_memory,
    truncated,
)

__all__ = [
    "FITS",
    "PIPELINE",
    "ImageError",
    "Radiograph",
    "model_input",
    "read",
    "read_bytes",
    "to_model_input",
    "to_png",
]

MAX_FILE_BYTES: Final = 256 * 1024**2
PIPELINE: Final[dict[str, Any]] = {"id": "grey-pad", "version": 2, "fit": "pad"}
FITS: Final = ("pad", "stretch")

# Pillow only warns about huge pictures; here that is an error before any pixel is decoded.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def read(source: Path | bytes) -> Radiograph:
    """Decode a radiograph from a path or from the bytes of a file. Raises ImageError."""
    data = source if isinstance(source, bytes) else read_bytes(source)
    if _format(data) == "DICOM":
        return dicom.read(data)
    return _read_picture(data)


def read_bytes(path: Path | str, *, follow: bool = True) -> bytes:
    """The content of a regular file of at most MAX_FILE_BYTES; its format is not looked at.

    Raises ImageError for anything else: a folder, a device, a file that is too large or cannot be opened, and a link
    unless `follow` is set. A named pipe is refused too, at once, because the file is opened without blocking.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
        try:
            return _regular_bytes(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ELOOP:
            text = "This is a link; links are not followed. Copy the file here."
            raise ImageError("link", text) from error
        reason = error.strerror or type(error).__name__
        raise ImageError("unreadable", f"The file cannot be opened: {reason}.") from error


def model_input(radiograph: Radiograph, size: int, fit: str = "pad", steps: Sequence[str] = ()) -> Bytes:
    """What a network of this size sees of a radiograph: `to_model_input` of its pixels, as fine as they are."""
    pixels = radiograph.grey if radiograph.fine is None else radiograph.fine
    return to_model_input(pixels, size, fit, steps)


def to_model_input(pixels: Bytes | Floats, size: int, fit: str = "pad", steps: Sequence[str] = ()) -> Bytes:
    """Bring grey pixels to uint8 (size, size); a network's input is this divided by 255.

    pixels: (H, W), uint8 or float32 0..1; the same picture gives the same result as either. fit "pad" keeps the
    proportions and adds black bars on both sides, "stretch" ignores them. The resize is anti-aliased (triangle filter
    with a support that grows with the reduction) and the result is rounded once.
    steps: of `enhancement.STEPS`. Borders are cropped from the pixels as they are; equalised is the picture of this
    size, without the bars. Raises ValueError for a step that does not exist.
    """
    wanted = enhancement.ordered(steps)
    if "crop_borders" in wanted:
        pixels = enhancement.without_borders(pixels)
    inner = _inner(pixels.shape, size, fit)
    picture = Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels * np.float32(255))
    if picture.size != inner:
        # Not in 8 bits, where Pillow would round after each of the two directions.
        picture = picture.convert("F").resize(inner, Image.Resampling.BILINEAR)
    levels = np.asarray(picture)
    grey = levels if picture.mode == "L" else np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    if "clahe" in wanted:
        grey = enhancement.clahe(grey)
    if "equalise" in wanted:
        grey = enhancement.equalise(grey)
    return _centred(grey, size)


def _inner(shape: tuple[int, ...], size: int, fit: str) -> tuple[int, int]:
    """(width, height) of the picture within the square."""
    if fit not in FITS:
        raise ValueError(f"fit must be one of {FITS}, not {fit!r}")
    if fit == "stretch":
        return size, size
    height, width = shape
    longest = max(height, width)
    return max(1, round(width * size / longest)), max(1, round(height * size / longest))


def _centred(grey: Bytes, size: int) -> Bytes:
    height, width = grey.shape
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size), np.uint8)
    square[top : top + height, left : left + width] = grey
    return square


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 (H, W) or (H, W, 3) pixels as a PNG file, for previews."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# --- From a file to its format ---------------------------------------------------------------------------------------

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
OTHER_PICTURES: Final = (
    (b"GIF8", "a GIF picture"),
    (b"BM", "a Windows bitmap"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\0\0\0\x0cjP", "a JPEG 2000 picture outside DICOM"),
    (b"RIFF", "a WebP picture or a sound or video file"),
)
NO_PICTURES: Final = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive or an Office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a Linux program"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\xca\xfe\xba\xbe", "a macOS program or a Java class"),
    (b"#!", "a script"),
)
# A DICOM preamble may hold anything, a TIFF header among it, but nothing that another program would open or run.
PREAMBLES: Final = (
    *NO_PICTURES,
    (b"\xfe\xed\xfa", "a macOS program"),
    (b"<", "a web page"),
    (JPEG_SIGNATURE, "a JPEG picture"),
    (PNG_SIGNATURE, "a PNG picture"),
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
        _check_preamble(data)
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


def _check_preamble(data: bytes) -> None:
    for signature, kind in PREAMBLES:
        if data.startswith(signature):
            raise ImageError("executable-preamble", f"The DICOM file begins like {kind}. It is not opened.")


def _kind(data: bytes) -> str:
    """What a file that is no radiograph is, in words."""
    for signature, kind in (*OTHER_PICTURES, *NO_PICTURES):
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


# --- JPEG and PNG ----------------------------------------------------------------------------------------------------

MODES: Final = {
    "1": "black and white",
    "L": "8 bit grey",
    "LA": "8 bit grey with transparency",
    "P": "a palette of colours",
    "PA": "a palette of colours with transparency",
    "RGB": "8 bit colour",
    "RGBA": "8 bit colour with transparency",
    "CMYK": "8 bit colour for print (CMYK)",
    "I": "16 bit grey",
    "I;16": "16 bit grey",
}
# EXIF orientation (tag 0x0112) to what undoes it.
ORIENTATION: Final = 0x0112
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Side of the grid of pixels that tells how colourful a picture is.
SAMPLE: Final = 32


def _read_picture(data: bytes) -> Radiograph:
    try:
        picture = _open_picture(data)
        kind = "JPEG" if picture.format == "MPO" else str(picture.format)
        steps = [f"{kind}, {MODES.get(picture.mode, picture.mode)}"]
        if getattr(picture, "n_frames", 1) > 1:
            steps.append("first frame only")
        picture.load()
        return _radiograph(_upright(picture, steps), kind, steps)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too-large", f"The picture has more than {MAX_PIXELS // 10**6} million pixels.") from None
    except MemoryError:
        raise too_much_memory() from None
    except Exception as error:  # decoders raise whatever they like on hostile input
        raise _undecodable(error) from error


def _open_picture(data: bytes) -> Image.Image:
    """Open without decoding, after the checks that need no decoding."""
    picture = Image.open(BytesIO(data), formats=("JPEG", "PNG"))
    check_size(*picture.size)
    if picture.format == "PNG":
        # Only this compares the checksums, and only this notices a file cut behind its last pixel.
        with Image.open(BytesIO(data), formats=("PNG",)) as twin:
            twin.verify()
    else:
        check_scans(data)
    return picture


def _undecodable(error: Exception) -> ImageError:
    text = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text:
        return truncated()
    return ImageError("damaged", "The picture is damaged and cannot be decoded. Copy or export it again.")


def _upright(picture: Image.Image, steps: list[str]) -> Image.Image:
    try:
        undo = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF data says nothing against the pixels
        steps.append("orientation unreadable, left as stored")
        return picture
    if undo is None:
        return picture
    steps.append("turned upright by EXIF")
    return picture.transpose(undo)


def _radiograph(picture: Image.Image, kind: str, steps: list[str]) -> Radiograph:
    """Luma by ITU-R BT.601 (0.299 R + 0.587 G + 0.114 B) over black where transparent."""
    if picture.mode.startswith("I"):
        fine = _sixteen_bits(picture, steps)
        return Radiograph(to_grey(fine), kind, tuple(steps), fine)
    if picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture.convert("RGBA"))
        steps.append("transparency laid over black")
    colours = None
    if picture.mode not in ("L", "1"):
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        colours = np.asarray(picture.resize((SAMPLE, SAMPLE), Image.Resampling.NEAREST))
        steps.append("colour turned to grey")
    grey = picture if picture.mode == "L" else picture.convert("L")
    return Radiograph(np.asarray(grey), kind, tuple(steps), colours=colours)


def _sixteen_bits(picture: Image.Image, steps: list[str]) -> Floats:
    """16-bit PNG often holds 10, 12 or 14 bits: the smallest of these ranges that holds the maximum is white."""
    values = np.asarray(picture).astype(np.float32)
    largest = int(values.max())
    bits = next(bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits)
    steps.append(f"{bits} of its 16 bits used")
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 0
        steps.append("transparency laid over black")
    return values / np.float32(2**bits - 1)
