"""A version that learned nothing, for measuring how fast its architecture answers.

`python -m training.ml.untrained ARCHITECTURE FOLDER` writes `version/` (see registry.artifacts) and `network.keras`,
the same network for whoever calls Keras itself, and prints the digest of the version.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from datasets.imaging import PIPELINE
from registry import artifacts
from training.ml import architectures, export

CLASSES = ["NORMAL", "PNEUMONIA"]
IMAGE_SIZE = 224
THRESHOLD = 0.5


def write(architecture: str, folder: Path, seed: int = 0) -> str:
    """Write both; returns the digest of the version. seed: of the weights, so that versions differ."""
    from training.ml.runtime import keras

    keras.utils.set_random_seed(seed)
    model = architectures.build(architecture, image_size=IMAGE_SIZE, classes=len(CLASSES))
    nothing = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 1), np.float32)
    model.predict_on_batch(nothing)
    model.save(folder / "network.keras")
    manifest = {
        "architecture": architecture,
        "image_size": IMAGE_SIZE,
        "classes": CLASSES,
        "positive_class": CLASSES[1],
        "preprocessing": PIPELINE,
        "threshold": THRESHOLD,
        "temperature": 1.0,
        "metrics": {"test": {}, "validation": {}},
        "configuration": {},
        "initial_weights": "scratch",
        "environment": export.environment(),
        "golden": export.golden(model),
    }
    with tempfile.TemporaryDirectory() as scratch:
        export.to_openvino(model, Path(scratch))
        return artifacts.save(
            folder / "version",
            manifest=manifest,
            weights=export.weights_of(model),
            openvino=Path(scratch),
            predictions=None,
        )


if __name__ == "__main__":
    told = {"sha256": write(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))}
    sys.stdout.write(json.dumps(told) + "\n")
