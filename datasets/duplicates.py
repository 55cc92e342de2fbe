"""Radiographs that were made from one another: turned, mirrored, resized, squeezed, recompressed, padded, relit.

`fingerprint` reduces a picture to less than a kilobyte, `clusters` says which fingerprints belong together. A
fingerprint holds the local contrast on circles around the centre: what is left when large shadows (which all chests
share) and exposure are taken away. Two are compared at all rotations of one of them at once, by the correlation
theorem along the angle (De Castro and Morandi 1987); candidates come from the amplitudes of the same Fourier series,
which do not change when the picture is turned or mirrored.

Similarity is the correlation at the best rotation, 1 for equal pictures. Measured on 564 pictures made by turning (up
to four times) from 71 radiographs of forearms, on 2,641 children's chests and on 800 knees:

    any two pictures of the same forearm                0.96 and more
    different forearms                                  at most 0.72
    different knees (320,000 pairs)                     at most 0.85
    different chests (3.5 million pairs)                at most 0.87, and 0.03 less for each tenfold fewer pairs

THRESHOLD lies between, nearer to the different ones so that copies cropped by 2 % on each side, about 0.92, are found.
It rises where the pictures of a dataset are more alike than these, see `_threshold`. Not found: copies cropped by more,
enlarged, turned on a canvas that grew with the picture, or first turned and then squeezed.
"""

from collections.abc import Iterator
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

THRESHOLD: Final = 0.90
STRICTEST: Final = 0.995
# Standard deviations above the median similarity of the dataset's pictures at which a pair is no chance: 7 keep the
# most similar of 3.5 million pairs of chests (5.4) and of 20,000 drawn knees that differ in their noise (5.7) apart.
DEVIATIONS: Final = 7.0
SAMPLED_PAIRS: Final = 4096
MIN_SAMPLED_ROWS: Final = 10
# Cosine of two descriptors from which a pair is looked at closely. Copies have 0.70 (cropped), 0.93 (turned) and more;
# of the pairs of different chests one in some ten thousand passes.
CANDIDATE: Final = 0.68
# Where only similarities near 1 count, so do descriptors: their distance from 1 is at most this many times larger.
DESCRIPTOR_SPREAD: Final = 4.0

# --- The disc: circles of samples around the centre, radius as a share of half the frame. Corners, which a turn cuts
# off, are outside. The samples lie as close along a circle as the circles lie to each other.
RADII: Final = np.linspace(0.10, 0.95, 14)
SAMPLES: Final = (24,) * 3 + (48,) * 4 + (96,) * 7
# 15 levels of 4 bits from -3 to 3 standard deviations; level 7 is 0.
LEVELS: Final = 7
STEP: Final = 3 / LEVELS
DISC_BYTES: Final = sum(SAMPLES) // 2
FINGERPRINT_BYTES: Final = 2 * DISC_BYTES

# --- Local contrast, on a frame of SIDE x SIDE pixels. FINE and COARSE are the widths (standard deviation, in these
# pixels) of the Gaussians between which details lie. COARSE decides how much anatomy counts: at 6 instead of 4
# different chests reach the similarity of copies.
SIDE: Final = 88
FINE: Final = 1.4
COARSE: Final = 4.0
# Local contrasts below this share of the picture's grey range count as noise, so they are not amplified.
NOISE: Final = 0.05
MIN_RANGE: Final = 8 / 255
# Rows and columns at the border whose greys differ less are bars, not radiograph (JPEG adds a little).
BAR: Final = 4 / 255
MIN_CONTENT: Final = 0.3

# --- Comparison. Each circle weighs by its radius, so that a similarity is a correlation over the area of the disc.
WEIGHTS: Final = np.sqrt(RADII / RADII.sum()).astype(np.float32)[:, None]
HARMONICS: Final = 48
ROTATIONS: Final = 192
DESCRIBED: Final = 25
DESCRIPTOR: Final = 128

# Portions that keep the memory small.
ROWS: Final = 2048
PAIRS: Final = 2048


def fingerprint(pixels: NDArray[np.float32] | NDArray[np.uint8]) -> bytes:
    """What `clusters` compares, FINGERPRINT_BYTES long and the same on every call.

    pixels: grey (H, W), float 0..1 or uint8. Two discs: one around the centre of the frame, true to proportion, which
    stays when the picture is turned; and one of the picture without its bars, squeezed to a square, which stays when it
    is squeezed or padded. A picture without any detail is a near-duplicate of others without any. ValueError for
    anything that is not a grey picture.
    """
    if pixels.ndim != 2 or not pixels.size:
        raise ValueError(f"a grey picture (height, width) is needed, not {pixels.shape}")
    height, width = pixels.shape
    # Averaging whole numbers of pixels is the fast part of the reduction; the resize after it does the rest.
    reduced = Image.fromarray(pixels).reduce((max(1, width // (2 * SIDE)), max(1, height // (2 * SIDE))))
    grey = np.asarray(reduced, np.float32)
    if pixels.dtype == np.uint8:
        grey = grey / np.float32(255)
    whole, content = _central_square(grey.shape, height / width), _without_bars(grey)
    first = _disc(grey, whole)
    return first + (first if content == whole else _disc(grey, content))


def clusters(fingerprints: NDArray[np.uint8]) -> Integers:
    """Cluster of each row; rows of one cluster are near-duplicates, directly or through others.

    fingerprints: (N, FINGERPRINT_BYTES). Returns (N,) numbers 0..k-1 in order of first appearance; a row without
    near-duplicates has a cluster of its own. Which rows belong together does not depend on their order. Memory grows
    with N, not with its square; the time has a part that grows with its square.
    """
    if fingerprints.ndim != 2 or fingerprints.shape[1] != FINGERPRINT_BYTES:
        raise ValueError(f"fingerprints must be (N, {FINGERPRINT_BYTES}) bytes, not {fingerprints.shape}")
    if not len(fingerprints):
        return np.zeros(0, np.int64)
    distinct, row = np.unique(fingerprints, axis=0, return_inverse=True)
    forest = _Forest(len(distinct))
    whole, content = distinct[:, :DISC_BYTES], distinct[:, DISC_BYTES:]
    for discs in (whole,) if np.array_equal(whole, content) else (whole, content):
        threshold = _threshold(discs)
        for left, right in _candidates(_descriptors(discs), threshold):
            _join_similar(forest, discs, left, right, threshold)
    return _numbered(forest.roots()[row.reshape(-1)])


# --- One picture -----------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]


def _central_square(shape: tuple[int, ...], proportion: float) -> Box:
    """The largest square in the middle, as (left, top, right, bottom) of a grid of this shape.

    proportion: height over width of the picture itself, whose two sides were not reduced alike.
    """
    height, width = shape
    share_of_height, share_of_width = min(1.0, 1 / proportion), min(1.0, proportion)
    left, top = width * (1 - share_of_width) / 2, height * (1 - share_of_height) / 2
    return left, top, width - left, height - top


def _without_bars(grey: Floats) -> Box:
    """(left, top, right, bottom) of what is not a bar. The second look finds bars that ended in other bars."""
    left, top, right, bottom = 0, 0, grey.shape[1], grey.shape[0]
    for _ in range(2):
        inner = grey[top:bottom, left:right]
        (above, below), (before, after) = _content(np.ptp(inner, axis=1)), _content(np.ptp(inner, axis=0))
        left, top, right, bottom = left + before, top + above, left + after, top + below
    return left, top, right, bottom


def _content(ranges: Floats) -> tuple[int, int]:
    """First line with content and the one after the last, by the grey range of each; all when hardly any has some."""
    content = np.flatnonzero(ranges > BAR)
    if len(content) < MIN_CONTENT * len(ranges):
        return 0, len(ranges)
    return int(content[0]), int(content[-1]) + 1


def _disc(grey: Floats, box: Box) -> bytes:
    """DISC_BYTES of samples of the local contrast in a box squeezed to a square."""
    square = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
    corner, share = _places()
    samples = (_local_contrast(np.asarray(square)).reshape(-1)[corner] * share).sum(0)
    deviation = max(float(samples.std()), 1e-3)
    levels = np.clip(np.rint(samples / (deviation * STEP)), -LEVELS, LEVELS).astype(np.int8) + LEVELS
    pairs = levels.astype(np.uint8).reshape(-1, 2)
    return bytes(pairs[:, 0] << 4 | pairs[:, 1])


def _local_contrast(grey: Floats) -> Floats:
    """Details in units of the contrast around them: a difference of Gaussians over a local standard deviation.

    Only what is inside the disc counts, so that the corners, black after a turn, leave no trace in it.
    """
    inside = _inside()
    low, high = np.percentile(grey[inside > 0], (2, 98))
    grey = (grey - np.float32(low)) / np.float32(max(high - low, MIN_RANGE))
    shadows = _blur(grey, COARSE)
    contrast = np.sqrt(_blur((grey - shadows) ** 2, COARSE))
    return np.asarray((_blur(grey, FINE) - shadows) / (contrast + np.float32(NOISE)))


def _blur(grey: Floats, sigma: float) -> Floats:
    """Gaussian blur of the disc, by the weights that lie in it (normalised convolution)."""
    kernel, weight = _gaussian(sigma)
    return np.asarray(kernel @ (grey * _inside()) @ kernel / weight)


@cache
def _gaussian(sigma: float) -> tuple[Floats, Floats]:
    """Matrix that blurs along one axis, and the sum of the weights in the disc at each pixel; both (SIDE, SIDE)."""
    place = np.arange(SIDE)
    kernel = np.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2)).astype(np.float32)
    return kernel, np.maximum(kernel @ _inside() @ kernel, np.float32(1e-3))


@cache
def _inside() -> Floats:
    """1 in the disc that fills the square, 0 in its corners."""
    place = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    return (np.hypot(place[:, None], place) <= 1).astype(np.float32)


@cache
def _places() -> tuple[NDArray[np.intp], Floats]:
    """Flat index of the four pixels around each sample of the disc, and their shares (bilinear); both (4, samples)."""
    radius = np.repeat(RADII * SIDE / 2, SAMPLES)
    angle = np.concatenate([np.arange(count) * (2 * np.pi / count) for count in SAMPLES])
    y, x = (SIDE - 1) / 2 + radius * np.sin(angle), (SIDE - 1) / 2 + radius * np.cos(angle)
    row, column = y.astype(np.intp), x.astype(np.intp)
    corner = row * SIDE + column + np.array([[0], [1], [SIDE], [SIDE + 1]])
    down, across = y - row, x - column
    share = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
    return corner, np.array(share, np.float32)


# --- Many discs ------------------------------------------------------------------------------------------------------


def _spectra(discs: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """(n, rings, HARMONICS) Fourier series along each circle, of mean 0 and such that the correlation of a disc with
    itself is 1; all 0 for a disc without details."""
    samples = np.stack([discs >> 4, discs & 15], axis=-1).reshape(len(discs), sum(SAMPLES)).astype(np.float32) - LEVELS
    spectra = np.zeros((len(discs), len(SAMPLES), HARMONICS), np.complex64)
    start = 0
    for ring, count in enumerate(SAMPLES):
        series = np.fft.rfft(samples[:, start : start + count], axis=1)[:, : count // 2]
        spectra[:, ring, : count // 2] = series * (WEIGHTS[ring] / count)
        start += count
    # The mean over the disc is spread over the rings as a constant is: by their weights.
    spectra[:, :, 0] -= (spectra[:, :, 0] @ WEIGHTS) * WEIGHTS[:, 0]
    energy = np.square(np.abs(spectra))
    norm = np.sqrt(2 * energy.sum((1, 2)) - energy[:, :, 0].sum(1))
    return np.asarray(spectra / np.maximum(norm, np.float32(1e-3))[:, None, None])


# --- Candidates ------------------------------------------------------------------------------------------------------


def _descriptors(discs: NDArray[np.uint8]) -> Floats:
    """(n, DESCRIPTOR) unit vectors that turning and mirroring do not change (0 for a disc without details).

    Square roots of the Fourier amplitudes of each ring, less what any picture has of them, projected at random
    (Johnson and Lindenstrauss 1984).
    """
    projection = np.random.default_rng(0).standard_normal((len(SAMPLES) * DESCRIBED, DESCRIPTOR)).astype(np.float32)
    found = np.empty((len(discs), DESCRIPTOR), np.float32)
    for start in range(0, len(discs), ROWS):
        part = slice(start, start + ROWS)
        amplitudes = _amplitudes(discs[part])
        blank = ~amplitudes.any(1)
        found[part] = _unit(np.asarray((amplitudes - _usual_amplitudes()) @ projection, np.float32))
        found[part][blank] = 0
    return found


def _amplitudes(discs: NDArray[np.uint8]) -> Floats:
    spectra: Floats = np.abs(_spectra(discs)[:, :, :DESCRIBED])
    return np.sqrt(_unit(spectra.reshape(len(discs), -1)))


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-9)))


@cache
def _usual_amplitudes() -> Floats:
    """Mean amplitudes of random pictures with the spectrum of natural ones (amplitude 1/f^2, smooth as X-rays are).

    Not the mean of the rows at hand: where most of these are copies of one picture, it would take away all they share.
    """
    random = np.random.default_rng(0)
    size = 2 * SIDE
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    made = []
    for _ in range(128):
        clouds = np.fft.ifft2(np.fft.fft2(random.standard_normal((size, size))) / frequency**2).real
        made.append(fingerprint((0.5 + 0.16 * clouds / clouds.std()).clip(0, 1).astype(np.float32)))
    discs = np.frombuffer(b"".join(made), np.uint8).reshape(-1, FINGERPRINT_BYTES)[:, :DISC_BYTES]
    return np.asarray(_amplitudes(discs).mean(0))


def _candidates(descriptors: Floats, threshold: float) -> Iterator[tuple[Integers, Integers]]:
    """Pairs of rows with similar descriptors, in portions; every pair once. Tiles keep the memory constant."""
    least = max(CANDIDATE, 1 - DESCRIPTOR_SPREAD * (1 - threshold))
    for top in range(0, len(descriptors), ROWS):
        for left in range(top, len(descriptors), ROWS):
            cosine = descriptors[top : top + ROWS] @ descriptors[left : left + ROWS].T
            rows, columns = np.nonzero(cosine >= least)
            rows, columns = rows + top, columns + left
            once = rows < columns
            yield rows[once], columns[once]


# --- Comparison ------------------------------------------------------------------------------------------------------


class _Forest:
    """Disjoint sets of rows (union-find); the root of a set is its first row."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size)

    def roots(self) -> Integers:
        """Root of every row, all paths made short."""
        while True:
            above = self.parent[self.parent]
            if (above == self.parent).all():
                return self.parent
            self.parent = above

    def join(self, first: int, second: int) -> None:
        low, high = sorted((self._root(first), self._root(second)))
        self.parent[high] = low

    def _root(self, row: int) -> int:
        while (above := int(self.parent[row])) != row:
            row = above
        return row


def _threshold(discs: NDArray[np.uint8]) -> float:
    """Similarity from which two of these discs are near-duplicates, by how alike pictures of this dataset are anyway.

    Fisher's z (arctanh) of the similarity of random pairs is nearly normal. Median and deviation are taken from its
    lower half, which copies in the dataset do not touch: with three originals, a third of the pairs are copies. All
    pictures being copies of one looks like all being alike; then only those found at STRICTEST are joined. Too few
    rows say nothing.
    """
    count = len(discs)
    if count < MIN_SAMPLED_ROWS:
        return THRESHOLD
    one, other = _some_pairs(count)
    z = np.arctanh(np.minimum(_similarity(discs[one], discs[other]), 0.9999))
    tenth, median = np.quantile(z, (0.10, 0.50))
    # A deviation estimated from few rows may be too small: its own standard error (1 / sqrt(2n) of it) is added.
    deviation = (median - tenth) / 1.2816 * (1 + 1 / np.sqrt(2 * count))
    return float(np.clip(np.tanh(median + DEVIATIONS * deviation), THRESHOLD, STRICTEST))


def _some_pairs(count: int) -> tuple[Integers, Integers]:
    """All pairs of so many rows, or SAMPLED_PAIRS of them, always the same."""
    if count * (count - 1) // 2 <= SAMPLED_PAIRS:
        return np.triu_indices(count, 1)
    random = np.random.default_rng(0)
    one = random.integers(0, count, SAMPLED_PAIRS)
    return one, (one + random.integers(1, count, SAMPLED_PAIRS)) % count


def _join_similar(forest: _Forest, discs: NDArray[np.uint8], left: Integers, right: Integers, threshold: float) -> None:
    """Join the candidates that are similar. Those already joined through others are passed over: without that a
    thousand copies of one picture would cost half a million comparisons."""
    left, right = _apart(forest, left, right)
    for start in range(0, len(left), PAIRS):
        one, other = _apart(forest, left[start : start + PAIRS], right[start : start + PAIRS])
        similar = _similarity(discs[one], discs[other]) >= threshold
        for first, second in zip(one[similar].tolist(), other[similar].tolist(), strict=True):
            forest.join(first, second)


def _apart(forest: _Forest, left: Integers, right: Integers) -> tuple[Integers, Integers]:
    roots = forest.roots()
    apart = roots[left] != roots[right]
    return left[apart], right[apart]


def _similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> Floats:
    """(n,) largest correlation of n pairs of discs over all rotations of one, mirrored or not.

    Correlation theorem: the product of the spectra along the angle, transformed back, holds the correlation at every
    rotation; ROTATIONS of them (about 2 degrees apart).
    """
    still, turned = _spectra(one), _spectra(other)
    products = ((still * turned.conj()).sum(1), (still * turned).sum(1))
    best = [np.fft.irfft(product, ROTATIONS, axis=1).max(1, initial=0) * ROTATIONS for product in products]
    return np.asarray(np.maximum(*best), np.float32)


def _numbered(roots: Integers) -> Integers:
    """0..k-1 in order of first appearance."""
    _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]
