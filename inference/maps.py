"""Class activation maps as pictures to lay over a radiograph."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .activation import Grid
from .measures import without_bars

OPACITY = 0.6
# Evidence that differs by less than this share of the strongest is the rounding of float32, not a pattern.
_FLAT = 1e-5
# Cubehelix: half a turn of hue from blue over red to yellow, the directions that colour-blind people tell apart too.
_START, _ROTATIONS, _SATURATION = 0.0, 0.5, 2.0
_DARKEST, _LIGHTEST = 0.3, 0.85


def heat(activation: NDArray[np.float32], size: int, grid: Grid | None = None) -> bytes:
    """A map float32 (h, w) as a transparent PNG of size x size pixels, to lay over the network's input.

    Only evidence for the class (above 0) is shown, from the weakest (transparent, blue) to the strongest in this
    picture (yellow, opacity 0.6): colours of two pictures do not compare. Where there is no evidence, or the same
    everywhere, all is transparent. grid: where the cells lie; None for cells that tile the picture. Raises ValueError
    for values that are not finite.
    """
    return _png(_coloured(activation, size, grid))


def over_picture(
    activation: NDArray[np.float32],
    size: int,
    grid: Grid | None,
    *,
    shape: tuple[int, int],
    fit: str,
    inside: tuple[slice, slice] | None = None,
) -> bytes:
    """A map float32 (h, w) as a transparent PNG that covers the radiograph itself, without the network's black bars.

    The colours are those of `heat`, by the whole of the network's input of size x size pixels. shape: height and width
    of the radiograph in pixels; fit: how it became square, "pad" or "stretch"; inside: the rows and columns that were
    left of it before, where borders were cropped. The PNG has the radiograph's proportions. Errors as of `heat`.
    """
    height, width = shape
    rows, columns = inside or (slice(0, height), slice(0, width))
    part_height, part_width = rows.stop - rows.start, columns.stop - columns.start
    seen = without_bars(_coloured(activation, size, grid), part_width, part_height, fit)
    # Pixels of the network's input to one of the radiograph.
    scale = size / max(part_width, part_height)
    part = Image.fromarray(seen).resize(
        (max(1, round(part_width * scale)), max(1, round(part_height * scale))), Image.Resampling.BILINEAR
    )
    whole = Image.new("RGBA", (max(1, round(width * scale)), max(1, round(height * scale))))
    whole.paste(part, (round(columns.start * scale), round(rows.start * scale)))
    return _png(np.asarray(whole))


def overlay(pixels: NDArray[np.uint8], activation: NDArray[np.float32], grid: Grid | None = None) -> bytes:
    """The picture of `heat` laid over the network's input uint8 (S, S): a PNG in RGB. Arguments and errors as there."""
    colours = _coloured(activation, len(pixels), grid).astype(np.float64)
    opacity = colours[..., 3:] / 255
    blended = (1 - opacity) * pixels[..., None] + opacity * colours[..., :3]
    return _png(np.rint(blended).astype(np.uint8))


def evidence(activation: NDArray[np.float32], size: int, grid: Grid | None = None) -> NDArray[np.float64]:
    """The map at every pixel: float64 (size, size) in 0..1, 0 for none or negative, 1 for the strongest. As `heat`."""
    values = np.asarray(activation, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("The activation map holds values that are not numbers.")
    rows = _interpolation(values.shape[0], size, grid)
    columns = _interpolation(values.shape[1], size, grid)
    positive = rows @ np.maximum(values, 0) @ columns.T
    weakest, span = positive.min(), np.ptp(positive)
    if span <= _FLAT * np.abs(values).max():
        return np.zeros((size, size))
    return np.asarray((positive - weakest) / span, np.float64)


def legend(steps: int = 12) -> list[str]:
    """Colours from the weakest to the strongest, as #rrggbb."""
    return [f"#{colour.tobytes().hex()}" for colour in colours(np.linspace(0, 1, steps))]


def colours(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Values in 0..1 (...) as RGB (..., 3) by the cubehelix scheme (Green 2011): the higher, the lighter, linearly.

    So that their order is seen without colours as well.
    """
    lightness = _DARKEST + (_LIGHTEST - _DARKEST) * values
    angle = 2 * np.pi * (_START / 3 + 1 + _ROTATIONS * values)
    amplitude = _SATURATION * lightness * (1 - lightness) / 2
    turns = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    directions = np.array([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]])
    rgb = lightness[..., None] + amplitude[..., None] * (turns @ directions.T)
    return np.asarray(np.rint(255 * np.clip(rgb, 0, 1)), np.uint8)


def _coloured(activation: NDArray[np.float32], size: int, grid: Grid | None) -> NDArray[np.uint8]:
    """RGBA uint8 (size, size, 4)."""
    values = evidence(activation, size, grid)
    opacity = np.rint(255 * OPACITY * values).astype(np.uint8)
    return np.concatenate([colours(values), opacity[..., None]], axis=-1)


def _interpolation(cells: int, size: int, grid: Grid | None) -> NDArray[np.float64]:
    """Weights (size, cells) that make pixels of cells: cubic B-splines about the cells' places.

    Smooth and never beyond the cells' values; the outermost cells go on to the edge of the picture.
    """
    placed = grid or Grid(size / cells / 2, size / cells)
    # The pixels' middles, in cells.
    position = np.clip((np.arange(size) + 0.5 - placed.first) / placed.step, 0, cells - 1)
    weights = np.zeros((size, cells))
    for offset in (-1, 0, 1, 2):
        cell = np.floor(position) + offset
        np.add.at(weights, (np.arange(size), np.clip(cell, 0, cells - 1).astype(int)), _b_spline(position - cell))
    return weights


def _b_spline(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic B-spline kernel, which is 0 from a distance of 2 on."""
    away = np.abs(distance)
    near = 2 / 3 - away**2 + away**3 / 2
    far = np.maximum(2 - away, 0) ** 3 / 6
    return np.where(away < 1, near, far)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
