"""The radiograph as the result page shows it: window and level over the fine values of the file, not over 256 steps."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.radiograph import Floats, Radiograph

Levels = NDArray[np.uint16]

WHITE: Final = 65535
# Pixels of the longer side that a screen shows; finer ones come with the full size.
LONGEST: Final = 2048
NARROWEST: Final = 0.1


@dataclass(frozen=True)
class Window:
    """Which grey values are spread from black to white, in per cent of the range of the picture (0 black, 100 white).

    center: in the middle, -100..200; width: from black to white, 0.1..400. inverted: black and white change places.
    """

    center: float = 50.0
    width: float = 100.0
    inverted: bool = False

    @classmethod
    def parsed(cls, center: str, width: str, inverted: bool = False) -> Self:
        """Of what an address says; "" for the whole range. Raises ValueError for what is no window."""
        found = cls(float(center or cls.center), float(width or cls.width), inverted)
        # Written so that what is not a number is refused as well.
        if not (-100 <= found.center <= 200 and NARROWEST <= found.width <= 400):
            raise ValueError(f"There is no window {width} wide at {center}.")
        return found


def levels(radiograph: Radiograph, longest: int = LONGEST) -> Levels:
    """Grey values uint16 (h, w), 0 black to 65535 white, as fine as the file has them; reduced to `longest` pixels.

    The reduction is anti-aliased (triangle filter with a support that grows with it), as for the network's input.
    """
    height, width = radiograph.height, radiograph.width
    if max(height, width) <= longest:
        return _levels(radiograph.pixels)
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(radiograph.pixels).resize(size, Image.Resampling.BILINEAR)
    return _levels(np.asarray(picture))


def _levels(pixels: Floats) -> Levels:
    return np.asarray(np.rint(np.clip(pixels, 0, 1) * np.float32(WHITE)), np.uint16)


def windowed(picture: Levels, window: Window) -> NDArray[np.uint8]:
    """uint8 (h, w) of `levels`, linear within the window (DICOM PS3.3 C.11.2.1.3, LINEAR_EXACT) and cut outside."""
    grey = np.arange(WHITE + 1, dtype=np.float64) / WHITE
    shown = np.clip((grey - window.center / 100) / (window.width / 100) + 0.5, 0, 1)
    if window.inverted:
        shown = 1 - shown
    table = np.rint(255 * shown).astype(np.uint8)
    return table[picture]
