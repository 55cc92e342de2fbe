"""TensorFlow and Keras with the settings they read when they are loaded. Import them from here, and only in the
process that trains."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# TensorFlow turns its oneDNN kernels on by itself only where the processor has AVX512-VNNI. They train our networks
# 1.6 times faster on a plain AVX2 processor too (Custom_CNN: 246 -> 145 ms a step on 2 cores of an AMD EPYC).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import tensorflow as tf

for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)

__all__ = ["deterministic", "keras", "mixed_precision", "mixed_precision_helps", "replicas", "strategy", "tf"]

# From this compute capability on (Volta), NVIDIA's GPUs have units for half precision.
_HALF_PRECISION_UNITS = (7, 0)


def strategy() -> Any:
    """Trains on all GPUs of this machine when it has several; else None."""
    devices = tf.config.list_logical_devices("GPU")
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else None


def replicas(strategy: Any) -> int:
    """How many devices share each batch of a training; strategy: as of `strategy`."""
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def mixed_precision_helps() -> bool:
    """Whether every GPU here, and at least one is needed, computes faster in half precision."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return bool(details) and all(
        detail.get("compute_capability", (0, 0)) >= _HALF_PRECISION_UNITS for detail in details
    )


@contextmanager
def mixed_precision(used: bool) -> Iterator[None]:
    """Networks that are built meanwhile compute in half precision; their weights are float32 all the same."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16" if used else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def deterministic() -> None:
    """From now on this process computes the same bits in every repetition, or raises where it cannot; it is slower."""
    tf.config.experimental.enable_op_determinism()
