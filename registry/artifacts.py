"""A model version on disk: saved whole or not at all, named by a digest, verified before anything in it is used.

A version folder holds `manifest.json`, `weights.safetensors`, `openvino/model.xml` and `.bin` (derived from the
weights) and `predictions.npz` (the figures behind the evaluation; local only). The manifest lists size and sha256 of
every other file, so the sha256 of the manifest, which the database keeps, covers everything. Nothing is unpickled.
"""

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
PREDICTIONS = "predictions.npz"
OPENVINO = ("openvino/model.xml", "openvino/model.bin")
MEMBERS = (WEIGHTS, *OPENVINO, PREDICTIONS)
_GOLDEN_GRID = 8
# Bytes; the safetensors library allows no larger one.
_LARGEST_HEAD = 100_000_000


class ArtifactError(Exception):
    """A version folder cannot be used. `reason`: missing, truncated, changed, newer format, unusable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Artifact:
    """A verified version folder."""

    folder: Path
    manifest: dict[str, Any]
    sha256: str

    def weights(self) -> dict[str, NDArray[Any]]:
        """Weights by name, as `training.ml.export.weights_of` gave them."""
        from safetensors.numpy import load_file

        return dict(load_file(self.folder / WEIGHTS))

    @property
    def openvino_xml(self) -> Path:
        """The OpenVINO graph. Raises ArtifactError when the version was saved without one."""
        if OPENVINO[0] not in self.manifest["members"]:
            raise ArtifactError("missing", f"{self.folder.name} holds no OpenVINO graph; derive it from the weights.")
        return self.folder / OPENVINO[0]

    def predictions(self) -> dict[str, NDArray[Any]]:
        """Labels, probabilities and groups of the validation and the test set."""
        if PREDICTIONS not in self.manifest["members"]:
            raise ArtifactError("missing", f"{self.folder.name} was saved without its predictions.")
        with np.load(self.folder / PREDICTIONS, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def save(
    folder: Path,
    *,
    manifest: dict[str, Any],
    weights: dict[str, NDArray[Any]],
    openvino: Path | None,
    predictions: dict[str, NDArray[Any]] | None,
) -> str:
    """Write a version folder and return its digest, the sha256 of its manifest.

    folder: a staging place of the caller's own, from where `place` moves it into the registry; what an earlier
    attempt left there is replaced. It appears whole or not at all. openvino: a folder with model.xml and model.bin,
    or None. predictions: None for a version that was not measured here. Raises ArtifactError (unusable) when a weight
    is not finite.
    """
    from safetensors.numpy import save_file

    _refuse_unusable(weights)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({name: np.asarray(value, order="C") for name, value in weights.items()}, part / WEIGHTS)
    if openvino is not None:
        (part / "openvino").mkdir()
        for member in OPENVINO:
            shutil.copyfile(openvino / Path(member).name, part / member)
    if predictions is not None:
        np.savez_compressed(part / PREDICTIONS, allow_pickle=False, **predictions)
    members = {member: _describe(part / member) for member in MEMBERS if (part / member).exists()}
    content = json.dumps({**manifest, "format": FORMAT, "members": members}, indent=1, sort_keys=True, allow_nan=False)
    (part / MANIFEST).write_text(content, encoding="utf-8")
    sync_tree(part)
    place(part, folder)
    return hashlib.sha256(content.encode()).hexdigest()


def load(folder: Path, sha256: str) -> Artifact:
    """Verify a version folder against its digest and return it. Raises ArtifactError; nothing is used before."""
    manifest = load_manifest(folder, sha256)
    for member, expected in manifest["members"].items():
        try:
            _verify(folder, member, expected)
        except OSError as error:
            raise ArtifactError(
                "unreadable", f"{member} of version {folder.name} cannot be read ({error.strerror}); restore it."
            ) from error
    return Artifact(folder, manifest, sha256)


def load_manifest(folder: Path, sha256: str) -> dict[str, Any]:
    """The manifest alone, verified; the other files, which may be large, are not read. Raises ArtifactError."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ArtifactError("missing", f"The files of version {folder.name} are not where they should be.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError("changed", f"The manifest of version {folder.name} was changed after it was registered.")
    manifest: dict[str, Any] = json.loads(content)
    if manifest["format"] > FORMAT:
        raise ArtifactError(
            "newer format",
            f"Version {folder.name} has format {manifest['format']}; this platform reads up to {FORMAT}. Upgrade it.",
        )
    return manifest


def count_weights(folder: Path) -> int | None:
    """How many numbers the weights of a version are, by the head of their file; None where it cannot be read.

    A safetensors file begins with the length of its head (8 bytes, little-endian) and the head, JSON with each shape.
    """
    try:
        with (folder / WEIGHTS).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(length)) if length <= _LARGEST_HEAD else {}
        shapes = [entry["shape"] for name, entry in head.items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes) or None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def place(staged: Path, target: Path) -> None:
    """Move a version folder to `target` by one rename, and force the rename to the disk.

    In the registry, the caller holds the lock of the condition: a folder already at `target` belongs to no version
    then, but was left by a registration that crashed before its transaction ended, and is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    orphan = target.with_name(target.name + ".orphan")
    shutil.rmtree(orphan, ignore_errors=True)
    if target.exists():
        target.rename(orphan)
    staged.rename(target)
    sync(target.parent)
    shutil.rmtree(orphan, ignore_errors=True)


def golden_images(seed: int, count: int, image_size: int) -> NDArray[np.uint8]:
    """Smooth random images uint8 (count, S, S) for proving that a graph computes what it did when it was saved.

    A coarse random grid, interpolated linearly. Made of the raw PCG64 stream, which numpy keeps the same for ever,
    and of whole numbers, so that every machine makes the same bytes and no radiograph needs to be stored.
    """
    raw = np.random.PCG64(seed).random_raw(count * (_GOLDEN_GRID + 1) ** 2)
    grid = (raw >> np.uint64(56)).astype(np.int64).reshape(count, _GOLDEN_GRID + 1, _GOLDEN_GRID + 1)
    position = np.arange(image_size) * _GOLDEN_GRID
    cell, offset = position // image_size, position % image_size
    rows = grid[:, cell] * (image_size - offset)[:, None] + grid[:, cell + 1] * offset[:, None]
    pixels = rows[:, :, cell] * (image_size - offset) + rows[:, :, cell + 1] * offset
    return (pixels // image_size**2).astype(np.uint8)


def _refuse_unusable(weights: dict[str, NDArray[Any]]) -> None:
    for name, value in weights.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise ArtifactError("unusable", f"The weights {name} hold values that are not numbers; train again.")


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _verify(folder: Path, member: str, expected: dict[str, Any]) -> None:
    if member not in MEMBERS:
        raise ArtifactError("changed", f"Version {folder.name} lists {member!r}, which is no part of a version.")
    path = folder / member
    if not path.is_file():
        raise ArtifactError("missing", f"{member} of version {folder.name} is missing; restore it from a backup.")
    size = path.stat().st_size
    if size < expected["size"]:
        raise ArtifactError("truncated", f"{member} of version {folder.name} is cut off; restore it from a backup.")
    if size != expected["size"] or _sha256(path) != expected["sha256"]:
        raise ArtifactError(
            "changed", f"{member} of version {folder.name} was changed after it was registered; restore it."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    """Force every file below a folder, and its entries, to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk, so that a rename never outlives what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
