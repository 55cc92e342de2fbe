"""The five architectures: catalogue and graph agree, and each backbone sees the numbers it was made for."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from registry.artifacts import ArtifactError
from training.ml import architectures
from training.ml.architectures import ARCHITECTURES, build, pretrained_weights
from training.ml.export import assign_weights, weights_of
from training.ml.runtime import keras

IDS = ("EfficientNetB0", "ResNet50", "DenseNet121", "VGG16", "Custom_CNN")
PRETRAINED = IDS[:-1]


@pytest.fixture(scope="module")
def models():
    return {name: build(name, image_size=64, classes=2) for name in IDS}


def grey_images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size, 1), dtype=np.float32)


def test_the_catalogue_holds_the_five_architectures():
    assert tuple(ARCHITECTURES) == IDS


@pytest.mark.parametrize("name", IDS)
def test_the_catalogue_states_the_true_parameter_count(models, name):
    assert models[name].count_params() == ARCHITECTURES[name].parameters


def test_custom_cnn_has_about_2_1_million_parameters():
    assert 2.0e6 <= ARCHITECTURES["Custom_CNN"].parameters <= 2.3e6


@pytest.mark.parametrize("name", IDS)
def test_the_graph_is_flat_and_framed_by_the_same_names(models, name):
    model = models[name]
    assert [layer.name for layer in model.layers if isinstance(layer, keras.Model)] == []
    for layer in ("radiograph", "scaling", "features", "pooling", "dropout", "head"):
        assert model.get_layer(layer)
    assert model.input_shape == (None, 64, 64, 1) and model.output_shape == (None, 2)


@pytest.mark.parametrize("name", IDS)
def test_features_weighted_by_the_head_are_the_answer(models, name):
    """What class activation maps rest on: logits are the mean over positions of features times head weights."""
    model = models[name]
    images = grey_images(2, 64)
    features, answer = keras.Model(model.input, [model.get_layer("features").output, model.output])(images)
    kernel, bias = model.get_layer("head").get_weights()
    logits = (np.asarray(features) @ kernel).mean(axis=(1, 2)) + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(answer), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("ResNet50", keras.applications.resnet),
        ("VGG16", keras.applications.vgg16),
        ("DenseNet121", keras.applications.densenet),
        ("EfficientNetB0", keras.applications.efficientnet),
    ],
)
def test_the_backbone_gets_what_preprocess_input_of_keras_gives(models, name, module):
    images = grey_images(3, 64)
    scaled = keras.Model(models[name].input, models[name].get_layer("scaling").output)(images)
    expected = module.preprocess_input(np.repeat(images * 255, 3, axis=-1))
    np.testing.assert_allclose(np.asarray(scaled), expected, rtol=1e-5, atol=2e-4)


def test_efficientnet_normalises_by_mean_and_standard_deviation_even_from_scratch(models):
    model = models["EfficientNetB0"]
    images = grey_images(3, 64)
    normalised = keras.Model(model.input, model.get_layer("normalization").output)(images)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(np.asarray(normalised), (images - mean) / deviation, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", IDS)
def test_batch_normalisation_follows_within_some_dozen_steps(models, name):
    momenta = {layer.momentum for layer in models[name].layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert momenta <= {0.9}


def test_weights_have_the_same_names_in_every_build(models):
    """Keras numbers the layers it names itself; EfficientNetB0 has one of those with weights."""
    again = build("EfficientNetB0", image_size=32, classes=2)
    assert weights_of(again).keys() == weights_of(models["EfficientNetB0"]).keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINED)
def test_published_backbone_weights_are_taken_over(tmp_path, monkeypatch, name):
    backbone = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(64, 64, 3))
    make_unlike(backbone)
    save_as_published(backbone, tmp_path / ARCHITECTURES[name].pretrained.file_name)
    monkeypatch.setattr(architectures, "_md5", lambda *args: ARCHITECTURES[name].pretrained.md5)

    model = build(name, image_size=64, classes=2, weights=pretrained_weights(name, tmp_path))

    images = grey_images(2, 64)
    features = keras.Model(model.input, model.get_layer("features").output)(images)
    expected = np.asarray(backbone(preprocessed(name, np.repeat(images * 255, 3, axis=-1))))
    assert expected.std() > 0
    np.testing.assert_allclose(np.asarray(features), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def make_unlike(backbone: keras.Model) -> None:
    """Weights such that no two layers are alike, and the normalisation that the published EfficientNetB0 computes."""
    random = np.random.default_rng(1)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.adapt_mean.assign(architectures.IMAGENET_MEAN)
            layer.adapt_variance.assign(np.square(architectures.IMAGENET_STD))
            layer.finalize_state()
            continue
        for variable in layer.weights:
            variable.assign(np.asarray(variable) * random.uniform(0.8, 1.2, variable.shape))


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


def preprocessed(name: str, colour: np.ndarray) -> np.ndarray:
    modules = {"ResNet50": "resnet", "VGG16": "vgg16", "DenseNet121": "densenet", "EfficientNetB0": "efficientnet"}
    return getattr(keras.applications, modules[name]).preprocess_input(colour)


def test_absent_pretrained_weights_are_none(tmp_path):
    assert pretrained_weights("ResNet50", tmp_path) is None
    assert pretrained_weights("Custom_CNN", tmp_path) is None


def test_a_file_of_the_right_name_but_the_wrong_content_is_not_taken(tmp_path):
    (tmp_path / ARCHITECTURES["VGG16"].pretrained.file_name).write_bytes(b"an error page of a proxy")
    assert pretrained_weights("VGG16", tmp_path) is None


def test_a_pretrained_file_is_hashed_again_only_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / ARCHITECTURES["VGG16"].pretrained.file_name
    path.write_bytes(b"first")
    architectures._md5.cache_clear()
    for _ in range(3):
        pretrained_weights("VGG16", tmp_path)
    assert architectures._md5.cache_info().misses == 1
    path.write_bytes(b"second, longer")
    pretrained_weights("VGG16", tmp_path)
    assert architectures._md5.cache_info().misses == 2


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_catalogue_names_the_files_keras_itself_downloads(monkeypatch, name):
    asked = {}

    def get_file(file_name, origin, file_hash, **kwargs):
        asked.update(name=file_name, url=origin, md5=file_hash)
        raise RuntimeError("seen")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(RuntimeError, match="seen"):
        getattr(keras.applications, name)(include_top=False, weights="imagenet", input_shape=(64, 64, 3))
    published = ARCHITECTURES[name].pretrained
    assert (published.file_name, published.url, published.md5) == (asked["name"], asked["url"], asked["md5"])


def test_weights_of_another_shape_are_refused_and_none_is_set(models):
    model = models["Custom_CNN"]
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
        "import sys, training.configurations, training.ml.architectures, registry.statistics, registry.artifacts, "
        "inference.engine; "
        "print(sorted({'keras', 'tensorflow', 'sklearn', 'openvino', 'django'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
