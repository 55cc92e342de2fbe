"""Is this input fit for the model? Each check has a verdict in words, which is shown and stored with the answer.

`look` judges what can be told without the network; `judge` adds what its features tell, from the same forward pass as
the probabilities. Whether a verdict only warns or the answer is refused is for the condition's policy to decide.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from datasets import quality
from datasets.names import words
from datasets.radiograph import Radiograph

from .measures import Distributions, measures, picture_of
from .reference import Reference

Outcome = Literal["pass", "warn", "fail", "unknown"]

# In the order in which they are shown.
CHECKS: Final = {
    "size": "Size",
    "contrast": "Contrast",
    "picture": "Kind of picture",
    "colour": "Colour",
    "modality": "Kind of examination",
    "body-part": "Body part",
    "inverted": "Negative",
    "unlike": "Likeness to the training images",
}
# Longer side over the shorter one.
LONG: Final = 4.0
VERY_LONG: Final = 8.0
# Grey values of 256 between the darkest and the brightest 0.5 % of the pixels.
FAINT: Final = 20
EMPTY: Final = 4
UNLIKE_A_RADIOGRAPH: Final = quality.HIGH["unlikeness"].absolute
NO_RADIOGRAPH: Final = 0.9
NEGATIVE: Final = quality.HIGH["inversion"].absolute


@dataclass(frozen=True)
class Verdict:
    """What one of CHECKS says of an image.

    outcome: "pass"; "warn", somebody has to look; "fail", the model's answer means nothing unless a person knows
    better; "unknown", it cannot be told. value, limit: what was measured and where suspicion begins; None where it is
    no number. text: full sentences for clinicians: what, why, what to do.
    """

    check: str
    outcome: Outcome
    value: float | None
    limit: float | None
    text: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """What was seen without the network. measures: of `measures.measures`, still without the distance."""

    verdicts: tuple[Verdict, ...]
    measures: dict[str, float]


def look(
    radiograph: Radiograph,
    pixels: NDArray[np.uint8],
    *,
    fit: str,
    cropped: bool = False,
    body_part: str = "",
    usual: Distributions | None = None,
) -> Look:
    """Every check but those of the features. Takes about 2 ms.

    pixels: uint8 (S, S), the network's input of this radiograph; fit: "pad" or "stretch", how it became square;
    cropped: without its borders. body_part: of the condition, "" where it has none. usual: of the version, where its
    own images are known: what was usual among them is not called small.
    """
    seen = picture_of(pixels, radiograph.width, radiograph.height, fit, cropped)
    found = measures(seen, radiograph.width, radiograph.height)
    contrast = _contrast(seen)
    verdicts = (
        _size(radiograph.width, radiograph.height, len(pixels), usual),
        contrast,
        _picture(found["unlikeness"], contrast.outcome == "fail"),
        _colour(radiograph.colour),
        _modality(radiograph.modality),
        _body_part(radiograph.body_part, body_part),
    )
    return Look(verdicts, found)


def wants_negative(seen: Look, reference: Reference | None, distance: float | None) -> bool:
    """Whether `judge` needs the distance of the image's negative: a second pass through the network, seldom needed."""
    if reference is None or distance is None:
        return False
    return distance > reference.limit or seen.measures["inversion"] > NEGATIVE


def judge(
    seen: Look, reference: Reference | None, distance: float | None, negative_distance: float | None = None
) -> list[Verdict]:
    """The verdict of each of CHECKS, in their order.

    reference: of the version; None where it has none. distance: of `Reference.distances` of this image.
    negative_distance: of its negative, made from the radiograph before it was padded; where `wants_negative` asks.
    """
    inverted = _inverted(seen.measures["inversion"], reference, distance, negative_distance)
    return [*seen.verdicts, inverted, _unlike(reference, distance)]


def worst(verdicts: Iterable[Verdict]) -> Outcome:
    """The most serious of the outcomes: fail, warn, unknown, pass. "pass" of none."""
    order: tuple[Outcome, ...] = ("pass", "unknown", "warn", "fail")
    return max((verdict.outcome for verdict in verdicts), key=order.index, default="pass")


# --- Pixels ----------------------------------------------------------------------------------------------------------


def _size(width: int, height: int, image_size: int, usual: Distributions | None) -> Verdict:
    longest, shortest = max(width, height), max(min(width, height), 1)
    limit = min(float(image_size), _usually_at_least(usual))
    picture = f"The picture is {width:,} x {height:,} pixels"
    if longest < limit:
        text = (
            f"{picture}, but the model looks at {image_size} x {image_size}: it had to be enlarged, and fine details "
            "are missing. Export the radiograph again in its full size."
        )
        return Verdict("size", "fail" if longest < limit / 2 else "warn", float(longest), limit, text)
    ratio = longest / shortest
    if ratio > LONG:
        text = (
            f"{picture}, {ratio:.1f} times as long as wide: a strip of a radiograph, or a row of several. The model "
            "was made for whole radiographs. Export the radiograph again as one whole picture."
        )
        return Verdict("size", "fail" if ratio > VERY_LONG else "warn", round(ratio, 2), LONG, text)
    return Verdict("size", "pass", float(longest), limit, f"{picture}, enough for the model.")


def _usually_at_least(usual: Distributions | None) -> float:
    """The longer side in pixels that all but 1 % of the version's own images have at least; infinite if not known."""
    if usual is None:
        return np.inf
    found = [usual.measures[name].quantile(0.01) for name in ("width", "height") if name in usual.measures]
    return max((side for side in found if side is not None), default=np.inf)


def _contrast(seen: NDArray[np.uint8]) -> Verdict:
    below = np.cumsum(np.bincount(seen.reshape(-1), minlength=256)) / seen.size
    low, high = np.searchsorted(below, (0.005, 0.995))
    levels = float(high - low)
    if levels < EMPTY:
        text = (
            "The picture is empty: all of it has the same grey value. There is nothing for the model to read. Check "
            "the exposure and the export, and send the radiograph again."
        )
        return Verdict("contrast", "fail", levels, float(FAINT), text)
    if levels < FAINT:
        text = (
            f"The picture is very faint: it uses {levels:.0f} of 256 grey values. Bone and soft tissue can hardly be "
            "told apart. Export the radiograph again with the window that a reader would use."
        )
        return Verdict("contrast", "warn", levels, float(FAINT), text)
    return Verdict("contrast", "pass", levels, float(FAINT), f"The picture uses {levels:.0f} of 256 grey values.")


def _picture(unlikeness: float, empty: bool) -> Verdict:
    if empty:
        text = "It cannot be told what kind of picture this is, because it is empty."
        return Verdict("picture", "unknown", None, UNLIKE_A_RADIOGRAPH, text)
    if unlikeness > UNLIKE_A_RADIOGRAPH:
        text = (
            "The picture looks like a drawing, a document, a screenshot or noise and not like a radiograph. The model "
            "knows radiographs alone, and its answer to anything else means nothing. Check that the right file was "
            "sent."
        )
        outcome: Outcome = "fail" if unlikeness > NO_RADIOGRAPH else "warn"
        return Verdict("picture", outcome, unlikeness, UNLIKE_A_RADIOGRAPH, text)
    text = "The picture is no drawing, document, screenshot or noise."
    return Verdict("picture", "pass", unlikeness, UNLIKE_A_RADIOGRAPH, text)


def _colour(colour: float) -> Verdict:
    value, limit = round(colour, 4), quality.STRONG_COLOUR
    if colour > quality.PHOTOGRAPH_COLOUR:
        text = (
            "The picture is as colourful as a photograph, but radiographs are grey. The model's answer to a photograph "
            "means nothing. Check that the right file was sent."
        )
        return Verdict("colour", "fail", value, limit, text)
    if colour > limit:
        text = (
            "The picture has strong colours: perhaps a photograph of a screen, or marks drawn on a radiograph. The "
            "model saw them as shades of grey, and may have been misled. Send the original radiograph without marks."
        )
        return Verdict("colour", "warn", value, limit, text)
    return Verdict("colour", "pass", value, limit, "The picture is grey, or tinted no more than scanned film.")


# --- What the file says ----------------------------------------------------------------------------------------------

# By DICOM's terms (PS3.3, C.7.3.1.1.1), and what some devices write instead of them.
PROJECTIONS: Final = frozenset({"CR", "DX", "DR", "RG", "RF", "XA", "MG", "IO", "PX", "XR"})
OTHER_EXAMINATIONS: Final = {
    "CT": "computed tomography",
    "MR": "magnetic resonance",
    "US": "ultrasound",
    "NM": "nuclear medicine",
    "PT": "positron emission tomography",
    "BMD": "bone density",
    "ECG": "electrocardiography",
    "ES": "endoscopy",
    "GM": "microscopy",
    "OP": "ophthalmic photography",
    "OPT": "ophthalmic tomography",
    "SM": "slide microscopy",
    "XC": "photography",
}

_ARM: Final = frozenset({"shoulder", "upper arm", "elbow", "forearm", "wrist", "hand"})
_LEG: Final = frozenset({"hip", "thigh", "knee", "lower leg", "ankle", "foot"})
# Regions that a word stands for: DICOM's defined terms (PS3.16, annex L), folders' and other languages' words. Two
# words agree when they have a region in common, so that a hand is an arm and a knee is none.
REGIONS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(("chest", "thorax", "torax", "lung", "lungs", "rib", "ribs", "sternum"), frozenset({"chest"})),
    **dict.fromkeys(("clavicle", "scapula", "shoulder", "schulter"), frozenset({"shoulder"})),
    **dict.fromkeys(("humerus", "upperarm"), frozenset({"upper arm"})),
    **dict.fromkeys(("elbow", "ellbogen", "codo"), frozenset({"elbow"})),
    **dict.fromkeys(("forearm", "lowerarm", "radius", "ulna", "radiusulna", "unterarm"), frozenset({"forearm"})),
    **dict.fromkeys(("wrist", "scaphoid"), frozenset({"wrist", "hand"})),
    **dict.fromkeys(("hand", "finger", "fingers", "thumb", "mano"), frozenset({"hand"})),
    **dict.fromkeys(("arm", "upex", "upexm"), _ARM),
    **dict.fromkeys(("hip", "hips"), frozenset({"hip"})),
    **dict.fromkeys(("pelvis", "becken"), frozenset({"pelvis", "hip"})),
    **dict.fromkeys(("femur", "thigh", "upperleg"), frozenset({"thigh"})),
    **dict.fromkeys(("knee", "knees", "patella", "knie", "genou", "rodilla"), frozenset({"knee"})),
    **dict.fromkeys(("tibia", "fibula", "tibfib", "tibiafibula", "lowerleg", "calf"), frozenset({"lower leg"})),
    "ankle": frozenset({"ankle", "foot"}),
    **dict.fromkeys(("foot", "feet", "toe", "toes", "heel", "calcaneus"), frozenset({"foot"})),
    **dict.fromkeys(("leg", "lowex", "lowexm"), _LEG),
    **dict.fromkeys(("extremity", "extremities", "limb"), _ARM | _LEG),
    **dict.fromkeys(("abdomen", "abdo", "kub", "kidney", "bladder"), frozenset({"abdomen"})),
    "abdomenpelvis": frozenset({"abdomen", "pelvis"}),
    **dict.fromkeys(("breast", "mamma"), frozenset({"breast"})),
    **dict.fromkeys(("head", "skull", "orbit", "sinus", "nasal", "face", "zygoma"), frozenset({"head"})),
    **dict.fromkeys(("teeth", "tooth", "jaw", "mandible", "maxilla", "tmj"), frozenset({"head", "teeth"})),
    "neck": frozenset({"neck"}),
    "cspine": frozenset({"cervical spine", "neck"}),
    **dict.fromkeys(("tspine", "dspine"), frozenset({"thoracic spine"})),
    **dict.fromkeys(("lspine", "lsspine", "sspine", "sacrum", "coccyx"), frozenset({"lumbar spine"})),
    "spine": frozenset({"cervical spine", "thoracic spine", "lumbar spine"}),
}


def _modality(modality: str) -> Verdict:
    code = modality.strip().upper()
    if code in OTHER_EXAMINATIONS:
        text = (
            f"The file says that it comes from {OTHER_EXAMINATIONS[code]} ({code}), but the model reads plain "
            "radiographs. Its answer to anything else means nothing. Check that the right series was sent."
        )
        return Verdict("modality", "fail", None, None, text)
    if code in PROJECTIONS:
        return Verdict("modality", "pass", None, None, f"The file says that it is a radiograph ({code}).")
    text = "The file does not say by what kind of examination it was made. Make sure that it is a plain radiograph."
    return Verdict("modality", "unknown", None, None, text)


def _body_part(told: str, wanted: str) -> Verdict:
    told_regions, wanted_regions = _regions(told), _regions(wanted)
    if not told_regions:
        text = "The file does not say which body part it shows. Make sure that it is the one this model was made for."
        return Verdict("body-part", "unknown", None, None, text)
    if not wanted_regions:
        text = "It is not recorded which body part this model was made for. Make sure that the radiograph shows it."
        return Verdict("body-part", "unknown", None, None, text)
    shown, made_for = _in_words(told), _in_words(wanted)
    if told_regions.isdisjoint(wanted_regions):
        text = (
            f"The file says that it shows the {shown}, but this model was made for the {made_for}. Its answer to "
            f"another body part means nothing. Choose the model for the {shown}; if the file is wrong, correct the "
            "body part in it where the radiograph comes from."
        )
        return Verdict("body-part", "fail", None, None, text)
    text = f"The file says that it shows the {shown}; this model was made for the {made_for}."
    return Verdict("body-part", "pass", None, None, text)


def _regions(text: str) -> frozenset[str]:
    return frozenset().union(*(REGIONS[word] for word in _known(text)))


def _known(text: str) -> list[str]:
    """The words of REGIONS in a text; where none is, all of it as one word, as in UP_EXM or TIB-FIB."""
    parts = words(text)
    known = [word for word in parts if word in REGIONS]
    joined = "".join(parts)
    return known or ([joined] if joined in REGIONS else [])


def _in_words(text: str) -> str:
    """Only words that are known: what else a header holds is not repeated."""
    return " and ".join(dict.fromkeys(_known(text)))


# --- Features --------------------------------------------------------------------------------------------------------


def _inverted(
    inversion: float, reference: Reference | None, distance: float | None, negative_distance: float | None
) -> Verdict:
    looks_negative = inversion > NEGATIVE
    if reference is None or distance is None or negative_distance is None:
        # Without a second opinion; where there is a reference, it was not asked because nothing was suspicious.
        return _as_negative("warn" if looks_negative else "pass", inversion)
    nearer = negative_distance < distance
    if nearer and negative_distance <= reference.limit < distance:
        return _as_negative("fail", inversion)
    return _as_negative("warn" if nearer and looks_negative else "pass", inversion)


def _as_negative(outcome: Outcome, inversion: float) -> Verdict:
    if outcome == "pass":
        text = "Bones are bright on a dark background, as in the training images."
    else:
        grounds = (
            "its negative is like the training images, and the picture itself is not"
            if outcome == "fail"
            else "bones seem to be dark on a bright background"
        )
        text = (
            f"The picture seems to be a negative: {grounds}. The model takes a negative for another kind of picture. "
            "Invert it where it comes from, or export it again with bones bright, and analyse it again."
        )
    return Verdict("inverted", outcome, inversion, NEGATIVE, text)


def _unlike(reference: Reference | None, distance: float | None) -> Verdict:
    if reference is None or distance is None:
        text = (
            "It cannot be told whether this radiograph is like those that the model learned from, because too few of "
            "them are on this platform. Make sure that it is of the kind that the model was made for."
        )
        return Verdict("unlike", "unknown", None, None, text)
    limit = round(reference.limit, 3)
    if not np.isfinite(distance):
        text = (
            "The network computes nothing that could be compared from this picture. Do not use its answer, and tell "
            "the model's manager."
        )
        return Verdict("unlike", "fail", None, limit, text)
    return Verdict("unlike", *_likeness(reference, distance), limit, _likeness_in_words(reference, distance))


def _likeness(reference: Reference, distance: float) -> tuple[Outcome, float]:
    outcome: Outcome = "pass" if distance <= reference.limit else "warn" if distance <= reference.far else "fail"
    return outcome, round(distance, 3)


def _likeness_in_words(reference: Reference, distance: float) -> str:
    found = f"distance {distance:.1f}, up to {reference.limit:.1f} is usual"
    if distance <= reference.limit:
        return f"The radiograph is like those that the model learned from: {found}."
    check = (
        "Check the body part, the projection, the position and the exposure, and read it without the model if it is "
        "another kind of picture."
    )
    if distance > reference.far:
        return (
            f"The radiograph is far from all that the model learned from: {found}. The model's answer means nothing "
            f"for such a picture. {check}"
        )
    return (
        f"The radiograph is unlike those that the model learned from: {found}, with at most "
        f"{reference.false_alarm_rate:.1%} of the right ones beyond it. The model's figures may not hold for such a "
        f"picture. {check}"
    )
