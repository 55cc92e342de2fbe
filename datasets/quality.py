"""How good are the radiographs of a dataset: blur, exposure, burned-in text, negatives, pictures that are none.

`measure` looks at the pixels of one image and returns a few numbers. `distributions` and `judge` then look at the
numbers of a whole dataset, without any pixel: what is unusual for a chest is usual for a knee, so that an image is
mostly judged against the others of its own dataset. Whatever comes out is a suspicion that a person has to confirm.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]
Column = NDArray[np.float64]
Columns = Mapping[str, Column]

MEASURES: Final = (
    "sharpness",
    "brightness",
    "contrast",
    "dark_share",
    "bright_share",
    "inversion",
    "text",
    "unlikeness",
)
LABELS: Final = {
    "sharpness": "Sharpness",
    "brightness": "Brightness of the body",
    "contrast": "Contrast of the body",
    "dark_share": "Share of the body that is nearly black",
    "bright_share": "Share of the body that is nearly white",
    "inversion": "Likeness to a negative",
    "text": "Strokes in the longest line of text",
    "unlikeness": "Unlikeness to a radiograph",
    "width": "Width in pixels",
    "height": "Height in pixels",
    "colour": "Colour",
}
# Longer side of the copies that are measured. Everything but text is measured on the smaller one, at about the size
# that a network sees: a picture that is sharp at 224 pixels is sharp enough, and pictures of all sizes compare.
WORKING_SIZE: Final = 224
TEXT_SIZE: Final = 2 * WORKING_SIZE


# --- One image -------------------------------------------------------------------------------------------------------


def measure(pixels: Floats | Bytes) -> dict[str, float]:
    """The MEASURES of one radiograph, grey (H, W), float 0..1 or uint8, of any size; finite and rounded.

    sharpness: variance of the Laplacian over the mean squared gradient, both inside the body; about 0.5 to 8.
    brightness, contrast: mean, and distance of the 5 % and 95 % quantiles, of the grey values 0..1 of the body.
    dark_share, bright_share: parts of the body below 0.1 and above 0.97. inversion: 0 bones are bright, 1 they
    are dark. text: strokes that one row crosses in the longest line of bright text, about two a letter; 0: no line.
    unlikeness: 0..1, how much the picture is like a blank area, a drawing, a document or noise.
    """
    detailed = _bytes(_shrunk(Image.fromarray(pixels), TEXT_SIZE))
    found = _measured(detailed) | {"text": _text(detailed)}
    return {name: _rounded(found[name]) for name in MEASURES}


def measure_network_input(grey: Bytes) -> dict[str, float]:
    """The MEASURES but text of what a network sees, uint8 (H, W) without black bars: quick enough for each request."""
    return {name: _rounded(value) for name, value in _measured(grey).items()}


def _measured(detailed: Bytes) -> dict[str, float]:
    picture = _shrunk(Image.fromarray(detailed), WORKING_SIZE)
    grey = np.asarray(picture)
    counts = _counts(grey)
    threshold = _body_threshold(counts)
    return _tones(counts, threshold) | {
        "sharpness": _sharpness(grey, threshold),
        "inversion": _inversion(picture),
        "unlikeness": _unlikeness(grey, counts),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _shrunk(picture: Image.Image, size: int) -> Image.Image:
    """A copy whose longer side is at most `size`; small pictures are not enlarged."""
    width, height = picture.size
    longest = max(width, height)
    if longest <= size:
        return picture
    inner = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    return picture.resize(inner, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _bytes(picture: Image.Image) -> Bytes:
    if picture.mode != "F":
        return np.asarray(picture)
    values = np.nan_to_num(np.asarray(picture), nan=0.0)
    grey: Bytes = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return grey


def _counts(grey: Bytes) -> Integers:
    """Number of pixels of each of the 256 grey values; twice as fast as `bincount`, which converts to int64 first."""
    return np.asarray(Image.fromarray(grey).histogram(), np.int64)


def _body_threshold(counts: Integers) -> int:
    """Half of Otsu's threshold (1979): grey values above it are the body, those up to it are the background.

    Otsu's own value parts bone from soft tissue where a picture has little background.
    """
    shares = counts / counts.sum()
    below = np.cumsum(shares)
    moment = np.cumsum(shares * np.arange(256))
    spread = below * (1 - below)
    between = np.zeros(256)
    np.divide((moment[-1] * below - moment) ** 2, spread, out=between, where=spread > 1e-9)
    return int(between.argmax()) // 2


NEARLY_BLACK: Final = round(0.1 * 255)
NEARLY_WHITE: Final = round(0.97 * 255)


def _tones(counts: Integers, threshold: int) -> dict[str, float]:
    """Exposure of the body. The background of an arm is black by right and says nothing about the exposure."""
    body = counts.astype(np.float64)
    if body[threshold + 1 :].any():
        body[: threshold + 1] = 0
    shares = body / body.sum()
    below = np.cumsum(shares)
    low, high = np.searchsorted(below, (0.05, 0.95))
    return {
        "brightness": float(shares @ np.arange(256)) / 255,
        "contrast": float(high - low) / 255,
        "dark_share": float(shares[: NEARLY_BLACK + 1].sum()),
        "bright_share": float(shares[NEARLY_WHITE:].sum()),
    }


# Keeps the sharpness of a picture without any edge at 1, which is neither blurred nor sharp.
NO_EDGES: Final = 0.01


def _sharpness(grey: Bytes, threshold: int) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000), divided by the mean squared gradient.

    The bare variance depends on exposure and contrast, and on how much the body part has to show; the ratio only on how
    fine its details are, because both grow alike with the contrast.
    """
    if min(grey.shape) < 3:
        return 1.0
    body = grey[1:-1, 1:-1] > threshold
    area = int(np.count_nonzero(body))
    if not area:
        return 1.0
    # Whole numbers of two bytes hold all differences, and are several times as fast as floats.
    values = grey.astype(np.int16)
    left, right, above, below = values[1:-1, :-2], values[1:-1, 2:], values[:-2, 1:-1], values[2:, 1:-1]
    across, down = right - left, below - above
    laplacian = 4 * values[1:-1, 1:-1]
    for neighbour in (left, right, above, below):
        laplacian -= neighbour
    for slope in (laplacian, across, down):
        slope *= body
    variance = _energy(laplacian) / area - (float(laplacian.sum()) / area) ** 2
    gradient = (_energy(across) + _energy(down)) / 4 / area
    return (max(variance, 0.0) + NO_EDGES) / (gradient + NO_EDGES)


def _energy(values: NDArray[np.int16]) -> float:
    return float(np.einsum("ij,ij->", values, values, dtype=np.float64))


# Sides of the copies on which `_inversion` looks.
MEDIUM: Final = 64
COARSE: Final = 32
# Logistic regression on chests, knees, forearms and other limbs against their negatives, each kind weighing the same.
# Fitted without any one of them, it told that one's negatives as well.
INVERSION_WEIGHTS: Final = (0.8, 1.0, 1.4, 3.5)


def _inversion(picture: Image.Image) -> float:
    """How much the picture is like a negative: a bright surrounding, thin dark structures on a brighter ground.

    Each cue changes its sign with the picture's inversion, so that a picture and its negative add up to 1.
    """
    medium = picture.resize((MEDIUM, MEDIUM), Image.Resampling.BOX)
    values = np.asarray(medium, np.float32) / 255
    coarse = values.reshape(COARSE, 2, COARSE, 2).mean((1, 3))
    deviation = float(coarse.std()) + 0.02
    centre = float(coarse[8:24, 8:24].mean())
    sides = np.concatenate((coarse[:, :3], coarse[:, -3:]), axis=1)
    corners = coarse[np.ix_(CORNERS, CORNERS)]
    details = values - np.asarray(medium.filter(ImageFilter.BoxBlur(5)), np.float32) / 255
    details /= details.std() + np.float32(1e-3)
    skewness = np.clip(details * details * details, -50, 50).mean()
    cues = (
        (centre - float(sides.mean())) / deviation,
        (centre - float(corners.mean())) / deviation,
        float(np.clip(skewness, -5, 5)),
        0.5 - float(np.median(sides)),
    )
    score = sum(weight * cue for weight, cue in zip(INVERSION_WEIGHTS, cues, strict=True))
    return 1 / (1 + math.exp(min(max(score, -50.0), 50.0)))


CORNERS: Final = np.r_[0:6, COARSE - 6 : COARSE]


def _unlikeness(grey: Bytes, counts: Integers) -> float:
    """The strongest of three signs that this is no radiograph, each 0..1. A grey photograph shows none of them."""
    if min(grey.shape) < 3:
        return 1.0
    low, high = np.searchsorted(np.cumsum(counts) / grey.size, (0.005, 0.995))
    blank = 1 - _ramp(float(high - low), 4, 20)
    return max(blank, _drawn(grey), _noise(grey))


def _drawn(grey: Bytes) -> float:
    """Documents and screenshots: areas of one grey value, and where they end nothing but sharp edges.

    The background of a radiograph may be as flat, but what is not flat changes softly.
    """
    corner, beside, below = grey[:-1, :-1], grey[:-1, 1:], grey[1:, :-1]
    # The larger less the smaller, because bytes have no sign.
    largest = np.maximum(np.maximum(corner, beside), below)
    smallest = np.minimum(np.minimum(corner, beside), below)
    steps = largest - smallest
    counts = _counts(steps)
    flat = int(counts[:2].sum())
    edges = steps.size - flat
    if not edges:
        return 0.0
    median = int(np.searchsorted(np.cumsum(counts[2:]), edges / 2)) + 2
    return _ramp(flat / steps.size, 0.2, 0.3) * _ramp(median, 9, 17)


GRAINS: Final = 16


def _noise(grey: Bytes) -> float:
    """Noise has no large structures: hardly anything of its variance is left in a coarse copy."""
    variance = float(grey.var())
    if variance < 1 or min(grey.shape) < 2 * GRAINS:
        return 0.0
    coarse = np.asarray(Image.fromarray(grey).resize((GRAINS, GRAINS), Image.Resampling.BOX), np.float32)
    return 1 - _ramp(float(coarse.var()) / variance, 0.05, 0.3)


def _ramp(value: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end` on, linear between them."""
    return min(max((value - start) / (end - start), 0.0), 1.0)


# --- Burned-in text --------------------------------------------------------------------------------------------------

# Strokes are narrower than this, in pixels of the copy of TEXT_SIZE, and at least this share of the brightest value.
STROKE: Final = 9
STROKE_BRIGHTNESS: Final = 0.6
# How much brighter than their surroundings strokes are. Bone texture passes the lower level and hides what is written
# on it; faint letters do not reach the upper one.
STROKE_LEVELS: Final = (25, 60)
LETTER_GAP: Final = 11
LETTER_HEIGHTS: Final = (4, 32)
MIN_STROKES: Final = 5
MAX_SEGMENTS: Final = 3000


class _Segment(NamedTuple):
    """Strokes of one row that follow each other closely, from `start` up to `stop`."""

    row: int
    start: int
    stop: int
    strokes: int


@dataclass
class _Line:
    """Segments of neighbouring rows that lie below each other: perhaps a line of text."""

    top: int
    bottom: int
    start: int
    stop: int
    strokes: list[int]

    def takes(self, segment: _Segment) -> bool:
        common = min(segment.stop, self.stop) - max(segment.start, self.start)
        shorter = min(segment.stop - segment.start, self.stop - self.start)
        return segment.row - self.bottom <= 2 and 2 * common >= shorter

    def add(self, segment: _Segment) -> None:
        self.bottom = segment.row
        self.start, self.stop = min(self.start, segment.start), max(self.stop, segment.stop)
        self.strokes.append(segment.strokes)


def _text(grey: Bytes) -> float:
    """Strokes a row of the longest line of horizontal bright text: many upright strokes side by side, and above and
    below them none."""
    if min(grey.shape) < 2 * STROKE:
        return 0.0
    ground = _running(np.maximum, _running(np.minimum, grey, STROKE), STROKE)
    prominence = grey - ground  # an opening is never brighter than the picture
    bright = grey >= STROKE_BRIGHTNESS * int(grey.max())
    return max(_longest_line((prominence > level) & bright) for level in STROKE_LEVELS)


def _running(extreme: Callable[[Bytes, Bytes], Bytes], grey: Bytes, length: int) -> Bytes:
    """Smallest or largest of `length` (odd) neighbours in the same row, in log2(length) steps."""
    width = grey.shape[1]
    values = np.pad(grey, ((0, 0), (length // 2, length // 2)), mode="edge")
    reach = 1
    while 2 * reach <= length:
        values = extreme(values[:, :-reach], values[:, reach:])
        reach *= 2
    return extreme(values[:, :width], values[:, length - reach : length - reach + width])


def _longest_line(strokes: Mask) -> float:
    segments = _segments(strokes)
    if not LETTER_HEIGHTS[0] <= len(segments) <= MAX_SEGMENTS:
        return 0.0
    return max((_strokes_a_row(line, strokes) for line in _lines(segments)), default=0.0)


def _segments(strokes: Mask) -> list[_Segment]:
    edges = np.diff(np.pad(strokes, ((0, 0), (1, 1))).view(np.int8), axis=1).ravel()
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if not len(begins):
        return []
    width = strokes.shape[1] + 1
    rows, starts, stops = begins // width, begins % width, ends % width
    apart = (rows[1:] != rows[:-1]) | (starts[1:] - stops[:-1] > LETTER_GAP)
    first = np.concatenate(([0], np.flatnonzero(apart) + 1))
    last = np.concatenate((first[1:], [len(rows)])) - 1
    many = np.flatnonzero(last - first + 1 >= MIN_STROKES)
    first, last = first[many], last[many]
    table = np.stack((rows[first], starts[first], stops[last], last - first + 1), axis=1)
    return [_Segment(*row) for row in table.tolist()]


def _lines(segments: Sequence[_Segment]) -> list[_Line]:
    lines: list[_Line] = []
    growing: list[_Line] = []
    for segment in segments:
        growing = [line for line in growing if segment.row - line.bottom <= 2]
        line = next((line for line in growing if line.takes(segment)), None)
        if line:
            line.add(segment)
        else:
            line = _Line(segment.row, segment.row, segment.start, segment.stop, [segment.strokes])
            lines.append(line)
            growing.append(line)
    return lines


def _strokes_a_row(line: _Line, strokes: Mask) -> float:
    """Mean number of strokes in a row of the line, 0 when it is none of text."""
    height, width = line.bottom - line.top + 1, line.stop - line.start
    if not (LETTER_HEIGHTS[0] <= height <= LETTER_HEIGHTS[1] and 2 * width >= 5 * height):
        return 0.0
    inside = sum(line.strokes) / len(line.strokes)
    inked = float(strokes[line.top : line.bottom + 1, line.start : line.stop].mean())
    if 5 * len(line.strokes) < 3 * height or not 0.12 < inked < 0.75:
        return 0.0
    margin = max(2, height // 4)
    above = _crossings(strokes[max(line.top - 1 - margin, 0) : max(line.top - 1, 0), line.start : line.stop])
    below = _crossings(strokes[line.bottom + 2 : line.bottom + 2 + margin, line.start : line.stop])
    return inside if max(above, below) <= 0.35 * inside else 0.0


def _crossings(strokes: Mask) -> float:
    """Mean number of strokes that begin in a row."""
    return float(np.count_nonzero(strokes[:, 1:] & ~strokes[:, :-1])) / max(len(strokes), 1)


# --- A dataset -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a code is called, what it means and what to do about it, for the page."""

    title: str
    meaning: str
    action: str


CODES: Final[dict[str, Kind]] = {
    "blurred": Kind(
        "Blurred",
        "The picture seems to have fewer fine details than the others of this dataset: movement, a photographed screen "
        "or film, or a small copy that was enlarged.",
        "Look whether the disease can still be seen. If it cannot, export the image again or leave it out.",
    ),
    "under-exposed": Kind(
        "Very dark",
        "The body part seems much darker than usual, or much of it is nearly black. The background does not count.",
        "Look whether bone and soft tissue can be told apart. Export the image again with another window, or leave it "
        "out if too little is left to see.",
    ),
    "over-exposed": Kind(
        "Very bright",
        "The body part seems much brighter than usual, or much of it is nearly white, so that details may be lost.",
        "Look whether details can be seen in the white areas. Export the image again with another window, or leave it "
        "out if too little is left to see.",
    ),
    "tiny": Kind(
        "Very small",
        "The picture has so few pixels that it has to be enlarged for training: a thumbnail, or a small cut-out.",
        "Replace it by the original picture, or leave it out.",
    ),
    "colour": Kind(
        "In colour",
        "Radiographs are grey. A slight tint may come from scanned film, strong colours from photographs, marks or "
        "screenshots. Colours are turned to grey before training.",
        "Look whether it is a radiograph, and whether coloured marks give the answer away.",
    ),
    "text": Kind(
        "Burned-in text",
        "There seems to be a line of text in the picture. It may name the patient, and a network may learn the writing "
        "instead of the disease. Side markers and single letters are not meant.",
        "Look whether the text identifies somebody. If so, leave the image out or replace it by a copy without it.",
    ),
    "inverted": Kind(
        "Negative",
        "Bones seem to be dark on a bright background, the reverse of what is usual.",
        "Compare it with the other images. If it is a negative, export it again with bones bright or leave it out: a "
        "network takes it for another kind of picture.",
    ),
    "not-a-radiograph": Kind(
        "Perhaps no radiograph",
        "The picture is like a blank area, a drawing, a document, a screenshot, a colour photograph or noise. Grey "
        "photographs are not noticed.",
        "Look at it, and leave it out if it is no radiograph.",
    ),
    "exact-duplicate": Kind(
        "Same picture twice",
        "Another file of this dataset has exactly the same pixels. Copies on both sides of a split make a model look "
        "better than it is, so they are kept on one side.",
        "Keep one of them and leave the others out.",
    ),
    "near-duplicate": Kind(
        "Nearly the same picture",
        "Another file of this dataset seems to show the same picture turned, cropped, brightened or saved again.",
        "Compare them. Copies may stay, because they are kept on one side of a split, but they count as one picture.",
    ),
    "label-conflict": Kind(
        "Same picture, different labels",
        "The same pixels lie in this dataset under different labels. One of the labels must be wrong.",
        "Ask a reader which label is right, and leave the other copies out.",
    ),
    "near-label-conflict": Kind(
        "Nearly the same picture, different labels",
        "Another file of this dataset seems to show the same picture turned, cropped, brightened or saved again, under "
        "a different label. One of the labels is probably wrong. Nothing is left out for it.",
        "Compare them. If it is one picture, ask a reader which label is right, and leave the other copies out.",
    ),
    "check-label": Kind(
        "Label to be checked",
        "A trained model reads this image differently than its label says. The model or the label may be wrong.",
        "Let a reader look at the image again. Correct the label only if the reader agrees with the model.",
    ),
    "flagged-label": Kind(
        "Label that a reader calls wrong",
        "Somebody who looked at the image, often because a model misread it, says that its label is wrong.",
        "Let a second reader look at it, best without knowing what the first one said. If the label is wrong, correct "
        "it where the labels come from and scan again, or leave the image out. If it is right, keep it.",
    ),
}

# Only what a model misread is looked at again, so that corrections move the figures in its favour.
TEST_ADVICE: Final = " Correct what is wrong, but do not tidy up the test part until its figures please."


@dataclass(frozen=True)
class Finding:
    """A suspicion about one image. value: how strong it is, to be compared within one code; None: cannot be told.

    For what `judge` finds it is the measure over its limit (or the limit over the measure), so 1 is only just beyond.
    """

    code: str
    value: float | None
    detail: str


@dataclass(frozen=True)
class Distribution:
    """One measure over a dataset, of the images for which it is known.

    quantiles: by name, from "min" to "max"; empty without images. histogram: images in each bin. edges: of the bins,
    one more than these. low, high: images are flagged below or above these; None: not on that side.
    """

    count: int
    quantiles: dict[str, float]
    histogram: tuple[int, ...]
    edges: tuple[float, ...]
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"histogram": list(self.histogram), "edges": list(self.edges)}


QUANTILES: Final = {
    "min": 0.0,
    "1 %": 0.01,
    "5 %": 0.05,
    "25 %": 0.25,
    "50 %": 0.5,
    "75 %": 0.75,
    "95 %": 0.95,
    "99 %": 0.99,
    "max": 1.0,
}
BINS: Final = 24
# With fewer images nothing can be said about what is usual among them.
MIN_IMAGES: Final = 20
# Standard deviation of a normal distribution over its median absolute deviation.
MAD_SCALE: Final = 1.4826


@dataclass(frozen=True)
class _Limit:
    """Where suspicion begins on one side of a measure.

    absolute: in any dataset. deviations: robust standard deviations from the median of the dataset; 0 for no such rule.
    least: distance from the median that is usual in any dataset, even when all its images are alike. bound: what is on
    its good side is never flagged by deviations. ratio: distances are ratios (logarithms of the measure are compared).
    """

    absolute: float
    deviations: float = 0
    least: float = 0
    bound: float = math.inf
    ratio: bool = False


LOW: Final = {
    "sharpness": _Limit(0.4, deviations=3, least=math.log(2), ratio=True),
    "brightness": _Limit(0.13, deviations=3.5, least=0.15, bound=0.35),
    "width": _Limit(100),
    "height": _Limit(100),
}
HIGH: Final = {
    "brightness": _Limit(0.92, deviations=3.5, least=0.15, bound=0.75),
    "dark_share": _Limit(0.3),
    "bright_share": _Limit(0.25),
    "inversion": _Limit(0.75),
    "text": _Limit(7),
    "unlikeness": _Limit(0.5),
    "colour": _Limit(0.01),
}


def distributions(columns: Columns) -> dict[str, Distribution]:
    """The distribution of each column that is one of LABELS. Columns: float64 (images,), NaN where unknown."""
    return {name: _distribution(name, columns[name]) for name in LABELS if name in columns}


def _distribution(name: str, column: Column) -> Distribution:
    values = column[np.isfinite(column)]
    low = _low(LOW[name], values) if name in LOW else None
    high = _high(HIGH[name], values) if name in HIGH else None
    if not len(values):
        return Distribution(0, {}, (), (), low, high)
    quantiles = dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist(), strict=True))
    counts, edges = np.histogram(values, BINS)
    return Distribution(len(values), quantiles, tuple(counts.tolist()), tuple(edges.tolist()), low, high)


def _low(limit: _Limit, values: Column) -> float:
    if not limit.deviations or len(values) < MIN_IMAGES:
        return limit.absolute
    if limit.ratio:
        middle, distance = _spread(limit, np.log(np.maximum(values, 1e-9)))
        relative = math.exp(middle - distance)
    else:
        middle, distance = _spread(limit, values)
        relative = middle - distance
    return max(limit.absolute, min(relative, limit.bound))


def _high(limit: _Limit, values: Column) -> float:
    if not limit.deviations or len(values) < MIN_IMAGES:
        return limit.absolute
    middle, distance = _spread(limit, values)
    return min(limit.absolute, max(middle + distance, limit.bound))


def _spread(limit: _Limit, values: Column) -> tuple[float, float]:
    """Median of the values, and how far from it is still usual."""
    middle = float(np.median(values))
    deviation = MAD_SCALE * float(np.median(np.abs(values - middle)))
    return middle, max(limit.deviations * deviation, limit.least)


# Mean colour of a picture from which on it is no tinted film any more.
STRONG_COLOUR: Final = 0.12
PHOTOGRAPH_COLOUR: Final = 0.2


@dataclass(frozen=True)
class _Check:
    """One reason for a code. detail: filled with value, limit and median. limit: instead of the distribution's."""

    code: str
    measure: str
    side: Literal["low", "high"]
    detail: str
    limit: float | None = None


UNUSABLE: Final = "not-a-radiograph"
CHECKS: Final = (
    _Check(
        UNUSABLE, "unlikeness", "high", "Unlikeness to a radiograph {value:.2f} of 1; suspicious above {limit:.2f}."
    ),
    _Check(
        UNUSABLE, "colour", "high", "As colourful as a photograph ({value:.2f} of 1 on average).", PHOTOGRAPH_COLOUR
    ),
    _Check("inverted", "inversion", "high", "Likeness to a negative {value:.2f} of 1; suspicious above {limit:.2f}."),
    _Check(
        "blurred", "sharpness", "low", "Sharpness {value:.2f}; suspicious below {limit:.2f}, usual here {median:.2f}."
    ),
    _Check(
        "under-exposed",
        "brightness",
        "low",
        "Brightness of the body {value:.0%}; suspicious below {limit:.0%}, usual here {median:.0%}.",
    ),
    _Check("under-exposed", "dark_share", "high", "{value:.0%} of the body is nearly black, usual here {median:.0%}."),
    _Check(
        "over-exposed",
        "brightness",
        "high",
        "Brightness of the body {value:.0%}; suspicious above {limit:.0%}, usual here {median:.0%}.",
    ),
    _Check("over-exposed", "bright_share", "high", "{value:.0%} of the body is nearly white, usual here {median:.0%}."),
    _Check("tiny", "width", "low", "Only {value:.0f} pixels wide; suspicious below {limit:.0f}."),
    _Check("tiny", "height", "low", "Only {value:.0f} pixels high; suspicious below {limit:.0f}."),
    _Check("colour", "colour", "high", "Strong colours ({value:.2f} of 1): a photograph or markings?", STRONG_COLOUR),
    _Check("colour", "colour", "high", "Slight tint ({value:.3f} of 1): scanned film or small coloured marks?"),
    _Check("text", "burned_in", "high", "The DICOM header says that text is burned into the picture.", 0.5),
    _Check("text", "text", "high", "Perhaps a line of text: about {value:.0f} strokes side by side."),
)
# Suspicions that another one explains: paper is white by right, and the white ground of a negative is no body. Text is
# always told, because it may name somebody.
EXPLAINED_BY: Final = {
    "blurred": UNUSABLE,
    "inverted": UNUSABLE,
    "under-exposed": "inverted",
    "over-exposed": "inverted",
}


def judge(columns: Columns, found: Mapping[str, Distribution]) -> Iterator[tuple[int, Finding]]:
    """(row, finding) for every suspicion, at most one of each code for a row.

    columns: as for `distributions`, and perhaps "burned_in" (1 where the file says so). found: what `distributions`
    returned, whose limits are used. Values that are missing or NaN are passed over.
    """
    taken: dict[str, Mask] = {}
    for check in CHECKS:
        column = columns.get(check.measure)
        distribution = found.get(check.measure)
        limit = _limit_of(check, distribution)
        if column is None or limit is None:
            continue
        beyond = column < limit if check.side == "low" else column > limit
        done = taken.setdefault(check.code, np.zeros(len(column), bool))
        fresh = beyond & ~done & ~taken.get(EXPLAINED_BY.get(check.code, ""), np.False_)
        done |= fresh
        median = distribution.quantiles.get("50 %", 0.0) if distribution else 0.0
        for row in np.flatnonzero(fresh).tolist():
            yield row, _finding(check, float(column[row]), limit, median)


def _limit_of(check: _Check, distribution: Distribution | None) -> float | None:
    if check.limit is not None or distribution is None:
        return check.limit
    return distribution.low if check.side == "low" else distribution.high


def _finding(check: _Check, value: float, limit: float, median: float) -> Finding:
    strength = value / limit if check.side == "high" else limit / max(value, 1e-3)
    detail = check.detail.format(value=value, limit=limit, median=median)
    return Finding(check.code, float(f"{strength:.4g}"), detail)


# --- The dataset as a whole ------------------------------------------------------------------------------------------

IMBALANCE: Final = 3
FEW_IMAGES: Final = 100
SOME_IMAGES: Final = 500
LARGE_SHARE: Final = 0.1


@dataclass(frozen=True)
class Hint:
    """Something about the dataset as a whole that a user should know before a training."""

    level: Literal["warning", "hint"]
    code: str
    text: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def dataset_hints(counts: Mapping[str, int], images_per_patient: Sequence[int]) -> list[Hint]:
    """What the numbers of images say. counts: by class. images_per_patient: one number a patient, empty: unknown."""
    return [*_class_hints(counts), *_patient_hints(images_per_patient)]


def _class_hints(counts: Mapping[str, int]) -> Iterator[Hint]:
    filled = {name: count for name, count in counts.items() if count > 0}
    empty = [name for name in counts if name not in filled]
    if empty:
        text = f"Without any image: {', '.join(empty)}. Add images, or leave the class out."
        yield Hint("warning", "empty-class", text)
    if not filled:
        return
    smallest, largest = min(filled, key=filled.__getitem__), max(filled, key=filled.__getitem__)
    ratio = filled[largest] / filled[smallest]
    if ratio >= IMBALANCE:
        yield Hint(
            "warning",
            "imbalance",
            f"{largest} has {ratio:.1f} times as many images as {smallest} ({filled[largest]:,} and "
            f"{filled[smallest]:,}). A model may learn to prefer the larger class: train with class weights, judge it "
            "by balanced accuracy and sensitivity, and add images of the smaller class if you can.",
        )
    yield from _few(filled)


def _few(counts: Mapping[str, int]) -> Iterator[Hint]:
    few = {name: count for name, count in counts.items() if count < FEW_IMAGES}
    some = {name: count for name, count in counts.items() if FEW_IMAGES <= count < SOME_IMAGES}
    if few:
        yield Hint(
            "warning",
            "few-images",
            f"Fewer than {FEW_IMAGES} images: {_listed(few)}. Results will depend on chance, and the intervals around "
            "them will be wide. Add images before the model is used for anything but trying the platform.",
        )
    if some:
        yield Hint(
            "hint",
            "some-images",
            f"Fewer than {SOME_IMAGES} images: {_listed(some)}. Start from pretrained weights with augmentation, and "
            "expect more images to help.",
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _patient_hints(images_per_patient: Sequence[int]) -> Iterator[Hint]:
    sizes = np.asarray([size for size in images_per_patient if size > 0], np.int64)
    if not len(sizes) or sizes.max() == 1:
        return
    total, largest = int(sizes.sum()), int(sizes.max())
    yield Hint(
        "hint",
        "images-per-patient",
        f"There are {total:,} images of {len(sizes):,} patients: {np.median(sizes):g} a patient in the middle, at most "
        f"{largest:,}. All images of a patient go to the same side of a split; count patients, not images.",
    )
    share = largest / total
    if share > LARGE_SHARE:
        yield Hint(
            "warning",
            "dominant-patient",
            f"One patient has {largest:,} of the {total:,} images ({share:.0%}). A model may learn this patient and "
            "not the disease. Check that the patient numbers are right, and leave some of these images out or add "
            "images of other patients.",
        )
