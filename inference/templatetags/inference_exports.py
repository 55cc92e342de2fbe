"""For the panel of a prediction's files for other systems."""

from typing import Any

from django import template

from inference import exporting
from inference.models import Prediction

register = template.Library()


@register.simple_tag
def dicom_source(prediction: Prediction, user: Any) -> str:
    """Where the header for a DICOM result comes from: "kept", "gone" (to be sent again) or "none" (no DICOM image)."""
    if not (prediction.study_uid and prediction.series_uid and prediction.sop_uid):
        return "none"
    return "kept" if exporting.is_source_kept(prediction, user) else "gone"
