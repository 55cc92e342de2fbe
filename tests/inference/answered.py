"""Radiographs, and answers about them that were really computed."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.models import Prediction, ServingPolicy
from registry.models import ModelVersion
from tests.datasets.files import dicom, encode
from tests.inference.versions import make_version
from xrayplatform.conditions import Condition


def in_service(condition: Condition, by: Any, **changes: Any) -> ModelVersion:
    """A version that answers, also about films that look like drawings to the gate."""
    ServingPolicy.objects.update_or_create(condition=condition, defaults={"on_picture": "warn"})
    version = make_version(condition, **changes)
    version.activate(by=by, reason="agreed")
    return version


def film(height: int = 48, width: int = 96, spot: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A dim picture that is bright about its middle, or about `spot` (row, column)."""
    rows, columns = np.mgrid[0:height, 0:width]
    row, column = spot or (height // 2, width // 2)
    glow = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * (height / 10) ** 2))
    return np.asarray(30 + 200 * glow, np.uint8)


def analysed(condition: Condition, by: Any, pixels: NDArray[np.uint8] | None = None, **way: Any) -> Prediction:
    content = encode(film() if pixels is None else pixels, "PNG")
    return Prediction.objects.analyse(condition, content, by=by, **way).prediction


def fine_dicom(values: NDArray[np.uint16], **header: Any) -> bytes:
    """12 bits, shown from 0 to 4095."""
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12, "HighBit": 11}
    return dicom(values, **window | header)


def pixels_of(response: Any) -> NDArray[Any]:
    """The picture that an address answered with."""
    assert response.status_code == 200, response.content
    assert response["Content-Type"] == "image/png"
    return np.asarray(Image.open(BytesIO(response.content)))
