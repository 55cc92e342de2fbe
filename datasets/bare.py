"""A radiograph's file without anything but its pixels: no name, no place, no comment, no preview, nothing appended.

For JPEG and PNG the compressed pixels are copied as they are, so that decoding gives the very same values; a DICOM file
is written anew as a PNG of 16 bits.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .radiograph import Bytes, Floats, Radiograph

_JPEG_START: Final = b"\xff\xd8"
_JPEG_END: Final = b"\xff\xd9"
_SCAN: Final = 0xDA
# JFIF and Adobe segments say how the colours are to be read; every other application segment and comments go.
_JPEG_DROPPED: Final = {*range(0xE1, 0xEE), 0xEF, 0xFE}
# Markers that have no length: restart markers within a scan, and TEM.
_JPEG_BARE: Final = {*range(0xD0, 0xD8), 0x01}
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT: Final = {b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"sBIT", b"IDAT", b"IEND"}
_EXIF: Final = b"Exif\0\0"
_ORIENTATION: Final = 0x0112
# `imaging` takes the smallest of 8, 10, 12, 14 and 16 bits that holds the maximum for the range of the picture.
_TAKEN_FOR_FEWER_BITS: Final = 2**14


class NotBare(Exception):
    """The file is not built in a way that lets its pixels be copied alone."""


def bare(data: bytes, radiograph: Radiograph) -> bytes:
    """The pixels of a decoded file, as a JPEG or PNG file that `imaging.read` decodes to the same digest.

    data: the file that `radiograph` was decoded from.
    """
    try:
        if radiograph.format == "JPEG":
            return _bare_jpeg(data)
        if radiograph.format == "PNG":
            return _bare_png(data)
    except NotBare:
        pass
    return to_png_as_fine(radiograph)


def to_png_as_fine(radiograph: Radiograph) -> bytes:
    """A grey PNG file: of 16 bits where the radiograph is finer than 8 and not dark all over, of 8 bits otherwise."""
    levels: NDArray[Any] = radiograph.grey
    if radiograph.fine is not None:
        fine = _sixteen_bits(radiograph.fine, radiograph.grey)
        # A picture that is dark all over would be taken for one of fewer bits, and come back brighter.
        levels = fine if fine.max() >= _TAKEN_FOR_FEWER_BITS else levels
    return to_png_quickly(levels)


def to_png_quickly(levels: NDArray[Any]) -> bytes:
    """A grey PNG file of uint8 or uint16 (H, W)."""
    # Differences from the row above, run lengths only: a quarter of the time of the usual effort, and no larger.
    return bytes(
        imagecodecs.png_encode(levels, level=1, filter=imagecodecs.PNG.FILTER.UP, strategy=imagecodecs.PNG.STRATEGY.RLE)
    )


def _sixteen_bits(fine: Floats, grey: Bytes) -> NDArray[np.uint16]:
    """0..1 as 0..65535, never rounded across the limit between two of the 256 levels: they make the digest."""
    middle = grey.astype(np.int32) * 257
    levels = np.rint(np.clip(fine, 0, 1) * 65535).astype(np.int32)
    return np.clip(levels, middle - 128, middle + 128).astype(np.uint16)


def _bare_jpeg(data: bytes) -> bytes:
    """Segments that the decoder needs and the scans, up to the end of the picture. Raises NotBare."""
    if not data.startswith(_JPEG_START):
        raise NotBare
    kept = [_JPEG_START]
    for marker, segment in _segments(data):
        if marker == 0xE1 and segment[4:10] == _EXIF and _is_turned(segment[4:]):
            # Without this segment it would lie on its side; it is written anew, upright.
            raise NotBare
        if marker not in _JPEG_DROPPED:
            kept.append(segment)
    return b"".join([*kept, _JPEG_END])


def _is_turned(exif: bytes) -> bool:
    tags = Image.Exif()
    try:
        tags.load(exif)
        return bool(tags.get(_ORIENTATION, 1) != 1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        # What Pillow cannot read here it may read otherwise when it decodes the picture.
        return True


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment after the start, a scan with its compressed data, without the end."""
    position = len(_JPEG_START)
    while True:
        if position + 1 >= len(data) or data[position] != 0xFF:
            raise NotBare
        marker = data[position + 1]
        if marker == 0xFF:
            # A fill byte.
            position += 1
            continue
        if marker == _JPEG_END[1]:
            return
        end = position + 2
        if marker not in _JPEG_BARE:
            end += int.from_bytes(data[end : end + 2], "big")
        if marker == _SCAN:
            end = _scan_end(data, end)
        if end > len(data) or end < position + 2:
            raise NotBare
        yield marker, data[position:end]
        position = end


def _scan_end(data: bytes, start: int) -> int:
    """Where the next marker is that is not part of the compressed data."""
    position = data.find(b"\xff", start)
    while 0 <= position < len(data) - 1:
        if data[position + 1] != 0 and data[position + 1] not in _JPEG_BARE:
            return position
        position = data.find(b"\xff", position + 2)
    raise NotBare


def _bare_png(data: bytes) -> bytes:
    """The chunks that make the pixels, with checksums proved. Raises NotBare."""
    if not data.startswith(_PNG_SIGNATURE):
        raise NotBare
    kept, position, kind = [_PNG_SIGNATURE], len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data) or kind == b"eXIf":
            raise NotBare
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise NotBare
        if kind in _PNG_KEPT:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)
