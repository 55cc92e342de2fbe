"""A decoded radiograph and the error of a file that is none: what `imaging` and `dicom` have in common."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

MAX_PIXELS: Final = 40_000_000
MAX_SCANS: Final = 50


class ImageError(Exception):
    """A file that cannot be used as a radiograph. `code` is stable, the text is for users."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A decoded radiograph, as a reader would see it (bone bright on dark).

    grey: uint8 (height, width), 0 black to 255 white. fine: float32 of the same shape, 0..1, before it was rounded to
    `grey`; None where the file itself has no more than 8 bits. steps: what was done to the stored values, in words.
    colours: uint8 (n, n, 3), a grid of the pixels before they became grey; None for a grey file.
    burned_in: the file says that text is burned into its pixels. patient: issuer and PatientID; identifies a person,
    so it must be hashed before it is stored. institution: the same holds for the hospital's name. sex: "F", "M", "O" or
    "" where unknown. age: the band of years that the patient was in, see `dicom.AGE_BANDS`; "" where unknown.
    """

    grey: Bytes
    format: str
    steps: tuple[str, ...] = ()
    fine: Floats | None = None
    colours: Bytes | None = None
    burned_in: bool = False
    patient: str | None = None
    institution: str | None = None
    sex: str = ""
    age: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    body_part: str = ""
    modality: str = ""

    @property
    def width(self) -> int:
        return int(self.grey.shape[1])

    @property
    def height(self) -> int:
        return int(self.grey.shape[0])

    @cached_property
    def pixels(self) -> Floats:
        """float32 (height, width), 0 black to 1 white, as fine as the file has them."""
        return self.fine if self.fine is not None else np.asarray(self.grey, np.float32) / np.float32(255)

    @cached_property
    def colour(self) -> float:
        """Mean of (max - min of red, green, blue) / 255 over the grid of colours; 0 for a grey file."""
        if self.colours is None:
            return 0.0
        return float((self.colours.max(axis=2) - self.colours.min(axis=2)).mean()) / 255

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the grey pixels and of their shape: a copy in another file format has the same."""
        content = hashlib.sha256(f"{self.height}x{self.width}:".encode())
        content.update(np.ascontiguousarray(self.grey).data)
        return content.hexdigest()


def to_grey(pixels: Floats) -> Bytes:
    """0..1 to 0..255, rounded; what lies outside is clipped."""
    scaled = np.clip(pixels, 0, 1) * np.float32(255)
    grey: Bytes = np.rint(scaled, out=scaled).astype(np.uint8)
    return grey


def check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError("no-pixels", f"The file says that its picture is {width} x {height} pixels.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too-large",
            f"The picture has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are decoded.",
        )


def check_scans(jpeg: bytes) -> None:
    """Refuse a progressive JPEG of very many scans: each costs a pass over all pixels and may be a few bytes long.

    Encoders write about ten. The marker cannot occur within a scan, where a byte 0xFF is followed by a zero.
    """
    content = np.frombuffer(jpeg, np.uint8)
    places = np.flatnonzero(content[1:] == 0xDA)  # ten times as fast as bytes.count, which stumbles over every 0xFF
    if np.count_nonzero(content[places] == 0xFF) > MAX_SCANS:
        raise ImageError("damaged", f"The picture consists of more than {MAX_SCANS} scans. Export it again.")


def truncated() -> ImageError:
    return ImageError("truncated", "The file ends too early, the picture is incomplete. Copy or export it again.")


def too_much_memory() -> ImageError:
    return ImageError("too-large", "The picture needs more memory than there is for one picture.")
