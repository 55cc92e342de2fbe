"""Small random changes of position, size and exposure, of a whole batch at a time.

No flips: left and right mean something in a radiograph (heart, markers, which knee). `apply` is what the training
does, in TensorFlow; `apply_here` computes the same for a preview, in a process that must not load TensorFlow.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.configurations import Configuration

Floats = NDArray[np.float32]


class Changes(NamedTuple):
    """What happens to each image of a batch.

    transforms: (N, 8), the projective transform of output pixels to input pixels that
    tf.raw_ops.ImageProjectiveTransformV3 takes. gains, offsets: (N,), contrast about the image's mean, and grey value
    added where white is 1.
    """

    transforms: Floats
    gains: Floats
    offsets: Floats


def draw(random: np.random.Generator, count: int, image_size: int, strengths: Configuration) -> Changes:
    """Draw uniform changes for `count` images within the strengths of the configuration."""
    angles = np.radians(random.uniform(-strengths.rotation, strengths.rotation, count))
    scales = 1 / (1 + random.uniform(-strengths.zoom, strengths.zoom, count))
    shifts = random.uniform(-strengths.shift, strengths.shift, (2, count)) * image_size
    gains = 1 + random.uniform(-strengths.contrast, strengths.contrast, count)
    offsets = random.uniform(-strengths.brightness, strengths.brightness, count)
    transforms = _about_centre(angles, scales, shifts, image_size)
    return Changes(transforms, gains.astype(np.float32), offsets.astype(np.float32))


def _about_centre(
    angles: NDArray[np.float64], scales: NDArray[np.float64], shifts: NDArray[np.float64], image_size: int
) -> Floats:
    """Rotation and scaling about the centre of the image, then a shift: rows [a, b, tx, c, d, ty, 0, 0]."""
    centre = (image_size - 1) / 2
    cosines, sines = np.cos(angles) * scales, np.sin(angles) * scales
    across = centre - cosines * centre + sines * centre + shifts[0]
    down = centre - sines * centre - cosines * centre + shifts[1]
    nothing = np.zeros_like(angles)
    rows = np.stack([cosines, -sines, across, sines, cosines, down, nothing, nothing], axis=1)
    return rows.astype(np.float32)


def apply(images: Any, changes: Changes) -> Any:
    """Change uint8 images (N, S, S) and return them as the network's input: float32 (N, S, S, 1) in 0..1.

    Bilinear; beyond the edge the nearest pixel goes on, since an artificial black border would itself be a feature.
    """
    # Not at the top: a preview takes only the rest of this module.
    from training.ml.runtime import tf

    pixels = tf.cast(images[..., None], tf.float32) / 255.0
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=changes.transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    means = tf.reduce_mean(moved, axis=(1, 2, 3), keepdims=True)
    exposed = (moved - means) * changes.gains[:, None, None, None] + means + changes.offsets[:, None, None, None]
    return tf.clip_by_value(exposed, 0.0, 1.0)


def apply_here(images: NDArray[np.uint8], changes: Changes) -> Floats:
    """The same as `apply`, without TensorFlow and slower: uint8 (N, S, S) to float32 (N, S, S) in 0..1."""
    changed = [
        _expose(_move(image.astype(np.float32) / np.float32(255), transform), gain, offset)
        for image, transform, gain, offset in zip(images, *changes, strict=True)
    ]
    return np.stack(changed)


def _move(image: Floats, transform: Floats) -> Floats:
    """Bilinear; beyond the edge the nearest pixel goes on."""
    size = len(image)
    down, across = np.mgrid[0:size, 0:size].astype(np.float32)
    columns = np.clip(transform[0] * across + transform[1] * down + transform[2], 0, size - 1)
    rows = np.clip(transform[3] * across + transform[4] * down + transform[5], 0, size - 1)
    left, top = np.floor(columns).astype(int), np.floor(rows).astype(int)
    right, bottom = np.minimum(left + 1, size - 1), np.minimum(top + 1, size - 1)
    x, y = columns - left, rows - top
    upper = image[top, left] * (1 - x) + image[top, right] * x
    lower = image[bottom, left] * (1 - x) + image[bottom, right] * x
    return np.asarray(upper * (1 - y) + lower * y, np.float32)


def _expose(image: Floats, gain: np.float32, offset: np.float32) -> Floats:
    mean = image.mean()
    return np.asarray(np.clip((image - mean) * gain + mean + offset, 0, 1), np.float32)
