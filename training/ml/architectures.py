"""The architectures a model can have: a catalogue to choose from, and the graphs themselves.

Keras is imported inside `build` only: the catalogue is read by processes that never load it. How to add one is
described in docs/architecture.md.

Every graph is flat and has the same frame, by these layer names:

    "radiograph" float32 (S, S, 1) in 0..1 -> "scaling" what the backbone expects -> backbone -> "features"
    -> "pooling" global average -> "dropout" -> "head" dense softmax over the classes

so that a class activation map is `features` weighted by the column of `head`, from the same forward pass.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from training.ml.backbones import Backbone, KerasBackbone, custom_cnn, efficientnet_b0, name_by_position

if TYPE_CHECKING:
    import keras

MINIMUM_IMAGE_SIZE = 32
# Keras' default of 0.99 needs hundreds of steps before the moving statistics mean anything: with some dozens of steps
# an epoch, validation is then no better than guessing while the training accuracy looks fine.
BATCH_NORMALIZATION_MOMENTUM = 0.9
_BUCKET = "https://storage.googleapis.com/"


@dataclass(frozen=True)
class PublishedWeights:
    """The ImageNet weights without classifier that Keras publishes, as its source names them.

    digest: the hash that Keras checks, MD5 or, of newer files, SHA-256. folder: of the address, below Google's storage.
    """

    file_name: str
    digest: str
    folder: str

    @property
    def url(self) -> str:
        return f"{_BUCKET}{self.folder}/{self.file_name}"

    @property
    def algorithm(self) -> str:
        return "md5" if len(self.digest) == 32 else "sha256"

    @property
    def algorithm_name(self) -> str:
        return {"md5": "MD5", "sha256": "SHA-256"}[self.algorithm]

    def state(self, folder: Path) -> str:
        """Of the file in `folder`: "installed", "absent", or "damaged": not byte for byte the published one."""
        path = folder / self.file_name
        try:
            found = path.stat()
            digest = _digest(path, self.algorithm, found.st_size, found.st_mtime_ns)
        except FileNotFoundError:
            return "absent"
        except OSError:
            # Not readable for this user, or no file at all.
            return "damaged"
        return "installed" if digest == self.digest else "damaged"


@dataclass(frozen=True)
class Architecture:
    """One entry of the catalogue.

    parameters: weights of the whole graph for two classes, moving statistics included.
    memory, speed: class in words, for training on a processor without a GPU.
    batch_size: images a step, so that a step fits into some GB of memory and a processor ends it within seconds.
    minimum_steps: optimizer steps an epoch has at least; see Configuration.minimum_steps.
    learning_rate: peak rate that suits AdamW from scratch; pretrained_learning_rate: for the new head on a frozen
    backbone. backbone: the graph from the radiograph to the feature maps.
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
    backbone: Backbone


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
                "keras-applications",
            ),
            backbone=efficientnet_b0,
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
                "tensorflow/keras-applications/resnet",
            ),
            backbone=KerasBackbone("ResNet50", "caffe"),
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
                "tensorflow/keras-applications/densenet",
            ),
            backbone=KerasBackbone("DenseNet121", "torch"),
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
                "tensorflow/keras-applications/vgg16",
            ),
            backbone=KerasBackbone("VGG16", "caffe"),
        ),
        Architecture(
            id="EfficientNetV2B0",
            name="EfficientNetV2B0",
            description="The successor of EfficientNetB0: a little larger, and it learns faster.",
            parameters=5_921_874,
            memory="medium",
            speed="medium",
            batch_size=16,
            minimum_steps=8,
            learning_rate=1e-3,
            pretrained_learning_rate=1e-3,
            pretrained=PublishedWeights(
                "efficientnetv2-b0_notop.h5",
                "893217f2bb855e2983157299931e43ff",
                "tensorflow/keras-applications/efficientnet_v2",
            ),
            backbone=KerasBackbone("EfficientNetV2B0", "torch", preprocessing=True),
        ),
        Architecture(
            id="MobileNetV3Small",
            name="MobileNetV3-Small",
            description="The smallest here, made for phones: quick to train and to answer, with some loss of accuracy.",
            parameters=940_274,
            memory="low",
            speed="fast",
            batch_size=32,
            minimum_steps=16,
            learning_rate=1e-3,
            pretrained_learning_rate=1e-3,
            pretrained=PublishedWeights(
                "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
                "d3e8ec802a04aa4fc771ee12a9a9b836",
                "tensorflow/keras-applications/mobilenet_v3",
            ),
            backbone=KerasBackbone("MobileNetV3Small", "tf", preprocessing=True),
        ),
        Architecture(
            id="ConvNeXtTiny",
            name="ConvNeXt-Tiny",
            description="The newest and largest here; strong with its pretrained weights, poor without them, slow "
            "without a GPU.",
            parameters=27_821_666,
            memory="high",
            speed="slow",
            batch_size=8,
            minimum_steps=8,
            learning_rate=2e-4,
            pretrained_learning_rate=5e-4,
            pretrained=PublishedWeights(
                "convnext_tiny_notop.h5",
                "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
                "tensorflow/keras-applications/convnext",
            ),
            backbone=KerasBackbone("ConvNeXtTiny", "torch", preprocessing=True),
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
            backbone=custom_cnn,
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


@lru_cache(maxsize=64)
def _digest(path: Path, algorithm: str, size: int, mtime_ns: int) -> str:
    """Hash of a file; size and time of change are part of the key, so that a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


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
    features = entry.backbone(radiograph, weights)
    features = keras.layers.Activation("linear", name="features")(features)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
    dropped = keras.layers.Dropout(dropout, name="dropout")(pooled)
    probabilities = keras.layers.Dense(classes, activation="softmax", name="head")(dropped)
    model = keras.Model(radiograph, probabilities, name=entry.id)
    name_by_position(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORMALIZATION_MOMENTUM
    return model
