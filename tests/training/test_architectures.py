"""The architectures: catalogue and graph agree, and each backbone sees the numbers it was made for."""

import functools
import hashlib
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from registry.artifacts import ArtifactError
from registry.openvino_runtime import load_openvino
from training.ml import architectures
from training.ml.architectures import ARCHITECTURES, Architecture, PublishedWeights, build
from training.ml.backbones import IMAGENET_MEAN, IMAGENET_STD, SCALINGS, KerasBackbone
from training.ml.export import assign_weights, to_openvino, weights_of
from training.ml.runtime import keras

IDS = (
    "EfficientNetB0",
    "ResNet50",
    "DenseNet121",
    "VGG16",
    "EfficientNetV2B0",
    "MobileNetV3Small",
    "ConvNeXtTiny",
    "Custom_CNN",
)
PRETRAINED = IDS[:-1]
# The others are built in the slow tests only.
QUICK = ("MobileNetV3Small", "Custom_CNN")


def quick_first(names, quick=QUICK):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def models():
    """Built when first asked for."""
    return functools.cache(lambda name: build(name, image_size=64, classes=2))


def grey_images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size, 1), dtype=np.float32)


def answers_of(model: keras.Model, layer: str, images: np.ndarray) -> np.ndarray:
    return np.asarray(keras.Model(model.input, model.get_layer(layer).output)(images))


def test_the_catalogue_holds_the_architectures():
    assert tuple(ARCHITECTURES) == IDS


@pytest.mark.parametrize("name", quick_first(IDS, (*QUICK, "ConvNeXtTiny")))
def test_the_catalogue_states_the_true_parameter_count(models, name):
    assert models(name).count_params() == ARCHITECTURES[name].parameters


def test_custom_cnn_has_about_2_1_million_parameters():
    assert 2.0e6 <= ARCHITECTURES["Custom_CNN"].parameters <= 2.3e6


@pytest.mark.parametrize("name", quick_first(IDS))
@pytest.mark.parametrize("size", [64, 224])
def test_the_graph_is_flat_and_framed_by_the_same_names(models, name, size):
    model = models(name) if size == 64 else build(name, image_size=size, classes=2)
    assert [layer.name for layer in model.layers if isinstance(layer, keras.Model)] == []
    for layer in ("radiograph", "scaling", "features", "pooling", "dropout", "head"):
        assert model.get_layer(layer)
    assert model.input_shape == (None, size, size, 1) and model.output_shape == (None, 2)
    assert len(model.get_layer("features").output.shape) == 4


@pytest.mark.parametrize("name", quick_first(IDS, (*QUICK, "ConvNeXtTiny")))
def test_every_layer_is_one_that_keras_offers_to_everybody(models, name):
    """So that an exported model opens without code of ours, and is trained and converted like any other."""
    kinds = {type(layer) for layer in models(name).layers}
    assert {kind for kind in kinds if getattr(keras.layers, kind.__name__, None) is not kind} == set()


@pytest.mark.parametrize("name", quick_first(IDS))
def test_features_weighted_by_the_head_are_the_answer(models, name):
    """What class activation maps rest on: logits are the mean over positions of features times head weights."""
    model = models(name)
    images = grey_images(2, 64)
    kernel, bias = model.get_layer("head").get_weights()
    logits = (answers_of(model, "features", images) @ kernel).mean(axis=(1, 2)) + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(model(images)), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_a_scaling_gives_what_preprocess_input_of_keras_gives(mode):
    images = grey_images(3, 8)
    scale, offset = SCALINGS[mode]
    scaled = keras.layers.Rescaling(scale, offset=offset)(np.repeat(images, 3, axis=-1))
    expected = keras.src.applications.imagenet_utils.preprocess_input(np.repeat(images * 255, 3, axis=-1), mode=mode)
    np.testing.assert_allclose(np.asarray(scaled), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("name", quick_first(PRETRAINED))
def test_the_backbone_gets_what_the_network_of_keras_gets(models, name):
    """The function preprocess_input of its family, then those of its own layers that only scale."""
    images = grey_images(3, 64)
    ours = "normalization" if name == "EfficientNetB0" else "scaling"
    np.testing.assert_allclose(
        answers_of(models(name), ours, images), scaled_by_keras(name, images), rtol=1e-4, atol=2e-4
    )


def scaled_by_keras(name: str, images: np.ndarray) -> np.ndarray:
    values = preprocessed(name, np.repeat(images * 255, 3, axis=-1))
    for layer in keras_backbone(name).layers[1:]:
        if not isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            break
        values = np.asarray(layer(values))
    return values


def keras_backbone(name: str) -> keras.Model:
    """The network of keras.applications itself, for colour images of 64 pixels, without classifier and weights."""
    backbone = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(64, 64, 3))
    for layer in backbone.layers:
        # With its published weights EfficientNetB0 normalises, without them not.
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.adapt_mean.assign(IMAGENET_MEAN)
            layer.adapt_variance.assign(np.square(IMAGENET_STD))
            layer.finalize_state()
    return backbone


def preprocessed(name: str, colour: np.ndarray) -> np.ndarray:
    families = {
        "ResNet50": "resnet",
        "DenseNet121": "densenet",
        "EfficientNetB0": "efficientnet",
        "EfficientNetV2B0": "efficientnet_v2",
        "MobileNetV3Small": "mobilenet_v3",
        "ConvNeXtTiny": "convnext",
    }
    return getattr(keras.applications, families.get(name, name.lower())).preprocess_input(colour.copy())


@pytest.mark.parametrize("name", quick_first(IDS))
def test_batch_normalisation_follows_within_some_dozen_steps(models, name):
    momenta = {layer.momentum for layer in models(name).layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert momenta <= {0.9}


@pytest.mark.parametrize("name", quick_first(IDS))
def test_weights_have_the_same_names_in_every_build(models, name):
    """Keras numbers the layers and weights that have no name; EfficientNetB0 and ConvNeXt have some of those."""
    assert weights_of(build(name, image_size=32, classes=2)).keys() == weights_of(models(name)).keys()


@pytest.mark.parametrize("name", quick_first(PRETRAINED, (*QUICK, "ConvNeXtTiny")))
def test_published_weights_give_the_features_that_the_network_of_keras_gives(tmp_path, name):
    theirs = keras_backbone(name)
    make_unlike(theirs)
    save_as_published(theirs, tmp_path / "notop.h5")

    model = build(name, image_size=64, classes=2, weights=tmp_path / "notop.h5")

    images = grey_images(2, 64)
    expected = np.asarray(theirs(preprocessed(name, np.repeat(images * 255, 3, axis=-1))))
    assert expected.std() > 0
    found = answers_of(model, "features", images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def make_unlike(backbone: keras.Model) -> None:
    """Weights such that no two layers are alike."""
    random = np.random.default_rng(1)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.Normalization):
            continue
        for variable in layer.weights:
            value = np.asarray(variable)
            # ConvNeXt begins with branches that are as good as switched off.
            value = np.where(value == np.float32(1e-6), np.float32(0.5), value)
            variable.assign(value * random.uniform(0.8, 1.2, value.shape))


def save_as_published(backbone: keras.Model, path: Path) -> None:
    """The HDF5 layout of the published files: one group a layer, in order. EfficientNetB0 has the standard deviation
    in the place of the variance there."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in backbone.layers]
        for layer in backbone.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{variable.name}:0" for variable in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in zip(names, layer.weights, strict=True):
                value = np.asarray(variable)
                group[name] = np.sqrt(value) if isinstance(layer, keras.layers.Normalization) else value


@pytest.mark.parametrize("name", quick_first(IDS))
def test_openvino_gives_the_same_probabilities(tmp_path, models, name):
    model = models(name)
    images = grey_images(3, 64)
    to_openvino(model, tmp_path)
    served = load_openvino().Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(served(images)[0], np.asarray(model(images)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
def test_every_weight_that_may_learn_learns(name):
    """Also in the layers that stand in for those of ConvNeXt, which begin with a scale of 1e-6."""
    model = build(name, image_size=32, classes=2, dropout=0.0)
    before = weights_of(model)
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(grey_images(4, 32), np.eye(2)[[0, 1, 0, 1]])
    kernels = {f"{layer.name}/{weight.name}" for layer in model.layers for weight in layer.trainable_weights}
    same = {
        name for name, value in weights_of(model).items() if name in kernels and np.array_equal(value, before[name])
    }
    assert len(same) <= 0.02 * len(kernels), same


def test_another_architecture_is_one_entry_of_the_catalogue(monkeypatch):
    """As the documentation says; MobileNetV2 stands for any network of keras.applications."""
    entry = Architecture(
        id="MobileNetV2",
        name="MobileNetV2",
        description="The one before.",
        parameters=2_260_546,
        memory="low",
        speed="fast",
        batch_size=32,
        minimum_steps=8,
        learning_rate=1e-3,
        pretrained_learning_rate=1e-3,
        pretrained=None,
        backbone=KerasBackbone("MobileNetV2", "tf"),
    )
    monkeypatch.setitem(ARCHITECTURES, entry.id, entry)
    model = build("MobileNetV2", image_size=64, classes=2)
    images = grey_images(2, 64)
    expected = keras.applications.mobilenet_v2.preprocess_input(np.repeat(images * 255, 3, axis=-1))
    np.testing.assert_allclose(answers_of(model, "scaling", images), expected, atol=1e-5)
    assert model.count_params() == entry.parameters


def test_a_published_file_is_absent_installed_or_damaged(tmp_path):
    published = PublishedWeights("notop.h5", hashlib.sha256(b"weights").hexdigest(), "folder")
    assert published.state(tmp_path / "no folder") == published.state(tmp_path) == "absent"
    (tmp_path / "notop.h5").write_bytes(b"weights")
    assert published.state(tmp_path) == "installed"
    (tmp_path / "notop.h5").write_bytes(b"an error page of a proxy")
    assert published.state(tmp_path) == "damaged"
    (tmp_path / "notop.h5").unlink()
    (tmp_path / "notop.h5").mkdir()
    assert published.state(tmp_path) == "damaged"


def test_a_published_file_is_hashed_again_only_when_it_changed(tmp_path):
    published = ARCHITECTURES["VGG16"].pretrained
    path = tmp_path / published.file_name
    path.write_bytes(b"first")
    architectures._digest.cache_clear()
    for _ in range(3):
        published.state(tmp_path)
    assert architectures._digest.cache_info().misses == 1
    path.write_bytes(b"second, longer")
    published.state(tmp_path)
    assert architectures._digest.cache_info().misses == 2


@pytest.mark.parametrize("name", quick_first(PRETRAINED))
def test_the_catalogue_names_the_files_keras_itself_downloads(monkeypatch, name):
    asked = {}

    def get_file(file_name, origin, file_hash, **kwargs):
        asked.update(name=file_name, url=origin, hash=file_hash)
        raise RuntimeError("seen")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(RuntimeError, match="seen"):
        getattr(keras.applications, name)(include_top=False, weights="imagenet", input_shape=(64, 64, 3))
    published = ARCHITECTURES[name].pretrained
    assert (published.file_name, published.url, published.digest) == (asked["name"], asked["url"], asked["hash"])


def test_weights_of_another_shape_are_refused_and_none_is_set(models):
    model = models("Custom_CNN")
    before = weights_of(model)
    wrong = {
        **before,
        "head/bias": np.zeros(3, np.float32),
        "stem_convolution/kernel": before["stem_convolution/kernel"] + 1,
    }
    with pytest.raises(ArtifactError, match="head/bias"):
        assign_weights(model, wrong)
    with pytest.raises(ArtifactError, match="head/bias is in one only"):
        assign_weights(model, {name: value for name, value in before.items() if name != "head/bias"})
    assert all(np.array_equal(value, before[name]) for name, value in weights_of(model).items())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"architecture_id": "AlexNet"}, "there are EfficientNetB0, ResNet50"),
        ({"image_size": 16}, "too small"),
        ({"classes": 1}, "at least two classes"),
        ({"weights": "file.h5"}, "no published weights"),
    ],
)
def test_an_impossible_graph_is_refused_in_words(arguments, reason):
    chosen = {"architecture_id": "Custom_CNN", "image_size": 64, "classes": 2} | arguments
    with pytest.raises(ValueError, match=reason):
        build(chosen.pop("architecture_id"), **chosen)


def test_the_catalogue_is_read_without_loading_keras():
    code = (
        "import sys, training.configurations, training.ml.initial, registry.statistics, registry.artifacts, "
        "inference.engine; "
        "print(sorted({'keras', 'tensorflow', 'sklearn', 'openvino', 'django'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
