"""What changed between two versions of a dataset."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

MAX_LISTED: Final = 100
KINDS: Final = ("added", "removed", "relabelled", "renamed", "changed", "moved", "unchanged")
# Told one by one; a renamed class is told as such.
LISTED: Final = tuple(kind for kind in KINDS if kind not in ("renamed", "unchanged"))


class Entry(NamedTuple):
    """One image of a version. digest: of its pixels."""

    path: str
    digest: str
    class_name: str


@dataclass(frozen=True, slots=True)
class Change:
    """One image that is not what it was. old_path and old_class are "" for an added one, path and class_name for a
    removed one."""

    old_path: str
    path: str
    old_class: str
    class_name: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every image of both versions counted once.

    counts: images by kind, all of `KINDS`. classes: the same by class; an image that left a class counts in both, the
    old and the new one. listed: the first changes of each kind of `LISTED`, sorted by path; more: how many of the kind
    are not listed. renamed: classes with another name in the new version, old name: new name.
    """

    counts: dict[str, int]
    classes: dict[str, dict[str, int]]
    listed: dict[str, list[Change]]
    more: dict[str, int]
    renamed: dict[str, str]

    @property
    def same(self) -> bool:
        """Whether both versions hold the same images at the same places with the same labels."""
        return not any(count for kind, count in self.counts.items() if kind != "unchanged")

    def to_json(self) -> dict[str, Any]:
        """Only dicts, lists, strings and numbers."""
        return asdict(self)


def compare(
    old: Iterable[tuple[str, str, str]],
    new: Iterable[tuple[str, str, str]],
    limit: int = MAX_LISTED,
    renamed: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare two versions, each given as (path, digest of the pixels, class) of all its images, in any order.

    renamed: name of a class in the old version: what a person calls it in the new one.

    An image is first looked for at its path, then, by its pixels, at any other. Each one is of one kind: *relabelled*
    (same pixels, other class, at the same path or moved, as from one class folder to another), *renamed* (same path,
    pixels and class, but the class has another name), *changed* (same path, other pixels, whatever its class), *moved*
    (same pixels and class, other path), *added*, *removed* or *unchanged*. Of several copies that moved, those that
    kept their class or file name are paired first. Raises ValueError when a version has a path twice.
    """
    names = {name: new_name for name, new_name in (renamed or {}).items() if new_name != name}
    before = _by_path(old)
    counts: Counter[str] = Counter()
    classes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    changes: defaultdict[str, list[Change]] = defaultdict(list)
    for kind, change in _changes(before, new, names):
        counts[kind] += 1
        for name in {change.old_class, change.class_name} - {""}:
            classes[name][kind] += 1
        if kind in LISTED:
            changes[kind].append(change)
    listed = {kind: sorted(changes[kind], key=lambda c: (c.path or c.old_path, c.old_path)) for kind in LISTED}
    return Comparison(
        {kind: counts[kind] for kind in KINDS},
        {name: {kind: classes[name][kind] for kind in KINDS} for name in sorted(classes)},
        {kind: found[:limit] for kind, found in listed.items()},
        {kind: max(0, len(found) - limit) for kind, found in listed.items()},
        {name: names[name] for name in sorted(names) if name in classes},
    )


def _by_path(entries: Iterable[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for path, digest, class_name in entries:
        if path in found:
            raise ValueError("a path is twice in one version")
        found[path] = (digest, class_name)
    return found


def _changes(
    before: dict[str, tuple[str, str]], new: Iterable[tuple[str, str, str]], names: Mapping[str, str]
) -> Iterator[tuple[str, Change]]:
    """(kind, change) of every image. Empties `before`."""
    seen: set[str] = set()
    elsewhere: list[Entry] = []
    for path, digest, class_name in new:
        if path in seen:
            raise ValueError("a path is twice in one version")
        seen.add(path)
        was = before.pop(path, None)
        if was is None:
            elsewhere.append(Entry(path, digest, class_name))
            continue
        yield _kind_in_place(*was, digest, class_name, names), Change(path, path, was[1], class_name)
    gone = [Entry(path, digest, names.get(name, name)) for path, (digest, name) in before.items()]
    for kind, change in _moves(gone, elsewhere):
        yield kind, replace(change, old_class=before[change.old_path][1]) if change.old_path else change


def _kind_in_place(digest: str, name: str, new_digest: str, new_name: str, names: Mapping[str, str]) -> str:
    if digest != new_digest:
        return "changed"
    if names.get(name, name) != new_name:
        return "relabelled"
    return "unchanged" if name == new_name else "renamed"


def _moves(gone: Sequence[Entry], come: Sequence[Entry]) -> Iterator[tuple[str, Change]]:
    """Pair what is at no common path by its pixels, the most alike first. The classes go by their new names."""
    left = set(come)
    waiting = list(gone)
    for alike in (_class_and_name, _class, _name, _pixels):
        places: defaultdict[Hashable, list[Entry]] = defaultdict(list)
        for entry in sorted(left, reverse=True):
            places[alike(entry)].append(entry)
        still = []
        for entry in sorted(waiting):
            if not places[alike(entry)]:
                still.append(entry)
                continue
            other = places[alike(entry)].pop()
            left.remove(other)
            kind = "moved" if entry.class_name == other.class_name else "relabelled"
            yield kind, Change(entry.path, other.path, entry.class_name, other.class_name)
        waiting = still
    yield from (("removed", Change(entry.path, "", entry.class_name, "")) for entry in waiting)
    yield from (("added", Change("", entry.path, "", entry.class_name)) for entry in left)


def _class_and_name(entry: Entry) -> Hashable:
    return entry.digest, entry.class_name, entry.path.rpartition("/")[2]


def _class(entry: Entry) -> Hashable:
    return entry.digest, entry.class_name


def _name(entry: Entry) -> Hashable:
    return entry.digest, entry.path.rpartition("/")[2]


def _pixels(entry: Entry) -> Hashable:
    return entry.digest
