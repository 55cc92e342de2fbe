"""The pixel cache of a preparation: decoded radiographs as one memory-mapped uint8 array, with labels and splits.

A cache folder holds `images.npy` (uint8, N x S x S), `rows.npz` (labels, splits, groups, digests) and `cache.json`
(what the numbers mean, and the digest that names the content). Nothing in it identifies a patient.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
SPLITS = ("train", "validation", "test")


class CacheError(Exception):
    """The cache is missing, incomplete or not what its digest says."""


@dataclass(frozen=True)
class PreparedData:
    """A prepared dataset as the training reads it.

    images: uint8 (N, S, S), memory-mapped; divide by 255 for the network's input.
    labels: int64 (N,), index into `classes`. splits: uint8 (N,), index into `SPLITS`.
    groups: int64 (N,), one number a patient (or the next best key). ordinal: the classes are grades, in their order.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    groups: NDArray[np.int64]
    classes: tuple[str, ...]
    positive_class: str
    pipeline: dict[str, Any]
    digest: str
    ordinal: bool = False

    @property
    def image_size(self) -> int:
        return int(self.images.shape[1])

    def indices(self, split: str) -> NDArray[np.int64]:
        """Row numbers of one split, in stored order."""
        return np.flatnonzero(self.splits == SPLITS.index(split))


def write_cache(
    folder: Path,
    images: Iterator[NDArray[np.uint8]],
    *,
    labels: Sequence[int],
    splits: Sequence[str],
    groups: Sequence[int],
    digests: Sequence[str],
    image_size: int,
    classes: Sequence[str],
    positive_class: str,
    pipeline: dict[str, Any],
    ordinal: bool = False,
) -> str:
    """Write a cache folder and return its digest (hex sha256 over pixels and rows, independent of file layout).

    `images` yields uint8 (S, S) arrays in the order of `labels`. The folder appears whole or not at all:
    everything is written beside it and renamed at the end, or removed when something is raised on the way.
    """
    rows: dict[str, NDArray[Any]] = {
        "labels": np.asarray(labels, np.int64),
        "splits": np.asarray([SPLITS.index(split) for split in splits], np.uint8),
        "groups": np.asarray(groups, np.int64),
        "digests": np.asarray(digests, "U64"),
    }
    meaning = {
        "format": FORMAT,
        "count": len(labels),
        "image_size": image_size,
        "classes": list(classes),
        "positive_class": positive_class,
        "ordinal": ordinal,
        "pipeline": pipeline,
    }
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        digest = _write(part, images, rows, meaning)
        # What stands here is left over from a database that was given up: numbers of preparations are not used twice.
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return digest


def _write(
    part: Path, images: Iterator[NDArray[np.uint8]], rows: dict[str, NDArray[Any]], meaning: dict[str, Any]
) -> str:
    content = hashlib.sha256()
    _write_pixels(part / "images.npy", images, meaning["count"], meaning["image_size"], content)
    for name in sorted(rows):
        content.update(rows[name].tobytes())
    content.update(json.dumps(meaning, sort_keys=True).encode())
    np.savez(part / "rows.npz", **rows)  # type: ignore[arg-type]
    digest = content.hexdigest()
    (part / "cache.json").write_text(json.dumps(meaning | {"digest": digest}, indent=1))
    _sync(part)
    return digest


def _write_pixels(path: Path, images: Iterator[NDArray[np.uint8]], count: int, size: int, content: Any) -> None:
    """Write the images one by one, feeding them to the hash `content` as well."""
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size))
    written = 0
    for image in images:
        if written == count:
            raise CacheError(f"Expected {count} images for the cache, received more.")
        pixels[written] = image
        content.update(image.tobytes())
        written += 1
    if written != count:
        raise CacheError(f"Expected {count} images for the cache, received {written}.")
    pixels.flush()


def open_cache(folder: Path) -> PreparedData:
    """Open a cache folder without reading the pixels. Raises CacheError when it is missing or incomplete."""
    try:
        meaning = json.loads((folder / "cache.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / "rows.npz", allow_pickle=False) as rows:
            labels, splits, groups = rows["labels"], rows["splits"], rows["groups"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CacheError(
            f"The prepared data in {folder.name} cannot be read ({_reason(error)}); prepare the dataset again."
        ) from error
    if meaning.get("format") != FORMAT:
        raise CacheError(f"The prepared data in {folder.name} has an unknown format; prepare the dataset again.")
    if not len(images) == len(labels) == len(splits) == meaning["count"]:
        raise CacheError(f"The prepared data in {folder.name} is incomplete; prepare the dataset again.")
    return PreparedData(
        images=images,
        labels=labels,
        splits=splits,
        groups=groups,
        classes=tuple(meaning["classes"]),
        positive_class=meaning["positive_class"],
        pipeline=meaning["pipeline"],
        digest=meaning["digest"],
        # Caches from before this was stored lack it.
        ordinal=meaning.get("ordinal", False),
    )


def _reason(error: Exception) -> str:
    """Without the path, which an OSError names in full."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _sync(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
