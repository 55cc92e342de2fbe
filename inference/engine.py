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
from registry.openvino_runtime import load_openvino

GOLDEN_TOLERANCE = 1e-4
RETRY_SECONDS = 30.0
_BATCH = 16

logger = logging.getLogger(__name__)


class EngineError(Exception):
    """A model version cannot be put to work. The message says why and what to do."""


class LoadedModel:
    """One version, compiled. Safe to call from several threads at once."""

    def __init__(self, artifact: artifacts.Artifact) -> None:
        self.manifest = artifact.manifest
        self.sha256 = artifact.sha256
        self.classes: tuple[str, ...] = tuple(artifact.manifest["classes"])
        self.image_size = int(artifact.manifest["image_size"])
        self._compiled = _compile(artifact.openvino_xml)
        self._idle: list[Any] = []

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities float64 (N, C), rows summing to 1, for grey images uint8 (N, S, S).

        Raises ValueError when the images are not of the model's size and type.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (self.image_size, self.image_size):
            raise ValueError(
                f"The model takes uint8 images of {self.image_size} x {self.image_size} pixels, "
                f"not {images.dtype} of {images.shape[1:]}."
            )
        answers = [self._infer(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        probabilities = np.concatenate([np.zeros((0, len(self.classes))), *answers])
        return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True), np.float64)

    def _infer(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        # An infer request serves one call at a time; list.pop and list.append are atomic, so no lock is needed.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            request.infer([images[..., None].astype(np.float32) / np.float32(255)])
            return np.array(request.get_output_tensor().data, np.float64)
        finally:
            self._idle.append(request)


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


def _compile(xml: Path) -> Any:
    openvino = load_openvino()
    # Float32 throughout: on some processors OpenVINO would otherwise compute in bfloat16 and differ from training.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(str(xml), "CPU", options)


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


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    current: Served | None = None
    previous: Served | None = None
    failed_epoch: int | None = None
    failure: str = ""
    retry_at: float = 0.0


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
            return self._old(slot)
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
        if slot.failed_epoch == epoch and time.monotonic() < slot.retry_at:
            return self._old(slot)
        try:
            model = self._warm(slot, version_id) or loader()
        except Exception as error:
            logger.exception("Loading model version %s failed", version_id)
            slot.failed_epoch, slot.failure = epoch, str(error)
            slot.retry_at = time.monotonic() + RETRY_SECONDS
            return self._old(slot)
        if current is not None and current.version_id != version_id:
            slot.previous = current
        slot.current, slot.failure = Served(model, version_id, epoch), ""
        return slot.current

    @staticmethod
    def _warm(slot: _Slot, version_id: int) -> LoadedModel | None:
        for served in (slot.current, slot.previous):
            if served is not None and served.version_id == version_id:
                return served.model
        return None

    @staticmethod
    def _old(slot: _Slot) -> Served:
        current = slot.current
        if current is None:
            raise EngineError(slot.failure)
        return Served(current.model, current.version_id, current.epoch, slot.failure or None)
