"""One walk over a folder tree: how many images lie in each folder, and a signature that tells when they change.

File names are never kept: a million files may lie in one folder. Links are not followed.
"""

import heapq
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Final

from datasets.names import EXTENSIONS, MASK_WORDS, MAX_LISTED, exact_key, harmless, is_image, plain, printable, split_of

# Folders inside folders; deeper ones are told and not read.
MAX_DEPTH: Final = 64
# Endings of other files that are counted each; slices of a study may be numbered by their ending.
MAX_KINDS: Final = 100
# Files between two reports of progress.
STEP: Final = 2000
# What nearly every image is called. One expression for all that is asked of a name: visible, harmless, an image.
PLAIN_IMAGE: Final = re.compile(r"(?!\.|__MACOSX)[ -~]+\.(?:[jJ][pP][eE]?[gG]|[pP][nN][gG]|[dD][cC][mM])").fullmatch
HIDDEN: Final = (".", "__MACOSX")
# Parts of a split where another part lies beside them. The second ones may be for validation or for the test.
HELD_OUT: Final = frozenset({"holdout", "heldout", "holdoutset", "heldoutset"})
EVALUATION_WORDS: Final = frozenset({"eval", "evaluation", "evalset", "evaluationset"})
EVALUATION: Final = "evaluation"
# Drawings on an image that lie beside it: x_mask.png, x-segmentation 2.png or mask_x.png beside x.png.
_MASK: Final = "|".join(sorted(MASK_WORDS | {"seg", "annotated"}, key=lambda word: (-len(word), word)))
DRAWING: Final = re.compile(
    rf"(.+?)[-_. ]{{1,3}}(?:{_MASK})(?:[-_. ]*\d+)?|(?:{_MASK})[-_. ]+(.+)", re.IGNORECASE
).fullmatch
# One of these is in every such name: looked for in thousands of names at once, which costs next to nothing.
DRAWING_HINTS: Final = ("mask", "seg", "label", "annot", "overlay")
# So many of them, the first by name, are asked for the image beside them.
DRAWINGS_ASKED: Final = 20

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Notice:
    """Something about one entry of a folder that a user should know. name: printable, "" for the folder itself."""

    name: str
    reason: str
    code: str


@dataclass(eq=False, slots=True)
class Folder:
    """Names and numbers of a folder's content, without those of its subfolders.

    images: files with the ending of an image. signature: hex digest over their names, sizes and modification times.
    others: number of other files by ending. notices: at most MAX_LISTED of each code, notice_counts: all of them.
    total: images here and in all folders below. split: "train", "validation" or "test" by the name, EVALUATION where
    name and neighbours do not tell which of the last two, "" for no part of a split. drawings: images that are named
    like drawings on others; drawing: one of them beside the image it is drawn on, "" where none lies beside one.
    """

    path: Path
    folders: list["Folder"] = field(default_factory=list)
    images: int = 0
    signature: str = ""
    tables: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    notices: list[Notice] = field(default_factory=list)
    notice_counts: Counter[str] = field(default_factory=Counter)
    total: int = 0
    split: str = ""
    drawings: int = 0
    drawing: str = ""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def filled(self) -> list["Folder"]:
        """The subfolders in or below which images lie."""
        return [child for child in self.folders if child.total]

    def below(self) -> Iterator["Folder"]:
        """The folder itself and all below it, in natural order."""
        yield self
        for folder in self.folders:
            yield from folder.below()

    def notice(self, name: str, reason: str, code: str) -> None:
        self.notice_counts[code] += 1
        if self.notice_counts[code] <= MAX_LISTED:
            self.notices.append(Notice(printable(name), reason, code))


def survey(root: Path, on_progress: Progress | None = None) -> Folder:
    """The folder tree from `root` down. A folder that cannot be opened is noticed in itself.

    on_progress: called with the number of files so far about every STEP files; what it raises ends the survey.
    """
    if not root.is_dir():
        folder = Folder(root)
        folder.notice("", "The dataset folder does not exist or cannot be opened.", "missing-folder")
        return folder
    return _Walk(on_progress).folder(root, 0)


def listing(path: Path) -> Iterator[os.DirEntry[str]]:
    """The images of a folder as they are now, one by one; no links, no hidden files, no names that cannot be shown.

    A pipe or device that is called like an image is listed too. A folder that cannot be opened has none.
    """
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if _is_candidate(entry):
                    yield entry
    except OSError:
        return  # the survey has told it


def picture_of(name: str) -> str | None:
    """What the image is called, without ending, on which this one is a drawing by its name; None for no drawing.

    >>> picture_of("x_mask.png")
    'x'
    """
    match = DRAWING(name.rpartition(".")[0])
    return (match[1] or match[2]) if match else None


def is_evaluation(name: str) -> bool:
    """Whether a folder's name says that no network is trained with its images, but for no certain split."""
    return plain(name) in HELD_OUT | EVALUATION_WORDS


def splits_of(names: Sequence[str]) -> list[str]:
    """What `Folder.split` says of folders that lie beside each other."""
    splits = [split_of(name) for name in names]
    if not any(splits):
        return splits
    splits = ["test" if plain(name) in HELD_OUT else split for name, split in zip(names, splits, strict=True)]
    # Where there is a part for one of the two, it is for the other.
    other = {(True, False): "test", (False, True): "validation"}
    evaluation = other.get(("validation" in splits, "test" in splits), EVALUATION)
    return [evaluation if plain(name) in EVALUATION_WORDS else split for name, split in zip(names, splits, strict=True)]


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    if PLAIN_IMAGE(name):
        return entry.is_file(follow_symlinks=False) or not (entry.is_symlink() or _is_folder(entry))
    if name.startswith(HIDDEN) or not is_image(name) or not harmless(name):
        return False
    return not (entry.is_symlink() or _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _drawings(folder: Folder, lines: Sequence[str], first: Sequence[str]) -> list[str]:
    """Count the drawings among the images; the first of all by name, which do not depend on the order of the files."""
    names = [name for name in (line.partition("\0")[0] for line in lines) if picture_of(name) is not None]
    folder.drawings += len(names)
    return heapq.nsmallest(DRAWINGS_ASKED, [*first, *names])


def _lies_beside(path: Path, stem: str) -> bool:
    return any(
        (path / f"{stem}{ending}").is_file() for extension in EXTENSIONS for ending in (extension, extension.upper())
    )


class _Walk:
    def __init__(self, on_progress: Progress | None):
        self.on_progress = on_progress
        self.files = 0
        self.told = 0

    def folder(self, path: Path, depth: int) -> Folder:
        folder = Folder(path)
        digest = blake2b(digest_size=16)
        names: list[str] = []
        drawings: list[str] = []
        try:
            with os.scandir(path) as entries:
                for lines in self._lines(folder, entries, names):
                    text = "".join(lines)
                    digest.update(text.encode())
                    if any(map(text.lower().__contains__, DRAWING_HINTS)):
                        drawings = _drawings(folder, lines, drawings)
        except OSError as error:
            folder.notice("", f"The folder cannot be opened: {error.strerror}.", "unreadable")
        folder.signature = digest.hexdigest()
        folder.drawing = next((name for name in drawings if _lies_beside(path, picture_of(name) or "")), "")
        folder.tables.sort(key=exact_key)
        folder.notices.sort(key=lambda notice: exact_key(notice.name))
        self._descend(folder, names, depth)
        folder.total = folder.images + sum(child.total for child in folder.folders)
        return folder

    def _descend(self, folder: Folder, names: list[str], depth: int) -> None:
        if depth >= MAX_DEPTH:
            for name in names:
                folder.notice(name, f"More than {MAX_DEPTH} folders lie inside each other; not read.", "too-deep")
            return
        names.sort(key=exact_key)
        folder.folders = [self.folder(folder.path / name, depth + 1) for name in names]
        filled = folder.filled
        for child, split in zip(filled, splits_of([child.name for child in filled]), strict=True):
            child.split = split

    def _lines(self, folder: Folder, entries: Iterator[os.DirEntry[str]], names: list[str]) -> Iterator[list[str]]:
        """What the signature is made of, in handfuls. Subfolders' names go to `names`, all else to the folder.

        In the order of the file system, so that nothing has to be kept: another order is a change that is none, which
        costs one stat a file. This loop is the scan of an unchanged dataset; it runs once for each of its files.
        """
        lines: list[str] = []
        for entry in entries:
            name = entry.name
            plain = PLAIN_IMAGE(name) and entry.is_file(follow_symlinks=False)
            if not plain and not self._is_other_image(folder, entry, names):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
                lines.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n")
            except OSError:
                lines.append(f"{name}\0gone\n")
            if len(lines) == STEP:
                folder.images += STEP
                self._count(STEP)
                yield lines
                lines = []
        folder.images += len(lines)
        self._count(len(lines))
        yield lines

    def _count(self, files: int) -> None:
        self.files += files
        if self.on_progress and self.files - self.told >= STEP:
            self.told = self.files
            self.on_progress(self.files)

    def _is_other_image(self, folder: Folder, entry: os.DirEntry[str], names: list[str]) -> bool:
        """Note what is no plain image; True for images with an unusual name and for pipes that are called like one."""
        name = entry.name
        if name.startswith(HIDDEN):
            return False
        if not harmless(name):
            folder.notice(name, "The name has characters that cannot be shown; rename it.", "unsafe-name")
        elif entry.is_symlink():
            folder.notice(name, "This is a link; links are not followed. Copy the files here.", "link")
        elif _is_folder(entry):
            names.append(name)
        elif is_image(name):
            return True
        else:
            self._count(1)
            if name.lower().endswith(".csv"):
                folder.tables.append(name)
            else:
                kind = PurePosixPath(name).suffix.lower() or "no extension"
                folder.others[kind if kind in folder.others or len(folder.others) < MAX_KINDS else "others"] += 1
        return False
