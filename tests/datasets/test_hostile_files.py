"""Damaged and hostile files: whatever a file holds, reading it gives a valid radiograph or an `ImageError`.

Real formats are made here, then bytes are flipped, cut, repeated, inserted and mixed, and DICOM elements get other
values and lengths. They are read in a child process with a gigabyte of memory and five seconds for each, so that a
crash or a hang of a decoder written in C is seen. In the product it is the error "decoder-crashed" of that one file.
"""

import json
import os
import select
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.datasets.files import dataset, encode, gradient, write_dicom

SECONDS = 5
MEMORY_BYTES = 1024**3

# Reads files that come in as length and content, answers each with one line: what became of it.
CHILD = f"""
import json, os, resource, struct, sys
import numpy as np
from datasets.imaging import ImageError, model_input, read
import imagecodecs, pydicom.pixels
[getattr(imagecodecs, name) for name in ("jpeg8_decode", "jpegls_decode", "jpeg2k_decode", "dicomrle_decode")]

answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + {MEMORY_BYTES}, now + {MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def outcome(data):
    try:
        found = read(data)
        pixels, small = found.pixels, model_input(found, 32)
    except ImageError as error:
        return {{"code": error.code, "said": str(error)}}
    except BaseException as error:
        return {{"raised": type(error).__name__ + ": " + str(error)}}
    valid = (
        np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1 and pixels.dtype == np.float32
        and found.grey.dtype == np.uint8 and pixels.shape == found.grey.shape == (found.height, found.width)
        and small.shape == (32, 32) and 0 <= found.colour <= 1
    )
    return {{"valid": bool(valid), "said": " ".join(found.steps), "digest": found.digest}}

while size := sys.stdin.buffer.read(4):
    answers.write(json.dumps(outcome(sys.stdin.buffer.read(*struct.unpack("<L", size)))) + "\\n")
    answers.flush()
"""


class Reader:
    """A child process that reads one file after the other and may die of it."""

    def __init__(self) -> None:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env=environment,
        )
        self.read(b"", seconds=60)  # until everything is imported

    def read(self, data: bytes, seconds: float = SECONDS) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(struct.pack("<L", len(data)) + data)
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return {"hung": seconds}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"died": self.process.wait(5)}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Readers:
    """A reader that is replaced when a file has ended it."""

    def __init__(self) -> None:
        self.reader = Reader()

    def read(self, data: bytes) -> dict[str, Any]:
        outcome = self.reader.read(data)
        if outcome.keys() & {"hung", "died"}:
            self.reader.end()
            self.reader = Reader()
        return outcome


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    made = Readers()
    yield made
    made.reader.end()


# --- Files to start from ---------------------------------------------------------------------------------------------

PICTURE = gradient(40, 48)
DEEP = PICTURE.astype(np.uint16) << 4
TWELVE_BITS = {"BitsStored": 12, "HighBit": 11}


def _compressed(frame: bytes, values: Any, syntax: str, **tags: Any) -> bytes:
    return write_dicom(dataset(values, PixelData=encapsulate([frame]), **tags), syntax)


def _run_lengths() -> bytes:
    made = dataset(DEEP, **TWELVE_BITS)
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(RLELossless)
    return write_dicom(made, RLELossless)


def _with_tables(syntax: str) -> bytes:
    """Every element of the grey-scale chain, with both look-up tables."""
    made = dataset(
        DEEP,
        **TWELVE_BITS,
        PhotometricInterpretation="MONOCHROME1",
        PixelPaddingValue=0,
        PixelPaddingRangeLimit=3,
        RescaleSlope=2,
        RescaleIntercept=-5,
        WindowCenter=[2000, 100],
        WindowWidth=[4000, 10],
        VOILUTFunction="SIGMOID",
        PresentationLUTShape="INVERSE",
    )
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        item = pydicom.Dataset()
        item.add_new("LUTDescriptor", "US", [256, 0, 16])
        item.add_new("LUTData", "OW", np.arange(256, dtype=np.uint16).tobytes())
        setattr(made, keyword, pydicom.Sequence([item]))
    return write_dicom(made, syntax)


WINDOW = {"WindowCenter": 2000, "WindowWidth": 4000}
DICOM_FILES: dict[str, Callable[[], bytes]] = {
    "explicit": lambda: write_dicom(dataset(DEEP, **TWELVE_BITS, **WINDOW), ExplicitVRLittleEndian),
    "implicit": lambda: write_dicom(dataset(DEEP, **TWELVE_BITS), ImplicitVRLittleEndian),
    "big endian": lambda: write_dicom(dataset(DEEP, PixelData=DEEP.astype(">u2").tobytes()), ExplicitVRBigEndian),
    "deflated": lambda: write_dicom(dataset(DEEP, **TWELVE_BITS), DeflatedExplicitVRLittleEndian),
    "tables": lambda: _with_tables(ExplicitVRLittleEndian),
    "implicit tables": lambda: _with_tables(ImplicitVRLittleEndian),
    "RLE": _run_lengths,
    "JPEG": lambda: _compressed(encode(PICTURE, "JPEG"), PICTURE, JPEGBaseline8Bit),
    "JPEG Extended": lambda: _compressed(
        imagecodecs.jpeg8_encode(DEEP, bitspersample=12), DEEP, JPEGExtended12Bit, **TWELVE_BITS
    ),
    "JPEG Lossless": lambda: _compressed(
        imagecodecs.ljpeg_encode(DEEP, bitspersample=12), DEEP, JPEGLosslessSV1, **TWELVE_BITS
    ),
    "JPEG-LS": lambda: _compressed(imagecodecs.jpegls_encode(DEEP), DEEP, JPEGLSLossless, **TWELVE_BITS),
    "JPEG 2000": lambda: _compressed(encode(PICTURE, "JPEG2000", no_jp2=True), PICTURE, JPEG2000Lossless),
}
PICTURES: dict[str, Callable[[], bytes]] = {
    "JPEG grey": lambda: encode(PICTURE, "JPEG"),
    "JPEG colour": lambda: encode(Image.fromarray(PICTURE).convert("RGB"), "JPEG", progressive=True, exif=_exif()),
    "JPEG print": lambda: encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"),
    "PNG grey": lambda: encode(PICTURE, "PNG"),
    "PNG deep": lambda: encode(DEEP, "PNG"),
    "PNG palette": lambda: encode(Image.fromarray(PICTURE).convert("P"), "PNG", transparency=3, exif=_exif()),
    "PNG colour": lambda: encode(Image.fromarray(PICTURE).convert("RGBA"), "PNG"),
}


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@cache
def original(name: str) -> bytes:
    return (DICOM_FILES | PICTURES)[name]()


# --- What is done to them --------------------------------------------------------------------------------------------


def flip(data: bytes, place: int, length: int, noise: bytes) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << length % 8)]) + data[place + 1 :]


def cut(data: bytes, place: int, length: int, noise: bytes) -> bytes:
    return data[:place]


def remove(data: bytes, place: int, length: int, noise: bytes) -> bytes:
    return data[:place] + data[place + length :]


def repeat(data: bytes, place: int, length: int, noise: bytes) -> bytes:
    return data[: place + length] + data[place : place + length] * 3 + data[place + length :]


def insert(data: bytes, place: int, length: int, noise: bytes) -> bytes:
    return data[:place] + noise + data[place:]


def overwrite(data: bytes, place: int, length: int, noise: bytes) -> bytes:
    return data[:place] + noise + data[place + len(noise) :]


def move(data: bytes, place: int, length: int, noise: bytes) -> bytes:
    """A piece of the file itself, somewhere else in it."""
    source = int.from_bytes(noise[:4], "little") % len(data)
    return data[:place] + data[source : source + length] + data[place + length :]


BLOWS = [flip, cut, remove, repeat, insert, overwrite, move]
# Bytes that mean something to one of the formats: lengths, markers, delimiters, the largest numbers.
TELLING = [
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x80\0\0\0",
    b"\xff\xd8\xff",
    b"\xff\xd9",
    b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01",
    b"\xff\xc4\0\x04",
    b"IEND",
    b"\xfe\xff\0\xe0\xff\xff\xff\xff",
    b"\xfe\xff\xdd\xe0\0\0\0\0",
    b"\xe0\x7f\x10\0",
    b"SQ\0\0\xff\xff\xff\xff",
]
NOISE = st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from(TELLING))
BLOW = st.tuples(st.sampled_from(BLOWS), st.integers(0, 2**16), st.integers(1, 64), NOISE)


def damaged(data: bytes, blows: list[Any]) -> bytes:
    for blow, place, length, noise in blows:
        if data:
            data = blow(data, place % len(data), length, noise)
    return data


@cache
def elements(name: str) -> list[tuple[int, int]]:
    """Where the value of each element of a file begins and its length, those within sequences too."""
    found = []
    body = inflated(original(name))

    def collect(made: pydicom.Dataset) -> None:
        for tag in made.keys():  # noqa: SIM118
            raw = made.get_item(tag)
            if isinstance(raw, pydicom.dataelem.RawDataElement) and raw.length != 0xFFFFFFFF:
                found.append((raw.value_tell, raw.length))
            elif isinstance(raw, pydicom.DataElement) and raw.VR == "SQ":
                for item in raw.value:
                    collect(item)

    read = pydicom.dcmread(BytesIO(body))
    collect(read.file_meta)
    collect(read)
    return found


def inflated(data: bytes) -> bytes:
    """A deflated file with its data set unpacked, and its header telling so."""
    start = 144 + struct.unpack("<L", data[140:144])[0]
    if DeflatedExplicitVRLittleEndian.encode() not in data[:start]:
        return data
    header = data[:start].replace(b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0")
    return header + zlib.decompress(data[start:], -zlib.MAX_WBITS)


def deflated(data: bytes) -> bytes:
    start = min(len(data), 144 + struct.unpack("<L", data[140:144])[0])
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    header = data[:start].replace(b"1.2.840.10008.1.2.1\0\0\0", b"1.2.840.10008.1.2.1.99")
    return header + packer.compress(data[start:]) + packer.flush()


NUMBERS = [
    b"",
    b"0",
    b"-1",
    b"nan",
    b"inf",
    b"1e400",
    b"65536",
    b"99999999999",
    b"1\\2\\3",
    b"x",
    b"\0\0",
    b"\xff\xff",
    b"\x01\x00",
]
CHANGE = st.tuples(
    st.integers(0, 200),
    st.sampled_from(["value", "length", "vr"]),
    st.one_of(st.sampled_from(NUMBERS), st.binary(max_size=12)),
)


def with_other_elements(data: bytes, places: list[tuple[int, int]], changes: list[Any]) -> bytes:
    """Elements with other values of the same length, other lengths, other VRs. No byte moves."""
    content = bytearray(data)
    for number, what, noise in changes:
        at, length = places[number % len(places)]
        if what == "value":
            content[at : at + length] = (noise + b" " * length)[:length]
        elif what == "length":
            content[at - 4 : at] = (noise + b"\xff" * 4)[:4]
        else:
            content[at - 4 : at - 2] = (noise + b"SQ")[:2]
    return bytes(content)


def judged(outcome: dict[str, Any]) -> None:
    assert outcome.keys() <= {"code", "said", "valid", "digest"}, outcome
    assert outcome.get("code") or outcome["valid"], outcome
    assert "Doe" not in outcome["said"]
    assert "Secret" not in outcome["said"]


# --- The tests -------------------------------------------------------------------------------------------------------

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=2_000)


def check_damaged(readers: Readers, name: str, blows: list[Any]) -> None:
    judged(readers.read(damaged(original(name), blows)))


def check_elements(readers: Readers, name: str, changes: list[Any], blows: list[Any]) -> None:
    data = inflated(original(name))
    data = damaged(with_other_elements(data, elements(name), changes), blows)
    judged(readers.read(deflated(data) if name == "deflated" and len(data) > 144 else data))


@pytest.mark.parametrize("name", [*PICTURES, *DICOM_FILES])
def test_every_file_is_read_before_it_is_damaged(readers: Readers, name: str):
    outcome = readers.read(original(name))

    assert outcome["valid"]


@pytest.mark.parametrize("name", [*PICTURES, *DICOM_FILES])
def test_a_damaged_file_is_a_radiograph_or_an_image_error(readers: Readers, name: str):
    @QUICK
    @given(blows=st.lists(BLOW, min_size=1, max_size=4))
    def check(blows: list[Any]) -> None:
        check_damaged(readers, name, blows)

    check()


@pytest.mark.parametrize("name", DICOM_FILES)
def test_dicom_elements_may_hold_anything(readers: Readers, name: str):
    @QUICK
    @given(changes=st.lists(CHANGE, min_size=1, max_size=4), blows=st.lists(BLOW, max_size=1))
    def check(changes: list[Any], blows: list[Any]) -> None:
        check_elements(readers, name, changes, blows)

    check()


def test_a_lost_byte_in_the_frame_header_does_not_end_the_process(readers: Readers):
    """python-gdcm 3.2.6 threw an exception of C++ here that nobody catches: the whole process aborted."""
    data = original("JPEG")
    end = data.index(b"\xff\xc0\0\x0b") + 12

    judged(readers.read(data[:end] + data[end + 1 :]))


@pytest.mark.parametrize("name", ["JPEG colour", "in a DICOM file"])
def test_a_progressive_jpeg_of_endless_scans_is_refused_at_once(readers: Readers, name: str):
    """Each scan of a few dozen bytes makes the decoder pass over all 36 million pixels."""
    frame = encode(Image.new("L", (6000, 6000)), "JPEG", progressive=True)
    last = frame[frame.rindex(b"\xff\xda") : -2]
    frame = frame[:-2] + last * 5000 + frame[-2:]
    if name == "in a DICOM file":
        frame = _compressed(frame, PICTURE, JPEGBaseline8Bit, Rows=6000, Columns=6000)

    assert readers.read(frame)["code"] == "damaged"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PICTURES, *DICOM_FILES])
def test_two_thousand_damaged_files_of_each_kind(readers: Readers, name: str):
    @LONG
    @given(blows=st.lists(BLOW, min_size=1, max_size=4))
    def check(blows: list[Any]) -> None:
        check_damaged(readers, name, blows)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", DICOM_FILES)
def test_two_thousand_files_of_each_kind_with_other_elements(readers: Readers, name: str):
    @LONG
    @given(changes=st.lists(CHANGE, min_size=1, max_size=4), blows=st.lists(BLOW, max_size=1))
    def check(changes: list[Any], blows: list[Any]) -> None:
        check_elements(readers, name, changes, blows)

    check()
