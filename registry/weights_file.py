"""Is this a safetensors file of ordinary numbers? Found out without believing a word of it, and block by block.

The format: 8 bytes, the length of the head (little-endian); the head, a JSON object that gives each array's dtype,
shape and place in the rest of the file; then the numbers. Nothing else is accepted, and no array is built here, so that
a head of 2^62 bytes or a shape of 2^40 numbers costs nothing. Whether names and shapes fit an architecture is asked
where it is rebuilt.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from registry import strict_json

MAX_HEAD_BYTES: Final = 4 * 1024**2
MAX_NAME: Final = 200
MAX_DIMENSIONS: Final = 8
BLOCK: Final = 1024**2
# Bytes of one number, for what `Artifact.weights` can load; numpy has no BF16 and no 8-bit floating-point numbers.
ITEM_BYTES: Final = {
    "F64": 8, "F32": 4, "F16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1,
}  # fmt: skip
# The bits of the exponent; a number with all of them set is infinite or not a number (IEEE 754).
_EXPONENT: Final = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10)}
ARCHIVES: Final = {
    b"PK\x03\x04": "zip archive (such as a .keras or PyTorch file)",
    b"PK\x05\x06": "zip archive",
    b"7z\xbc\xaf": "7z archive",
    b"Rar!": "RAR archive",
    b"\x1f\x8b": "gzip file",
    b"BZh": "bzip2 file",
    b"\xfd7zXZ": "xz file",
    b"\x28\xb5\x2f\xfd": "Zstandard file",
}
_OTHERS: Final = {
    b"\x89HDF": "HDF5 file (such as a .h5 model)",
    b"\x93NUMPY": "numpy file",
    b"\x80\x02": "pickle",
    b"\x80\x03": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    b"\x7fELF": "program",
    b"MZ": "program",
    b"GGUF": "GGUF file",
}


class WeightsError(Exception):
    """The file is refused. `reason`: disguised, head, dtype, shape, offsets, not-finite, truncated, surplus."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class _Array:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def check(path: Path, *, max_head_bytes: int = MAX_HEAD_BYTES) -> dict[str, tuple[int, ...]]:
    """The shape of each array by its name. Raises WeightsError; of malformed content, nothing else.

    Reads the whole file once, at most BLOCK bytes at a time besides the head, which has at most max_head_bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        arrays, start = _arrays(file, size, max_head_bytes)
        _check_places(arrays, size - start)
        for array in arrays:
            _check_finite(file, array, start)
    return {array.name: array.shape for array in arrays}


def archive_kind(beginning: bytes) -> str:
    """What kind of archive begins with these bytes, in words; "" for none that is known."""
    return _kind(beginning, ARCHIVES)


def _kind(beginning: bytes, kinds: dict[bytes, str]) -> str:
    return next((words for sign, words in kinds.items() if beginning.startswith(sign)), "")


# -- The head


def _arrays(file: BinaryIO, size: int, max_head_bytes: int) -> tuple[list[_Array], int]:
    beginning = file.read(8)
    length = int.from_bytes(beginning, "little")
    if size < 8 or length > min(size - 8, max_head_bytes):
        raise _no_head(beginning, f"its head would have {length:,} bytes" if size >= 8 else "it is too short")
    content = file.read(length)
    try:
        head = _head(content)
    except ValueError as error:
        raise _no_head(beginning, f"its head is damaged: {error}") from error
    arrays = [_array(name, entry) for name, entry in head.items()]
    return sorted(arrays, key=lambda array: array.start), 8 + length


def _no_head(beginning: bytes, problem: str) -> WeightsError:
    kind = _kind(beginning, ARCHIVES | _OTHERS)
    if kind:
        return WeightsError(
            "disguised",
            f"The weights are a {kind} under another name. Such files can hold programs, so they are never opened. "
            "Only weights in the safetensors format are taken.",
        )
    return WeightsError(
        "head", f"The weights are not a safetensors file: {problem}. Ask for the package to be exported again."
    )


def _head(content: bytes) -> dict[str, Any]:
    head = strict_json.parse(content)
    if not content.startswith(b"{") or not isinstance(head, dict):
        raise ValueError("it is not a JSON object")
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its notes are not texts")
    if not head:
        raise ValueError("it lists no array")
    return head


def _array(name: str, entry: Any) -> _Array:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise _refused("head", name, "has a name that no weights have")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refused("head", name, "is not described by dtype, shape and place alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _refused("dtype", name, f"are not numbers of a kind that is used here ({', '.join(ITEM_BYTES)})")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS or 0 in shape:
        raise _refused("shape", name, f"do not have a shape of 0 to {MAX_DIMENSIONS} positive whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _refused("offsets", name, "have no place of two whole numbers")
    return _Array(name, dtype, tuple(shape), *offsets)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(arrays: list[_Array], available: int) -> None:
    """Each array takes exactly the bytes that its shape needs, and together they take all that there are."""
    position = 0
    for array in arrays:
        if array.start != position:
            raise _refused("offsets", array.name, "share bytes with others, or leave bytes unused before them")
        if array.stop - array.start != math.prod(array.shape) * ITEM_BYTES[array.dtype]:
            raise _refused("shape", array.name, "have another number of bytes than their shape needs")
        position = array.stop
    if position > available:
        raise WeightsError("truncated", "The weights file is cut off. Ask for the package to be exported again.")
    if position < available:
        raise WeightsError(
            "surplus", "The weights file holds bytes that belong to no weights. Ask for it to be exported again."
        )


# -- The numbers


def _check_finite(file: BinaryIO, array: _Array, start: int) -> None:
    if array.dtype not in _EXPONENT:
        return
    kind, exponent = _EXPONENT[array.dtype]
    mask = np.dtype(kind).type(exponent)
    file.seek(start + array.start)
    left = array.stop - array.start
    while left:
        block = file.read(min(left, BLOCK))
        if len(block) < min(left, BLOCK):
            raise WeightsError("truncated", "The weights file became shorter while it was read.")
        left -= len(block)
        if np.any(np.frombuffer(block, kind) & mask == mask):
            raise _refused("not-finite", array.name, "hold values that are not numbers (NaN or infinity)")


def _refused(reason: str, name: str, problem: str) -> WeightsError:
    shown = "".join(sign for sign in name if sign.isprintable())[:60]
    return WeightsError(reason, f"The weights {shown!r} {problem}, so the model cannot be used. Ask for another one.")
