"""Which condition an image that arrives without being asked for belongs to: by modality, body part and sender."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """Images of this modality and body part from this sender go to a condition (its slug). "" stands for any."""

    modality: str
    body_part: str
    condition: str
    sender: str = ""


def route(modality: str, body_part: str, routes: Sequence[Route], sender: str = "") -> str | None:
    """The condition of the first route that fits, in the order that an administrator gave them; None when none does.

    Names are compared as DICOM code strings: without regard to case and blanks around them. The sender's is not: AE
    titles differ by case.
    """
    told = (_word(modality), _word(body_part))
    return next((found.condition for found in routes if _fits(found, *told, sender.strip())), None)


def _fits(found: Route, modality: str, body_part: str, sender: str) -> bool:
    return (
        _word(found.modality) in ("", modality)
        and _word(found.body_part) in ("", body_part)
        and found.sender.strip() in ("", sender)
    )


def _word(text: str) -> str:
    return text.strip().upper()
