"""What the platform tells other systems about one prediction; everything here is already decided, nothing identifies.

Who the patient is comes from the header of the image itself (see dicom_context), because the platform does not keep it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID, uuid5

PLATFORM: Final = "X-ray platform"
# What every result carries where others see it.
RESEARCH_USE: Final = "AI result, research use"
# The designator of the platform's own codes; DICOM reserves those that begin with 99 for private use (PS3.3 8.2).
PRIVATE_SCHEME: Final = "99XRP"
PRIVATE_SCHEME_NAME: Final = "X-ray platform conditions and classes"

_NAMESPACE: Final = UUID("5d0c1c8e-3b7e-4b0f-9b55-6f0f0b7e2a11")
_NEGATED: Final = re.compile(r"(no|non|not|without)\b|non", re.IGNORECASE)


class Concept(NamedTuple):
    """A code of a coding scheme. value: at most 16 characters, as DICOM has it."""

    value: str
    scheme: str
    meaning: str


# SNOMED CT concepts by the words that the name of the positive class, or of the condition with it, has to contain.
_KNOWN: Final = (
    (("pneumonia",), Concept("233604007", "SCT", "Pneumonia")),
    (("fractur",), Concept("125605004", "SCT", "Fracture of bone")),
    (("osteoarthritis", "knee"), Concept("239873007", "SCT", "Osteoarthritis of knee")),
)


@dataclass(frozen=True)
class Result:
    """One prediction as others are told of it.

    probabilities: by class, in the order of the model's classes. positive_class: "" when no class is the positive one
    (grades). threshold: from which probability on the positive class is decided; None without one. cautions: sentences
    of the input gate. time: aware, in the hospital's own time zone, because the dates of a study are in that too.
    study_uid, series_uid, sop_uid: of the image; "" when it was no DICOM image. site: who runs the platform.
    """

    prediction_id: UUID
    condition: str
    condition_slug: str
    intended_use: str
    version: str
    sha256: str
    probabilities: Mapping[str, float]
    decision: str
    positive_class: str
    threshold: float | None
    time: datetime
    site: str
    software: str
    cautions: tuple[str, ...] = ()
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""

    def __post_init__(self) -> None:
        if self.decision not in self.probabilities:
            raise ValueError(f"The decision {self.decision!r} is none of the classes.")
        if self.time.tzinfo is None:
            raise ValueError("The time of a result says in which zone it is.")

    @property
    def is_positive(self) -> bool | None:
        """Whether the positive class was decided; None when there is no such class."""
        return self.decision == self.positive_class if self.positive_class else None

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """Classes with their probabilities, most probable first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])

    def sentence(self) -> str:
        """The result in one line of plain English."""
        chances = ", ".join(f"{name} {chance:.3f}" for name, chance in self.ranked)
        return f"{RESEARCH_USE}. {self.condition}: {self.decision} ({chances}) by {self.version}."


def uid(*parts: object) -> str:
    """A DICOM UID below 2.25 (PS3.5 B.2), always the same for the same parts: sending twice makes one instance."""
    return f"2.25.{uuid5(_NAMESPACE, ':'.join(map(str, parts))).int}"


def device_uid(result: Result) -> str:
    """The UID of this installation of the platform."""
    return uid("device", result.site)


def decision_name(result: Result) -> Concept:
    """What was asked: the name of the coded decision."""
    return _private("D", result.condition_slug, "", f"Decision on {result.condition}")


def probability_name(result: Result, name: str) -> Concept:
    """The name of the number that is the probability of a class."""
    return _private("P", result.condition_slug, name, f"Probability of {name}")


def class_concept(result: Result, name: str) -> Concept:
    """The code of a class: SNOMED CT for a positive class that is known there, else one of the platform's own."""
    if name == result.positive_class and not _NEGATED.match(name):
        text = name.casefold()
        for words, concept in _KNOWN:
            # The class names the disease; the rest, such as the joint, may be in the name of the condition.
            if words[0] in text and all(word in f"{text} {result.condition.casefold()}" for word in words):
                return concept
    return _private("C", result.condition_slug, name, name)


def _private(kind: str, slug: str, name: str, meaning: str) -> Concept:
    digest = hashlib.sha256(f"{kind}|{slug}|{name}".encode()).hexdigest()
    return Concept(f"{kind}-{digest[:12]}", PRIVATE_SCHEME, long_string(meaning))


def long_string(text: str, length: int = 64) -> str:
    """Text as the value representation LO allows: no backslash, no control characters, at most `length` characters."""
    printable = "".join(character if character.isprintable() else " " for character in text.replace("\\", "/"))
    return " ".join(printable.split())[:length].strip()


def plain_text(text: str) -> str:
    """Text as UT and ST allow it, on one line."""
    return long_string(text, 1024)
