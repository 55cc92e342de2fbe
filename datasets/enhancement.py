"""Steps that a preparation can apply to the pixels beyond the usual: borders away, contrast evened out.

They are part of a model: `imaging.model_input` applies them in training and in serving alike.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

# Sides in pixels of the square images that a preparation can make.
IMAGE_SIZES: Final = (64, 128, 224, 299)
# In the order in which they are applied, with what each does.
STEPS: Final[dict[str, str]] = {
    "crop_borders": "Uniform dark or bright borders cropped",
    "clahe": "Contrast equalised locally (CLAHE)",
    "equalise": "Histogram equalised",
}
# Both would do the same work twice.
EXCLUSIVE: Final = frozenset({"clahe", "equalise"})

LEVELS: Final = 256
# Of a border: levels it stays within, counted from black or from white, and the share of a line that must do so. What
# is left over may be a letter.
BORDER_LEVELS: Final = 16
BORDER_SHARE: Final = 0.95
MAX_CROP: Final = 0.25
TILES: Final = 8
CLIP: Final = 2.0


def ordered(steps: Iterable[str]) -> tuple[str, ...]:
    """Some steps, each once, in the order of `STEPS`. Raises ValueError for one that does not exist, or for both
    kinds of equalisation."""
    wanted = list(steps)
    for name in wanted:
        if name not in tuple(STEPS):
            raise ValueError(f"There is no preprocessing step {name!r}; there are {', '.join(STEPS)}.")
    if set(wanted) >= EXCLUSIVE:
        raise ValueError("Preprocessing takes clahe or equalise, not both.")
    return tuple(name for name in STEPS if name in wanted)


def without_borders(pixels: NDArray[Any]) -> NDArray[Any]:
    """The part of a radiograph (H, W), uint8 or float 0..1, inside the shutters of its collimator."""
    return pixels[inside_borders(pixels)]


def inside_borders(pixels: NDArray[Any]) -> tuple[slice, slice]:
    """The rows and columns that `without_borders` leaves.

    Lines at the edge that are black, or white, all along are cut off, on each side at most a quarter of the picture.
    A picture of nothing but such lines is left alone.
    """
    rows = _inside(pixels)
    return rows, _inside(pixels[rows].T)


def _inside(pixels: NDArray[Any]) -> slice:
    """The rows that are not border."""
    count = len(pixels)
    most = int(count * MAX_CROP)
    border = _is_border(pixels)
    if border.all():
        return slice(0, count)
    first = min(int(np.argmin(border)), most)
    last = min(int(np.argmin(border[::-1])), most)
    return slice(first, count - last)


def _is_border(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Of each row."""
    white = LEVELS - 1 if pixels.dtype == np.uint8 else 1.0
    margin = white * BORDER_LEVELS / (LEVELS - 1)
    dark = np.count_nonzero(pixels <= margin, axis=1)
    bright = np.count_nonzero(pixels >= white - margin, axis=1)
    border: NDArray[np.bool_] = np.maximum(dark, bright) >= BORDER_SHARE * pixels.shape[1]
    return border


def equalise(grey: Bytes) -> Bytes:
    """Histogram equalisation of uint8 (H, W): afterwards every grey value is about equally frequent.

    The darkest value becomes black and the brightest white; a picture of one value stays as it is.
    """
    counts = np.cumsum(np.bincount(grey.ravel(), minlength=LEVELS))
    darkest = counts[counts > 0][0]
    if darkest == grey.size:
        return grey
    table = (LEVELS - 1) * (counts - darkest) / (grey.size - darkest)
    equal: Bytes = np.rint(np.clip(table, 0, LEVELS - 1)).astype(np.uint8)[grey]
    return equal


def clahe(grey: Bytes, tiles: int = TILES, clip: float = CLIP) -> Bytes:
    """Contrast limited adaptive histogram equalisation of uint8 (H, W) (Zuiderveld 1994, Graphics Gems IV).

    Each of `tiles` x `tiles` parts has its own curve; a pixel takes a bilinear mean of the four nearest ones. No level
    counts more than `clip` times what it would if all were equally frequent; what is cut off goes to all levels alike.
    """
    height, width = grey.shape
    padded = np.pad(grey, ((0, -height % tiles), (0, -width % tiles)), mode="reflect")
    curves = _curves(padded, tiles, clip)
    above, below, down = _neighbours(padded.shape[0], tiles)
    left, right, across = _neighbours(padded.shape[1], tiles)
    down, across = down[:, None], across[None, :]

    def mapped(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = curves[rows[:, None], columns[None, :], padded]
        return values

    upper = mapped(above, left) * (1 - across) + mapped(above, right) * across
    lower = mapped(below, left) * (1 - across) + mapped(below, right) * across
    return np.rint(upper * (1 - down) + lower * down).astype(np.uint8)[:height, :width]


def _curves(grey: Bytes, tiles: int, clip: float) -> NDArray[np.float32]:
    """(tiles, tiles, 256): the new grey value of each level in each part."""
    rows = np.arange(grey.shape[0]) * tiles // grey.shape[0]
    columns = np.arange(grey.shape[1]) * tiles // grey.shape[1]
    parts = (rows[:, None] * tiles + columns[None, :]) * LEVELS + grey
    counts = np.bincount(parts.ravel(), minlength=tiles * tiles * LEVELS).reshape(tiles, tiles, LEVELS)
    pixels = grey.size // tiles**2
    kept = np.minimum(counts, max(1.0, clip * pixels / LEVELS))
    spread = kept + (pixels - kept.sum(axis=-1, keepdims=True)) / LEVELS
    curves: NDArray[np.float32] = (np.cumsum(spread, axis=-1) * ((LEVELS - 1) / pixels)).astype(np.float32)
    return curves.clip(0, LEVELS - 1)


def _neighbours(size: int, tiles: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each line the part whose centre lies before it, the part behind, and how near it is to the latter (0..1)."""
    position = (np.arange(size) + 0.5) * tiles / size - 0.5
    before = np.floor(position).astype(np.intp)
    share = (position - before).astype(np.float32)
    return before.clip(0, tiles - 1), (before + 1).clip(0, tiles - 1), share
