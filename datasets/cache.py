"""The decoded pixels of a preparation, as one memory-mapped uint8 array, with labels and splits.

Two folders: the *pixels* (`images.npy`, uint8 N x S x S, and `hashes.npy`, the SHA-256 of each row), which only depend
on the images, their order and the pixel pipeline, so that preparations which differ in seed or shares use the same
ones; and the *preparation* (`rows.npz`: labels, splits, groups, digests; `cache.json`: what the numbers mean, where the
pixels are, and the digest that names all of it). Nothing in either identifies a patient.

Rows are written one by one, by several processes, in any order. A row whose hash matches its pixels is complete, so
that whatever ended a preparation, the next one goes on from there.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

FORMAT: Final = 2
SPLITS: Final = ("train", "validation", "test")
HASH_BYTES: Final = 32
_PIXELS_NAME: Final = re.compile(r"pixels-[0-9a-z-]{1,60}")
_CHUNK: Final = 256
# What is written before it is made permanent: a minute's work for a slow disk, so that no step is long at a stretch.
SYNC_BYTES: Final = 512 * 1024**2


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


# --- Pixels ----------------------------------------------------------------------------------------------------------


def pixels_key(digests: Sequence[str], image_size: int, pipeline: dict[str, Any]) -> str:
    """Names pixels by all that they depend on: hex SHA-256 of the images' digests in order, the size, the pipeline."""
    content = hashlib.sha256(json.dumps([FORMAT, image_size, pipeline], sort_keys=True).encode())
    for digest in digests:
        content.update(digest.encode() + b"\n")
    return content.hexdigest()


class PixelStore:
    """The pixels of one preparation while they are written, and afterwards.

    folder: where they will stand; until `finish` they are in `<folder>.part`. Rows are written into `images` and
    `hashes` at `row * S * S` and `row * 32` bytes behind `offset` (see `decoder.prepare`).
    """

    def __init__(self, folder: Path, count: int, image_size: int) -> None:
        self.folder = folder
        self.shape = (count, image_size, image_size)
        self.part = folder.with_name(folder.name + ".part")
        # The finished pixels are damaged: others use them until what is built beside them is whole.
        self._rebuilds = False
        self._unsynced = 0

    @property
    def images(self) -> Path:
        return self._place / "images.npy"

    @property
    def hashes(self) -> Path:
        return self._place / "hashes.npy"

    @property
    def _place(self) -> Path:
        return self.folder if self.is_complete else self.part

    @property
    def is_complete(self) -> bool:
        # Both: a removal that was interrupted may have left one of them.
        both = (self.folder / "hashes.npy").exists() and (self.folder / "images.npy").exists()
        return both and not self._rebuilds

    @property
    def offset(self) -> int:
        """Bytes before the first row, the same in both files."""
        return 128

    def bytes_needed(self) -> int:
        """What is still to be written to the disk, at most."""
        if self.is_complete:
            return 0
        count, size, _ = self.shape
        used = sum(path.stat().st_blocks * 512 for path in self.part.glob("*.npy"))
        return max(0, count * (size * size + HASH_BYTES) - used)

    def open(
        self, check: Callable[[int], None] = lambda rows: None, require: Callable[[int], None] = lambda size: None
    ) -> NDArray[np.int64]:
        """Go on where an earlier attempt stopped, or start; returns the rows that are still to be written.

        Rows that claim to be complete are checked against their hash, in finished pixels as well; `check` is told how
        many were. `require` is asked for the bytes that are needed before anything is written. Raises OSError.
        """
        if self.is_complete and self._fits() and not len(self._incomplete(check)):
            return np.zeros(0, np.int64)
        self._rebuilds = self.is_complete
        require(self.bytes_needed())
        if self._fits():
            missing = self._incomplete(check)
            self._arrays("r+")[1][missing] = 0
            return missing
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        _allocate(self.part / "images.npy", self.shape)
        _allocate(self.part / "hashes.npy", (self.shape[0], HASH_BYTES))
        if self._rebuilds:
            # The disk lost bits of finished pixels: what is whole is kept, the rest is decoded again.
            damaged = PixelStore(self.folder, self.shape[0], self.shape[1])
            self.copy_from(damaged, [(row, row) for row in range(self.shape[0])], check)
        return self.unwritten()

    def unwritten(self) -> NDArray[np.int64]:
        """Rows without a hash; what the others hold is not read."""
        return np.flatnonzero(~self._arrays("r")[1].any(axis=1))

    def _incomplete(self, check: Callable[[int], None]) -> NDArray[np.int64]:
        """Rows without a hash, or whose pixels are not those of their hash."""
        images, hashes = self._arrays("r")
        claimed: list[int] = hashes.max(axis=1).tolist()
        rows: list[int] = []
        for row in range(self.shape[0]):
            if not claimed[row] or hashlib.sha256(images[row]).digest() != hashes[row].tobytes():
                rows.append(row)
            if row % _CHUNK == 0:
                check(row)
        return np.asarray(rows, np.int64)

    def copy_from(
        self, other: "PixelStore", rows: Sequence[tuple[int, int]], check: Callable[[int], None] = lambda rows: None
    ) -> None:
        """Take over rows (own number, number in the other store) that were decoded for an earlier preparation.

        Rows whose pixels are not those of their hash are passed over; `check` is told how many were looked at. Raises
        OSError.
        """
        if not other._fits():
            return
        images, hashes = other._arrays("r")
        # As the decoders write: on a full disk writing through a memory map would end the process.
        with self.images.open("r+b", buffering=0) as own_images, self.hashes.open("r+b", buffering=0) as own_hashes:
            for number, (own, theirs) in enumerate(rows):
                pixels, digest = images[theirs].tobytes(), hashes[theirs].tobytes()
                if hashlib.sha256(pixels).digest() == digest:
                    _write_row(own_images.fileno(), self.offset, own, pixels)
                    _write_row(own_hashes.fileno(), self.offset, own, digest)
                    self.wrote()
                if number % _CHUNK == 0:
                    check(number)

    def request(self, row: int, path: Path, digest: str, pipeline: dict[str, Any]) -> dict[str, Any]:
        """What `decoder.prepare` is asked for, to write that file, as the pipeline treats it, into that row."""
        return {
            "op": "prepare",
            "size": self.shape[1],
            "fit": pipeline["fit"],
            "steps": list(pipeline.get("steps", ())),
            "images": str(self.images),
            "hashes": str(self.hashes),
            "offset": self.offset,
            "row": row,
            "path": str(path),
            "digest": digest,
        }

    def wrote(self) -> None:
        """To be told of each row that was written: a part at a time becomes permanent, which leaves `finish` little."""
        self._unsynced += self.shape[1] * self.shape[2] + HASH_BYTES
        if self._unsynced >= SYNC_BYTES:
            self._unsynced = 0
            _sync(self.part)

    def finish(self) -> None:
        """Make what was written permanent and give it its name. Raises CacheError when a row is missing."""
        if self.is_complete:
            return
        missing = len(self.unwritten())
        if missing:
            raise CacheError(f"{missing} of {self.shape[0]} images are missing in the cache.")
        _sync(self.part)
        # Moved away before it is deleted: others may be about to open it, and a deletion takes its time.
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.folder.replace(old)
        self.part.replace(self.folder)
        self._rebuilds = False
        _sync(self.folder.parent, files=False)
        shutil.rmtree(old, ignore_errors=True)

    def digest(self) -> str:
        """Hex SHA-256 over the hashes of all rows, which stand for the pixels."""
        return hashlib.sha256(np.load(self.hashes, mmap_mode="r", allow_pickle=False)).hexdigest()

    def bytes_used(self) -> int:
        return sum(path.stat().st_size for path in self._place.glob("*.npy"))

    def _fits(self) -> bool:
        try:
            images, hashes = self._arrays("r")
        except (OSError, ValueError, EOFError):
            return False
        return images.shape == self.shape and hashes.shape == (self.shape[0], HASH_BYTES)

    def _arrays(self, mode: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return (
            np.load(self.images, mmap_mode=mode, allow_pickle=False),
            np.load(self.hashes, mmap_mode=mode, allow_pickle=False),
        )


def _allocate(path: Path, shape: tuple[int, ...]) -> None:
    """An empty .npy file of its full length; the rows are holes until they are written."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)))


def _write_row(descriptor: int, offset: int, row: int, content: bytes) -> None:
    if os.pwrite(descriptor, content, offset + row * len(content)) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- Rows ------------------------------------------------------------------------------------------------------------


def write_rows(
    folder: Path,
    pixels: PixelStore,
    *,
    labels: Sequence[int],
    splits: Sequence[str],
    groups: Sequence[int],
    digests: Sequence[str],
    classes: Sequence[str],
    positive_class: str,
    pipeline: dict[str, Any],
    ordinal: bool = False,
) -> str:
    """Write a preparation's folder beside finished pixels and return its digest.

    The digest is a hex SHA-256 over pixels, rows and their meaning, independent of where they lie. The folder appears
    whole or not at all. Raises CacheError when the numbers of rows differ.
    """
    count, image_size, _ = pixels.shape
    if not len(labels) == len(splits) == len(groups) == len(digests) == count:
        raise CacheError(f"There are {count} images but {len(labels)} labels.")
    rows: dict[str, NDArray[Any]] = {
        "labels": np.asarray(labels, np.int64),
        "splits": np.asarray([SPLITS.index(split) for split in splits], np.uint8),
        "groups": np.asarray(groups, np.int64),
        "digests": np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(count, -1),
    }
    meaning = {
        "format": FORMAT,
        "count": count,
        "image_size": image_size,
        "classes": list(classes),
        "positive_class": positive_class,
        "ordinal": ordinal,
        "pipeline": pipeline,
    }
    digest = _digest(pixels, rows, meaning)
    _write_folder(folder, rows, meaning | {"pixels": pixels.folder.name, "digest": digest})
    return digest


def _write_folder(folder: Path, rows: dict[str, NDArray[Any]], meaning: dict[str, Any]) -> None:
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        np.savez(part / "rows.npz", **rows)  # type: ignore[arg-type]
        (part / "cache.json").write_text(json.dumps(meaning, indent=1))
        _sync(part)
        # What stands here is left over from a database that was given up: numbers of preparations are not used twice.
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _digest(pixels: PixelStore, rows: dict[str, NDArray[Any]], meaning: dict[str, Any]) -> str:
    content = hashlib.sha256(pixels.digest().encode())
    for name in sorted(rows):
        content.update(rows[name].tobytes())
    content.update(json.dumps(meaning, sort_keys=True).encode())
    return content.hexdigest()


def open_cache(folder: Path) -> PreparedData:
    """Open a preparation's folder without reading the pixels. Raises CacheError when it is missing or incomplete."""
    try:
        meaning = _meaning(folder)
        pixels = folder.parent / meaning["pixels"]
        images = np.load(pixels / "images.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / "rows.npz", allow_pickle=False) as rows:
            labels, splits, groups = rows["labels"], rows["splits"], rows["groups"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise CacheError(
            f"The prepared data in {folder.name} cannot be read ({_reason(error)}); prepare the dataset again."
        ) from error
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
        ordinal=meaning["ordinal"],
    )


def is_usable(folder: Path) -> bool:
    """Whether a preparation's folder has the present format and the pixels that it names are there; reads none."""
    try:
        pixels = folder.parent / str(_meaning(folder)["pixels"])
    except (CacheError, OSError, ValueError):
        return False
    return (pixels / "images.npy").is_file()


def _meaning(folder: Path) -> dict[str, Any]:
    """What `cache.json` says. Raises OSError, ValueError or CacheError."""
    meaning = json.loads((folder / "cache.json").read_text())
    known = isinstance(meaning, dict) and meaning.get("format") == FORMAT
    if not known or not _PIXELS_NAME.fullmatch(str(meaning.get("pixels"))):
        raise CacheError(f"The prepared data in {folder.name} has an unknown format; prepare the dataset again.")
    return cast("dict[str, Any]", meaning)


def _reason(error: Exception) -> str:
    """Without the path, which an OSError names in full."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _sync(folder: Path, *, files: bool = True) -> None:
    for path in [*(sorted(folder.iterdir()) if files else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
