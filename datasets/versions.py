"""Two versions of a dataset side by side: preparations are the frozen ones, "now" is what the last scan found."""

from collections.abc import Iterator

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
    version = finished.filter(pk=int(name)).first() if name.isdecimal() and len(name) < 18 else None
    if version is None:
        known = ", ".join([*(str(pk) for pk in finished.values_list("pk", flat=True)[:20]), NOW])
        raise JobError(f"{dataset} has no version {name!r}. Known versions: {known}.")
    return version


def compare_versions(old: Preparation | Dataset, new: Preparation | Dataset) -> Comparison:
    """What was added, removed, relabelled, moved or has other pixels."""
    return compare(_entries(old), _entries(new))


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
