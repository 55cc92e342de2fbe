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

from collections.abc import Callable, Iterator
from functools import cache
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Progress = Callable[[float], None]

THRESHOLD: Final = 0.90
STRICTEST: Final = 0.995
# Standard deviations above the median similarity of the dataset's pictures at which a pair is no chance: 7 keep the
# most similar of 3.5 million pairs of chests (5.4) and of 20,000 drawn knees that differ in their noise (5.7) apart.
DEVIATIONS: Final = 7.0
SAMPLED_PAIRS: Final = 4096
MIN_SAMPLED_ROWS: Final = 10
# Cosine of two descriptors from which a pair is looked at closely. Copies have 0.76 (cropped), 0.93 (turned) and more;
# of the pairs of different knees one in 3,400 passes, of different chests one in 24,000.
CANDIDATE: Final = 0.71
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
TEXTURES: Final = 512

# Portions that keep the memory small: rows of a tile, candidates whose spectra are held, candidates compared at once.
ROWS: Final = 1024
HELD: Final = 8192
PAIRS: Final = 512
# What it costs to describe a row, in cosines of descriptors; for the progress.
DESCRIBING: Final = 10_000


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


def clusters(
    fingerprints: NDArray[np.uint8],
    *,
    known: Integers | None = None,
    fresh: NDArray[np.bool_] | None = None,
    limits: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> Integers:
    """Cluster of each row; rows of one cluster are near-duplicates, directly or through others.

    fingerprints: (N, FINGERPRINT_BYTES), may be a memory map. Returns (N,) numbers 0..k-1 in order of first appearance;
    a row without near-duplicates has a cluster of its own. Which rows belong together does not depend on their order.
    Memory grows with N, not with its square; the time has a part that grows with its square.

    To add to an earlier run: `fresh` (N,) tells the rows that are new or changed since, `known` (N,) what cluster the
    others had (rows of equal number are joined, -1: none). Only pairs with a fresh row are compared. The answer is that
    of a run over everything if `limits` are those of the earlier run and no row was taken out of a cluster: two that
    were joined only through it would stay together.

    limits: similarities from which on the two discs count, by default `thresholds(fingerprints)`. progress: called many
    times a second with the share that is done; what it raises passes through.
    """
    _check(fingerprints)
    if not len(fingerprints):
        return np.zeros(0, np.int64)
    fresh = np.ones(len(fingerprints), bool) if fresh is None else fresh
    work = _Work(progress)
    first, number = _distinct(fingerprints, work)
    limits = limits or _limits(fingerprints, first)
    # A picture that was there before under another name has been compared already.
    settled = np.zeros(len(first), bool)
    settled[number[~fresh]] = True
    order = np.argsort(settled, kind="stable")
    number = np.argsort(order)[number]
    forest = _Forest(len(first))
    if known is not None:
        forest.join_equal(number, np.where(fresh, -1, known))
    discs = _discs(fingerprints, first[order])
    count = int((~settled).sum())
    work.total = len(discs) * (len(first) * DESCRIBING + count * len(first) - count * (count - 1) // 2)
    for kind, threshold in zip(discs, limits, strict=False):
        _join_similar(forest, kind, count, threshold, work)
    return _numbered(forest.roots()[number])


def thresholds(fingerprints: NDArray[np.uint8]) -> tuple[float, float]:
    """Similarity from which on two discs (around the centre of the frame, of the content) are near-duplicates, by how
    alike the pictures are anyway; THRESHOLD to STRICTEST. ValueError as `clusters`."""
    _check(fingerprints)
    return _limits(fingerprints, _distinct(fingerprints, _Work(None))[0])


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


class _Work:
    """Tells how much of the comparison is done, in units of cosines."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._done, self.total = progress, 0, 0

    def __call__(self, amount: int = 0) -> None:
        self._done += amount
        if self._progress:
            self._progress(self._done / self.total if self.total else 0.0)


class _Discs:
    """One kind of disc of some rows, unpacked from the fingerprints when asked for: these may lie in a file."""

    def __init__(self, fingerprints: NDArray[np.uint8], rows: Integers, kind: slice) -> None:
        self._fingerprints, self._rows, self._kind = fingerprints, rows, kind

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, numbers: Integers | slice) -> NDArray[np.uint8]:
        return np.asarray(self._fingerprints[self._rows[numbers]][:, self._kind])


WHOLE: Final = slice(0, DISC_BYTES)
CONTENT: Final = slice(DISC_BYTES, FINGERPRINT_BYTES)


def _check(fingerprints: NDArray[np.uint8]) -> None:
    if fingerprints.ndim != 2 or fingerprints.shape[1] != FINGERPRINT_BYTES:
        raise ValueError(f"fingerprints must be (N, {FINGERPRINT_BYTES}) bytes, not {fingerprints.shape}")


def _distinct(fingerprints: NDArray[np.uint8], work: _Work) -> tuple[Integers, Integers]:
    """A row of each different fingerprint, and which of these each row has.

    In the order of their hashes: chance decides it, but the order of the rows does not.
    """
    hashes = []
    for start in range(0, len(fingerprints), ROWS):
        hashes += [blake2b(row, digest_size=16).digest() for row in np.array(fingerprints[start : start + ROWS])]
        work()
    _, first, number = np.unique(np.frombuffer(b"".join(hashes), "V16"), return_index=True, return_inverse=True)
    return first, number


def _discs(fingerprints: NDArray[np.uint8], rows: Integers) -> list[_Discs]:
    """Both kinds, or one where they are the same in all rows."""
    kinds = [_Discs(fingerprints, rows, kind) for kind in (WHOLE, CONTENT)]
    parts = [slice(start, start + ROWS) for start in range(0, len(rows), ROWS)]
    return kinds[:1] if all(np.array_equal(kinds[0][part], kinds[1][part]) for part in parts) else kinds


@cache
def _rings() -> list[tuple[slice, slice, int]]:
    """Rings of as many samples each: their places among the rings, those of their samples, samples of one."""
    found, ring, start = [], 0, 0
    for count in sorted(set(SAMPLES)):
        rings = SAMPLES.count(count)
        found.append((slice(ring, ring + rings), slice(start, start + rings * count), count))
        ring, start = ring + rings, start + rings * count
    return found


def _spectra(discs: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """(n, rings, HARMONICS) Fourier series along each circle, of mean 0 and such that the correlation of a disc with
    itself is 1; all 0 for a disc without details."""
    samples = np.empty((len(discs), sum(SAMPLES)), np.float32)
    samples[:, 0::2], samples[:, 1::2] = discs >> 4, discs & 15
    samples -= LEVELS
    spectra = np.zeros((len(discs), len(SAMPLES), HARMONICS), np.complex64)
    for rings, places, count in _rings():
        series = np.fft.rfft(samples[:, places].reshape(len(discs), -1, count), axis=2)[:, :, : count // 2]
        spectra[:, rings, : count // 2] = series * (WEIGHTS[rings] / count)
    # The mean over the disc is spread over the rings as a constant is: by their weights.
    spectra[:, :, 0] -= (spectra[:, :, 0] @ WEIGHTS) * WEIGHTS[:, 0]
    parts = spectra.view(np.float32).reshape(len(discs), -1)
    constant = spectra[:, :, 0].real
    norm = np.sqrt(2 * np.einsum("ij,ij->i", parts, parts) - np.einsum("ij,ij->i", constant, constant))
    spectra /= np.maximum(norm, np.float32(1e-3))[:, None, None]
    return spectra


# --- Candidates ------------------------------------------------------------------------------------------------------


def _descriptors(discs: _Discs, work: _Work) -> Floats:
    """(n, DESCRIPTOR) unit vectors that turning and mirroring do not change (0 for a disc without details)."""
    usual, projection = _basis()
    found = np.empty((len(discs), DESCRIPTOR), np.float32)
    for start in range(0, len(discs), ROWS):
        amplitudes = _amplitudes(discs[start : start + ROWS])
        blank = ~amplitudes.any(1)
        part = found[start : start + ROWS]
        part[:] = _unit(np.asarray((amplitudes - usual) @ projection, np.float32))
        part[blank] = 0
        work(len(part) * DESCRIBING)
    return found


def _amplitudes(discs: NDArray[np.uint8]) -> Floats:
    """Square roots of the Fourier amplitudes of each ring, of length 1."""
    spectra: Floats = np.abs(_spectra(discs)[:, :, :DESCRIBED])
    return np.sqrt(_unit(spectra.reshape(len(discs), -1)))


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-9)))


@cache
def _basis() -> tuple[Floats, Floats]:
    """Usual amplitudes, and the projection (amplitudes, DESCRIPTOR) to the directions in which pictures differ most.

    Mean and principal components of random pictures with the spectrum of natural ones (amplitude 1/f^2, smooth as
    X-rays are). Strong components count for a little less, half-way to whitening: these are what all pictures have in
    some measure. Of the rows at hand nothing is learnt: where most are copies of one picture, what these share would be
    lost; and a row is described alike in every run.
    """
    random = np.random.default_rng(0)
    size = 2 * SIDE
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    made = []
    for _ in range(TEXTURES):
        clouds = np.fft.irfft2(np.fft.rfft2(random.standard_normal((size, size))) / frequency**2)
        made.append(fingerprint((0.5 + 0.16 * clouds / clouds.std()).clip(0, 1).astype(np.float32)))
    amplitudes = _amplitudes(np.frombuffer(b"".join(made), np.uint8).reshape(-1, FINGERPRINT_BYTES)[:, WHOLE])
    usual = amplitudes.mean(0)
    variance, components = np.linalg.eigh(np.cov(amplitudes, rowvar=False))
    strongest = components[:, -DESCRIPTOR:] / variance[-DESCRIPTOR:] ** 0.25
    return usual, strongest.astype(np.float32)


def _candidates(descriptors: Floats, fresh: int, threshold: float, work: _Work) -> Iterator[tuple[Integers, Integers]]:
    """Pairs of rows with similar descriptors, one of them among the first `fresh`; every pair once. Tiles keep the
    memory constant."""
    least = max(CANDIDATE, 1 - DESCRIPTOR_SPREAD * (1 - threshold))
    count = len(descriptors)
    for top in range(0, fresh, ROWS):
        upper = descriptors[top : min(top + ROWS, fresh)]
        for left in range(top, count, ROWS):
            other = descriptors[left : left + ROWS]
            # In one dimension, because numpy finds few places in many by far faster there.
            rows, columns = np.divmod(np.flatnonzero((upper @ other.T).reshape(-1) >= least), len(other))
            rows, columns = rows + top, columns + left
            once = rows < columns
            yield rows[once], columns[once]
            twice = len(upper) * (len(upper) - 1) // 2 if left == top else 0
            work(len(upper) * len(other) - twice)


# --- Comparison ------------------------------------------------------------------------------------------------------


class _Forest:
    """Disjoint sets of rows (union-find); the root of a set is its first row."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size)
        self._short = True

    def roots(self) -> Integers:
        """Root of every row, all paths made short."""
        while not self._short:
            above = self.parent[self.parent]
            self._short = bool((above == self.parent).all())
            self.parent = above
        return self.parent

    def apart(self, left: Integers, right: Integers) -> NDArray[np.bool_]:
        """Which pairs are not joined yet."""
        roots = self.roots()
        return np.asarray(roots[left] != roots[right])

    def join(self, first: int, second: int) -> None:
        low, high = sorted((self._root(first), self._root(second)))
        self.parent[high] = low
        self._short = False

    def join_equal(self, rows: Integers, labels: Integers) -> None:
        """Join rows of the same label; -1 is none."""
        order = np.argsort(labels, kind="stable")
        rows, labels = rows[order], labels[order]
        again = np.flatnonzero((labels[1:] == labels[:-1]) & (labels[1:] >= 0))
        for first, second in zip(rows[again].tolist(), rows[again + 1].tolist(), strict=True):
            self.join(first, second)

    def _root(self, row: int) -> int:
        while (above := int(self.parent[row])) != row:
            row = above
        return row


def _limits(fingerprints: NDArray[np.uint8], rows: Integers) -> tuple[float, float]:
    whole, content = (_threshold(_Discs(fingerprints, rows, kind)) for kind in (WHOLE, CONTENT))
    return whole, content


def _threshold(discs: _Discs) -> float:
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
    similarity = _similarity(_spectra(discs[one]), _spectra(discs[other]))
    z = np.arctanh(np.minimum(similarity, 0.9999))
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


def _join_similar(forest: _Forest, discs: _Discs, fresh: int, threshold: float, work: _Work) -> None:
    """Join the rows that are similar, at least one of them among the first `fresh`."""
    for left, right in _gathered(forest, _candidates(_descriptors(discs, work), fresh, threshold, work)):
        for start in range(0, len(left), HELD):
            one, other = left[start : start + HELD], right[start : start + HELD]
            apart = forest.apart(one, other)
            if apart.any():
                _compare(forest, discs, one[apart], other[apart], threshold, work)


def _gathered(forest: _Forest, portions: Iterator[tuple[Integers, Integers]]) -> Iterator[tuple[Integers, Integers]]:
    """Those candidates that are not joined yet, from several tiles at once: a row in many pairs is unpacked once."""
    lefts, rights, count = [], [], 0
    for left, right in portions:
        apart = forest.apart(left, right)
        if not apart.any():
            continue
        lefts.append(left[apart])
        rights.append(right[apart])
        count += len(lefts[-1])
        if count >= HELD:
            yield np.concatenate(lefts), np.concatenate(rights)
            lefts, rights, count = [], [], 0
    if count:
        yield np.concatenate(lefts), np.concatenate(rights)


def _compare(forest: _Forest, discs: _Discs, left: Integers, right: Integers, threshold: float, work: _Work) -> None:
    """Join the candidates that are similar. Those already joined through others are passed over: without that a
    thousand copies of one picture would cost half a million comparisons."""
    rows, place = np.unique(np.concatenate((left, right)), return_inverse=True)
    spectra = np.concatenate([_spectra(discs[rows[start : start + ROWS]]) for start in range(0, len(rows), ROWS)])
    for start in range(0, len(left), PAIRS):
        part = np.flatnonzero(forest.apart(left[start : start + PAIRS], right[start : start + PAIRS])) + start
        similarity = _similarity(spectra[place[part]], spectra[place[part + len(left)]])
        for pair in part[similarity >= threshold].tolist():
            forest.join(int(left[pair]), int(right[pair]))
        work()


def _similarity(still: NDArray[np.complex64], turned: NDArray[np.complex64]) -> Floats:
    """(n,) largest correlation of n pairs of discs over all rotations of one, mirrored or not, by their spectra.

    Correlation theorem: the product of the spectra along the angle, transformed back, holds the correlation at every
    rotation; ROTATIONS of them (about 2 degrees apart). The product with the other picture and that with its mirror
    image are sums of the same four real products.
    """
    one, other = [(part.real.copy(), part.imag.copy()) for part in (still, turned)]
    (even, cross), (back, odd) = [[np.einsum("nrk,nrk->nk", a, b) for b in other] for a in one]
    products = np.empty((2, *even.shape), np.complex64)
    products.real = even + odd, even - odd
    products.imag = back - cross, back + cross
    best = np.fft.irfft(products, ROTATIONS, axis=2).max((0, 2), initial=0) * ROTATIONS
    return np.asarray(best, np.float32)


def _numbered(roots: Integers) -> Integers:
    """0..k-1 in order of first appearance."""
    _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]
