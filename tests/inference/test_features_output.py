"""The features before the head come out of the same forward pass as the probabilities, of every architecture."""

import numpy as np
import pytest

from inference.activation import add_features_output, add_map_output
from registry import artifacts
from registry.openvino_runtime import load_openvino
from tests.inference.test_engine import with_random_weights

CLASSES = 3
ARCHITECTURES = [
    "Custom_CNN",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "EfficientNetB0",
            "ResNet50",
            "DenseNet121",
            "VGG16",
            "EfficientNetV2B0",
            "MobileNetV3Small",
            "ConvNeXtTiny",
        )
    ),
]


def read(folder):
    return load_openvino().Core().read_model(str(folder / "model.xml"))


def compiled(graph):
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return load_openvino().Core().compile_model(graph, "CPU", options)


def answers(graph, images: np.ndarray) -> list[np.ndarray]:
    network = compiled(graph)
    found = network([images[..., None].astype(np.float32) / np.float32(255)])
    return [np.array(found[index]) for index in range(len(network.outputs))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_features_are_those_that_keras_pools(tmp_path, architecture):
    import keras

    from training.ml.export import to_openvino

    model = with_random_weights(architecture, 64, CLASSES)
    to_openvino(model, tmp_path)
    graph = read(tmp_path)
    images = artifacts.golden_images(9, 3, 64)
    before = answers(graph, images)
    add_map_output(graph)
    size = add_features_output(graph)
    probabilities, contributions, features = answers(graph, images)
    both = keras.Model(model.input, [model.get_layer("pooling").output, model.output])
    expected, _ = both(images[..., None].astype(np.float32) / np.float32(255), training=False)
    expected = np.asarray(expected)
    assert features.shape == expected.shape == (3, size) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(probabilities, before[0], atol=1e-6)
    # The head on the features is the logits, and the map's mean is the same without the bias.
    kernel = np.asarray(model.get_layer("head").kernel)
    product = features @ kernel
    tolerance = 1e-3 * max(1, np.abs(product).max())
    np.testing.assert_allclose(contributions.mean(axis=(2, 3)), product, atol=tolerance)


def test_the_two_outputs_may_be_added_in_any_order(tmp_path):
    from training.ml.export import to_openvino

    to_openvino(with_random_weights("Custom_CNN", 64, CLASSES), tmp_path)
    images = artifacts.golden_images(9, 2, 64)
    maps_first, features_first = read(tmp_path), read(tmp_path)
    add_map_output(maps_first), add_features_output(maps_first)
    add_features_output(features_first), add_map_output(features_first)
    one, other = answers(maps_first, images), answers(features_first, images)
    for index, same in enumerate((0, 2, 1)):
        np.testing.assert_allclose(one[index], other[same], atol=1e-6)


def test_a_network_without_a_mean_before_its_head_is_left_as_it_is():
    from openvino import Model
    from openvino import opset13 as operators

    radiograph = operators.parameter([-1, 8, 8, 1], np.float32, name="radiograph")
    flat = operators.reshape(radiograph, np.array([-1, 64]), False)
    weights = np.random.default_rng(1).normal(0, 0.1, (64, 2)).astype(np.float32)
    graph = Model([operators.softmax(operators.matmul(flat, weights, False, False), 1)], [radiograph], "flat")
    assert add_features_output(graph) is None and add_map_output(graph) is None
    assert len(graph.outputs) == 1
