"""What the result page shows of one prediction: the radiograph that was kept, and where its version saw it."""

import sys
import time
from functools import lru_cache

import numpy as np
from django.conf import settings
from numpy.typing import NDArray

from datasets.bare import to_png_quickly
from datasets.enhancement import inside_borders

from . import maps, radiographs, windowing
from .activation import Grid, contrast
from .models import Prediction
from .turns import Turns

# Moving the window asks for the same picture again and again; for so long at most it stays decoded in memory.
_KEPT_SECONDS = 60
_KEPT_PICTURES = 4
# Full-size pictures take hundreds of megabytes each while they are drawn: no more at once than processors, however many
# people look. Every thread of the process may wait.
_DRAWING = Turns(settings.ENGINE_AT_ONCE, sys.maxsize)


class NoMap(Exception):
    """There is no class activation map of this prediction. The message says why."""


def picture(prediction: Prediction, window: windowing.Window, *, full: bool = False) -> bytes:
    """The radiograph as a grey PNG of 8 bits, windowed from the fine values; reduced to what a screen shows.

    full: in its own size. Raises radiographs.NotKept.
    """
    with _DRAWING.take():
        if full:
            longest = max(prediction.height, prediction.width)
            levels = windowing.levels(radiographs.load(prediction.image_digest), longest)
        else:
            levels = _levels(prediction.image_digest, int(time.monotonic() // _KEPT_SECONDS))
        return to_png_quickly(windowing.windowed(levels, window))


@lru_cache(maxsize=_KEPT_PICTURES)
def _levels(image_digest: str, minute: int) -> windowing.Levels:
    """Named by the minute as well, so that nothing is shown much longer than it is kept."""
    return windowing.levels(radiographs.load(image_digest))


def map_of(prediction: Prediction, class_index: int, grey: NDArray[np.uint8] | None = None) -> bytes:
    """What speaks for a class as a transparent PNG that covers the radiograph. Raises NoMap and radiographs.NotKept.

    From the forward pass that gave the probabilities: no model is needed. grey: the radiograph, of who has it.
    """
    with _DRAWING.take():
        return _map_of(prediction, class_index, grey)


def _map_of(prediction: Prediction, class_index: int, grey: NDArray[np.uint8] | None) -> bytes:
    treatment, size = prediction.version.preprocessing, prediction.version.image_size
    activation = contrast(_contributions(prediction), class_index)[0]
    inside = None
    if "crop_borders" in treatment.get("steps", ()):
        # Only the pixels tell where the borders were.
        inside = inside_borders(radiographs.load(prediction.image_digest).pixels if grey is None else grey)
    shape = (prediction.height, prediction.width)
    return maps.over_picture(activation, size, _grid(prediction), shape=shape, fit=treatment["fit"], inside=inside)


def map_of_input(prediction: Prediction, class_index: int) -> bytes:
    """The same over the whole square that the network saw. Raises NoMap."""
    activation = contrast(_contributions(prediction), class_index)[0]
    return maps.heat(activation, prediction.version.image_size, _grid(prediction))


def _contributions(prediction: Prediction) -> NDArray[np.float32]:
    """float32 (1, classes, rows, columns). Raises NoMap."""
    frame = prediction.activation_frame
    if not frame or not prediction.width:
        raise NoMap("The version that answered has no class activation maps.")
    found = np.frombuffer(bytes(prediction.activation), "<f2").astype(np.float32)
    return found.reshape(1, -1, frame["rows"], frame["columns"])


def _grid(prediction: Prediction) -> Grid:
    return Grid(prediction.activation_frame["first"], prediction.activation_frame["step"])
