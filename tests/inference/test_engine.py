"""Serving answers what the trained network answers, refuses what was tampered with, and swaps without a gap."""

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from datasets.cache import SPLITS, PreparedData
from inference import engine, maps
from inference.activation import add_map_output
from inference.engine import Engine, EngineError, LoadedModel, load
from registry import artifacts
from registry.openvino_runtime import load_openvino

SIZE = 32


def prepared(size: int = SIZE) -> PreparedData:
    """Twelve random images of two classes, in all three splits."""
    random = np.random.default_rng(0)
    return PreparedData(
        images=random.integers(0, 256, (12, size, size), dtype=np.uint8),
        labels=np.arange(12) % 2,
        splits=np.array(
            [SPLITS.index(name) for name in ("train",) * 8 + ("validation",) * 2 + ("test",) * 2], np.uint8
        ),
        groups=np.arange(12),
        classes=("NORMAL", "PNEUMONIA"),
        positive_class="PNEUMONIA",
        pipeline={"id": "test", "version": 1},
        digest="0" * 64,
    )


def train_version(architecture: str, folder: Path) -> tuple[object, str]:
    """One short training saved as a version: the Keras model and the digest."""
    from training.configurations import Configuration
    from training.ml.export import save_version
    from training.ml.fit import train

    trained = train(
        prepared(),
        architecture,
        Configuration(epochs=1, batch_size=4, minimum_steps=2),
        weights=None,
        work_dir=folder.parent / "work",
        report=lambda progress: None,
        should_stop=lambda: False,
    )
    return trained.model, save_version(trained, prepared(), folder)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """A saved Custom_CNN: folder, digest and its Keras model. Copy the folder before changing it."""
    folder = tmp_path_factory.mktemp("registry") / "1"
    model, digest = train_version("Custom_CNN", folder)
    return folder, digest, model


def keras_answers(model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict_on_batch(images[..., None].astype(np.float32) / np.float32(255)))


def radiographs(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["EfficientNetB0", "ResNet50", "DenseNet121", "VGG16", "Custom_CNN"])
def test_every_architecture_trains_and_serves_the_numbers_of_keras(tmp_path, architecture):
    from training.ml.export import rebuild

    model, digest = train_version(architecture, tmp_path / "1")
    images = np.concatenate([radiographs(3), artifacts.golden_images(1, 2, SIZE)])
    expected = keras_answers(model, images)
    assert np.abs(load(tmp_path / "1", digest).predict(images) - expected).max() <= 1e-4
    rebuilt = rebuild(artifacts.load(tmp_path / "1", digest))
    assert np.abs(keras_answers(rebuilt, images) - expected).max() <= 1e-6


def test_probabilities_of_any_number_of_images_sum_to_one(version):
    folder, digest, model = version
    loaded = load(folder, digest)
    images = radiographs(37)
    probabilities = loaded.predict(images)
    assert probabilities.dtype == np.float64 and probabilities.shape == (37, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(probabilities, keras_answers(model, images), atol=1e-4)
    assert loaded.predict(images[:0]).shape == (0, 2)
    assert loaded.classes == ("NORMAL", "PNEUMONIA")


@pytest.mark.parametrize("images", [np.zeros((1, SIZE, SIZE)), np.zeros((1, 64, 64), np.uint8), np.zeros(3, np.uint8)])
def test_images_of_another_size_or_type_are_refused(version, images):
    with pytest.raises(ValueError, match="uint8 images of 32 x 32 pixels"):
        load(*version[:2]).predict(images)


def test_many_threads_get_the_answers_of_one(version):
    folder, digest, _ = version
    loaded = load(folder, digest)
    images = radiographs(24)
    expected = loaded.predict(images)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: loaded.predict(images[i : i + 1])[0], list(range(24)) * 4))
    np.testing.assert_allclose(answers, np.tile(expected, (4, 1)), atol=1e-6)


# Class activation maps and the temperature.


def save_changed(version, target: Path, **changes: object) -> str:
    """A copy of the version with another manifest; its digest."""
    original = artifacts.load(*version[:2])
    return artifacts.save(
        target,
        manifest=original.manifest | changes,
        weights=original.weights(),
        openvino=original.openvino_xml.parent,
        predictions={},
    )


def with_random_weights(architecture: str, size: int, classes: int):
    """A network whose normalisations and biases are random too: new ones are zero and left out of the graph."""
    from training.ml import architectures

    model = architectures.build(architecture, image_size=size, classes=classes)
    random = np.random.default_rng(3)
    for variable in model.weights:
        if variable.name in {"gamma", "beta", "bias", "moving_mean"}:
            variable.assign(np.asarray(variable) + random.normal(0, 0.1, tuple(variable.shape)))
    return model


def save_untrained(model, folder: Path) -> LoadedModel:
    """The network, saved as a version without a training, and loaded."""
    from training.ml import export

    export.to_openvino(model, folder / "graph")
    manifest = {
        "image_size": model.input_shape[1],
        "classes": [f"class {number}" for number in range(model.output_shape[1])],
        "temperature": 1.0,
        "golden": export.golden(model),
    }
    digest = artifacts.save(
        folder / "1",
        manifest=manifest,
        weights=export.weights_of(model),
        openvino=folder / "graph",
        predictions={},
    )
    return load(folder / "1", digest)


def assert_maps_are_those_of_keras(model, loaded: LoadedModel) -> None:
    """What Keras computes from the feature layer and the head's kernel: the class's column less the others' mean."""
    import keras

    images = artifacts.golden_images(9, 3, loaded.image_size)
    both = keras.Model(model.input, [model.get_layer("features").output, model.output])
    answers = both(images[..., None].astype(np.float32) / np.float32(255), training=False)
    features, probabilities = (np.asarray(answer, np.float64) for answer in answers)
    kernel, bias = (np.asarray(variable, np.float64) for variable in model.get_layer("head").weights)
    reading = loaded.read(images)
    for index in range(len(loaded.classes)):
        expected = features @ over_others(kernel, index)
        maps = reading.maps(index)
        assert maps.dtype == np.float32 and maps.shape == expected.shape
        np.testing.assert_allclose(maps, expected, atol=1e-4 * max(1, np.abs(expected).max()))
        # The identity that makes it a map of the decision: its mean and the bias are the logit, over the others'.
        logit = over_others(np.log(probabilities), index)
        identity = maps.mean(axis=(1, 2)) + over_others(bias, index)
        np.testing.assert_allclose(identity, logit, atol=1e-4 * max(1, np.abs(logit).max()))
    np.testing.assert_array_equal(reading.raw, loaded.predict(images))


def over_others(values: np.ndarray, index: int) -> np.ndarray:
    """The value of a class less the mean of the other classes', which are along the last axis."""
    return values[..., index] - np.delete(values, index, axis=-1).mean(axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        "EfficientNetB0",
        "ResNet50",
        "DenseNet121",
        "VGG16",
        "EfficientNetV2B0",
        "MobileNetV3Small",
        "ConvNeXtTiny",
    ],
)
def test_the_maps_of_every_architecture_are_what_keras_computes_by_hand(tmp_path, architecture):
    model = with_random_weights(architecture, 96, 3)
    assert_maps_are_those_of_keras(model, save_untrained(model, tmp_path))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_maps_are_what_keras_computes_by_hand(tmp_path, classes):
    model = with_random_weights("Custom_CNN", 128, classes)
    assert_maps_are_those_of_keras(model, save_untrained(model, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ResNet50", "MobileNetV3Small"])
def test_cells_lie_where_the_pixels_are_that_move_them(tmp_path, architecture):
    """The centre of the gradient of one cell by the pixels, of a network with random weights, is where it looks."""
    import keras
    import tensorflow as tf

    from training.ml.export import to_openvino

    model = with_random_weights(architecture, 224, 2)
    to_openvino(model, tmp_path)
    grid = add_map_output(load_openvino().Core().read_model(str(tmp_path / "model.xml")))
    layer = keras.Model(model.input, model.get_layer("features").output)
    image = tf.Variable(np.random.default_rng(0).random((1, 224, 224, 1), np.float32))
    with tf.GradientTape() as tape:
        cell = tf.reduce_sum(layer(image, training=False)[0, 3, 3])
    influence = np.asarray(tape.gradient(cell, image))[0, :, :, 0].astype(np.float64) ** 2
    centre = [(influence.sum(axis=axis) * (np.arange(224) + 0.5)).sum() / influence.sum() for axis in (1, 0)]
    np.testing.assert_allclose(centre, grid.first + 3 * grid.step, atol=grid.step / 4)


def blob(size: int, row: int, column: int, radius: int = 12) -> np.ndarray:
    """A black picture uint8 (1, size, size) with a bright blob, its middle at this pixel."""
    rows, columns = np.mgrid[:size, :size]
    distance = (rows - row) ** 2 + (columns - column) ** 2
    return np.rint(250 * np.exp(-distance / (2 * radius**2))).astype(np.uint8)[None]


def brightness_network(size: int):
    """A Custom_CNN with weights made by hand, which pass brightness on: the brighter a cell, the more class 1."""
    from training.ml import architectures

    model = architectures.build("Custom_CNN", image_size=size, classes=2)
    for layer in model.layers:
        if layer.name.endswith("convolution"):
            middle = layer.kernel_size[0] // 2
            layer.kernel.assign(
                np.pad([[[[1.0]]]], [(middle, middle)] * 2 + [(0, n - 1) for n in layer.kernel.shape[2:]])
            )
    # Black comes as -2: lifted to zero, so that ReLU lets all brightness pass.
    model.get_layer("stem_normalization").beta.assign([2.0] + [0.0] * 23)
    head = model.get_layer("head").kernel
    head.assign(np.pad([[-1.0, 1.0]], [(0, head.shape[0] - 1), (0, 0)]))
    return model


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    return save_untrained(brightness_network(256), tmp_path_factory.mktemp("brightness"))


@pytest.mark.parametrize(("row", "column"), [(128, 128), (64, 160), (190, 70), (100, 215), (40, 40)])
def test_a_bright_blob_lights_up_where_it_is(brightness, row, column):
    reading = brightness.read(blob(256, row, column))
    seen = maps.evidence(reading.maps(1)[0], 256, reading.grid)
    middle = [seen.sum(axis=axis) @ np.arange(256) / seen.sum() for axis in (1, 0)]
    # A cell is 64 pixels wide here: nothing is known more exactly than half of it.
    np.testing.assert_allclose(middle, (row, column), atol=reading.grid.step / 2 + 1)
    assert not maps.evidence(reading.maps(0)[0], 256, reading.grid).any()


def test_of_two_classes_the_maps_are_each_others_negatives(version):
    reading = load(*version[:2]).read(radiographs(3))
    np.testing.assert_array_equal(reading.maps(0), -reading.maps(1))


def test_each_image_can_have_the_map_of_its_own_class(tmp_path):
    loaded = save_untrained(with_random_weights("Custom_CNN", 128, 3), tmp_path)
    reading = loaded.read(artifacts.golden_images(2, 3, 128))
    chosen = np.array([2, 0, 1])
    expected = [reading.maps(int(index))[number] for number, index in enumerate(chosen)]
    np.testing.assert_array_equal(reading.maps(chosen), expected)


def test_maps_of_any_number_of_images(version):
    loaded = load(*version[:2])
    images = radiographs(37)
    reading = loaded.read(images)
    assert loaded.has_maps and reading.contributions.shape == (37, 2, 1, 1)
    np.testing.assert_allclose(reading.contributions[20:], loaded.read(images[20:]).contributions, atol=1e-6)
    assert loaded.read(images[:0]).maps(1).shape == (0, 1, 1)


def test_a_network_that_does_not_end_in_a_mean_and_a_head_answers_without_maps(version, tmp_path):
    openvino = load_openvino()
    from openvino import opset13 as operators

    radiograph = operators.parameter([-1, SIZE, SIZE, 1], np.float32, name="radiograph")
    flat = operators.reshape(radiograph, np.array([-1, SIZE * SIZE]), False)
    weights = np.random.default_rng(1).normal(0, 0.1, (SIZE * SIZE, 2)).astype(np.float32)
    graph = openvino.Model([operators.softmax(operators.matmul(flat, weights, False, False), 1)], [radiograph], "flat")
    openvino.save_model(graph, str(tmp_path / "model.xml"), compress_to_fp16=False)
    logits = artifacts.golden_images(1, 2, SIZE).reshape(2, -1) / 255 @ weights
    outputs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    original = artifacts.load(*version[:2])
    manifest = original.manifest | {"golden": {"seed": 1, "count": 2, "outputs": outputs.tolist()}}
    digest = artifacts.save(tmp_path / "1", manifest=manifest, weights={}, openvino=tmp_path, predictions={})
    loaded = load(tmp_path / "1", digest)
    reading = loaded.read(radiographs(2))
    assert not loaded.has_maps and reading.maps(1) is None and reading.grid is None
    np.testing.assert_array_equal(reading.raw, loaded.predict(radiographs(2)))


def test_answers_are_after_the_temperature_and_predictions_before_it(version, tmp_path):
    raw = load(*version[:2]).predict(radiographs(3))
    hot = load(tmp_path / "1", save_changed(version, tmp_path / "1", temperature=2.0))
    np.testing.assert_allclose(hot.predict(radiographs(3)), raw, atol=1e-9)
    expected = np.sqrt(raw) / np.sqrt(raw).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(hot.answer(radiographs(3)), expected, atol=1e-9)
    reading = hot.read(radiographs(3))
    np.testing.assert_allclose(reading.probabilities, expected, atol=1e-9)
    np.testing.assert_allclose(reading.raw, raw, atol=1e-9)


def copy(version, target: Path) -> Path:
    return Path(shutil.copytree(version[0], target))


@pytest.mark.parametrize("member", ["openvino/model.bin", "openvino/model.xml", "weights.safetensors", "manifest.json"])
def test_a_tampered_version_is_not_put_in_service(version, tmp_path, member):
    folder = copy(version, tmp_path / "1")
    content = bytearray((folder / member).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / member).write_bytes(content)
    with pytest.raises(EngineError, match="changed after it was registered"):
        load(folder, version[1])


def test_a_graph_that_answers_differently_than_when_it_was_saved_is_not_put_in_service(version, tmp_path):
    golden = artifacts.load(*version[:2]).manifest["golden"]
    outputs = [[p + 2e-4, q - 2e-4] for p, q in golden["outputs"]]
    digest = save_changed(version, tmp_path / "1", golden={**golden, "outputs": outputs})
    with pytest.raises(EngineError, match="does not compute here what it computed"):
        load(tmp_path / "1", digest)


def test_a_version_without_a_graph_is_refused_in_words(version, tmp_path):
    original = artifacts.load(*version[:2])
    digest = artifacts.save(
        tmp_path / "1", manifest=original.manifest, weights=original.weights(), openvino=None, predictions={}
    )
    with pytest.raises(EngineError, match="no OpenVINO graph"):
        load(tmp_path / "1", digest)


def test_the_manifest_says_what_the_model_is_and_how_it_came_about(version):
    manifest = artifacts.load(*version[:2]).manifest
    assert manifest["architecture"] == "Custom_CNN" and manifest["image_size"] == SIZE
    assert manifest["classes"] == ["NORMAL", "PNEUMONIA"] and manifest["positive_class"] == "PNEUMONIA"
    assert manifest["preprocessing"] == {"id": "test", "version": 1} and manifest["dataset_digest"] == "0" * 64
    assert manifest["initial_weights"] == "scratch" and manifest["configuration"]["epochs"] == 1
    assert manifest["metrics"]["test"]["n"] == 2 and 0 <= manifest["threshold"] <= 1
    assert {"tensorflow", "keras", "openvino"} <= manifest["environment"].keys()


def test_the_predictions_of_the_evaluation_are_kept_with_the_version(version):
    predictions = artifacts.load(*version[:2]).predictions()
    assert predictions["test_rows"].tolist() == [10, 11] and predictions["test_probabilities"].shape == (2, 2)
    assert predictions["validation_labels"].tolist() == [0, 1]


def test_serving_loads_neither_tensorflow_nor_the_usage_statistics_of_openvino(version, tmp_path):
    code = (
        "import sys; from pathlib import Path; from inference.engine import load; "
        f"load(Path({str(version[0])!r}), {version[1]!r}); "
        "print([name for name in ('tensorflow', 'keras', 'openvino_telemetry') if sys.modules.get(name)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)}
    )
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_conversion_prints_nothing_on_standard_output(version, tmp_path, capfd):
    from training.ml.export import to_openvino

    capfd.readouterr()
    to_openvino(version[2], tmp_path)
    assert capfd.readouterr().out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", "model.xml"}


# The swap of models, with stand-ins for the models themselves.


class Loader:
    """Stands in for engine.load: counts its calls, and waits or fails when told to."""

    def __init__(self) -> None:
        self.model = object.__new__(LoadedModel)
        self.calls = 0
        self.error: Exception | None = None
        self.started, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def __call__(self) -> LoadedModel:
        self.calls += 1
        self.started.set()
        self.may_end.wait(10)
        if self.error:
            raise self.error
        return self.model


@pytest.fixture
def swap():
    """An engine, and loaders of the versions 1 and 2."""
    return Engine(), Loader(), Loader()


def test_a_model_is_loaded_once_and_then_kept(swap):
    models, first, _ = swap
    answers = [models.get("chest", 1, 1, first) for _ in range(3)]
    assert first.calls == 1
    assert {(served.model, served.version_id, served.failure) for served in answers} == {(first.model, 1, None)}


def test_a_newer_epoch_swaps_the_model(swap):
    models, first, second = swap
    models.get("chest", 1, 1, first)
    served = models.get("chest", 2, 2, second)
    assert (served.model, served.version_id, served.epoch) == (second.model, 2, 2)


def test_a_request_that_read_the_older_epoch_does_not_swap_back(swap):
    models, first, second = swap
    models.get("chest", 2, 2, second)
    assert models.get("chest", 1, 1, first).version_id == 2
    assert first.calls == 0


def test_conditions_have_models_of_their_own(swap):
    models, first, second = swap
    assert models.get("chest", 1, 1, first).model is first.model
    assert models.get("knee", 2, 1, second).model is second.model


def test_requests_are_answered_by_the_old_model_while_the_new_one_loads(swap):
    models, first, second = swap
    held = models.get("chest", 1, 1, first)
    second.may_end.clear()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(models.get, "chest", 2, 2, second)
        assert second.started.wait(10)
        assert models.get("chest", 2, 2, second).model is first.model
        second.may_end.set()
        assert loading.result(10).model is second.model
    assert held.model is first.model
    assert second.calls == 1


def test_first_requests_at_the_same_time_load_once_and_all_get_the_model(swap):
    models, first, _ = swap
    first.may_end.clear()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(models.get, "chest", 1, 1, first) for _ in range(4)]
        assert first.started.wait(10)
        first.may_end.set()
        assert {request.result(10).model for request in waiting} == {first.model}
    assert first.calls == 1


def test_a_failed_load_keeps_the_old_model_and_says_so(swap):
    models, first, second = swap
    models.get("chest", 1, 1, first)
    second.error = EngineError("weights.safetensors was changed")
    served = models.get("chest", 2, 2, second)
    assert (served.model, served.version_id, served.failure) == (first.model, 1, "weights.safetensors was changed")


def test_a_failed_load_is_tried_again_only_after_a_while(swap, monkeypatch):
    models, first, second = swap
    models.get("chest", 1, 1, first)
    second.error = EngineError("no")
    now = [100.0]
    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    for _ in range(3):
        assert models.get("chest", 2, 2, second).failure == "no"
    assert second.calls == 1
    now[0] += engine.RETRY_SECONDS
    second.error = None
    served = models.get("chest", 2, 2, second)
    assert (served.model, served.failure) == (second.model, None)


def test_a_failed_first_load_has_no_model_to_answer_with(swap):
    models, first, _ = swap
    first.error = EngineError("manifest.json is missing")
    with pytest.raises(EngineError, match=r"manifest\.json is missing"):
        models.get("chest", 1, 1, first)


def test_rolling_back_takes_the_previous_model_without_loading(swap):
    models, first, second = swap
    models.get("chest", 1, 1, first)
    models.get("chest", 2, 2, second)
    assert models.get("chest", 1, 3, first).model is first.model
    assert models.get("chest", 2, 4, second).model is second.model
    assert (first.calls, second.calls) == (1, 1)
