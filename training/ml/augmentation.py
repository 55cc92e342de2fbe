"""Small random changes of position, exposure and sharpness, of a whole batch at a time.

The steps, in the order in which they are applied, are those a radiograph goes through itself: the grey curve of the
detector (gamma); how the patient stood (flip, shift, zoom, rotation); how sharp the picture is (blur); what lies over
it (erase); how it was exposed (contrast, brightness); noise. A step with strength 0 costs nothing.

`apply` is what the training does, in TensorFlow; `apply_here` computes the same for a preview, in a process that must
not load TensorFlow. Both read what is to happen from `Changes`, so that the random source alone decides.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.configurations import Configuration

Floats = NDArray[np.float32]
# The size at which people imagine a blur of so many pixels.
BLUR_SIZE = 224
# Uniform numbers drawn for each image, whatever the strengths: a changed strength then changes nothing else.
_DRAWN = 14
_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)
# Of a projective transform without rotation: scale and shift of the columns, scale and shift of the rows.
_UPRIGHT = [0, 2, 4, 5]
# A standard deviation (pixels) at which no neighbour counts any more.
_SHARP = 0.05


class Changes(NamedTuple):
    """What happens to each image of a batch: arrays (N, width) of float32, but for the seeds, which are int32.

    A step that is not used has width 0; its graph is then not built.
    gammas: 1, exponent of the grey value. transforms: with rotation 8, the projective transform of output pixels to
    input pixels that tf.raw_ops.ImageProjectiveTransformV3 takes; without 4 of them, the scale and the shift of the
    columns, and those of the rows. blurs: 1, standard deviation in pixels. erasures: 4, first row,
    first column, height and width in pixels. exposures: 2, factor of the contrast about the image's mean, and grey
    value added. noises: 1, standard deviation of the grey value. seeds: 2. White is 1.
    """

    gammas: Any
    transforms: Any
    blurs: Any
    erasures: Any
    exposures: Any
    noises: Any
    seeds: Any


def _widths(strengths: Configuration) -> Changes:
    """The columns of each array of floats that `draw` returns."""
    moves = any((strengths.flip, strengths.shift, strengths.zoom))
    return Changes(
        gammas=1 if strengths.gamma else 0,
        transforms=8 if strengths.rotation else 4 if moves else 0,
        blurs=1 if strengths.blur else 0,
        erasures=4 if strengths.erase else 0,
        exposures=2 if strengths.contrast or strengths.brightness else 0,
        noises=1 if strengths.noise else 0,
        # Whole numbers, which is why `draw` makes them apart.
        seeds=0,
    )


def signature(batch_size: int, strengths: Configuration) -> Changes:
    """The tf.TensorSpec of each array that `draw` returns for `batch_size` images."""
    from training.ml.runtime import tf

    specs = [tf.TensorSpec((batch_size, width), tf.float32) for width in _widths(strengths)]
    return Changes(*specs)._replace(seeds=tf.TensorSpec((batch_size, 2 if strengths.noise else 0), tf.int32))


def draw(random: np.random.Generator, count: int, image_size: int, strengths: Configuration) -> Changes:
    """Draw uniform changes for `count` images within the strengths of the configuration."""
    angle, zoom, right, down, mirror, gamma, gain, offset, *others = random.uniform(-1, 1, (_DRAWN, count))
    # What has no direction: from 0 to its strength.
    blur, noise, height, width, top, left = (np.stack(others) + 1) / 2
    sides = np.stack([height, width]) * strengths.erase * image_size
    corners = np.stack([top, left]) * (image_size - sides)
    changes = Changes(
        gammas=np.exp(gamma * strengths.gamma)[:, None],
        transforms=_about_centre(
            np.radians(angle * strengths.rotation),
            1 / (1 + zoom * strengths.zoom),
            np.stack([right, down]) * strengths.shift * image_size,
            (mirror > 0) & strengths.flip,
            image_size,
        ),
        blurs=(blur * strengths.blur * image_size / BLUR_SIZE)[:, None],
        erasures=np.concatenate([corners, sides]).T,
        exposures=np.stack([1 + gain * strengths.contrast, offset * strengths.brightness], axis=1),
        noises=(noise * strengths.noise)[:, None],
        seeds=np.empty((count, 0)),
    )
    seeds = random.integers(2**31, size=(count, 2)) if strengths.noise else np.empty((count, 0))
    if not strengths.rotation:
        changes = changes._replace(transforms=changes.transforms[:, _UPRIGHT])
    used = [array[:, :width].astype(np.float32) for array, width in zip(changes, _widths(strengths), strict=True)]
    return Changes(*used)._replace(seeds=seeds.astype(np.int32))


def _about_centre(
    angles: NDArray[np.float64],
    scales: NDArray[np.float64],
    shifts: NDArray[np.float64],
    mirrored: NDArray[np.bool_],
    image_size: int,
) -> NDArray[np.float64]:
    """Rotation and scaling about the centre, a shift, and left for right: rows [a, b, tx, c, d, ty, 0, 0]."""
    centre = (image_size - 1) / 2
    cosines, sines = np.cos(angles) * scales, np.sin(angles) * scales
    # The column of the input, counted from the other side where the image is mirrored.
    sign = np.where(mirrored, -1.0, 1.0)
    across = centre + sign * (sines * centre - cosines * centre + shifts[0])
    down = centre - sines * centre - cosines * centre + shifts[1]
    nothing = np.zeros_like(angles)
    return np.stack([sign * cosines, -sign * sines, across, sines, cosines, down, nothing, nothing], axis=1)


# -- In the graph


def apply(images: Any, changes: Changes) -> Any:
    """Change uint8 images (N, S, S) and return them as the network's input: float32 (N, S, S, 1) in 0..1.

    Bilinear; beyond the edge the nearest pixel goes on, since an artificial black border would itself be a feature.
    """
    # Not at the top: a preview takes only the rest of this module.
    from training.ml.runtime import tf

    pixels = _grey(tf, images, changes.gammas)
    if _is_upright(changes.transforms):
        pixels = _between_lines(tf, pixels, changes.transforms[:, 2:])
        pixels = _turned_over(tf, _between_lines(tf, _turned_over(tf, pixels), changes.transforms[:, :2]))
    elif _used(changes.transforms):
        pixels = _moved(tf, pixels, changes.transforms)
    if _used(changes.blurs):
        kernels = _kernels(tf, changes.blurs, images.shape[1])
        pixels = tf.matmul(tf.matmul(kernels, pixels), kernels, transpose_b=True)
    if _used(changes.erasures) or _used(changes.exposures):
        means = tf.reduce_mean(pixels, axis=(1, 2), keepdims=True)
    if _used(changes.erasures):
        pixels = tf.where(_boxes(tf, changes.erasures, images.shape[1]), means, pixels)
    if _used(changes.exposures):
        gains, offsets = changes.exposures[:, 0, None, None], changes.exposures[:, 1, None, None]
        # About the mean; written so that all pixels are gone through twice and not four times.
        pixels = pixels * gains + (means * (1 - gains) + offsets)
    if _used(changes.noises):
        pixels += changes.noises[:, :, None] * _normal(tf, changes.seeds, images.shape[1])
    if _used(changes.exposures) or _used(changes.noises):
        pixels = tf.clip_by_value(pixels, 0.0, 1.0)
    return pixels[..., None]


def _used(parameters: Any) -> bool:
    return bool(parameters.shape[1])


def _is_upright(transforms: Any) -> bool:
    return bool(transforms.shape[1] == len(_UPRIGHT))


def _grey(tf: Any, images: Any, gammas: Any) -> Any:
    """Grey values in 0..1 behind their curve; from a table, since there are only 256 levels to raise to a power."""
    if not _used(gammas):
        return tf.cast(images, tf.float32) / 255.0
    return tf.gather(_LEVELS**gammas, tf.cast(images, tf.int32), batch_dims=1)


def _moved(tf: Any, pixels: Any, transforms: Any) -> Any:
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[..., None],
        transforms=transforms,
        output_shape=tf.shape(pixels)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    return moved[..., 0]


def _between_lines(tf: Any, pixels: Any, places: Any) -> Any:
    """(N, S, S): line i becomes the one at `scale * i + shift` of its image. places: scale and shift, (N, 2).

    Bilinear resampling without rotation fetches whole lines, of the picture and then of the picture turned over: four
    times as fast as looking up the four neighbours of each pixel.
    """
    size = pixels.shape[1]
    at = np.arange(size, dtype=np.float32) * places[:, 0:1] + places[:, 1:2]
    at = tf.clip_by_value(at, 0.0, size - 1.0)
    upper = tf.minimum(tf.floor(at), size - 2.0)
    share = (at - upper)[:, :, None]
    numbers = tf.cast(upper, tf.int32) + size * tf.range(tf.shape(pixels)[0])[:, None]
    lines = tf.reshape(pixels, (-1, size))
    above, below = tf.gather(lines, numbers), tf.gather(lines, numbers + 1)
    return above + share * (below - above)


def _turned_over(tf: Any, pixels: Any) -> Any:
    return tf.transpose(pixels, (0, 2, 1))


def _kernels(np_or_tf: Any, blurs: Any, size: int) -> Any:
    """(N, S, S): row i holds the weights of all pixels of a line in its blurred pixel i. They are Gaussian, and at the
    edge those within the image share what is outside.

    Two products of matrices blur a whole batch by as many widths as it has images.
    """
    positions = np.arange(size, dtype=np.float32)
    distances = (positions[:, None] - positions[None, :]) ** 2
    weights = np_or_tf.exp(-distances / (2 * np_or_tf.maximum(blurs, _SHARP)[:, :, None] ** 2))
    total = weights.sum(axis=2, keepdims=True) if np_or_tf is np else np_or_tf.reduce_sum(weights, 2, keepdims=True)
    return weights / total


def _boxes(np_or_tf: Any, erasures: Any, size: int) -> Any:
    """(N, S, S): whether a pixel lies in the image's rectangle."""
    positions = np.arange(size, dtype=np.float32)[None, :]
    rows = (positions >= erasures[:, 0:1]) & (positions < erasures[:, 0:1] + erasures[:, 2:3])
    columns = (positions >= erasures[:, 1:2]) & (positions < erasures[:, 1:2] + erasures[:, 3:4])
    return rows[:, :, None] & columns[:, None, :]


def _normal(tf: Any, seeds: Any, size: int) -> Any:
    """(N, S, S) normal numbers that depend on each image's seed alone: a resumed training sees the same ones."""

    def of_one(seed: Any) -> Any:
        return tf.random.stateless_normal((size, size), seed, alg="philox")

    return tf.map_fn(of_one, seeds, fn_output_signature=tf.TensorSpec((size, size), tf.float32))


# -- Without TensorFlow


def apply_here(images: NDArray[np.uint8], changes: Changes) -> Floats:
    """The same as `apply`, without TensorFlow and slower: uint8 (N, S, S) to float32 (N, S, S) in 0..1.

    Only the noise is another one, as strong.
    """
    changed = []
    for number, image in enumerate(images):
        # Width 1 or 0 a parameter: an image is a batch of one.
        own = Changes(*(array[number : number + 1] for array in changes))
        changed.append(_changed_here(image, own))
    return np.stack(changed)


def _changed_here(image: NDArray[np.uint8], changes: Changes) -> Floats:
    size = len(image)
    pixels = _LEVELS[image] ** changes.gammas[0] if _used(changes.gammas) else _LEVELS[image]
    if _is_upright(changes.transforms):
        scale, shift, row_scale, row_shift = changes.transforms[0]
        pixels = _moved_here(pixels, np.array([scale, 0, shift, 0, row_scale, row_shift], np.float32))
    elif _used(changes.transforms):
        pixels = _moved_here(pixels, changes.transforms[0])
    if _used(changes.blurs):
        (kernel,) = _kernels(np, changes.blurs, size)
        pixels = kernel @ pixels @ kernel.T
    mean = pixels.mean()
    if _used(changes.erasures):
        pixels = np.where(_boxes(np, changes.erasures, size)[0], mean, pixels)
    if _used(changes.exposures):
        gain, offset = changes.exposures[0]
        pixels = (pixels - mean) * gain + mean + offset
    if _used(changes.noises):
        noise = np.random.default_rng(changes.seeds[0]).standard_normal(pixels.shape, np.float32)
        pixels = pixels + changes.noises[0] * noise
    return np.asarray(np.clip(pixels, 0, 1), np.float32)


def _moved_here(image: Floats, transform: Floats) -> Floats:
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
