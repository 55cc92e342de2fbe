"""Two versions of a dataset side by side: preparations are the frozen ones, "now" is what the last scan found."""

from collections.abc import Iterator

from xrayplatform.http import row_number
from xrayplatform.jobs import JobError

from .manifests import Comparison, compare
from .models import Dataset, Preparation

NOW = "now"


def newest_version(dataset: Dataset) -> str:
    """The name of the newest finished preparation, whether its pixels are still there or not; "now" without one."""
    newest = dataset.preparations.filter(state=Preparation.State.SUCCEEDED).values_list("pk", flat=True).first()
    return NOW if newest is None else str(newest)


def find_version(dataset: Dataset, name: str) -> Preparation | Dataset:
    """A finished preparation of the dataset by its number, or the dataset itself for "now". Raises JobError."""
    if name == NOW:
        return dataset
    finished = dataset.preparations.filter(state=Preparation.State.SUCCEEDED)
    version = finished.filter(pk=row_number(name)).first()
    if version is None:
        known = ", ".join([*(str(pk) for pk in finished.values_list("pk", flat=True)[:20]), NOW])
        raise JobError(f"{dataset} has no version {name!r}. Known versions: {known}.")
    return version


def compare_versions(old: Preparation | Dataset, new: Preparation | Dataset) -> Comparison:
    """What was added, removed, relabelled, renamed, moved or has other pixels."""
    return compare(_entries(old), _entries(new), renamed=_renamed(old, new))


def _renamed(old: Preparation | Dataset, new: Preparation | Dataset) -> dict[str, str]:
    """Classes of the old version that were renamed or merged by choice: what they are called in the new one.

    One that was parted again has no single new name: its images are relabelled.
    """
    found = {}
    for name in old.classes:
        targets = {new.class_choices.get(source, source) for source in _sources(name, old)} - {""}
        if len(targets) == 1:
            found[name] = targets.pop()
    return found


def _sources(name: str, version: Preparation | Dataset) -> set[str]:
    """The classes found that make up a class of the version."""
    dataset = version.dataset if isinstance(version, Preparation) else version
    chosen = {source for source, target in version.class_choices.items() if target == name}
    # Versions know only the choices that change a name; a class may be one that was found under that name, too.
    own = name not in version.class_choices and (not chosen or name in dataset.source_classes)
    return chosen | {name} if own else chosen


def _entries(version: Preparation | Dataset) -> Iterator[tuple[str, str, str]]:
    if isinstance(version, Preparation):
        yield from version.manifest.order_by().values_list("path", "digest", "class_name").iterator(2000)
        return
    # What a preparation would take now.
    conflicting = version.conflicting_images()
    rows = version.images.included().order_by().values_list("pk", "path", "digest", "class_name")
    for pk, path, digest, class_name in rows.iterator(2000):
        label = version.label_of(class_name)
        if label and pk not in conflicting:
            yield path, digest, label
