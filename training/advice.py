"""What to think of before a training: warnings that the pages, the API and the command give alike."""

import re
from collections.abc import Mapping
from typing import Any

from xrayplatform.conditions import Condition

# What a picture that is swapped left for right gets wrong, by words for the part of the body.
HEART = "the heart lies on the left, and a mirrored chest shows what hardly any patient has"
MARKERS = "the picture shows one of two sides, and its side marker is mirrored with it"
SIDED = {
    HEART: ("chest", "thorax", "lung", "lungs", "heart", "rib", "ribs"),
    "the liver and the stomach each lie on their own side": ("abdomen", "abdominal", "stomach", "liver"),
    MARKERS: (
        "knee", "hand", "arm", "forearm", "humerus", "wrist", "elbow", "shoulder", "clavicle", "finger", "thumb", "hip",
        "pelvis", "leg", "femur", "tibia", "ankle", "foot", "toe", "heel", "breast", "mammography",
    ),
}  # fmt: skip
# Seen from the front or from the side they have no left or right that a network would have to keep apart.
WITHOUT_SIDE = ("spine", "spinal", "skull", "neck", "sacrum", "coccyx")


def warnings_of(configuration: Mapping[str, Any], condition: Condition) -> list[str]:
    """What to think of, in sentences; empty when there is nothing. configuration: as a run keeps it."""
    warning = flip_warning(condition) if configuration.get("flip") else ""
    return [warning] if warning else []


def flip_warning(condition: Condition) -> str:
    """Why images of this condition should not be mirrored; empty where the anatomy has no side."""
    words = set(re.findall(r"[a-z]+", f"{condition.body_part} {condition.slug}".lower()))
    for reason, parts in SIDED.items():
        if words.intersection(parts):
            return f"Flip is on, but {reason}. Switch it off unless left and right really mean nothing here."
    if words.intersection(WITHOUT_SIDE):
        return ""
    return (
        f"Flip is on, and it is not known which part of the body {condition} shows. Keep it only where left and right "
        "mean nothing; an administrator can name the body part of the condition."
    )
