"""Which versions are compared, and on which images: what an address or a command names, and what there is to name."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from django.db.models import QuerySet

from xrayplatform.http import row_number

from .comparing import LEAST, MOST
from .models import Evaluation, ModelVersion

OWN = "own"
SHARED = "shared"


class ComparisonError(Exception):
    """What was asked for cannot be compared. The message says why and what to do."""


@dataclass(frozen=True)
class ImageSet:
    """Images to compare on. value: names the set in an address. evaluations: one of each version that has one.

    shared: the evaluations are not of the very same images, and are cut down to those that all have.
    """

    value: str
    label: str
    evaluations: tuple[Evaluation, ...]
    shared: bool = False


def chosen_versions(visible: QuerySet, numbers: Iterable[str]) -> list[ModelVersion]:
    """The versions with these row numbers in the order of their own numbers; naming one twice is naming it once.

    Raises ModelVersion.DoesNotExist when one is not among the visible ones, ComparisonError when they are too few, too
    many or of several conditions.
    """
    rows = {row_number(number) for number in numbers}
    if not LEAST <= len(rows) <= MOST:
        raise ComparisonError(f"Choose {LEAST} to {MOST} versions to compare; {_counted(len(rows))} chosen.")
    versions = list(visible.filter(pk__in=rows - {None}).select_related("condition", "created_by", "parent__condition"))
    if len(versions) < len(rows):
        raise ModelVersion.DoesNotExist
    conditions = sorted({str(version.condition) for version in versions})
    if len({version.condition_id for version in versions}) > 1:
        raise ComparisonError(
            f"These versions answer different questions: {', '.join(conditions)}. Choose versions of one condition."
        )
    return sorted(versions, key=lambda version: version.number)


def _counted(count: int) -> str:
    return "none was" if not count else "1 was" if count == 1 else f"{count} were"


def image_sets(versions: Sequence[ModelVersion]) -> list[ImageSet]:
    """The sets of images that these versions can be compared on: the own test part of each first.

    Then the images that the own test parts share; every set that all were measured on; and of datasets on which all
    were measured, each without the images that it learned from, the images that all share.
    """
    rows = Evaluation.objects.filter(version__in=versions).defer("report").order_by("pk")
    found = _by_version(rows, versions)
    own = _newest(found, lambda row: row.kind == Evaluation.Kind.TEST)
    sets = [ImageSet(OWN, "The own test part of each", own)]
    if len(own) == len(versions) and not _same_images(own):
        sets.append(_shared(own, "Images that all own test parts share"))
    everywhere = _common(found, lambda row: row.images_digest)
    sets += [_exact(rows) for rows in everywhere if not (_same_images(own) and rows == own)]
    sources = _common(found, lambda row: "" if row.kind == Evaluation.Kind.VALIDATION else _source(row))
    for rows in sources:
        if not _same_images(rows) and rows != own:
            sets.append(_shared(rows, f"{rows[0].dataset_name}: images that all were measured on"))
    return sets


def _by_version(rows: Iterable[Evaluation], versions: Sequence[ModelVersion]) -> list[list[Evaluation]]:
    """The evaluations of each version, the newest first."""
    by_key = {version.pk: version for version in versions}
    found: dict[int, list[Evaluation]] = {version.pk: [] for version in versions}
    for row in rows:
        row.version = by_key[row.version_id]
        found[row.version_id].insert(0, row)
    return list(found.values())


def _newest(found: Sequence[Sequence[Evaluation]], fits: Callable[[Evaluation], bool]) -> tuple[Evaluation, ...]:
    chosen = (next((row for row in rows if fits(row)), None) for rows in found)
    return tuple(row for row in chosen if row is not None)


def _common(found: Sequence[Sequence[Evaluation]], key: Callable[[Evaluation], str]) -> list[tuple[Evaluation, ...]]:
    """For each key that every version has, the newest evaluation of each."""
    keys = [{key(row) for row in rows} for rows in found]
    shared = set.intersection(*keys) - {""} if keys else set()
    return [_newest(found, lambda row, name=name: key(row) == name) for name in sorted(shared)]


def _source(row: Evaluation) -> str:
    """The division that the images were a part of, whichever preparation made it; or the whole dataset."""
    return row.split_digest or f"all of {row.dataset_name}"


def _same_images(rows: Sequence[Evaluation]) -> bool:
    return len({row.images_digest for row in rows}) == 1


def _exact(rows: tuple[Evaluation, ...]) -> ImageSet:
    kinds = {row.get_kind_display() for row in rows}
    kind = kinds.pop() if len(kinds) == 1 else "Same images"
    label = f"{rows[0].dataset_name}: {kind[0].lower()}{kind[1:]}, {rows[0].images_count:,} images"
    return ImageSet(rows[0].images_digest, label, rows)


def _shared(rows: tuple[Evaluation, ...], label: str) -> ImageSet:
    return ImageSet(f"{SHARED}-{'-'.join(str(row.pk) for row in rows)}", label, rows, shared=True)


def chosen_set(sets: Sequence[ImageSet], value: str) -> ImageSet:
    """The set that an address names; the own test parts where it names none. Raises ComparisonError."""
    own = sets[0]
    if value in ("", OWN) or (own.evaluations and _same_images(own.evaluations) and value == _digest(own)):
        return own
    named = next((one for one in sets if one.value == value), None)
    if named is None:
        raise ComparisonError(
            "Not all of these versions were measured on the images that the address names. Choose a set of images "
            "from the list."
        )
    return named


def _digest(images: ImageSet) -> str:
    return images.evaluations[0].images_digest
