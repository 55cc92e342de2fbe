"""Pictures of a dataset's images for people: decoded in a process of its own, never stored."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from numpy.typing import NDArray
from PIL import Image

from . import decoding
from .enhancement import STEPS
from .models import DatasetImage, Preparation

THUMBNAIL = 176
PICTURE = 1400
DEFAULT_SIZE = 224


class NotShown(Exception):
    """The image cannot be shown; the text says why."""


@dataclass(frozen=True)
class View:
    """A radiograph and what a model sees of it; the pictures are base64 PNG. error: why there are none.

    changed: the file has other pixels than at the scan.
    """

    picture: str = ""
    model_input: str = ""
    steps: tuple[str, ...] = ()
    size: int = DEFAULT_SIZE
    fit: str = Preparation.Fit.PAD
    changed: bool = False
    error: str = ""


def picture(image: DatasetImage, longest: int) -> bytes:
    """A PNG with at most `longest` pixels a side. Raises NotShown."""
    return base64.b64decode(_rendered(image, longest=longest)["picture"])


def model_input(image: DatasetImage, size: int, fit: str, steps: Sequence[str]) -> NDArray[np.uint8]:
    """What a model with such an input sees, uint8 (size, size). Raises NotShown, also for other pixels than scanned."""
    answer = _rendered(image, longest=THUMBNAIL, size=size, fit=fit, steps=list(steps))
    if answer["digest"] != image.digest:
        raise NotShown("The file has other pixels than at the last scan.")
    with Image.open(BytesIO(base64.b64decode(answer["input"])), formats=("PNG",)) as picture:
        return np.asarray(picture, np.uint8)


def view_of(image: DatasetImage) -> View:
    """The image as a reader and as a model see it, with the size and shape of the dataset's newest preparation."""
    size, fit, steps = input_of(image)
    try:
        answer = _rendered(image, longest=PICTURE, size=size, fit=fit, steps=steps)
    except NotShown as error:
        return View(size=size, fit=fit, error=str(error))
    words = (*answer["steps"], *_steps_in_words(answer["width"], answer["height"], size, fit, steps))
    return View(answer["picture"], answer["input"], words, size, fit, answer["digest"] != image.digest)


def _rendered(image: DatasetImage, **options: Any) -> dict[str, Any]:
    """What the decoder answers. Raises NotShown."""
    path = image.dataset.folder / image.path
    # A scan follows no links; one that was put in place of the file since then may lead to anybody's pictures.
    try:
        is_link = path.resolve() != Path(settings.DATASET_ROOT).resolve() / image.dataset.name / image.path
    except (OSError, RuntimeError):  # links in a circle
        is_link = True
    if is_link:
        raise NotShown("A link lies where the file was, and links are not followed.")
    try:
        answer = decoding.ask({"op": "render", "path": str(path), **options})
    except (decoding.Busy, decoding.DecoderError) as error:
        raise NotShown(str(error)) from error
    if "error" in answer:
        raise NotShown(answer["message"])
    return answer


def input_of(image: DatasetImage) -> tuple[int, str, list[str]]:
    """Size, shape and preprocessing of the newest preparation's network input; without one, what one would choose."""
    preparation = image.dataset.preparations.filter(state=Preparation.State.SUCCEEDED).first()
    if preparation:
        pipeline = preparation.pipeline
        return preparation.image_size, pipeline.get("fit", Preparation.Fit.PAD), pipeline.get("steps", [])
    fit = Preparation.Fit.PAD if image.width != image.height else Preparation.Fit.STRETCH
    return DEFAULT_SIZE, fit.value, []


def _steps_in_words(width: int, height: int, size: int, fit: str, steps: list[str]) -> list[str]:
    """In the order in which they are done: the borders before the change of size, the rest after it."""
    before = [STEPS[step] for step in steps if step == "crop_borders"]
    after = [STEPS[step] for step in steps if step != "crop_borders" and step in STEPS]
    shape = (
        f"what is left brought to {size} x {size} pixels (averaged, so that nothing flickers)"
        if before
        else _shape_step(width, height, size, fit)
    )
    return [*before, shape, *after]


def _shape_step(width: int, height: int, size: int, fit: str) -> str:
    if (width, height) == (size, size):
        return f"used at its own size, {size} x {size} pixels"
    how = "squeezed to a square" if fit == Preparation.Fit.STRETCH else "proportions kept, black bars added"
    how = "" if width == height else f", {how}"
    return f"{width} x {height} pixels brought to {size} x {size} (averaged, so that nothing flickers){how}"
