"""From a trained network to the files of a model version, and back."""

import contextlib
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets.cache import PreparedData
from registry import artifacts
from registry.openvino_runtime import load_openvino
from training.ml import architectures
from training.ml.runtime import tf

if TYPE_CHECKING:
    from training.ml.fit import Trained

GOLDEN_SEED = 20240229
GOLDEN_COUNT = 4
_LIBRARIES = ("tensorflow", "keras", "numpy", "openvino", "safetensors")


def save_version(trained: "Trained", data: PreparedData, folder: Path, about_data: dict[str, Any] | None = None) -> str:
    """Write the model version that `trained` is into `folder` (see registry.artifacts) and return its digest.

    about_data: counts of the images and patients, for the model card; no names.
    """
    manifest = {
        "architecture": trained.architecture_id,
        "image_size": data.image_size,
        "classes": list(data.classes),
        "positive_class": data.positive_class if len(data.classes) == 2 else None,
        "preprocessing": data.pipeline,
        "threshold": trained.evaluation.threshold,
        "temperature": trained.evaluation.temperature,
        "metrics": trained.evaluation.metrics,
        "configuration": trained.configuration.to_json(),
        "initial_weights": trained.initial_weights,
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "dataset_digest": data.digest,
        "data": about_data or {},
        "environment": environment(),
        "golden": golden(trained.model),
    }
    with tempfile.TemporaryDirectory() as scratch:
        to_openvino(trained.model, Path(scratch))
        return artifacts.save(
            folder,
            manifest=manifest,
            weights=weights_of(trained.model),
            openvino=Path(scratch),
            predictions=trained.evaluation.arrays(),
        )


def weights_of(model: Any) -> dict[str, NDArray[Any]]:
    """All weights, moving statistics included, by "<layer>/<weight>"."""
    return {name: np.asarray(variable) for name, variable in variables_of(model).items()}


def variables_of(model: Any) -> dict[str, Any]:
    """The variables of all weights, by the same names."""
    named = {f"{layer.name}/{variable.name}": variable for layer in model.layers for variable in layer.weights}
    if len(named) != len(model.weights):
        raise ValueError("Two weights of this architecture have the same name.")
    return named


def assign_weights(model: Any, weights: dict[str, NDArray[Any]]) -> None:
    """Set all weights by name. Raises ArtifactError when a name or a shape differs; nothing is set then."""
    variables = variables_of(model)
    for name in sorted(variables.keys() ^ weights.keys()):
        raise artifacts.ArtifactError("unusable", f"The weights and the architecture differ: {name} is in one only.")
    for name, variable in variables.items():
        if tuple(variable.shape) != weights[name].shape:
            raise artifacts.ArtifactError(
                "unusable", f"The weights {name} have shape {weights[name].shape}, not {tuple(variable.shape)}."
            )
    for name, variable in variables.items():
        variable.assign(weights[name])


def rebuild(artifact: artifacts.Artifact) -> Any:
    """The Keras model of a version: the architecture from our own code, then its weights by name."""
    manifest = artifact.manifest
    model = architectures.build(
        manifest["architecture"], image_size=manifest["image_size"], classes=len(manifest["classes"])
    )
    assign_weights(model, artifact.weights())
    return model


def to_openvino(model: Any, folder: Path) -> None:
    """Write `model.xml` and `model.bin`, float32, for any number of images at once. Prints nothing."""
    openvino = load_openvino()
    shape = (None, *model.input_shape[1:])

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape, tf.float32, name="radiograph")])  # type: ignore[untyped-decorator]
    def infer(radiograph: Any) -> Any:
        return model(radiograph, training=False)

    with contextlib.redirect_stdout(sys.stderr):
        converted = openvino.convert_model(infer)
    # The gradient of swish leaves dead ends in the graph of EfficientNetB0, and the converter makes each an output.
    ends = [output.get_node().input_value(0) for output in converted.outputs]
    (probabilities,) = [end for end in ends if end.get_node().get_type_name() == "Softmax"]
    graph = openvino.Model([probabilities], converted.get_parameters(), model.name)
    openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)


def golden(model: Any) -> dict[str, Any]:
    """What the network answers for the golden images, so that every later copy can prove that it answers the same."""
    images = artifacts.golden_images(GOLDEN_SEED, GOLDEN_COUNT, model.input_shape[1])
    outputs = model.predict_on_batch(images[..., None].astype(np.float32) / np.float32(255))
    return {"seed": GOLDEN_SEED, "count": GOLDEN_COUNT, "outputs": np.asarray(outputs, np.float64).tolist()}


def environment() -> dict[str, str]:
    """Versions of what computed this model."""
    libraries = {name: version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "processors": str(os.cpu_count()), **libraries}
