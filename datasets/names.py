"""What the names of files, folders, columns and classes say: pure text, nothing is opened here."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

EXTENSIONS: Final = (".jpg", ".jpeg", ".png", ".dcm")
# Beyond this many problems of one kind only their number is told.
MAX_LISTED: Final = 500
# Characters of a name that the tables hold; what is longer is left out and reported.
MAX_DATASET_NAME: Final = 400
MAX_CLASS_NAME: Final = 200
MAX_IMAGE_PATH: Final = 700
# More folders, or more values in a column, than this are patients or studies, not classes.
MAX_CLASSES: Final = 100

SPLIT_WORDS: Final = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "testset": "test",
}
NEGATIVE_WORDS: Final = frozenset(
    {"normal", "negative", "neg", "healthy", "benign", "control", "controls", "no", "non", "not", "without", "absent"}
    | {"ok", "okay", "intact", "unremarkable", "well", "clear", "0"}
)
# Folders of one patient, as some archives have them inside a class folder. Where a patient's folder and a study's lie
# inside each other the patient's tells more, whichever is outside.
PATIENT_FOLDERS: Final = (
    re.compile(r"(?:patient|pat|subject|subj)[-_ ]?\d\w*"),
    re.compile(r"(?:case|study|series)[-_ ]?\d\w*"),
)
# A study's folder that bears its label, as study1_negative in the MURA collection.
STUDY_LABEL: Final = re.compile(r"(?:case|study|series)[-_ ]?\d+[-_ ]([^\W\d_][^\W_]*)")
BODY_PARTS: Final = frozenset(
    {"abdomen", "ankle", "arm", "breast", "chest", "elbow", "finger", "foot", "forearm", "hand", "head", "hip"}
    | {"humerus", "knee", "leg", "neck", "pelvis", "shoulder", "skull", "spine", "teeth", "thorax", "toe", "wrist"}
)
IMAGE_FOLDERS: Final = frozenset({"images", "image", "imgs", "img", "pictures", "xrays"})
MASK_WORDS: Final = frozenset(
    {"mask", "masks", "segmentation", "segmentations", "label", "labels", "annotation", "annotations"}
    | {"overlay", "overlays"}
)
# Characters that reorder the text around them: never needed in a file name, often used to disguise one.
BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Problem:
    """Something a user should know. path: POSIX, printable, relative to the dataset; reason: in words."""

    path: str
    reason: str
    code: str = ""


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts 2 before 10 and ignores case."""
    return tuple(_part_key(part) for part in re.split(r"(\d+)", text))


def _part_key(part: str) -> tuple[int, int, str]:
    if not part.isdecimal():
        return 1, 0, part.casefold()
    # By length, then by digit: a number of 10,000 digits is a text like any other, and never becomes an int.
    digits = part.lstrip("0")
    return 0, len(digits), digits


def exact_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """`natural_key`, with an order of their own for texts that differ in case or leading zeros alone."""
    return natural_key(text), text


def printable(text: str) -> str:
    """The text with control, bidirectional and undecodable characters spelt out, safe to show and to store."""
    return "".join(char if _harmless_char(char) else f"\\u{ord(char):04x}" for char in text)


def shortened(text: str) -> str:
    """A printable text of at most 120 characters, for names that are too long to be used."""
    shown = printable(text)
    return shown if len(shown) <= 120 else f"{shown[:80]}…{shown[-39:]}"


def capped(problems: Sequence[Problem], total: int | None = None) -> list[Problem]:
    """The first MAX_LISTED problems of one kind and the number of the others. total: how many there are of them."""
    listed = list(problems[:MAX_LISTED])
    more = (len(problems) if total is None else total) - len(listed)
    if listed and more > 0:
        listed.append(Problem(".", f"{more} more of these: {listed[0].reason}", "more"))
    return listed


def harmless(text: str) -> bool:
    """Whether every character can be shown."""
    return all(map(_harmless_char, text))


@functools.cache
def _harmless_char(char: str) -> bool:
    return char not in BIDI and unicodedata.category(char) not in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")


def words(name: str) -> list[str]:
    """The words in lower case, also those of CamelCase."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^0-9a-z]+", spaced.casefold()) if word]


def plain(name: str) -> str:
    """Letters and digits alone, in lower case: "Patient_ID " and "patientId" are one."""
    return "".join(re.findall(r"[^\W_]+", name.casefold()))


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def split_of(name: str) -> str:
    """ "train", "validation", "test", or "" for a folder that is no part of a split."""
    return SPLIT_WORDS.get(plain(name), "")


def is_mask(name: str) -> bool:
    """Whether a folder's name says that it holds drawings on radiographs instead of radiographs."""
    return bool(MASK_WORDS.intersection(words(name)))


def patient_folder(folders: Sequence[str]) -> str | None:
    """The name, in lower case, of the folder of one patient (or of one study) among the folders above an image."""
    names = [name.casefold() for name in folders]
    return next((name for pattern in PATIENT_FOLDERS for name in names if pattern.fullmatch(name)), None)


def study_label(name: str) -> str:
    """The label in the name of a study's folder: "negative" in study1_negative; "" without."""
    match = STUDY_LABEL.fullmatch(name.casefold())
    return match[1] if match else ""


def body_part(folders: Sequence[str]) -> str:
    return next((word for name in folders for word in words(name) if word in BODY_PARTS), "")


def positive_class(classes: Sequence[str]) -> str:
    """For two classes the one whose name does not deny something; the second when the names do not tell."""
    if len(classes) != 2:
        return ""
    first, second = classes
    return first if _is_negative(second, first) and not _is_negative(first, second) else second


def names_tell(classes: Sequence[str]) -> bool:
    """Whether the names of two classes say which one means disease: exactly one of them denies something."""
    first, second = classes
    return _is_negative(first, second) != _is_negative(second, first)


def denies(name: str) -> bool:
    """Whether the name of a class says that something is absent."""
    return bool(NEGATIVE_WORDS.intersection(words(name)))


def _is_negative(name: str, other: str) -> bool:
    return denies(name) or plain(name) in {prefix + plain(other) for prefix in ("no", "non", "not", "un", "without")}


def is_ordinal(classes: Sequence[str]) -> bool:
    """Three or more consecutive grades, as in 0 1 2 3 4 or "Grade 1" "Grade 2" "Grade 3"."""
    matches = [re.fullmatch(r"(\D*)(\d{1,9})", name) for name in classes]
    if len(classes) < 3 or not all(matches):
        return False
    prefixes = {match[1].casefold() for match in matches if match}
    numbers = [int(match[2]) for match in matches if match]
    return len(prefixes) == 1 and numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
