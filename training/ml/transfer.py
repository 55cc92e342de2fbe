"""Starting from weights that have learned something else: first a new head on what they see, then fine-tuning.

While the backbone stays as it is, every image gives the same features in every epoch. They are computed once, kept in
a file, and the head learns from them in seconds what would take as long as whole epochs.
"""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from datasets.cache import PreparedData
from training.configurations import Configuration
from training.ml import pipeline
from training.ml.prediction import OneDevice
from training.ml.runtime import keras

# Parts of the backbone with a learning rate of their own.
PARTS: Final = 5
# Of computing, after which is noted how far it is: what a kill costs at most.
NOTE_SECONDS: Final = 30.0
# Bytes before the first row of an .npy file with two dimensions, and bytes of a number.
_HEADER: Final = 128
_NUMBER: Final = 4


def backbone(model: Any) -> Any:
    """The network up to what its head sees: images (N, S, S, 1) to features (N, D)."""
    return keras.Model(model.input, model.get_layer("head").input)


def new_head(model: Any, configuration: Configuration) -> Any:
    """A network of its own that is the head of `model`, with its weights: features (N, D) to probabilities (N, C)."""
    own = model.get_layer("head")
    features = keras.Input(own.input.shape[1:], name="pooled_features")
    dropped = keras.layers.Dropout(configuration.dropout, seed=configuration.seed, name="dropout")(features)
    probabilities = keras.layers.Dense(own.units, activation="softmax", name="head", dtype="float32")(dropped)
    head = keras.Model(features, probabilities, name="head")
    head.get_layer("head").set_weights(own.get_weights())
    return head


class Features:
    """The features of some images, in `folder`; key: names the data and the weights that they were computed with.

    Written row after row, so that what was computed before an interruption is not computed again.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path, self.note, self.key = folder / "features.npy", folder / "features.json", key

    def compute(
        self, model: Any, data: PreparedData, rows: NDArray[np.int64], batch_size: int, between: Callable[[float], None]
    ) -> NDArray[np.float32]:
        """Features float32 (N, D) of the rows, from the file as far as it goes. Raises OSError.

        `between` is called with the share done after each batch; what it raises ends the computation for now.
        """
        predictor = OneDevice(backbone(model))
        shape = (len(rows), int(predictor.output_shape[-1]))
        done = self._done(shape)
        if not done:
            self._begin(shape)
        with self.path.open("r+b", buffering=0) as file:
            file.seek(_HEADER + done * shape[1] * _NUMBER)
            noted = time.monotonic()
            try:
                for batch in pipeline.input_batches(data, rows[done:], batch_size):
                    file.write(np.asarray(predictor.predict_on_batch(batch), "<f4").tobytes())
                    done += len(batch)
                    if time.monotonic() - noted >= NOTE_SECONDS:
                        self._tell(file, shape, done)
                        noted = time.monotonic()
                    between(done / len(rows))
            finally:
                self._tell(file, shape, done)
        features: NDArray[np.float32] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return features

    def remove(self) -> None:
        for path in (self.note, self.path):
            path.unlink(missing_ok=True)

    def _done(self, shape: tuple[int, int]) -> int:
        """Rows that are there already."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self.note.read_text())
            there = (self.path.stat().st_size - _HEADER) // (shape[1] * _NUMBER)
            if note["key"] == self.key and note["shape"] == list(shape):
                return min(int(note["done"]), there)
        return 0

    def _begin(self, shape: tuple[int, int]) -> None:
        self.remove()
        with self.path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)

    def _tell(self, file: FileIO, shape: tuple[int, int], done: int) -> None:
        """Note that so many rows are in the file, once the disk has them."""
        os.fsync(file.fileno())
        part = self.note.with_name(self.note.name + ".part")
        part.write_text(json.dumps({"key": self.key, "shape": list(shape), "done": done}))
        part.replace(self.note)


def tune(model: Any, configuration: Configuration) -> list[float]:
    """Set which layers of a network with initial weights learn; returns each trainable variable's share of the rate.

    `fine_tuning_depth` of the backbone's layers that have weights are tuned, counted from the output, in five parts of
    equal size: each has `layer_decay` of the rate of the part above. What is near the input serves any picture and is
    to change least (Howard and Ruder 2018). Batch normalisation stays as it is, above all its statistics: those of a
    small dataset would be worse.
    """
    weighted = [layer for layer in model.layers if layer.weights and layer.name != "head"]
    tuned = weighted[len(weighted) - math.ceil(configuration.fine_tuning_depth * len(weighted)) :]
    shares = {"head": 1.0}
    for number, layer in enumerate(reversed(tuned)):
        shares[layer.name] = configuration.layer_decay ** (number * PARTS // len(tuned))
    for layer in model.layers:
        layer.trainable = layer.name in shares and not isinstance(layer, keras.layers.BatchNormalization)
    owner = {id(variable): layer.name for layer in model.layers for variable in layer.trainable_variables}
    return [shares[owner[id(variable)]] for variable in model.trainable_variables]
