"""Training images as a network will see them, for pages; computed without TensorFlow."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.cache import open_cache
from datasets.imaging import to_png
from datasets.models import Preparation

from .configurations import Configuration
from .ml import augmentation

# Images of the preview, and how often each is shown changed.
PREVIEWED, VARIANTS = 4, 3


def changed_images(preparation: Preparation, configuration: Configuration, *, seed: int = 0) -> list[dict[str, Any]]:
    """Some training images: "label", and "pictures" (base64 PNG), first as prepared and then as in some epochs.

    The same seed shows the same images and draws the same numbers, so that another strength is all that is different.
    Raises CacheError when the pixels are not there.
    """
    data = open_cache(preparation.cache_folder)
    random = np.random.default_rng(seed)
    train = data.indices("train")
    shown = []
    for row in sorted(random.choice(train, min(PREVIEWED, len(train)), replace=False).tolist()):
        own = np.random.default_rng([seed, row])
        changes = augmentation.draw(own, VARIANTS, data.image_size, configuration)
        repeated = np.repeat(data.images[row][None], VARIANTS, axis=0)
        changed = np.rint(augmentation.apply_here(repeated, changes) * 255).astype(np.uint8)
        pictures = [_encoded(picture) for picture in (data.images[row], *changed)]
        shown.append({"label": data.classes[data.labels[row]], "pictures": pictures})
    return shown


def _encoded(picture: NDArray[np.uint8]) -> str:
    return base64.b64encode(to_png(picture)).decode()
