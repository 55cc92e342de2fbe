"""Is an image like those that a version learned from? A distance in the space of the network's own features.

Features of images of the training part describe what is usual; images of the validation part, which took no part in
that, say how far a usual image may lie. What is kept is a few hundred kilobytes of sums over many images, from which
no single one can be seen.

Mahalanobis distances were the best on real radiographs of everything tried, beside distances to nearest neighbours,
which would also need the training images' own features in every process that serves.
"""

import math
from dataclasses import dataclass, fields, replace
from io import BytesIO
from typing import Any, Final, Self
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

# Share of usual images that may lie beyond the limit. With one in a hundred, of a hundred images that were held out a
# single odd one sets the limit: a mislabelled knee hid nine of ten chests from a model for knees.
FALSE_ALARMS: Final = 0.02
# With fewer images nothing is said: of twenty that were held out, one in twenty-one is a false alarm already.
MINIMUM_FITTED: Final = 50
MINIMUM_HELD_OUT: Final = 20
MAXIMUM_FITTED: Final = 2000
# A network keeps what tells its classes apart and forgets the rest, so that it may see no difference between a hand and
# a chest. The brightness of 8 x 8 fields of the image puts the coarsest of the rest back. All fields together have this
# share of the features' variance, however many features there are.
FIELDS: Final = 8
FIELDS_VARIANCE: Final = 0.25
MAXIMUM_DIRECTIONS: Final = 64
MAXIMUM_BYTES: Final = 320_000
_HEADERS = 4096
# Features whose standard deviation is below this share of their mean are constant but for rounding.
_CONSTANT: Final = 1e-6


class ReferenceUnusable(Exception):
    """Stored bytes are no reference. The message says why."""


def describe(features: NDArray[np.floating[Any]], pixels: NDArray[np.uint8]) -> Floats:
    """What images are compared by: float64 (N, D + 64), pooled features and the brightness 0..1 of 8 x 8 fields.

    features: (N, D), of the layer before the head. pixels: uint8 (N, S, S), what the network saw of the same images.
    """
    edges = np.linspace(0, pixels.shape[1], FIELDS + 1).round().astype(int)
    areas = np.outer(np.diff(edges), np.diff(edges)).reshape(-1)
    rows = np.add.reduceat(pixels, edges[:-1], axis=1, dtype=np.uint32)
    sums = np.add.reduceat(rows, edges[:-1], axis=2, dtype=np.uint32).reshape(len(pixels), -1)
    return np.concatenate([np.asarray(features, np.float64), sums / (255.0 * areas)], axis=1)


@dataclass(frozen=True, eq=False)
class Reference:
    """Where usual images lie, and how far from there is still usual.

    mean, factor: float32 (F,), of the descriptions; factor is one over the standard deviation, another multiple of it
    for the fields, and 0 for what is constant. directions: float32 (K, F), orthonormal, the widest first. variances:
    float32 (K,), along them; rest: the mean one across all others. limit: distance that at most `false_alarm_rate` of
    usual images exceed. far: twice as far beyond the median distance as the limit is. fitted, held_out: numbers of
    images.
    """

    mean: Singles
    factor: Singles
    directions: Singles
    variances: Singles
    rest: float
    limit: float
    far: float
    false_alarm_rate: float
    fitted: int
    held_out: int

    @classmethod
    def fit(cls, usual: Floats, held_out: Floats, *, fields_count: int = FIELDS**2) -> Self | None:
        """usual: float64 (N, F), descriptions of training images; held_out: (M, F), of others, to set the limit by.
        fields_count: how many of the last columns are the brightness of fields; 0 for columns that all weigh the same.
        None where there are too few images to say anything, or all are described alike.

        The covariance of the standardised descriptions is shrunk towards a multiple of the identity (Ledoit and Wolf
        2004), so that fewer images than features do; then all but its widest directions are taken for equally wide
        (probabilistic principal components, Tipping and Bishop 1999), so that it can be kept.

        The limit is the split-conformal quantile (Papadopoulos et al. 2002; Lei et al. 2018): of M distances the one
        of rank ceil(0.98 (M + 1)), or the largest of fewer than 49. Whatever the distribution, a further image from
        the same source lies beyond it with a probability of at most 1 - rank / (M + 1), which is `false_alarm_rate`.
        Images of one patient are alike, so that the rate of a week may differ more from it than separate ones would.
        """
        if len(usual) < MINIMUM_FITTED or len(held_out) < MINIMUM_HELD_OUT:
            return None
        mean, deviation = usual.mean(axis=0), usual.std(axis=0)
        varying = deviation > _CONSTANT * np.abs(mean)
        if not varying.any():
            return None
        factor = np.divide(1, deviation, out=np.zeros_like(deviation), where=varying)
        if fields_count:
            factor[-fields_count:] *= math.sqrt(FIELDS_VARIANCE * (len(mean) - fields_count) / fields_count)
        widths, directions = _principal((usual - mean)[:, varying] * factor[varying])
        kept = min(len(widths), _directions_kept(usual.shape[1]))
        spread = np.zeros((kept, usual.shape[1]))
        spread[:, varying] = directions[:kept]
        rest = float(widths[kept:].mean()) if kept < len(widths) else 1.0
        unlimited = cls(
            mean=mean.astype(np.float32),
            factor=factor.astype(np.float32),
            directions=spread.astype(np.float32),
            variances=widths[:kept].astype(np.float32),
            rest=rest,
            limit=math.inf,
            far=math.inf,
            false_alarm_rate=0.0,
            fitted=len(usual),
            held_out=len(held_out),
        )
        limit, far, rate = _limits(unlimited.distances(held_out))
        return replace(unlimited, limit=limit, far=far, false_alarm_rate=rate)

    def distances(self, described: Floats) -> Floats:
        """Mahalanobis distances float64 (N,) of descriptions (N, F); infinite where one is not finite."""
        finite = np.asarray(np.isfinite(described).all(axis=1))
        standardised = (np.where(finite[:, None], described, 0) - self.mean) * self.factor.astype(np.float64)
        along = standardised @ self.directions.T.astype(np.float64)
        across = np.maximum((standardised**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.where(finite, np.sqrt((along**2 / self.variances).sum(axis=1) + across / self.rest), np.inf)

    # -- As bytes

    def to_bytes(self) -> bytes:
        """A NumPy archive of at most MAXIMUM_BYTES; the same reference gives the same bytes."""
        buffer = BytesIO()
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The reference in these bytes. Raises ReferenceUnusable for anything that `to_bytes` does not write."""
        arrays = _arrays(bytes(content))
        if set(arrays) != {field.name for field in fields(cls)}:
            raise ReferenceUnusable("It does not have the parts of a reference.")
        _check(arrays)
        numbers = {name: array.item() for name, array in arrays.items() if not array.ndim}
        return cls(**(arrays | numbers))


def _directions_kept(features: int) -> int:
    """As many as fit into MAXIMUM_BYTES beside mean and factor."""
    return max(1, min(MAXIMUM_DIRECTIONS, (MAXIMUM_BYTES - _HEADERS) // (4 * (features + 1)) - 2))


def _principal(standardised: Floats) -> tuple[Floats, Floats]:
    """Variances (P,) and directions (P, P) of the shrunk covariance of centred rows (N, P), the widest first."""
    covariance = standardised.T @ standardised / len(standardised)
    shrinkage = _shrinkage(standardised, covariance)
    variances, columns = np.linalg.eigh(covariance)
    shrunk = (1 - shrinkage) * np.maximum(variances, 0) + shrinkage * np.trace(covariance) / len(covariance)
    # More features than images and no shrinkage at all: nothing may be divided by zero.
    return np.maximum(shrunk[::-1], 1e-9 * shrunk[-1]), columns.T[::-1]


def _shrinkage(centred: Floats, covariance: Floats) -> float:
    """The weight 0..1 of the identity's multiple in the covariance (Ledoit and Wolf 2004, lemmas 3.2 to 3.5)."""
    count, size = centred.shape
    total = float((covariance**2).sum())
    scale = float(np.trace(covariance)) / size
    dispersion = total - size * scale**2
    error = (float(((centred**2).sum(axis=1) ** 2).sum()) / count - total) / count
    return min(max(error / dispersion, 0.0), 1.0) if dispersion > 0 else 1.0


def _limits(distances: Floats) -> tuple[float, float, float]:
    """`limit`, `far` and `false_alarm_rate` by the distances of images that were held out."""
    ordered = np.sort(distances)
    places = len(ordered) + 1
    beyond = max(int(FALSE_ALARMS * places), 1)
    limit = float(ordered[places - beyond - 1])
    return limit, 2 * limit - float(np.median(ordered)), beyond / places


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """Raises ReferenceUnusable; nothing is unpacked that says of itself to be too large."""
    try:
        with ZipFile(BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAXIMUM_BYTES:
                raise ReferenceUnusable("It is larger than a reference can be.")
        with np.load(BytesIO(content), allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except (BadZipFile, OSError, ValueError, EOFError, KeyError, NotImplementedError) as error:
        raise ReferenceUnusable(f"It cannot be read: {error}") from error


def _check(arrays: dict[str, NDArray[Any]]) -> None:
    """Raises ReferenceUnusable where shapes, kinds or values are none that `fit` makes."""
    directions = arrays["directions"]
    if directions.ndim != 2 or not all(directions.shape):
        raise ReferenceUnusable("Its directions are no table.")
    kept, size = directions.shape
    shapes = {"mean": (size,), "factor": (size,), "directions": (kept, size), "variances": (kept,)}
    for name, array in arrays.items():
        kind = np.float32 if name in shapes else (np.int64 if name in ("fitted", "held_out") else np.float64)
        if array.shape != shapes.get(name, ()) or array.dtype != kind or not np.isfinite(array).all():
            raise ReferenceUnusable(f"Its {name} is not of the right shape and kind, or holds no numbers.")
    positive = all((arrays[name] > 0).all() for name in ("variances", "rest", "fitted", "held_out"))
    if not positive or (arrays["factor"] < 0).any() or not 0 <= arrays["limit"] <= arrays["far"]:
        raise ReferenceUnusable("Its numbers contradict each other.")
