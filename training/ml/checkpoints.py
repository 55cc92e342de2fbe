"""Checkpoints of one training: what it needs to go on after an interruption as if there had been none.

In the training's folder:

    checkpoint-<n>.safetensors   the variables: weights, optimizer, random states, sums of the figures
    checkpoint-<n>.json          the state, the digests of the files that belong to it, and its own
    best-<epoch>.safetensors     the weights of the best epoch so far; never changed once it is written

Every file is written aside, forced to the disk and renamed; the JSON file comes last, so that a checkpoint is complete
exactly when its JSON file is there and all digests are right. The two newest are kept. Nothing is ever unpickled.
What is whole but does not fit is set aside as `<name>.other`, for whoever goes back to what it does fit.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from registry.artifacts import sync

FORMAT: Final = 1
KEPT: Final = 2
# The names the safetensors format gives to numbers.
_TYPES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "uint32": "U32",
    "uint8": "U8",
    "bool": "BOOL",
}
_OTHER: Final = ".other"
_NAME: Final = re.compile(r"checkpoint-(\d+)\.json")

Tensors = dict[str, NDArray[Any]]


class Damaged(Exception):
    """A file is not what its digest says."""


class Other(Exception):
    """A checkpoint is whole, but of something else than this training."""


@dataclass(frozen=True)
class TensorFile:
    """A file of variables: its name within the folder, and the hex SHA-256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    state: dict[str, Any]
    tensors: Tensors
    best: TensorFile | None


class Checkpoints:
    """Those in `folder`. digest: of everything a checkpoint must fit to (data, architecture, configuration)."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest

    def save(self, state: dict[str, Any], variables: Mapping[str, Any], best: TensorFile | None) -> None:
        """Write one more checkpoint and remove what is no longer needed. Raises OSError; the older ones stay then."""
        number = max(self._numbers(), default=0) + 1
        tensors = write_tensors(self.folder / f"checkpoint-{number}.safetensors", variables)
        content = {
            "format": FORMAT,
            "digest": self.digest,
            "state": state,
            "tensors": vars(tensors),
            "best": None if best is None else vars(best),
        }
        document = {"sha256": _sha256(content), "content": content}
        _write(self.folder / f"checkpoint-{number}.json", [json.dumps(document, allow_nan=False).encode()])
        self.thin_out(KEPT)

    def save_best(self, epoch: int, variables: Mapping[str, Any]) -> TensorFile:
        """Write the weights of a new best epoch. OSError.

        Where the disk is full, the older checkpoint and what was set aside make room.
        """
        path = self.folder / f"best-{epoch}.safetensors"
        try:
            return write_tensors(path, variables)
        except OSError:
            self.thin_out(1)
            for other in self.folder.glob(f"*{_OTHER}"):
                other.unlink(missing_ok=True)
            return write_tensors(path, variables)

    def newest(self, weights: Mapping[str, Any]) -> tuple[Checkpoint | None, list[str]]:
        """The newest complete one that fits, and what is to be said about those that were passed over.

        weights: the variables of the network, by name; a checkpoint fits that holds all of them or those of the head.
        """
        said: list[str] = []
        for number in sorted(self._numbers(), reverse=True):
            try:
                return self._load(number, weights), said
            except Other as error:
                said.append(f"A checkpoint cannot be used: {error}")
                self._set_aside(number)
            except Damaged as error:
                said.append(f"A checkpoint cannot be used: {error}")
                self._remove(number)
        return None, said

    def best_weights(self, best: TensorFile) -> Tensors:
        """Raises Damaged."""
        return _tensors(self.folder, best)

    def clear(self) -> None:
        """Remove all checkpoints, for a training that starts anew."""
        self.thin_out(0)

    def thin_out(self, kept: int) -> None:
        """Remove all but the newest `kept` checkpoints, and the weights of best epochs that none of them names."""
        numbers = sorted(self._numbers(), reverse=True)
        for number in numbers[kept:]:
            self._remove(number)
        named = {self._best_name(number) for number in numbers[:kept]}
        for path in [*self.folder.glob("best-*.safetensors"), *self.folder.glob("*.part")]:
            if path.name not in named:
                path.unlink(missing_ok=True)
        for path in self.folder.glob("checkpoint-*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self.folder.glob("checkpoint-*.json"))
        return [int(match[1]) for match in matches if match]

    def _remove(self, number: int) -> None:
        for ending in (".json", ".safetensors"):
            (self.folder / f"checkpoint-{number}{ending}").unlink(missing_ok=True)

    def _set_aside(self, number: int) -> None:
        names = [f"checkpoint-{number}.json", f"checkpoint-{number}.safetensors", self._best_name(number)]
        for name in filter(None, names):
            with suppress(FileNotFoundError):
                (self.folder / name).replace(self.folder / f"{name}{_OTHER}")

    def _best_name(self, number: int) -> str | None:
        with suppress(Damaged, KeyError, TypeError):
            best = self._content(number)["best"]
            return None if best is None else str(best["name"])
        return None

    def _content(self, number: int) -> dict[str, Any]:
        try:
            document = json.loads((self.folder / f"checkpoint-{number}.json").read_bytes())
            content: dict[str, Any] = document["content"]
            if document["sha256"] == _sha256(content):
                return content
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged("it cannot be read.") from error
        raise Damaged("its content was changed.")

    def _load(self, number: int, weights: Mapping[str, Any]) -> Checkpoint:
        content = self._content(number)
        if content["format"] != FORMAT:
            raise Other("it was written by another version of this program.")
        if content["digest"] != self.digest:
            raise Other("it belongs to other data or another configuration.")
        tensors = _tensors(self.folder, TensorFile(**content["tensors"]))
        whole = {f"weights/{name}": variable for name, variable in weights.items()}
        head = {name: variable for name, variable in whole.items() if name.startswith("weights/head/")}
        if not (fits("weights", whole, tensors) or fits("weights", head, tensors)):
            raise Other("its weights are not those of this network.")
        best = None if content["best"] is None else TensorFile(**content["best"])
        if best is not None:
            _verify(self.folder, best)
        return Checkpoint(content["state"], tensors, best)


def fits(kind: str, variables: Mapping[str, Any], tensors: Tensors) -> bool:
    """Whether the tensors of a kind, "<kind>/...", are just these variables: the same names, shapes and types."""
    return {name for name in tensors if name.startswith(f"{kind}/")} == variables.keys() and all(
        tuple(variable.shape) == tensors[name].shape and np.dtype(str(variable.dtype)) == tensors[name].dtype
        for name, variable in variables.items()
    )


def write_tensors(path: Path, variables: Mapping[str, Any]) -> TensorFile:
    """Write variables as safetensors, one after the other: a large network is never in memory twice. OSError."""
    described, end = {}, 0
    for name, variable in variables.items():
        # Keras names its types, NumPy has objects for them.
        kind, shape = np.dtype(str(variable.dtype)), [int(side) for side in variable.shape]
        size = math.prod(shape) * kind.itemsize
        described[name] = {"dtype": _TYPES[kind.name], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(described).encode()
    # The data begins at a multiple of 8 bytes, as the format wants it.
    header += b" " * (-len(header) % 8)
    values = (np.asarray(variable).tobytes() for variable in variables.values())
    return TensorFile(path.name, _write(path, [len(header).to_bytes(8, "little"), header], values))


def _write(path: Path, first: Iterable[bytes], more: Iterable[bytes] = ()) -> str:
    """Write aside, force to the disk, rename; returns the hex SHA-256. What was there stays when it fails."""
    part, digest = path.with_name(path.name + ".part"), hashlib.sha256()
    try:
        with part.open("wb") as file:
            for pieces in (first, more):
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return digest.hexdigest()


def _verify(folder: Path, file: TensorFile) -> None:
    try:
        with (folder / file.name).open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise Damaged("one of its files is missing.") from error
    if found != file.sha256:
        raise Damaged("one of its files is damaged.")


def _tensors(folder: Path, file: TensorFile) -> Tensors:
    _verify(folder, file)
    try:
        tensors: Tensors = load_file(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise Damaged("one of its files cannot be read.") from error
    return tensors


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
