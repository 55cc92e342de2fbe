"""How long a training takes and how much memory it needs, before it starts and while it goes on. Pure arithmetic.

Imports neither Django nor Keras. Times are seconds, sizes bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .ml.architectures import ARCHITECTURES
from .ml.stages import TRAINING_ENDS, TRAINING_STARTS, steps_per_epoch

GIB = 1024**3
# TensorFlow itself, with Django and a graph (measured: 0.65 GB before the first network is built).
PROCESS_BYTES, LEAST_PROCESS_BYTES = 0.8 * GIB, 0.6 * GIB
# Weights, gradients and the two moments of Adam, and what copies of them exist for a moment.
COPIES_OF_WEIGHTS, LEAST_COPIES = 6, 3
BYTES_PER_PARAMETER = 4
# Three checkpoints with optimizer state for a moment, best weights, the version and its OpenVINO copy.
COPIES_ON_DISK = 14
# Bytes of activations and gradients a pixel of the batch, by the architecture's class of memory: what no network of the
# class stayed below, and what suffices for each; measured on a processor at 224 pixels.
BYTES_PER_PIXEL = {"low": (50, 1100), "medium": (2500, 4500), "high": (2000, 6000)}
# A step with its backward pass costs about three forward passes.
FORWARD_SHARE = 1 / 3
# From the click to the first step where nothing was measured yet.
START_SECONDS = 20.0
STEADY_EPOCHS = 5


@dataclass(frozen=True)
class Plan:
    """What is to be trained. train, validation, test: images. head_epochs: 0 without pretrained weights."""

    architecture: str
    image_size: int
    batch_size: int
    minimum_steps: int
    epochs: int
    head_epochs: int
    train: int
    validation: int
    test: int

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return steps_per_epoch(self.train, self.batch_size, self.minimum_steps)


@dataclass(frozen=True)
class Speed:
    """Of one architecture at one image and batch size: seconds of a step, of a batch that is only predicted, and from
    the click until the first step has ended."""

    step: float
    prediction: float
    start: float

    def scaled(self, factor: float) -> "Speed":
        """For images or batches `factor` times as large."""
        return Speed(self.step * factor, self.prediction * factor, self.start)


@dataclass(frozen=True)
class Duration:
    """Seconds: until the first epoch, of one epoch, of the evaluation, and of the whole without early stopping."""

    start: float
    epoch: float
    evaluation: float
    total: float


def duration(plan: Plan, speed: Speed) -> Duration:
    """How long the plan takes when no epoch is spared by early stopping.

    While only the head learns, its images go through the backbone once: those epochs cost next to nothing.
    """
    validation = math.ceil(plan.validation / plan.batch_size) * speed.prediction
    epoch = plan.steps * speed.step + validation
    everything = plan.train + plan.validation + plan.test
    features = math.ceil((plan.train + plan.validation) / plan.batch_size) * speed.prediction if plan.head_epochs else 0
    # The test part is judged, and every image once more to find doubtful labels.
    evaluation = math.ceil((everything + plan.validation + plan.test) / plan.batch_size) * speed.prediction
    total = speed.start + features + (plan.epochs - plan.head_epochs) * epoch + evaluation
    return Duration(speed.start, epoch, evaluation, total)


@dataclass(frozen=True)
class Memory:
    """Bytes that a training will need about, and that it will need whatever happens."""

    expected: int
    at_least: int


def memory(architecture: str, image_size: int, batch_size: int, measured: int | None = None) -> Memory:
    """What the training process needs, from a measured peak or else from the size of network and batch (generously)."""
    entry = ARCHITECTURES[architecture]
    if measured:
        return Memory(measured, round(0.9 * measured))
    weights = BYTES_PER_PARAMETER * entry.parameters
    pixels = batch_size * image_size**2
    low, high = BYTES_PER_PIXEL.get(entry.memory, BYTES_PER_PIXEL["high"])
    return Memory(
        round(PROCESS_BYTES + COPIES_OF_WEIGHTS * weights + high * pixels),
        round(LEAST_PROCESS_BYTES + LEAST_COPIES * weights + low * pixels),
    )


def disk(architecture: str) -> int:
    """Bytes that a training writes at most, its version included."""
    return COPIES_ON_DISK * BYTES_PER_PARAMETER * ARCHITECTURES[architecture].parameters


def largest_batch(architecture: str, image_size: int, available: float) -> int:
    """The largest power of two that fits into `available` bytes by `memory`; 0 when not even one image does."""
    fits = 0
    size = 1
    while size <= 512 and memory(architecture, image_size, size).expected <= available:
        fits, size = size, 2 * size
    return fits


def epochs_done(progress: float, epochs: int, finished: int, head_epochs: int = 0) -> float:
    """Epochs that are done, with the share of the present one, from the progress (0..1) of the whole run.

    The epochs in which only the head learns count in the progress as one together.
    """
    together = 1 if head_epochs else 0
    work = (progress - TRAINING_STARTS) / (TRAINING_ENDS - TRAINING_STARTS) * (epochs - head_epochs + together)
    done = work * head_epochs if together and work < 1 else work - together + head_epochs
    return min(max(done, finished), finished + 1, epochs)


def seconds_left(
    epoch_seconds: Sequence[float], done: float, epochs: int, *, expected_epoch: float | None = None, evaluation: float
) -> float | None:
    """Until the end when training does not stop early; None while nothing tells.

    epoch_seconds: of the epochs that this attempt has finished in the present stage. The first of them is left out
    as soon as there is another: it holds the compilation of the graph. expected_epoch: what was measured before.
    """
    steady = list(epoch_seconds[1:] or epoch_seconds)[-STEADY_EPOCHS:]
    epoch = median(steady) if steady else expected_epoch
    return None if epoch is None else max(epochs - done, 0) * epoch + evaluation
