"""Compiled models, ready to answer: verified and golden-tested before use, swapped without a restart.

OpenVINO is loaded with the first model, never on import.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from registry import artifacts
from registry.calibration import with_temperature
from registry.openvino_runtime import load_openvino
from registry.statistics import decide_indices

from .activation import Grid, add_features_output, add_map_output, contrast

GOLDEN_TOLERANCE = 1e-4
RETRY_SECONDS = 30.0
# Compiled versions that a process keeps, when nobody says how many.
MODELS_KEPT = 8
# How much older than its condition a previous version counts: it stays longer than what is idle, and never drives out
# what answers.
PREVIOUS_SECONDS = 600.0
_BATCH = 16
FULL_PRECISION: Final = "f32"
# By the name of the precision, what OpenVINO calls the ability of a processor to compute in it.
PRECISIONS: Final = {FULL_PRECISION: "FP32", "bf16": "BF16", "f16": "FP16"}

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
    features: NDArray[np.float32] | None
    grid: Grid | None

    def maps(self, class_index: int | NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Class activation maps float32 (N, h, w), as of `activation.contrast`; None without any."""
        return None if self.contributions is None else contrast(self.contributions, class_index)


class LoadedModel:
    """One version, compiled. Safe to call from several threads at once."""

    def __init__(
        self, artifact: artifacts.Artifact, *, precision: str = FULL_PRECISION, threads: int | None = None
    ) -> None:
        self.precision = precision
        self.manifest = artifact.manifest
        self.sha256 = artifact.sha256
        self.classes: tuple[str, ...] = tuple(artifact.manifest["classes"])
        self.image_size = int(artifact.manifest["image_size"])
        self.temperature = float(artifact.manifest["temperature"])
        self._compiled, self.grid = _compile(artifact.openvino_xml, precision, threads)
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
        contributions, features = (outputs[1], outputs[2]) if self.has_maps else (None, None)
        return Reading(raw, with_temperature(raw, self.temperature), contributions, features, self.grid)

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


def load(
    folder: Path,
    sha256: str,
    *,
    precision: str = FULL_PRECISION,
    tolerance: float | None = None,
    threads: int | None = None,
) -> LoadedModel:
    """Verify a version folder, compile it for the CPU and prove its golden outputs.

    The golden images go through the network one by one, as radiographs do, so that what is compiled or allocated with
    the first of them is behind a model that is ready. tolerance: of the golden outputs, which are float32; None for
    GOLDEN_TOLERANCE. A lower precision (of PRECISIONS) needs a larger one, and `precision_check` on real radiographs
    before it is used. threads: of the processor that compute one image; None for all of them. Raises EngineError.
    """
    try:
        model = LoadedModel(artifacts.load(folder, sha256), precision=precision, threads=threads)
    except artifacts.ArtifactError as error:
        raise EngineError(str(error)) from error
    except (RuntimeError, KeyError) as error:
        raise EngineError(f"Version {folder.name} cannot be compiled: {error}") from error
    _prove(model, folder.name, GOLDEN_TOLERANCE if tolerance is None else tolerance)
    return model


def give_back_memory() -> None:
    """Hand memory that nothing uses back to the system, after models were let go of.

    The allocator of Linux (glibc) keeps a pool a thread, and each thread that loads leaves a model's worth in its own.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def supported_precisions() -> tuple[str, ...]:
    """The precisions in which this processor computes, float32 among them."""
    abilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, ability in PRECISIONS.items() if ability in abilities)


@cache
def _core() -> Any:
    """One for the whole process: another for each model would load the plug-in for processors again."""
    return load_openvino().Core()


def _compile(xml: Path, precision: str, threads: int | None) -> tuple[Any, Grid | None]:
    """The graph, compiled, with the maps as its second output where it has any; then also where their cells lie."""
    if precision not in supported_precisions():
        raise EngineError(
            f"This processor does not compute in {precision}, only in {', '.join(supported_precisions())}. "
            f"Use {FULL_PRECISION}."
        )
    graph = _core().read_model(str(xml))
    grid = add_map_output(graph)
    # Of the same networks as the maps.
    add_features_output(graph)
    # Said always: on some processors OpenVINO would otherwise compute in bfloat16 and differ from training. Not pinned:
    # several processes would pin their threads to the same core.
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return _core().compile_model(graph, "CPU", options), grid


def _shape_of_one(output: Any) -> tuple[int, ...]:
    """The shape of an output without its first axis, which counts the images."""
    return tuple(size.get_length() for size in list(output.partial_shape)[1:])


def _prove(model: LoadedModel, name: str, tolerance: float) -> None:
    golden = model.manifest["golden"]
    images = artifacts.golden_images(golden["seed"], golden["count"], model.image_size)
    expected = np.asarray(golden["outputs"], np.float64)
    actual = np.concatenate([model.predict(images[number : number + 1]) for number in range(len(images))])
    if actual.shape != expected.shape or not np.abs(actual - expected).max() <= tolerance:
        raise EngineError(
            f"Version {name} does not compute here what it computed when it was saved; it is not put in service. "
            "Train it again, or import it again from where it came."
        )


@dataclass(frozen=True)
class PrecisionCheck:
    """How a version answers at a lower precision, beside what it answered at float32 when it was measured.

    largest_difference: of any probability of any image, before the temperature. changed_decisions: images that would be
    decided otherwise.
    """

    precision: str
    images: int
    largest_difference: float
    changed_decisions: int
    tolerance: float

    @property
    def keeps_the_answers(self) -> bool:
        """Whether the precision may be used. Not when nothing was compared, nor when a figure is not a number."""
        return self.images > 0 and self.largest_difference <= self.tolerance and not self.changed_decisions


def precision_check(
    model: LoadedModel,
    pixels: NDArray[np.uint8],
    stored: NDArray[np.float64],
    *,
    positive_class: str | None,
    threshold: float | None,
    tolerance: float,
) -> PrecisionCheck:
    """Compare a model loaded at a lower precision with stored answers at float32.

    pixels: uint8 (N, S, S), the network's inputs. stored: float (N, C), its probabilities of the same images before
    the temperature, as the predictions of a version are kept. Raises ValueError when their numbers differ.
    """
    expected = np.asarray(stored, np.float64)
    if expected.shape != (len(pixels), len(model.classes)):
        raise ValueError(f"{len(pixels)} images of {len(model.classes)} classes have no answers of {expected.shape}.")
    actual = model.predict(pixels)

    def decided(raw: NDArray[np.float64]) -> NDArray[np.int64]:
        return decide_indices(with_temperature(raw, model.temperature), model.classes, positive_class, threshold)

    return PrecisionCheck(
        precision=model.precision,
        images=len(pixels),
        largest_difference=float(np.abs(actual - expected).max(initial=0.0)),
        changed_decisions=int((decided(actual) != decided(expected)).sum()),
        tolerance=tolerance,
    )


@dataclass(frozen=True)
class Served:
    """The model that answers for a key, and why it is not the one asked for when `failure` is set."""

    model: LoadedModel
    version_id: int
    epoch: int
    failure: str | None = None


@dataclass(frozen=True)
class Serving:
    """What answers for a key in this process, what is kept for a rollback, and why a later epoch is not served."""

    key: str
    version_id: int
    epoch: int
    previous_id: int | None
    failure: str | None


@dataclass(frozen=True)
class EngineState:
    """A snapshot. loaded: the versions that are compiled in this process, those used last first."""

    serving: tuple[Serving, ...]
    loaded: tuple[int, ...]


@dataclass(frozen=True)
class _Failure:
    message: str
    retry_at: float


@dataclass
class _Slot:
    """What answers for a key. used_at: when it was asked for last, by the monotonic clock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    current: Served | None = None
    previous: Served | None = None
    used_at: float = 0.0
    # By epoch: what an older version answers meanwhile must neither hide nor repeat the failure of a newer one.
    failures: dict[int, _Failure] = field(default_factory=dict)

    def last_use(self) -> dict[int, float]:
        """By version that it keeps, when it was used last."""
        times = {}
        if self.previous is not None:
            times[self.previous.version_id] = self.used_at - PREVIOUS_SECONDS
        if self.current is not None:
            times[self.current.version_id] = self.used_at
        return times

    def forget(self, version_id: int) -> None:
        if self.previous is not None and self.previous.version_id == version_id:
            self.previous = None
        if self.current is not None and self.current.version_id == version_id:
            self.current = None


@dataclass
class _Aside:
    """A version that was asked for by itself."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    model: LoadedModel | None = None
    used_at: float = 0.0
    failure: _Failure | None = None


class Engine:
    """The models in service in this process, one a key (a condition), following the activations of the database.

    Each activation has an epoch, one higher than the last. The first request that brings a higher epoch loads the new
    model aside; others are answered by the old one meanwhile. A load that fails keeps the old model in service,
    says so in `Served.failure`, and is tried again after RETRY_SECONDS. The previous model stays warm for a rollback.

    At most `kept` versions stay compiled over all keys; those used the longest ago go first. What is asked for again
    after that is loaded again: requests for that key wait, others do not. A request that holds a model keeps it.
    """

    def __init__(self, kept: int = MODELS_KEPT) -> None:
        self._kept = max(1, kept)
        self._slots: dict[str, _Slot] = {}
        self._asides: dict[int, _Aside] = {}
        self._lock = threading.Lock()

    def get(self, key: str, version_id: int, epoch: int, loader: Callable[[], LoadedModel]) -> Served:
        """The model for `key` once `version_id` was activated under `epoch`.

        loader: called at most once a swap, outside any database transaction. Hold the answer for the whole of a
        request: its model never changes. Raises EngineError when there is no model at all to answer with.
        """
        slot = self._slot(key)
        current = slot.current
        slot.used_at = time.monotonic()
        if current is not None and current.epoch >= epoch:
            return current
        if not slot.lock.acquire(blocking=current is None):
            return self._old(slot, current, epoch)
        try:
            return self._swap(slot, version_id, epoch, loader)
        finally:
            slot.lock.release()

    def of_version(self, version_id: int, loader: Callable[[], LoadedModel]) -> LoadedModel:
        """The model of one version, whatever is in service: a challenger, a shadow, one side of a comparison.

        loader: called at most once as long as the model is kept, and again after RETRY_SECONDS when it failed; those
        who ask for the same version meanwhile wait. Raises EngineError.
        """
        held = self._held(version_id)
        if held is not None:
            return held
        with self._lock:
            aside = self._asides.setdefault(version_id, _Aside())
        with aside.lock:
            return self._held(version_id) or self._load_aside(aside, version_id, loader)

    def state(self) -> EngineState:
        """What this process serves and has compiled."""
        with self._lock:
            slots = sorted(self._slots.items())
            times = self._last_use()
        serving = [_serving(key, slot, slot.current) for key, slot in slots if slot.current is not None]
        return EngineState(tuple(serving), tuple(sorted(times, key=lambda version_id: -times[version_id])))

    def _slot(self, key: str) -> _Slot:
        with self._lock:
            return self._slots.setdefault(key, _Slot())

    def _swap(self, slot: _Slot, version_id: int, epoch: int, loader: Callable[[], LoadedModel]) -> Served:
        current = slot.current
        if current is not None and current.epoch >= epoch:
            return current
        failure = slot.failures.get(epoch)
        if failure is not None and time.monotonic() < failure.retry_at:
            return self._old(slot, current, epoch)
        try:
            model = self._held(version_id) or loader()
        except Exception as error:
            slot.failures[epoch] = _failed(version_id, error)
            return self._old(slot, current, epoch)
        served = Served(model, version_id, epoch)
        with self._lock:
            if current is not None and current.version_id != version_id:
                slot.previous = current
            slot.current = served
            slot.used_at = time.monotonic()
            slot.failures = {later: failure for later, failure in slot.failures.items() if later > epoch}
            self._make_room(version_id)
        give_back_memory()
        return served

    def _load_aside(self, aside: _Aside, version_id: int, loader: Callable[[], LoadedModel]) -> LoadedModel:
        if aside.failure is not None and time.monotonic() < aside.failure.retry_at:
            raise EngineError(aside.failure.message)
        try:
            model = loader()
        except Exception as error:
            aside.failure = _failed(version_id, error)
            raise EngineError(str(error)) from error
        with self._lock:
            # It may have been dropped, with nothing in it, while this one was loading.
            self._asides[version_id] = aside
            aside.model, aside.failure, aside.used_at = model, None, time.monotonic()
            self._make_room(version_id)
        give_back_memory()
        return model

    def _held(self, version_id: int) -> LoadedModel | None:
        """The model of a version, wherever it is kept; a version asked for by itself counts as used now."""
        with self._lock:
            aside = self._asides.get(version_id)
            if aside is not None and aside.model is not None:
                aside.used_at = time.monotonic()
                return aside.model
            for slot in self._slots.values():
                for served in (slot.current, slot.previous):
                    if served is not None and served.version_id == version_id:
                        return served.model
        return None

    def _last_use(self) -> dict[int, float]:
        """By version that is compiled, when it was used last. The engine's lock is held."""
        times = {version: aside.used_at for version, aside in self._asides.items() if aside.model is not None}
        for slot in self._slots.values():
            for version, used_at in slot.last_use().items():
                times[version] = max(used_at, times.get(version, used_at))
        return times

    def _make_room(self, newest: int) -> None:
        """Let go of what was used the longest ago, but not of what was loaded just now. The engine's lock is held."""
        times = self._last_use()
        del times[newest]
        surplus = len(times) + 1 - self._kept
        for version_id in sorted(times, key=lambda version: times[version])[: max(0, surplus)]:
            logger.info("Model version %s was used the longest ago; it leaves this process", version_id)
            self._asides.pop(version_id, None)
            for slot in self._slots.values():
                slot.forget(version_id)

    @staticmethod
    def _old(slot: _Slot, current: Served | None, epoch: int) -> Served:
        """What answers instead of a version that loads or cannot be loaded. Raises EngineError without any."""
        failure = slot.failures.get(epoch)
        message = failure.message if failure else None
        if current is None:
            raise EngineError(message)
        return Served(current.model, current.version_id, current.epoch, message)


def _failed(version_id: int, error: Exception) -> _Failure:
    logger.exception("Loading model version %s failed", version_id)
    return _Failure(str(error), time.monotonic() + RETRY_SECONDS)


def _serving(key: str, slot: _Slot, current: Served) -> Serving:
    previous, failures = slot.previous, slot.failures
    later = [failures[epoch].message for epoch in sorted(failures) if epoch > current.epoch]
    return Serving(
        key, current.version_id, current.epoch, previous.version_id if previous else None, later[-1] if later else None
    )
