"""What can be told of each analysed image in a few numbers, and how these were distributed on validation.

Monitoring compares both by week: when the images or the answers become others than those that a version was validated
on, its figures may not hold any more. No image can be made from these numbers, and none identifies a patient.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets import quality

Bytes = NDArray[np.uint8]
Column = NDArray[np.float64]

# In the order of pages and tables.
LABELS: Final = {
    "mean": "Mean grey value",
    "deviation": "Standard deviation of the grey values",
    "entropy": "Entropy of the grey values in bits",
    "brightness": quality.LABELS["brightness"],
    "contrast": quality.LABELS["contrast"],
    "sharpness": quality.LABELS["sharpness"],
    "dark_share": quality.LABELS["dark_share"],
    "bright_share": quality.LABELS["bright_share"],
    "inversion": quality.LABELS["inversion"],
    "width": quality.LABELS["width"],
    "height": quality.LABELS["height"],
    "distance": "Distance from the training images",
}
KEPT_VALUES: Final = 1000


def without_bars(pixels: Bytes, width: int, height: int, fit: str) -> Bytes:
    """A network's input uint8 (S, S) without the black bars that made a picture of width x height pixels square."""
    if fit != "pad":
        return pixels
    size = len(pixels)
    longest = max(width, height)
    columns, rows = max(1, round(width * size / longest)), max(1, round(height * size / longest))
    top, left = (size - rows) // 2, (size - columns) // 2
    return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])


def without_black_edges(pixels: Bytes) -> Bytes:
    """A network's input uint8 (S, S) without the rows and columns at its edges that are black all along.

    Where borders were cropped, only the pixels tell how much of the square is picture: black borders went before, so
    that what is black all along now was added. An input that is all black stays as it is.
    """
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return pixels
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def picture_of(pixels: Bytes, width: int, height: int, fit: str, cropped: bool) -> Bytes:
    """What of a network's input uint8 (S, S) is picture of width x height pixels; cropped: without its borders."""
    return without_black_edges(pixels) if cropped else without_bars(pixels, width, height, fit)


def measures(seen: Bytes, width: int, height: int, distance: float | None = None) -> dict[str, float]:
    """The LABELS of one image, each a finite number.

    seen: uint8 (H, W), what the network saw, `without_bars`. width, height: of the radiograph itself, in pixels.
    distance: of `Reference.distances`; left out where there is none.

    mean, deviation: of the grey values 0..1. entropy: of the 256 grey values (Shannon 1948), 0 to 8 bits. brightness,
    contrast, sharpness, dark_share, bright_share, inversion and unlikeness: see `quality.measure`. Values compare
    between images of one version only: the size of its input is part of them.
    """
    counts = np.asarray(Image.fromarray(seen).histogram(), np.float64)
    shares = counts / counts.sum()
    levels = np.arange(256) / 255
    mean = float(shares @ levels)
    filled = shares[shares > 0]
    found = quality.measure_network_input(seen) | {
        "mean": mean,
        "deviation": math.sqrt(max(float(shares @ (levels - mean) ** 2), 0.0)),
        "entropy": abs(float(filled @ np.log2(filled))),
        "width": float(width),
        "height": float(height),
    }
    if distance is not None and math.isfinite(distance):
        found["distance"] = distance
    return {name: float(f"{value:.6g}") for name, value in found.items()}


@dataclass(frozen=True)
class Distribution:
    """One number over many images.

    count: images. values: in order; all of them, or of more than KEPT_VALUES the quantiles at (i + 0.5) / KEPT_VALUES.
    The share of `values` up to any number then differs from the share of all by at most 1 / KEPT_VALUES, so that
    Kolmogorov's and Smirnov's distance (with `count` for its interval) and the stability index (PSI, by any bins)
    can be computed from them.
    """

    count: int
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Column) -> Self:
        """values: float64 (N,); what is not finite is left out."""
        ordered = np.sort(values[np.isfinite(values)])
        kept = ordered
        if len(ordered) > KEPT_VALUES:
            wanted = (np.arange(KEPT_VALUES) + 0.5) / KEPT_VALUES
            kept = np.quantile(ordered, wanted, method="inverted_cdf")
        return cls(len(ordered), tuple(float(f"{value:.6g}") for value in kept))

    def quantile(self, share: float) -> float | None:
        """The value that this share 0..1 of the images does not exceed; None without images."""
        return float(np.quantile(self.values, share, method="inverted_cdf")) if self.values else None


@dataclass(frozen=True)
class Distributions:
    """How images and answers were distributed on a version's validation part.

    measures: by name of LABELS (and "unlikeness"). probabilities: by class, as users see them, after the temperature.
    """

    measures: dict[str, Distribution]
    probabilities: dict[str, Distribution]

    @classmethod
    def of(cls, found: list[dict[str, float]], probabilities: Mapping[str, Column]) -> Self:
        """found: of `measures`, one an image. probabilities: float64 (N,) by class."""
        names = sorted({name for one in found for name in one})
        columns = {name: np.array([one.get(name, math.nan) for one in found]) for name in names}
        return cls(
            {name: Distribution.of(column) for name, column in columns.items()},
            {name: Distribution.of(column) for name, column in probabilities.items()},
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of what `to_json` returned, once it was stored as JSON."""
        return cls(*({name: _distribution(one) for name, one in content[part].items()} for part in _PARTS))


_PARTS: Final = ("measures", "probabilities")


def _distribution(content: Mapping[str, Any]) -> Distribution:
    return Distribution(int(content["count"]), tuple(map(float, content["values"])))
