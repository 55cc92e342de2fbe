"""Which pictures are near-duplicates of known ones: the same radiographs resized, turned, mirrored or saved again.

Of the images of one dataset its scan has told; those of different datasets are compared when it is asked for. Both by
the fingerprints that scans store, so that no file is opened.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from django.db.models import QuerySet
from numpy.typing import NDArray

from . import cataloguing, duplicates
from .models import Dataset, DatasetImage

BATCH = 2000
Prints = Iterable[tuple[str, bytes]]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Pictures:
    """What is compared. prints: fingerprints by digest. read_with: as `Dataset.read_with`; only fingerprints that were
    made alike can be compared. dataset: in which the pictures lie, None for files elsewhere."""

    prints: Callable[[], Prints]
    read_with: str
    dataset: Dataset | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> "Pictures":
        """All images of a dataset."""
        return cls(lambda: _prints(dataset.images.all()), dataset.read_with, dataset)

    @classmethod
    def of_files(cls, prints: dict[str, bytes]) -> "Pictures":
        """Files that have just been read."""
        return cls(prints.items, cataloguing.reading())


@dataclass(frozen=True)
class Copies:
    """digests: of the pictures that are near-duplicates of known ones, directly or through others.

    unread: how many pictures have no fingerprint. unread_known: how many known ones have none, because they are in no
    dataset any more, or in one that was scanned by another release. Neither could be compared.
    """

    digests: frozenset[str] = frozenset()
    unread: int = 0
    unread_known: int = 0


def among(pictures: Pictures, digests: set[str], known: QuerySet, progress: Progress | None = None) -> Copies:
    """Which of the pictures with these digests are near-duplicates of those in `known`, a query of digests.

    Memory grows with the number of pictures and known ones, about 3 kB each; the time has a part that grows with the
    number of pairs: 10 seconds for 10,000 against 10,000. progress: called many times a second with the share that is
    done; what it raises passes through.
    """
    known = known.order_by().values("digest")
    count = known.distinct().count()
    if not count or not digests:
        return Copies()
    images = DatasetImage.objects.filter(digest__in=known, dataset__read_with=pictures.read_with)
    images = images.exclude(fingerprint=b"")
    unread_known = count - images.order_by().values("digest").distinct().count()
    inside: frozenset[str] = frozenset()
    if pictures.dataset is not None:
        inside = copies_inside(pictures.dataset, known) & digests
        images = images.exclude(dataset=pictures.dataset)
    asked = digests - inside
    compared = _Compared(progress or (lambda share: None))
    compared.add((digest, fingerprint) for digest, fingerprint in pictures.prints() if digest in asked)
    fresh = len(compared)
    compared.add(_prints(images))
    return Copies(inside | compared.near(fresh), len(asked) - fresh, unread_known)


def copies_inside(dataset: Dataset, known: QuerySet) -> frozenset[str]:
    """Digests of the images of a dataset that are known or near-duplicates of known ones in it, by its last scan."""
    images = dataset.images.filter(cluster__isnull=False).order_by()
    clusters = images.filter(digest__in=known.order_by().values("digest")).values("cluster")
    return frozenset(images.filter(cluster__in=clusters).values_list("digest", flat=True).iterator(BATCH))


def _prints(images: QuerySet) -> Iterator[tuple[str, bytes]]:
    return images.order_by().values_list("digest", "fingerprint").iterator(BATCH)


class _Compared:
    """Fingerprints of pictures that are compared, one after the other and each once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._digests: list[str] = []
        self._content = bytearray()

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, prints: Prints) -> None:
        """Each picture once, however many files show it."""
        added = set()
        for number, (digest, fingerprint) in enumerate(prints):
            if number % BATCH == 0:
                self._progress(0.0)
            if digest not in added and len(fingerprint) == duplicates.FINGERPRINT_BYTES:
                added.add(digest)
                self._digests.append(digest)
                self._content += fingerprint

    def near(self, fresh: int) -> frozenset[str]:
        """Digests of those among the first `fresh` that are near-duplicates of the others. Pairs of others are not
        compared."""
        if fresh in (0, len(self)):
            return frozenset()
        rows: NDArray[np.uint8] = np.frombuffer(self._content, np.uint8).reshape(len(self), -1)
        numbers = duplicates.clusters(rows, fresh=np.arange(len(self)) < fresh, progress=self._progress)
        near = np.isin(numbers[:fresh], numbers[fresh:])
        return frozenset(self._digests[row] for row in np.flatnonzero(near).tolist())
