"""Model versions that really answer: a tiny OpenVINO graph, made without a training and without TensorFlow.

The network's only idea is brightness: the brighter an image on average, the more probable the second class.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from numpy.typing import NDArray

from registry import artifacts
from registry.models import ModelVersion
from registry.openvino_runtime import load_openvino
from training.configurations import PRESETS
from xrayplatform.conditions import Condition

IMAGE_SIZE = 64
CLASSES = ["NORMAL", "PNEUMONIA"]
SLOPE = 8.0
_numbers = itertools.count()
# A bright spot in the middle, as a body is, so that no check before the model minds them.
_SPOT = 30 * np.exp(-((np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] - IMAGE_SIZE / 2) ** 2).sum(axis=0) / 400)
DARK, BRIGHT = (25 + _SPOT).astype(np.uint8), (205 + _SPOT).astype(np.uint8)


def bright_probability(brightness: NDArray[np.float64] | float, slope: float = SLOPE) -> Any:
    """What the graph computes for the second class: softmax over (-z, z) / 2 with z = slope * (brightness - 0.5)."""
    return 1 / (1 + np.exp(-slope * (np.asarray(brightness) - 0.5)))


def write_graph(folder: Path, slope: float = SLOPE) -> None:
    """`model.xml` and `model.bin`: float32 (N, 64, 64, 1) -> mean grey value -> affine -> softmax over two classes."""
    openvino = load_openvino()
    from openvino import opset13 as ops

    radiograph = ops.parameter([-1, IMAGE_SIZE, IMAGE_SIZE, 1], np.float32, name="radiograph")
    # The radiograph is its own feature map of one channel, so that these versions have class activation maps too.
    brightness = ops.reduce_mean(radiograph, np.array([1, 2]), keep_dims=False)
    weights = np.array([[-slope / 2, slope / 2]], np.float32)
    logits = ops.add(ops.matmul(brightness, weights, False, False), np.array([slope / 4, -slope / 4], np.float32))
    graph = openvino.Model([ops.softmax(logits, 1)], [radiograph], "brightness")
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)


def golden(slope: float = SLOPE) -> dict[str, Any]:
    images = artifacts.golden_images(7, 2, IMAGE_SIZE)
    bright = bright_probability(images.mean(axis=(1, 2)) / 255, slope)
    return {"seed": 7, "count": 2, "outputs": np.stack([1 - bright, bright], axis=1).tolist()}


def manifest(slope: float = SLOPE, **changes: Any) -> dict[str, Any]:
    figures = {"n": 10, "accuracy": 0.9, "auc": 0.95, "precision": 0.9, "recall": 0.9, "f1": 0.9, "warnings": []}
    content = {
        "architecture": "Custom_CNN",
        "image_size": IMAGE_SIZE,
        "classes": CLASSES,
        "positive_class": "PNEUMONIA",
        "preprocessing": {"id": "grey", "version": 1, "fit": "pad"},
        "threshold": 0.5,
        "temperature": 1.0,
        "metrics": {"test": figures, "validation": figures},
        "configuration": PRESETS["quick"].configuration.to_json(),
        "initial_weights": "scratch",
        "environment": {"python": "3.11"},
        "golden": golden(slope),
    }
    return content | changes


def stage(slope: float = SLOPE, *, graph: bool = True, **changes: Any) -> tuple[Path, str, dict[str, Any]]:
    """A saved artifact folder that has no number yet; its digest and its manifest."""
    scratch = Path(settings.MODEL_ROOT) / "registry" / ".staging" / str(next(_numbers))
    if graph:
        write_graph(scratch / "graph", slope)
    content = manifest(slope, **changes)
    sha256 = artifacts.save(
        scratch / "version",
        manifest=content,
        weights={"head/kernel": np.array([[-slope / 2, slope / 2]], np.float32)},
        openvino=scratch / "graph" if graph else None,
        predictions={"test_labels": np.array([0, 1])},
    )
    return scratch / "version", sha256, content


def make_version(
    condition: Condition, slope: float = SLOPE, *, by: Any = None, graph: bool = True, **changes: Any
) -> ModelVersion:
    """A registered version with real files. A negative slope gives one that decides the other way round."""
    staged, sha256, content = stage(slope, graph=graph, **changes)
    return ModelVersion.objects.register(
        condition,
        staged,
        sha256=sha256,
        manifest=content,
        by=by,
        dataset_name="CHEST/study",
        dataset_digest="d" * 64,
        split_digest="s" * 64,
        origin="made in a test",
    )
