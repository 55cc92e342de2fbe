"""The architectures a model can have: a catalogue to choose from, and the graphs themselves.

Keras is imported inside `build` only: the catalogue is read by processes that never load it.

Every graph is flat and has the same frame, by these layer names:

    "radiograph" float32 (S, S, 1) in 0..1 -> "scaling" what the backbone expects -> backbone -> "features"
    -> "pooling" global average -> "dropout" -> "head" dense softmax over the classes

so that a class activation map is `features` weighted by the column of `head`, from the same forward pass.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

MINIMUM_IMAGE_SIZE = 32
# ImageNet statistics of the published weights, in RGB order for values in 0..1 and in BGR order for values in 0..255.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
# Keras' default of 0.99 needs hundreds of steps before the moving statistics mean anything: with some dozens of steps
# an epoch, validation is then no better than guessing while the training accuracy looks fine.
BATCH_NORMALIZATION_MOMENTUM = 0.9
# Custom_CNN: filters of the stem, then filters of each block and whether it halves the resolution.
_STEM_FILTERS = 24
_BLOCKS = ((48, True), (96, True), (192, True), (384, False), (384, False))


@dataclass(frozen=True)
class PublishedWeights:
    """The ImageNet weights without classifier that Keras publishes: file name, MD5 (the hash Keras checks), address."""

    file_name: str
    md5: str
    url: str


@dataclass(frozen=True)
class Architecture:
    """One entry of the catalogue.

    parameters: weights of the whole graph for two classes, moving statistics included.
    memory, speed: class in words, for training on a processor without a GPU.
    batch_size: images a step, so that a step fits into some GB of memory and a processor ends it within seconds.
    minimum_steps: optimizer steps an epoch has at least; see Configuration.minimum_steps.
    learning_rate: peak rate that suits AdamW from scratch; pretrained_learning_rate: for the new head on a frozen
    backbone.
    """

    id: str
    name: str
    description: str
    parameters: int
    memory: str
    speed: str
    batch_size: int
    minimum_steps: int
    learning_rate: float
    pretrained_learning_rate: float
    pretrained: PublishedWeights | None


_BUCKET = "https://storage.googleapis.com/"
ARCHITECTURES: dict[str, Architecture] = {
    architecture.id: architecture
    for architecture in (
        Architecture(
            id="EfficientNetB0",
            name="EfficientNetB0",
            description="Small and accurate for its size; a good first choice when its pretrained weights are at hand.",
            parameters=4_052_133,
            memory="medium",
            speed="medium",
            batch_size=16,
            minimum_steps=8,
            learning_rate=1e-3,
            pretrained_learning_rate=1e-3,
            pretrained=PublishedWeights(
                "efficientnetb0_notop.h5",
                "50bc09e76180e00e4465e1a485ddc09d",
                _BUCKET + "keras-applications/efficientnetb0_notop.h5",
            ),
        ),
        Architecture(
            id="ResNet50",
            name="ResNet50",
            description="The best-known residual network; sturdy, larger, needs more data than EfficientNetB0.",
            parameters=23_591_810,
            memory="high",
            speed="slow",
            batch_size=16,
            minimum_steps=8,
            learning_rate=5e-4,
            pretrained_learning_rate=1e-3,
            pretrained=PublishedWeights(
                "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "4d473c1dd8becc155b73f8504c6f6626",
                _BUCKET + "tensorflow/keras-applications/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            ),
        ),
        Architecture(
            id="DenseNet121",
            name="DenseNet121",
            description="Densely connected; the network most published chest radiograph models are built on.",
            parameters=7_039_554,
            memory="high",
            speed="slow",
            batch_size=16,
            minimum_steps=8,
            learning_rate=1e-3,
            pretrained_learning_rate=1e-3,
            pretrained=PublishedWeights(
                "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "30ee3e1110167f948a6b9946edeeb738",
                _BUCKET
                + "tensorflow/keras-applications/densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
            ),
        ),
        Architecture(
            id="VGG16",
            name="VGG16",
            description="A plain, older network without batch normalisation; the slowest here, kept for comparison.",
            parameters=14_715_714,
            memory="high",
            speed="very slow",
            batch_size=8,
            minimum_steps=8,
            learning_rate=1e-4,
            pretrained_learning_rate=1e-3,
            pretrained=PublishedWeights(
                "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "6d6bbae143d832006294945121d1f1fc",
                _BUCKET + "tensorflow/keras-applications/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            ),
        ),
        Architecture(
            id="Custom_CNN",
            name="Custom CNN",
            description="Our own small network for grey radiographs; learns from scratch within minutes, needs no "
            "pretrained weights and no GPU.",
            parameters=2_214_266,
            memory="low",
            speed="fast",
            batch_size=32,
            minimum_steps=40,
            learning_rate=2e-3,
            pretrained_learning_rate=2e-3,
            pretrained=None,
        ),
    )
}


def architecture(architecture_id: str) -> Architecture:
    """The catalogue entry. Raises ValueError naming the known ids."""
    try:
        return ARCHITECTURES[architecture_id]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"There is no architecture {architecture_id!r}; there are {known}.") from None


def pretrained_weights(architecture_id: str, folder: Path) -> Path | None:
    """The published weights file in `folder`, or None when it is absent or not byte for byte the published one."""
    published = architecture(architecture_id).pretrained
    if published is None:
        return None
    path = folder / published.file_name
    try:
        state = path.stat()
    except OSError:
        return None
    return path if _md5(path, state.st_size, state.st_mtime_ns) == published.md5 else None


@lru_cache(maxsize=32)
def _md5(path: Path, size: int, mtime_ns: int) -> str:
    """MD5 of a file; size and time of change are part of the key, so that a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def build(
    architecture_id: str, *, image_size: int, classes: int, weights: Path | None = None, dropout: float = 0.2
) -> "keras.Model":
    """Build the graph, with fresh weights or with the published backbone weights in `weights`.

    Input float32 (N, image_size, image_size, 1) with 0 black and 1 white; output (N, classes) probabilities.
    Raises ValueError for an unknown architecture, a size below 32, fewer than two classes or unfitting weights.
    """
    from training.ml.runtime import keras

    entry = architecture(architecture_id)
    if image_size < MINIMUM_IMAGE_SIZE:
        raise ValueError(f"Images of {image_size} pixels are too small; {MINIMUM_IMAGE_SIZE} is the least.")
    if classes < 2:
        raise ValueError(f"A classifier needs at least two classes, not {classes}.")
    if weights is not None and entry.pretrained is None:
        raise ValueError(f"{entry.name} has no published weights to start from.")
    radiograph = keras.Input((image_size, image_size, 1), name="radiograph")
    features = _BACKBONES[entry.id](radiograph, weights)
    features = keras.layers.Activation("linear", name="features")(features)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
    dropped = keras.layers.Dropout(dropout, name="dropout")(pooled)
    probabilities = keras.layers.Dense(classes, activation="softmax", name="head")(dropped)
    model = keras.Model(radiograph, probabilities, name=entry.id)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORMALIZATION_MOMENTUM
    return model


def _three_channels(radiograph: Any, scale: Any, offset: Any) -> Any:
    """Grey to three equal channels, then scaling per channel. Order of colours does not matter for equal channels."""
    from training.ml.runtime import keras

    channels = keras.layers.Concatenate(name="channels")([radiograph] * 3)
    return keras.layers.Rescaling(scale, offset=offset, name="scaling")(channels)


def _backbone(application: Callable[..., Any], scaled: Any, weights: Path | None) -> Any:
    """Continue the graph at `scaled` with a backbone of keras.applications and return its last feature maps.

    Our layers before it hold no weights, so the published file, which is read in the order of the layers, fits.
    """
    backbone = application(include_top=False, weights=None, input_tensor=scaled)
    if weights is not None:
        backbone.load_weights(weights)
    return backbone


def _efficientnet_b0(radiograph: Any, weights: Path | None) -> Any:
    from training.ml.runtime import keras

    scaled = _three_channels(radiograph, 255.0, 0.0)
    backbone = _backbone(keras.applications.EfficientNetB0, scaled, weights)
    # Keras leaves this layer at mean 0 and variance 1 without its weights, and with them stores the standard deviation
    # where the variance belongs and repairs it by one more layer. Set here, one graph serves both cases.
    normalization = next(layer for layer in backbone.layers if isinstance(layer, keras.layers.Normalization))
    normalization.name = "normalization"
    normalization.adapt_mean.assign(IMAGENET_MEAN)
    normalization.adapt_variance.assign([deviation**2 for deviation in IMAGENET_STD])
    normalization.finalize_state()
    return backbone.output


def _resnet50(radiograph: Any, weights: Path | None) -> Any:
    from training.ml.runtime import keras

    scaled = _three_channels(radiograph, 255.0, [-mean for mean in IMAGENET_MEAN_BGR])
    return _backbone(keras.applications.ResNet50, scaled, weights).output


def _vgg16(radiograph: Any, weights: Path | None) -> Any:
    from training.ml.runtime import keras

    scaled = _three_channels(radiograph, 255.0, [-mean for mean in IMAGENET_MEAN_BGR])
    return _backbone(keras.applications.VGG16, scaled, weights).output


def _densenet121(radiograph: Any, weights: Path | None) -> Any:
    from training.ml.runtime import keras

    scale = [1 / deviation for deviation in IMAGENET_STD]
    offset = [-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    return _backbone(keras.applications.DenseNet121, _three_channels(radiograph, scale, offset), weights).output


def _custom_cnn(radiograph: Any, weights: Path | None) -> Any:
    """Stem 5x5 stride 2, then five blocks of convolution, pooling, batch normalisation and ReLU.

    Pooling comes before normalisation, which then touches a quarter of the values. The grey value is centred about
    zero: without that the first steps go into learning the offset.
    """
    from training.ml.runtime import keras

    layers = keras.layers
    x = layers.AveragePooling2D(2, name="halving")(radiograph)
    x = layers.Rescaling(4.0, offset=-2.0, name="scaling")(x)
    x = layers.Conv2D(_STEM_FILTERS, 5, strides=2, padding="same", use_bias=False, name="stem_convolution")(x)
    x = layers.MaxPooling2D(2, name="stem_pooling")(x)
    x = layers.BatchNormalization(name="stem_normalization")(x)
    x = layers.ReLU(name="stem_activation")(x)
    for number, (filters, pooled) in enumerate(_BLOCKS, start=1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"block{number}_convolution")(x)
        if pooled:
            x = layers.MaxPooling2D(2, padding="same", name=f"block{number}_pooling")(x)
        x = layers.BatchNormalization(name=f"block{number}_normalization")(x)
        x = layers.ReLU(name=f"block{number}_activation")(x)
    return x


_BACKBONES: dict[str, Callable[[Any, Path | None], Any]] = {
    "EfficientNetB0": _efficientnet_b0,
    "ResNet50": _resnet50,
    "DenseNet121": _densenet121,
    "VGG16": _vgg16,
    "Custom_CNN": _custom_cnn,
}
