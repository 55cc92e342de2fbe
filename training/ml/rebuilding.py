"""A version that came from elsewhere, proved: our own architecture with its weights answers as it should.

Nothing of a package is trusted but numbers: the architecture comes from our own code by its id, the weights must have
exactly its names, shapes and types, and the network must answer the golden images as it did where it was made.
"""

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from datasets import enhancement, imaging
from registry import artifacts
from registry.openvino_runtime import load_openvino
from registry.packages import PackageError
from training.ml import architectures, export

# As the engine compares when it loads a version.
TOLERANCE: Final = 1e-4
# Old enough for every tool of today.
ONNX_OPSET: Final = 17


def rebuild_foreign(
    weights_file: Path, shapes: dict[str, tuple[int, ...]], manifest: dict[str, Any], folder: Path
) -> str:
    """Write a version folder (see registry.artifacts) and return its digest.

    weights_file: checked by registry.weights_file, with its shapes by name. manifest: checked by registry.claims.
    Raises PackageError: unknown-architecture, unknown-preprocessing, wrong-shapes, golden-differs.
    """
    from safetensors.numpy import load_file

    model = built(manifest)
    _check_shapes(model, shapes)
    weights = dict(load_file(weights_file))
    _check_types(model, weights)
    export.assign_weights(model, weights)
    prove(predictions(model, manifest), manifest)
    with tempfile.TemporaryDirectory() as scratch:
        export.to_openvino(model, Path(scratch))
        prove(_compiled_predictions(Path(scratch) / "model.xml", manifest), manifest)
        return artifacts.save(folder, manifest=manifest, weights=weights, openvino=Path(scratch), predictions=None)


def write_keras(artifact: artifacts.Artifact, file: Path) -> None:
    """Write the network of a version as `.keras`; loaded again, it answers as the version does.

    Raises ArtifactError (unusable) when it does not; nothing is left at `file` then.
    """
    from training.ml.runtime import keras

    export.rebuild(artifact).save(file)
    again = keras.models.load_model(file, compile=False, safe_mode=True)
    _keep_if_proved(file, predictions(again, artifact.manifest), artifact.manifest)


def write_onnx(artifact: artifacts.Artifact, file: Path) -> None:
    """Write the network of a version as ONNX, for any number of images; OpenVINO reads it and answers the same.

    Raises ArtifactError (unusable) when it does not, or where the converter is not installed or cannot convert it;
    nothing is left at `file` then.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise artifacts.ArtifactError(
            "unusable", "The converter to ONNX (tf2onnx) is not installed on this server. Ask an administrator."
        ) from error
    from training.ml.runtime import tf

    model = export.rebuild(artifact)
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="radiograph")]

    @tf.function(autograph=False, input_signature=signature)  # type: ignore[untyped-decorator]
    def infer(radiograph: Any) -> Any:
        return model(radiograph, training=False)

    try:
        tf2onnx.convert.from_function(infer, input_signature=signature, opset=ONNX_OPSET, output_path=str(file))
        answered = _compiled_predictions(file, artifact.manifest)
    except Exception as error:
        file.unlink(missing_ok=True)
        raise artifacts.ArtifactError(
            "unusable",
            f"{artifact.manifest['architecture']} cannot be written as ONNX so that it is read again. Take the "
            "OpenVINO or the Keras file.",
        ) from error
    _keep_if_proved(file, answered, artifact.manifest)


WRITERS: Final = {"keras": write_keras, "onnx": write_onnx}


def _keep_if_proved(file: Path, answered: NDArray[np.float64], manifest: dict[str, Any]) -> None:
    try:
        prove(answered, manifest)
    except PackageError as error:
        file.unlink()
        raise artifacts.ArtifactError(
            "unusable", "The file does not answer as the version does, so it was not kept. Tell an administrator."
        ) from error


def built(manifest: dict[str, Any]) -> Any:
    """The architecture of a manifest with fresh weights. Raises PackageError when there is none."""
    _check_known(manifest)
    return architectures.build(
        manifest["architecture"], image_size=manifest["image_size"], classes=len(manifest["classes"])
    )


def _check_known(manifest: dict[str, Any]) -> None:
    if manifest["architecture"] not in architectures.ARCHITECTURES:
        raise PackageError(
            "unknown-architecture",
            f"The architecture {manifest['architecture']} is not one of this platform ("
            f"{', '.join(architectures.ARCHITECTURES)}). Upgrade it, or ask for another version.",
        )
    treatment = manifest["preprocessing"]
    if treatment["fit"] not in imaging.FITS or not set(treatment.get("steps", [])) <= set(enhancement.STEPS):
        raise PackageError(
            "unknown-preprocessing",
            "The version wants radiographs to be treated in a way that this platform does not know. Upgrade it.",
        )


def _check_shapes(model: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Before a number of the weights is read."""
    wanted = {name: tuple(variable.shape) for name, variable in export.variables_of(model).items()}
    for name in sorted(wanted.keys() ^ shapes.keys()):
        raise PackageError(
            "wrong-shapes", f"The weights and the architecture differ: {_shown(name)} is in one of them only."
        )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise PackageError(
                "wrong-shapes", f"The weights {name} have the shape {shapes[name]}, and the architecture has {shape}."
            )


def _check_types(model: Any, weights: dict[str, NDArray[Any]]) -> None:
    for name, variable in export.variables_of(model).items():
        if str(weights[name].dtype) != variable.dtype:
            raise PackageError(
                "wrong-shapes",
                f"The weights {name} are {weights[name].dtype}, and the architecture has {variable.dtype}.",
            )


def _shown(name: str) -> str:
    return repr(name[:60])


def _inputs(manifest: dict[str, Any]) -> NDArray[np.float32]:
    golden = manifest["golden"]
    images = artifacts.golden_images(golden["seed"], golden["count"], manifest["image_size"])
    return np.asarray(images[..., None].astype(np.float32) / np.float32(255))


def predictions(model: Any, manifest: dict[str, Any]) -> NDArray[np.float64]:
    """What a Keras model answers for the golden images of a manifest: float64 (N, C)."""
    return np.asarray(model.predict_on_batch(_inputs(manifest)), np.float64)


def _compiled_predictions(graph: Path, manifest: dict[str, Any]) -> NDArray[np.float64]:
    """What OpenVINO answers for the golden images with a graph of its own kind or an ONNX file."""
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = load_openvino().Core().compile_model(str(graph), "CPU", options)
    return np.asarray(compiled([_inputs(manifest)])[0], np.float64)


def prove(actual: NDArray[np.float64], manifest: dict[str, Any]) -> None:
    """Raises PackageError (golden-differs) unless these are the golden outputs."""
    expected = np.asarray(manifest["golden"]["outputs"], np.float64)
    # "not <=" also where the difference is not a number.
    if actual.shape != expected.shape or not np.abs(actual - expected).max() <= TOLERANCE:
        raise PackageError(
            "golden-differs",
            "Rebuilt here, the network does not answer the test images as it did where it was made. It is another "
            "network than the package says, or it computes otherwise here. Ask for another export.",
        )
