"""What the images of a preparation or a dataset can be told apart by: source folder, sex, age band, image format, site.

Results by these groups leave the dataset, in reports and with a model's card. So a folder is named only where it holds
several patients: one that a hospital made for a single patient may bear the name.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .models import SEXES, Dataset, Preparation
from .names import IMAGE_FOLDERS, exact_key, is_mask, patient_folder, shortened, split_of
from .survey import is_evaluation

Names = NDArray[np.str_]

MAX_GROUPS = 12
MIN_PATIENTS = 5
OTHER, NO_FOLDER = "other", "no subfolder"
# Folders are told when those with enough patients hold this share of the images; otherwise most are something else,
# such as patients or studies under names of their own.
TELLING_SHARE = 0.5


def of_preparation(preparation: Preparation, rows: Iterable[int]) -> dict[str, Names]:
    """The names of groups of images: "folder", "sex", "age", "format" and "site", each a str array along `rows`.

    rows: of the preparation's manifest. "" is unknown: of an image that is not in the dataset any more, or has other
    pixels now, only the folder is known. Raises KeyError for a row that the manifest does not have.
    """
    wanted = [int(row) for row in rows]
    manifest = _manifest(preparation, wanted)
    images = [manifest[row] for row in wanted]
    known = _known(preparation.dataset)
    facts = [known.get((path, digest), {}) for path, digest, _ in images]
    paths, groups = [path for path, _, _ in images], [group for _, _, group in images]
    return _named(facts, paths, groups, _class_names(preparation))


def of_dataset(
    dataset: Dataset, paths: Sequence[str], digests: Sequence[str], groups: Sequence[int]
) -> dict[str, Names]:
    """The same of images that were not prepared, along `paths`; `groups` are the numbers of their patients."""
    known = _known(dataset)
    facts = [known.get(image, {}) for image in zip(paths, digests, strict=True)]
    return _named(facts, paths, groups, {*dataset.source_classes, *dataset.classes})


def _named(
    facts: Sequence[dict[str, Any]], paths: Sequence[str], groups: Sequence[int], class_names: Collection[str]
) -> dict[str, Names]:
    return {
        "folder": source_folders(paths, groups, class_names),
        "sex": _names(SEXES.get(fact.get("sex", ""), "") for fact in facts),
        "age": _names(fact.get("age", "") for fact in facts),
        "format": _names(fact.get("format", "") for fact in facts),
        "site": _names(fact.get("site", "") for fact in facts),
    }


def _manifest(preparation: Preparation, rows: Sequence[int]) -> dict[int, tuple[str, str, int]]:
    """Path, digest and group by row; the range of the rows, because a query takes only so many single values."""
    within = preparation.manifest.order_by().filter(row__gte=min(rows, default=0), row__lte=max(rows, default=-1))
    columns = within.values_list("row", "path", "digest", "group").iterator(2000)
    return {row: (path, digest, group) for row, path, digest, group in columns}


def _known(dataset: Dataset) -> dict[tuple[str, str], dict[str, Any]]:
    """What the dataset knows now of its images, by path and digest."""
    columns = dataset.images.order_by().values_list("path", "digest", "format", "attributes")
    return {(path, digest): attributes | {"format": kind} for path, digest, kind, attributes in columns.iterator(2000)}


def _class_names(preparation: Preparation) -> set[str]:
    """Names that a class folder may have: of the classes found, then and now, and of those used."""
    return {*preparation.classes, *preparation.class_choices, *preparation.dataset.source_classes}


def _names(values: Iterable[str]) -> Names:
    return np.array(list(values), dtype=np.str_)


# -- Source folders


def source_folders(paths: Sequence[str], groups: Sequence[int], class_names: Collection[str]) -> Names:
    """The folder that tells where each image comes from; "" for all where no folder does.

    It is the outermost in which the images differ, apart from those of splits, classes, patients and studies. paths:
    POSIX, relative to the dataset. groups: number of each image's patient. At most MAX_GROUPS names: small folders, and
    those of fewer than MIN_PATIENTS patients, are OTHER; images beside the folders are NO_FOLDER.
    """
    classes = {name.casefold() for name in class_names}
    by_parent = {parent: _telling(parent, classes) for parent in {_parent(path) for path in paths}}
    depth = _first_difference(list(by_parent.values()))
    found = [by_parent[_parent(path)][depth : depth + 1] for path in paths]
    folders = [shortened(names[0]) if names else NO_FOLDER for names in found]
    told = _told(folders, groups)
    return _names((name if name in told else OTHER) if told else "" for name in folders)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _telling(parent: str, classes: Collection[str]) -> list[str]:
    """The folders of a path that are no split, class, patient or study, from the outermost."""
    folders = parent.split("/") if parent else []
    telling, at = [], 0
    while at < len(folders):
        if " ".join(folders[at : at + 2]).casefold() in classes:
            at += 2  # a class of two levels is named by both
            continue
        if folders[at].casefold() not in classes and not _is_division(folders[at]):
            telling.append(folders[at])
        at += 1
    return telling


def _is_division(name: str) -> bool:
    named = split_of(name) or is_evaluation(name) or patient_folder([name]) or is_mask(name)
    return bool(named) or name.casefold() in IMAGE_FOLDERS


def _first_difference(paths: Sequence[Sequence[str]]) -> int:
    """The number of folders that all paths have in common."""
    depth = 0
    while len({tuple(folders[depth : depth + 1]) for folders in paths}) == 1 and len(paths[0]) > depth:
        depth += 1
    return depth


def _told(folders: Sequence[str], groups: Sequence[int]) -> set[str]:
    """The folders that get a name of their own; none where folders tell nothing of the source."""
    patients = Counter(name for name, _ in set(zip(folders, groups, strict=True)))
    images = Counter(folders)
    large = [name for name in images if patients[name] >= MIN_PATIENTS or name == NO_FOLDER]
    large.sort(key=lambda name: (-images[name], exact_key(name)))
    if len(large) > MAX_GROUPS or len(large) < len(images):
        large = large[: MAX_GROUPS - 1]
    named = set(large) - {NO_FOLDER}
    beside = images[NO_FOLDER]
    is_source = named and sum(images[name] for name in named) >= TELLING_SHARE * (len(folders) - beside)
    return set(large) if is_source else set()
