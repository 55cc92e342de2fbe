"""The images that a version was made with, as its gate and its monitoring compare new ones with them.

A version that was imported, or whose preparation has no pixels any more, has none here: its gate then says that
likeness cannot be told, and its monitoring has nothing to compare with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.cache import CacheError, PreparedData, open_cache
from datasets.models import Preparation
from registry.models import ModelVersion

from . import choosing
from .engine import load
from .measures import Distributions, measures, picture_of
from .reference import MAXIMUM_FITTED, Reference, describe

BATCH = 16
# Enough for a limit that one in a hundred exceeds, and for quantiles of a thousand.
MAXIMUM_HELD_OUT = 2000

Progress = Callable[[int, int], None]


class FeatureModel(Protocol):
    """What is needed of `engine.LoadedModel`: its `read`, whose features are None where the network has none."""

    def read(self, images: NDArray[np.uint8]) -> Any: ...


@dataclass(frozen=True)
class Computed:
    """What is kept of a version's own images.

    reference: None where there are too few of them, or the network has no pooled features. distributions: on
    validation. images_count: of validation.
    """

    reference: Reference | None
    distributions: Distributions
    images_count: int

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of usual images that the gate calls unlike, at most; None without a reference."""
        return self.reference.false_alarm_rate if self.reference else None


def compute(
    version: ModelVersion, *, model: FeatureModel | None = None, progress: Progress | None = None
) -> Computed | None:
    """Let the version read images of its own training and validation part; None where these are not here.

    At most MAXIMUM_FITTED images of the training part and MAXIMUM_HELD_OUT of the validation part are read, evenly
    over each, from the preparation's decoded pixels: a minute or two for a large network. Nothing is stored. model:
    the version, loaded; loaded here if it is not given. progress: is told images done and in all. Raises EngineError.
    """
    found = _own_images(version)
    if found is None:
        return None
    preparation, data = found
    held_out = _evenly(data.indices("validation"), MAXIMUM_HELD_OUT)
    if not len(held_out):
        return None
    fitted = _evenly(data.indices("train"), MAXIMUM_FITTED)
    total = len(fitted) + len(held_out)
    reader = _Reader(model or load(version.folder, version.sha256), data.images, total, progress)
    usual = reader.descriptions(fitted)
    described = reader.descriptions(held_out)
    reference = None if usual is None or described is None else Reference.fit(usual, described)
    distances = reference.distances(described).tolist() if reference else [None] * len(held_out)
    sizes = _sizes(preparation, held_out)
    seen = (data.images[row] for row in held_out)
    fit, cropped = version.preprocessing["fit"], "crop_borders" in version.preprocessing.get("steps", ())
    known = [
        measures(picture_of(pixels, *size, fit, cropped), *size, distance)
        for pixels, size, distance in zip(seen, sizes, distances, strict=True)
    ]
    answers = reader.probabilities[-len(held_out) :]
    by_class = {name: answers[:, index] for index, name in enumerate(version.classes)}
    return Computed(reference, Distributions.of(known, by_class), len(held_out))


def validation_images(version: ModelVersion) -> NDArray[np.uint8] | None:
    """uint8 (N, S, S), at most MAXIMUM_HELD_OUT of the version's own as it sees them; None where they are not here."""
    found = _own_images(version)
    if found is None:
        return None
    rows = _evenly(found[1].indices("validation"), MAXIMUM_HELD_OUT)
    return np.ascontiguousarray(found[1].images[rows]) if len(rows) else None


def _own_images(version: ModelVersion) -> tuple[Preparation, PreparedData] | None:
    """A preparation with the version's own division whose pixels are those that the version sees."""
    if not version.split_digest:
        return None
    for preparation in Preparation.objects.filter(split_digest=version.split_digest).select_related("dataset"):
        if choosing.has_pixels_for(preparation, version):
            try:
                return preparation, open_cache(preparation.cache_folder)
            except CacheError:
                # Damaged or just removed: another one may have the same pixels.
                continue
    return None


def _evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly over them: rows are in the order of paths, and so of classes."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _sizes(preparation: Preparation, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Width and height of the radiographs; of those that are not in the dataset any more, of their pixels here."""
    digests = dict(preparation.manifest.values_list("row", "digest"))
    images = preparation.dataset.images.order_by().values_list("digest", "width", "height")
    known = {digest: (width, height) for digest, width, height in images.iterator(2000)}
    square = (preparation.image_size, preparation.image_size)
    return [known.get(digests[row], square) for row in rows.tolist()]


class _Reader:
    """Reads images in batches. probabilities: float64 (N, C) of all that were read, after the temperature."""

    def __init__(
        self, model: FeatureModel, images: NDArray[np.uint8], total: int, progress: Progress | None = None
    ) -> None:
        self._model, self._images, self._total, self._progress = model, images, total, progress
        self._answers: list[NDArray[np.float64]] = []

    @property
    def probabilities(self) -> NDArray[np.float64]:
        return np.concatenate(self._answers)

    def descriptions(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """float64 (N, F), see `reference.describe`; None without images, or of a network without pooled features."""
        parts = []
        for start in range(0, len(rows), BATCH):
            pixels = np.ascontiguousarray(self._images[rows[start : start + BATCH]])
            reading = self._model.read(pixels)
            self._answers.append(reading.probabilities)
            if reading.features is not None:
                parts.append(describe(reading.features, pixels))
            if self._progress is not None:
                self._progress(sum(map(len, self._answers)), self._total)
        return np.concatenate(parts) if parts else None
