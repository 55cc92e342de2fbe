"""The graphs of the architectures between the radiograph and the feature maps.

A backbone is a function (radiograph, weights) -> feature maps: radiograph is the Keras input (N, S, S, 1) in 0..1,
weights the published file or None. It begins with a layer "scaling" that makes of grey values what it expects, and
adds flat, built-in layers only. Keras is imported inside the functions.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Backbone = Callable[[Any, Path | None], Any]

# ImageNet statistics of the published weights, in RGB order for values in 0..1 and in BGR order for values in 0..255.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
# What the published weights were trained on, by the names of keras.applications.imagenet_utils.preprocess_input, as
# factor and offset of a grey value in 0..1; "raw" is 0..255, for a network that normalises by layers of its own.
SCALINGS: dict[str, tuple[Any, Any]] = {
    "raw": (255.0, 0.0),
    "caffe": (255.0, [-mean for mean in IMAGENET_MEAN_BGR]),
    "tf": (2.0, -1.0),
    "torch": (
        [1 / deviation for deviation in IMAGENET_STD],
        [-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)],
    ),
}
# Custom_CNN: filters of the stem, then filters of each block and whether it halves the resolution.
_STEM_FILTERS = 24
_BLOCKS = ((48, True), (96, True), (192, True), (384, False), (384, False))


@dataclass(frozen=True)
class KerasBackbone:
    """A network of keras.applications without its classifier.

    application: its name there. scaling: a key of SCALINGS. preprocessing: the network has layers of its own that
    scale, and an option to leave them out, which is taken: "scaling" then stands for them.
    """

    application: str
    scaling: str
    preprocessing: bool = False

    def __call__(self, radiograph: Any, weights: Path | None) -> Any:
        from training.ml.runtime import keras

        application = getattr(keras.applications, self.application)
        options = {"include_preprocessing": False} if self.preprocessing else {}
        scaled = three_channels(radiograph, *SCALINGS[self.scaling])
        # Our layers before it hold no weights, so the published file, which is read in the order of the layers, fits.
        backbone = application(include_top=False, weights=None, input_tensor=scaled, **options)
        if weights is not None:
            backbone.load_weights(weights)
        return _flat(backbone, radiograph)


def three_channels(radiograph: Any, scale: Any, offset: Any) -> Any:
    """Grey to three equal channels, then scaling per channel. Order of colours does not matter for equal channels."""
    from training.ml.runtime import keras

    channels = keras.layers.Concatenate(name="channels")([radiograph] * 3)
    return keras.layers.Rescaling(scale, offset=offset, name="scaling")(channels)


def efficientnet_b0(radiograph: Any, weights: Path | None) -> Any:
    """EfficientNetB0. It normalises by a layer with weights that cannot be left out.

    Keras leaves that layer at mean 0 and variance 1 without its weights, and with them stores the standard deviation
    where the variance belongs and repairs it by one more layer. Set here, one graph serves both cases.
    """
    from training.ml.runtime import keras

    scaled = three_channels(radiograph, *SCALINGS["raw"])
    backbone = keras.applications.EfficientNetB0(include_top=False, weights=None, input_tensor=scaled)
    if weights is not None:
        backbone.load_weights(weights)
    normalization = next(layer for layer in backbone.layers if isinstance(layer, keras.layers.Normalization))
    normalization.adapt_mean.assign(IMAGENET_MEAN)
    normalization.adapt_variance.assign([deviation**2 for deviation in IMAGENET_STD])
    normalization.finalize_state()
    return backbone.output


def custom_cnn(radiograph: Any, weights: Path | None) -> Any:
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


def name_by_position(model: Any) -> None:
    """Name the layers that Keras named itself by class and place in this model.

    Keras counts them over the whole process; the names of the weights must be the same in every process.
    """
    counts: dict[str, int] = {}
    for layer in model.layers:
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(layer).__name__).lower()
        if re.fullmatch(rf"(re_lu|{kind})(_\d+)?", layer.name):
            layer.name = f"{kind}_{counts[kind]}" if kind in counts else kind
            counts[kind] = counts.get(kind, 0) + 1


def _flat(backbone: Any, radiograph: Any) -> Any:
    """The output of the backbone, made of flat and built-in layers.

    ConvNeXt nests some of its layers and has two kinds that are no good here: a LayerScale of its own whose weight
    has no stable name, and convolutions with a group a channel, which take TensorFlow twenty times as long on a
    processor as the depthwise convolutions that they are (96 channels of 32 by 32, both ways: 228 ms against 10 ms).
    """
    from training.ml.runtime import keras

    if not any(isinstance(layer, keras.Model) for layer in backbone.layers):
        return backbone.output
    copies: list[tuple[Any, Any]] = []

    def copy(layer: Any) -> Any:
        # Sums of two feature maps are operations without weights, not layers.
        if isinstance(layer, keras.Model) or not isinstance(layer, keras.Layer):
            return layer
        copies.append((layer, _built_in(layer)))
        return copies[-1][1]

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        if not isinstance(layer, keras.Model):
            return layer(*inputs, **options)
        (x,) = inputs
        for inner in layer.layers:
            x = copy(inner)(x)
        return x

    flat = keras.models.clone_model(backbone, input_tensors=radiograph, clone_function=copy, call_function=call)
    for layer, made in copies:
        for variable, value in zip(made.weights, layer.weights, strict=True):
            variable.assign(np.asarray(value).reshape(variable.shape))
    return flat.output


def _built_in(layer: Any) -> Any:
    """A layer of Keras that computes what `layer` does, from weights with the same values in the same order."""
    from training.ml.runtime import keras

    if type(layer).__name__ == "LayerScale":
        return keras.layers.EinsumDense("abcd,d->abcd", (None, None, layer.projection_dim), name=layer.name)
    if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1 and layer.groups == layer.filters:
        return keras.layers.DepthwiseConv2D(
            layer.kernel_size, strides=layer.strides, padding=layer.padding, name=layer.name
        )
    return type(layer).from_config(layer.get_config())
