"""File names that tell the patient: the patterns of well-known collections, and regular expressions of users.

A user's expression comes from a form, so it may be wrong, or take for ever: `compile_pattern` refuses what cannot be
compiled in reasonable time and memory, and every search has a time limit. Errors are texts for people.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import regex

from datasets.layouts import EXTENSIONS

MAX_LENGTH: Final = 200
# The engine writes counted repetitions out when it compiles: (?:(?:a{255}){255}){255} would take gigabytes.
MAX_EXPANDED: Final = 20_000
SECONDS_A_NAME: Final = 0.05
SECONDS_IN_ALL: Final = 2.0
# An ordinary search takes 2 microseconds; without this a million files would exhaust the 2 seconds.
SECONDS_MORE_A_NAME: Final = 20e-6
PREVIEW_LIMIT: Final = 20


class PatternError(Exception):
    """A user's pattern cannot be used; the text says why and what to do."""


class Named(NamedTuple):
    """What a file name says. key: equal for the files of one patient. example: a name as the pattern knows them."""

    key: str
    patient: str
    example: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What a pattern would do. examples: the first names, each with its patient; largest: images of the patient with
    most of them. The lists are capped, the numbers are of all names."""

    matched: int
    unmatched: int
    groups: int
    largest: int
    examples: list[tuple[str, str | None]]
    unmatched_examples: list[str]


def patients(text: str, paths: Sequence[str]) -> Iterator[Named | None]:
    """What each file name says of the patient by the user's pattern, or by the built-in ones where the text is empty.

    Raises PatternError, also between two names.
    """
    return _by_user(compile_pattern(text), paths) if text else _by_collections(paths)


def preview(text: str, names: Iterable[str], limit: int = PREVIEW_LIMIT) -> Preview:
    """What the pattern (empty: the built-in ones) finds in these file names or paths. Raises PatternError."""
    paths = list(names)
    found: Counter[str] = Counter()
    examples: list[tuple[str, str | None]] = []
    unmatched: list[str] = []
    for path, named in zip(paths, patients(text, paths), strict=True):
        if len(examples) < limit:
            examples.append((path, named.patient if named else None))
        if named:
            found[named.key] += 1
        elif len(unmatched) < limit:
            unmatched.append(path)
    matched = found.total()
    return Preview(
        matched, len(paths) - matched, len(found), max(found.values(), default=0), examples, unmatched[:limit]
    )


def without_extension(path: str) -> str:
    """The path without .jpg, .png and the like. Any other ending, as in 1.2.840.10008, belongs to the name."""
    extension = next((ending for ending in EXTENSIONS if path.lower().endswith(ending)), "")
    return path[: len(path) - len(extension)]


def _stem(path: str) -> str:
    return without_extension(path).rpartition("/")[2]


# --- Well-known collections ------------------------------------------------------------------------------------------


class _Collection(NamedTuple):
    """A way to name files after patients. Group 1 is the patient; example is shown to users."""

    expression: re.Pattern[str]
    example: str


COLLECTIONS: Final = (
    # Kermany et al. 2018, paediatric chests: at Kaggle, and as first published (NORMAL-28501-0001)
    _Collection(re.compile(r"(person\d+)_(?:bacteria|virus)_\d+", re.IGNORECASE), "person123_bacteria_4"),
    _Collection(re.compile(r"((?:NORMAL\d*-)?IM-\d+)-\d+(?:-\d+)?", re.IGNORECASE), "IM-0115-0001"),
    _Collection(re.compile(r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d{4}", re.IGNORECASE), "BACTERIA-28501-0001"),
    # Osteoarthritis Initiative: patient and side, so that both knees stay together
    _Collection(re.compile(r"(\d{7})[-_ ]?[LR](?:[-_ ].*)?", re.IGNORECASE), "9001695L"),
    # NIH ChestX-ray14
    _Collection(re.compile(r"(\d{8})_\d{3}"), "00000013_005"),
    # GRAZPEDWRI-DX, paediatric wrists
    _Collection(
        re.compile(r"(\d{4})_\d{10}_\d{2}_WRI-[LR]\d_[A-Z]\d{3}", re.IGNORECASE), "0001_1297860395_01_WRI-L1_M014"
    ),
    _Collection(re.compile(r"((?:patient|pat|subject|subj)[-_]?\d+)(?:[-_.].*)?", re.IGNORECASE), "patient12_view1"),
    _Collection(re.compile(r"(P\d{3,})[-_].+"), "P0012_left"),
)
COPY: Final = re.compile(r"[ _-]+copy(?:[ _-]*\(?\d+\)?)?$", re.IGNORECASE)
# A copy as browsers name it. Windows numbers different pictures like this too, so the first one has to be there.
NUMBERED: Final = re.compile(r" \(\d+\)$")
# What is before the first of these names the picture that the others were made from.
DERIVED: Final = re.compile(r"(.+?)(?:[-_](?:rotated|flipped|aug|augmented|crop)\d*)+", re.IGNORECASE)


def _by_collections(paths: Sequence[str]) -> Iterator[Named | None]:
    sources = frozenset(match[1] for match in map(DERIVED.fullmatch, map(_original, paths)) if match)
    numbered = any(NUMBERED.search(_stem(path)) for path in paths)
    present = frozenset(map(without_extension, paths)) if numbered else frozenset()
    return (_named(path, sources, present) for path in paths)


def _original(path: str) -> str:
    """The file's name without the endings that mark it as a copy."""
    return NUMBERED.sub("", COPY.sub("", _stem(path)))


def _named(path: str, sources: frozenset[str], present: frozenset[str]) -> Named | None:
    stem = _original(path)
    derived = DERIVED.fullmatch(stem)
    base = derived[1] if derived else stem
    for collection in COLLECTIONS:
        match = collection.expression.fullmatch(base)
        if match:
            return _by_name(match[1], collection.example)
    if derived or base in sources:
        return _by_name(base, "97-rotated2")
    whole = without_extension(path)
    copied = COPY.sub("", whole)
    if NUMBERED.search(copied) and NUMBERED.sub("", copied) in present:
        copied = NUMBERED.sub("", copied)
    return Named(f"file:{copied}", PurePosixPath(copied).name, "name - Copy") if copied != whole else None


def _by_name(value: str, example: str) -> Named:
    patient = value.casefold()
    return Named(f"name:{patient}", patient, example)


# --- Expressions of users --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pattern:
    """A user's regular expression. It is searched, upper and lower case alike, in the file name without folders and
    extension; what its group finds is the patient. group: number of that group."""

    text: str
    expression: regex.Pattern[str]
    group: int

    def patients(self, paths: Iterable[str]) -> Iterator[str | None]:
        """The patient of each file, in lower case; None where the pattern, or its group, finds nothing.

        Raises PatternError when a name takes more than 0.05 s of computing, or all of them more than 2 s and 20
        microseconds a name.
        """
        left = SECONDS_IN_ALL
        for path in paths:
            name = _stem(path)
            begun = time.thread_time()
            try:
                match = self.expression.search(name, timeout=min(SECONDS_A_NAME, left))
            except (TimeoutError, MemoryError, RecursionError) as error:
                raise _too_slow() from error
            left += SECONDS_MORE_A_NAME - (time.thread_time() - begun)
            if left <= 0:
                raise _too_slow()
            yield match[self.group].casefold() if match and match[self.group] else None


def compile_pattern(text: str) -> Pattern:
    """The user's regular expression, as the package `regex` reads it. Raises PatternError.

    It needs exactly one group in round brackets, or one that is called patient: (?P<patient>...).
    """
    if not text:
        raise PatternError("The pattern is empty. Write a regular expression such as ^(\\d+)_ here.")
    if len(text) > MAX_LENGTH:
        raise PatternError(f"The pattern has {len(text)} characters; at most {MAX_LENGTH} are allowed. Shorten it.")
    _check_size(text)
    try:
        expression = regex.compile(text, regex.IGNORECASE | regex.VERSION0)
    except regex.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1}"
        raise PatternError(f"The pattern is not a valid regular expression: {error.msg}{where}. Correct it.") from error
    except (ValueError, MemoryError, RecursionError, OverflowError) as error:
        # A ValueError is an unpaired surrogate: no keyboard writes one.
        raise PatternError("The pattern cannot be used as a regular expression. Write a simpler one.") from error
    group = expression.groupindex.get("patient", 1 if expression.groups == 1 else 0)
    if not group:
        raise PatternError(
            "The pattern needs exactly one group in round brackets around the patient, such as ^(\\d+)_, or one that "
            f"is called patient, (?P<patient>...); it has {expression.groups} groups. Write (?:...) for the others."
        )
    return Pattern(text, expression, group)


def _by_user(pattern: Pattern, paths: Sequence[str]) -> Iterator[Named | None]:
    for patient in pattern.patients(paths):
        yield Named(f"name:{patient}", patient, "") if patient else None


def _too_slow() -> PatternError:
    return PatternError(
        "The pattern takes too long to search. Avoid repetitions inside repetitions, such as (a+)+, and start it "
        "with ^ where the file name starts."
    )


# Flags, comments and calls of the whole pattern, all of which `TOKEN` does not see through.
UNSUPPORTED: Final = re.compile(r"\(\?(?!i[:)])(?:#|[A-Za-z0-9+-]+[:)])")
TOKEN: Final = re.compile(
    r"""\\. | \[\^?\]?(?:\\.|[^\]\\])*\]      # an escape, a set of characters
      | \{(?P<least>\d+)(?P<more>,\d*)?\}     # a counted repetition
      | .""",
    re.VERBOSE | re.DOTALL,
)


def _check_size(text: str) -> None:
    """Raise PatternError when the compiled pattern would be huge. Too careful rather than exact."""
    unsupported = UNSUPPORTED.search(text)
    if unsupported:
        raise PatternError(
            f"{unsupported[0]} at character {unsupported.start() + 1} of the pattern is not supported here: flags, "
            "comments and recursion cannot be used. Remove it."
        )
    if _expanded(text) > MAX_EXPANDED:
        raise PatternError(
            "The pattern repeats repetitions too often. A file name has at most 255 characters; use smaller numbers "
            "in braces and fewer + inside each other."
        )


def _expanded(text: str) -> int:
    """Elements of the pattern once its repetitions are written out: x{3} is three x, x+ is x and x*."""
    sizes, last = [0], 0
    for token in TOKEN.finditer(text):
        times = 2 if token[0] == "+" else int(token["least"]) + bool(token["more"]) if token["least"] else 1
        if token[0] == "(":
            sizes.append(0)
            last = 0
        elif token[0] == ")":
            last = sizes.pop() if len(sizes) > 1 else 0
            sizes[-1] += last
        elif times != 1 or token[0] in "*?":
            sizes[-1] += last * (times - 1) if times else 0
            last *= times
        else:
            last = 1
            sizes[-1] += 1
        if sizes[-1] > MAX_EXPANDED:
            break
    return max(sizes)
