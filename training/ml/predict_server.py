"""What people write to serve a network: decode with Pillow, `model.predict`, answer JSON. To measure beside.

A WSGI application for gunicorn. The environment variable NETWORK names a `.keras` file; a request's body is the file
of one radiograph. It checks nothing, stores nothing and knows no users.
"""

import json
import os
from collections.abc import Callable, Iterable
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DICOM_AT = slice(128, 132)


@cache
def network() -> Any:
    from training.ml.runtime import keras

    return keras.models.load_model(os.environ["NETWORK"], compile=False, safe_mode=True)


def decoded(content: bytes, size: int) -> NDArray[np.float32]:
    """float32 (1, S, S, 1), 0..1."""
    picture = _of_dicom(content) if content[DICOM_AT] == b"DICM" else Image.open(BytesIO(content)).convert("L")
    grey = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    return grey[None, :, :, None] / np.float32(255)


def _of_dicom(content: bytes) -> Image.Image:
    import pydicom

    stored = pydicom.dcmread(BytesIO(content)).pixel_array.astype(np.float32)
    low, high = float(stored.min()), float(stored.max())
    return Image.fromarray(np.uint8(255 * (stored - low) / max(high - low, 1.0)))


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if not content:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ready"]
    model = network()
    probabilities = model.predict(decoded(content, model.input_shape[1]), verbose=0)[0]
    answer = json.dumps({"probabilities": [float(value) for value in probabilities]}).encode()
    start_response("201 Created", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]
