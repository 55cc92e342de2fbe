"""Compiled models, ready to answer: verified and golden-tested before use, swapped without a restart.

OpenVINO is loaded with the first model, never on import.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry import artifacts
from registry.calibration import with_temperature
from registry.openvino_runtime import load_openvino

from .activation import Grid, add_map_output

GOLDEN_TOLERANCE = 1e-4
RETRY_SECONDS = 30.0
_BATCH = 16

logger = logging.getLogger(__name__)


class EngineError(Exception):
    """A model version cannot be put to work. The message says why and what to do."""


@dataclass(frozen=True)
class Reading:
    """What a version says about N images, and where it saw it, all from one pass through the network.

    raw: probabilities float64 (N, C) as the network gave them. probabilities: the same after the version's
    temperature, the ones to show and to decide by. contributions: float32 (N, C, h, w), what each cell of the last
    feature maps adds to each class's logit; None when the network has no class activation map. grid: where the cells
    lie on the image.
    """

    raw: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    contributions: NDArray[np.float32] | None
    grid: Grid | None

    def maps(self, class_index: int | NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Class activation maps float32 (N, h, w) of one class, or of one an image (N,); None without any.

        Softmax only sees differences of logits, so a cell counts for a class by what it adds to the class's logit less
        the mean of what it adds to the others': of two classes the difference of both, and the map of one is the
        negative of the other's. Above zero speaks for the class. The mean of the map and a constant of the version,
        its biases, is log p of the class less the mean log p of the others, before the temperature.
        """
        if self.contributions is None:
            return None
        count, classes = self.contributions.shape[:2]
        chosen = self.contributions[np.arange(count), np.broadcast_to(class_index, count)]
        others = (self.contributions.sum(axis=1, dtype=np.float64) - chosen) / (classes - 1)
        return np.asarray(chosen - others, np.float32)


class LoadedModel:
    """One version, compiled. Safe to call from several threads at once."""

    def __init__(self, artifact: artifacts.Artifact) -> None:
        self.manifest = artifact.manifest
        self.sha256 = artifact.sha256
        self.classes: tuple[str, ...] = tuple(artifact.manifest["classes"])
        self.image_size = int(artifact.manifest["image_size"])
        self.temperature = float(artifact.manifest["temperature"])
        self._compiled, self.grid = _compile(artifact.openvino_xml)
        # The outputs for no images at all.
        self._none = [np.zeros((0, *_shape_of_one(output)), np.float32) for output in self._compiled.outputs]
        self._idle: list[Any] = []

    @property
    def has_maps(self) -> bool:
        """Whether the network has class activation maps."""
        return self.grid is not None

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Raw probabilities float64 (N, C), rows summing to 1, for grey images uint8 (N, S, S).

        As the network gave them, for statistics; what a user is told comes from `answer` or `read`. Raises ValueError
        when the images are not of the model's size and type.
        """
        return _normalised(self._infer(images)[0])

    def answer(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities as of `predict`, after the version's temperature: the ones to show and to decide by."""
        return with_temperature(self.predict(images), self.temperature)

    def read(self, images: NDArray[np.uint8]) -> Reading:
        """Probabilities and class activation maps of grey images uint8 (N, S, S). Raises ValueError as `predict`."""
        outputs = self._infer(images)
        raw = _normalised(outputs[0])
        contributions = outputs[1] if self.has_maps else None
        return Reading(raw, with_temperature(raw, self.temperature), contributions, self.grid)

    def _infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Every output of the graph for all images: probabilities and, where the network has them, contributions."""
        if images.dtype != np.uint8 or images.shape[1:] != (self.image_size, self.image_size):
            raise ValueError(
                f"The model takes uint8 images of {self.image_size} x {self.image_size} pixels, "
                f"not {images.dtype} of {images.shape[1:]}."
            )
        batches = [self._infer_batch(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return [np.concatenate(parts) for parts in zip(self._none, *batches, strict=True)]

    def _infer_batch(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        # An infer request serves one call at a time; list.pop and list.append are atomic, so no lock is needed.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            request.infer([images[..., None].astype(np.float32) / np.float32(255)])
            # Copies: the next call overwrites the request's own arrays.
            return [np.array(request.get_output_tensor(index).data) for index in range(len(self._none))]
        finally:
            self._idle.append(request)


def _normalised(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = probabilities.astype(np.float64)
    return np.asarray(exact / exact.sum(axis=1, keepdims=True), np.float64)


def load(folder: Path, sha256: str) -> LoadedModel:
    """Verify a version folder, compile it for the CPU at float32 and prove its golden outputs. Raises EngineError."""
    try:
        model = LoadedModel(artifacts.load(folder, sha256))
    except artifacts.ArtifactError as error:
        raise EngineError(str(error)) from error
    except (RuntimeError, KeyError) as error:
        raise EngineError(f"Version {folder.name} cannot be compiled: {error}") from error
    _prove(model, folder.name)
    return model


def _compile(xml: Path) -> tuple[Any, Grid | None]:
    """The graph, compiled, with the maps as its second output where it has any; then also where their cells lie."""
    core = load_openvino().Core()
    graph = core.read_model(str(xml))
    grid = add_map_output(graph)
    # Float32 throughout: on some processors OpenVINO would otherwise compute in bfloat16 and differ from training.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return core.compile_model(graph, "CPU", options), grid


def _shape_of_one(output: Any) -> tuple[int, ...]:
    """The shape of an output without its first axis, which counts the images."""
    return tuple(size.get_length() for size in list(output.partial_shape)[1:])


def _prove(model: LoadedModel, name: str) -> None:
    golden = model.manifest["golden"]
    images = artifacts.golden_images(golden["seed"], golden["count"], model.image_size)
    expected = np.asarray(golden["outputs"], np.float64)
    actual = model.predict(images)
    if actual.shape != expected.shape or not np.abs(actual - expected).max() <= GOLDEN_TOLERANCE:
        raise EngineError(
            f"Version {name} does not compute here what it computed when it was saved; it is not put in service. "
            "Train it again, or import it again from where it came."
        )


@dataclass(frozen=True)
class Served:
    """The model that answers for a key, and why it is not the one asked for when `failure` is set."""

    model: LoadedModel
    version_id: int
    epoch: int
    failure: str | None = None


@dataclass(frozen=True)
class _Failure:
    message: str
    retry_at: float


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    current: Served | None = None
    previous: Served | None = None
    # By epoch: what an older version answers meanwhile must neither hide nor repeat the failure of a newer one.
    failures: dict[int, _Failure] = field(default_factory=dict)


class Engine:
    """The models in service in this process, one a key (a condition), following the activations of the database.

    Each activation has an epoch, one higher than the last. The first request that brings a higher epoch loads the new
    model aside; others are answered by the old one meanwhile. A load that fails keeps the old model in service,
    says so in `Served.failure`, and is tried again after RETRY_SECONDS. The previous model stays warm for a rollback.
    """

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._lock = threading.Lock()

    def get(self, key: str, version_id: int, epoch: int, loader: Callable[[], LoadedModel]) -> Served:
        """The model for `key` once `version_id` was activated under `epoch`.

        loader: called at most once a swap, outside any database transaction. Hold the answer for the whole of a
        request: its model never changes. Raises EngineError when there is no model at all to answer with.
        """
        slot = self._slot(key)
        current = slot.current
        if current is not None and current.epoch >= epoch:
            return current
        if not slot.lock.acquire(blocking=current is None):
            return self._old(slot, epoch)
        try:
            return self._swap(slot, version_id, epoch, loader)
        finally:
            slot.lock.release()

    def _slot(self, key: str) -> _Slot:
        with self._lock:
            return self._slots.setdefault(key, _Slot())

    def _swap(self, slot: _Slot, version_id: int, epoch: int, loader: Callable[[], LoadedModel]) -> Served:
        current = slot.current
        if current is not None and current.epoch >= epoch:
            return current
        failure = slot.failures.get(epoch)
        if failure is not None and time.monotonic() < failure.retry_at:
            return self._old(slot, epoch)
        try:
            model = self._warm(slot, version_id) or loader()
        except Exception as error:
            logger.exception("Loading model version %s failed", version_id)
            slot.failures[epoch] = _Failure(str(error), time.monotonic() + RETRY_SECONDS)
            return self._old(slot, epoch)
        if current is not None and current.version_id != version_id:
            slot.previous = current
        slot.current = Served(model, version_id, epoch)
        slot.failures = {later: failure for later, failure in slot.failures.items() if later > epoch}
        return slot.current

    @staticmethod
    def _warm(slot: _Slot, version_id: int) -> LoadedModel | None:
        for served in (slot.current, slot.previous):
            if served is not None and served.version_id == version_id:
                return served.model
        return None

    @staticmethod
    def _old(slot: _Slot, epoch: int) -> Served:
        current, failure = slot.current, slot.failures.get(epoch)
        message = failure.message if failure else None
        if current is None:
            raise EngineError(message)
        return Served(current.model, current.version_id, current.epoch, message)
