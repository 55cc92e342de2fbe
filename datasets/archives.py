"""Take radiographs out of a zip file that somebody sent, whatever its maker had in mind.

A zip is a list of names and sizes that its maker chose; none of them is believed. Names only ever become text: what is
taken out lies in one flat folder under numbers. Bytes are counted as they come, because the sizes in a header lie. An
archive with a member that no honest program writes is refused whole; a member of another kind is left out and told.
"""

import contextlib
import io
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from datasets.names import EXTENSIONS, MAX_IMAGE_PATH, Problem, harmless, shortened
from datasets.survey import HIDDEN

MAX_MEMBERS: Final = 50_000
# Written bytes for one byte of the archive. Radiographs come to 1 to 10.
MAX_RATIO: Final = 100
# Smaller members may have any ratio: a CSV file of one word, a blank test image.
RATIO_FROM_BYTES: Final = 1024**2
# The list of members is read into memory at once; 50,000 long names fit into this.
MAX_DIRECTORY_BYTES: Final = 16 * 1024**2
# What file systems allow is 255; the rest is room for a number and for the name while a file is being written.
MAX_NAME_BYTES: Final = 200
CHUNK: Final = 1024**2

TABLE: Final = ".csv"
TAKEN: Final = (*EXTENSIONS, TABLE)
ARCHIVES: Final = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".iso", ".cab", ".jar")
_KINDS: Final = (0, stat.S_IFREG, stat.S_IFDIR)
# Others (bzip2, LZMA) decode a few bytes into any number of them at once.
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x1
_BROKEN: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError,
)  # fmt: skip

Progress = Callable[[int, int], None]
LeftOut = Callable[[str], str]


class ArchiveError(Exception):
    """The archive is refused. `code` is stable; the text says what is wrong, why that matters and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Member:
    """A file that was taken out. name: POSIX path in the archive; path: where it lies now; size in bytes, counted."""

    name: str
    path: Path
    size: int


@dataclass
class Content:
    """What came out of an archive. hidden: files that no one asked about, such as those in __MACOSX."""

    members: list[Member] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    hidden: int = 0


def is_archive(name: str) -> bool:
    return name.lower().endswith(".zip")


def extract(
    archive: Path,
    folder: Path,
    *,
    max_bytes: int,
    progress: Progress | None = None,
    left_out: LeftOut | None = None,
) -> Content:
    """Write the images and CSV files of a zip into a new folder, numbered.

    progress: called with the bytes written and the bytes announced; what it raises ends the extraction. left_out: why
    a file with a harmless name is not taken, "" when it is; other files than images and CSV files may be wanted. Raises
    ArchiveError, or OSError when the disk is full. Whatever is raised, the folder is removed.
    """
    folder.mkdir(parents=True)
    try:
        with _opened(archive) as opened:
            extraction = _Extraction(opened, archive.stat().st_size, folder, max_bytes, progress)
            return extraction.run(left_out or left_out_because)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    # A wrong end of a file is an error of the archive; what the caller does with it is not.
    with _Bounded(io.FileIO(archive)) as file:
        with _as_damaged():
            opened = zipfile.ZipFile(file)
        with opened:
            yield opened


@contextlib.contextmanager
def _as_damaged(name: str = "") -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        where = f": {shortened(name)} cannot be read" if name else ""
        raise ArchiveError(
            "damaged", f"The file is not a complete zip archive{where}. Make the archive again and upload that."
        ) from error


class _Bounded(io.BufferedReader):
    """Refuses to read much at once: `zipfile` reads the whole list of members, however long it says that it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > MAX_DIRECTORY_BYTES:
            here = self.tell()
            rest = self.seek(0, io.SEEK_END) - here
            self.seek(here)
            size = rest if size is None or size < 0 else min(size, rest)
        if size > MAX_DIRECTORY_BYTES:
            raise _too_many()
        return super().read(size)


def _too_many() -> ArchiveError:
    return ArchiveError(
        "too-many-members",
        f"The archive lists more than {MAX_MEMBERS:,} files, more than are unpacked at once. Divide it into several.",
    )


class _Extraction:
    def __init__(
        self, archive: zipfile.ZipFile, packed: int, folder: Path, max_bytes: int, progress: Progress | None
    ) -> None:
        self.archive = archive
        self.packed = packed
        self.folder = folder
        self.max_bytes = max_bytes
        self.progress = progress or (lambda done, total: None)
        self.content = Content()
        self.written = 0
        self.announced = 0

    def run(self, why_left_out: LeftOut) -> Content:
        members = self._chosen(self.archive.infolist(), why_left_out)
        self.announced = sum(member.file_size for member in members)
        for number, member in enumerate(members):
            target = self.folder / f"{number:06d}"
            size = self._write(member, target)
            self.content.members.append(Member(member.orig_filename, target, size))
        return self.content

    # -- By the list alone, before anything is written

    def _chosen(self, listed: list[zipfile.ZipInfo], why_left_out: LeftOut) -> list[zipfile.ZipInfo]:
        if len(listed) > MAX_MEMBERS:
            raise _too_many()
        names = _Names()
        chosen = []
        for member in listed:
            _refuse_hostile(member)
            name = member.orig_filename
            if any(part.startswith(HIDDEN) for part in name.split("/")):
                self.content.hidden += not name.endswith("/")
            elif not name.endswith("/"):
                names.add(name)
                reason = why_left_out(name)
                if reason:
                    self.content.left_out.append(Problem(shortened(name), reason, "left-out"))
                else:
                    chosen.append(member)
        return chosen

    # -- Bytes

    def _write(self, member: zipfile.ZipInfo, target: Path) -> int:
        size = 0
        with target.open("xb") as file:
            for chunk in self._chunks(member):
                size += len(chunk)
                self.written += len(chunk)
                self._check_amount(member, size)
                file.write(chunk)
                self.progress(self.written, max(self.announced, self.written))
        return size

    def _chunks(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        name = member.orig_filename
        with _as_damaged(name):
            source = self.archive.open(member)
        with source:
            while True:
                with _as_damaged(name):
                    chunk = source.read(CHUNK)
                if not chunk:
                    return
                yield chunk

    def _check_amount(self, member: zipfile.ZipInfo, size: int) -> None:
        if self.written > self.max_bytes:
            raise ArchiveError(
                "too-large",
                f"Unpacked, the archive is larger than the {self.max_bytes / 1024**3:.2f} GB that may be used. Upload "
                "a part of it, or ask an administrator for more space.",
            )
        bomb = size > RATIO_FROM_BYTES and size > MAX_RATIO * member.compress_size
        # Members that share the same bytes are each within the ratio, but not all together.
        if bomb or (self.written > RATIO_FROM_BYTES and self.written > MAX_RATIO * self.packed):
            raise ArchiveError(
                "ratio",
                f"{shortened(member.orig_filename)} becomes more than {MAX_RATIO} times larger when it is unpacked, as "
                "no radiograph does; such archives are made to fill a disk. Upload the images themselves.",
            )


# -- Names


def _refuse_hostile(member: zipfile.ZipInfo) -> None:
    """Raises ArchiveError for what no honest program puts into an archive of images, or nobody can check."""
    name = member.orig_filename
    danger = path_danger(name.removesuffix("/"))
    if danger:
        raise ArchiveError(
            "unsafe-name",
            f"The archive holds {shortened(name) or 'a file'}, whose name {danger}. Such names can be meant to "
            "overwrite other files. Make the archive again from a plain folder.",
        )
    if stat.S_IFMT(member.external_attr >> 16) not in _KINDS:
        raise ArchiveError(
            "not-regular",
            f"{shortened(name)} in the archive is a link or a device, not a file; it could lead out of the dataset. "
            "Put the files themselves into the archive.",
        )
    if member.flag_bits & _ENCRYPTED:
        raise ArchiveError(
            "encrypted",
            "The archive is protected with a password, so that nobody can check it. Make it again without.",
        )
    if member.compress_type not in _METHODS:
        raise ArchiveError(
            "method",
            f"{shortened(name)} is packed by a method that is not unpacked here. Make the archive again as a common "
            "zip file (stored or deflate).",
        )


def path_danger(path: str) -> str:
    """What is dangerous in a relative POSIX path, to follow "its name"; "" for a harmless one."""
    parts = path.split("/")
    if not path or not harmless(path):
        return "has characters that cannot be shown" if path else "is empty"
    if "\\" in path:
        return "has a backslash"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "is an absolute path"
    if ".." in parts:
        return "leads out of the folder"
    if "" in parts or "." in parts:
        return "has an empty part"
    return ""


def left_out_because(name: str) -> str:
    """Why a file with this harmless name is not taken, in words; "" when it is."""
    lower = name.lower()
    if lower.endswith(ARCHIVES):
        return "An archive is not unpacked here. Unpack it, and upload what is in it."
    if not lower.endswith(TAKEN):
        kind = shortened(PurePosixPath(lower).suffix) or "files without an ending"
        return f"Only {', '.join(TAKEN)} files are taken, not {kind}."
    return long_name(name)


def long_name(path: str) -> str:
    """Why a path is too long to be stored, in words; "" when it is not."""
    if len(path) > MAX_IMAGE_PATH:
        return f"The path has {len(path)} characters, at most {MAX_IMAGE_PATH} can be used. Shorten the names."
    if any(len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES for part in path.split("/")):
        return f"The name is longer than {MAX_NAME_BYTES} bytes. Shorten it."
    return ""


def same_name(name: str) -> str:
    """Equal for names that some file systems cannot tell apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class _Names:
    """The files and folders of an archive; no two may be one on a file system that does not know case."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}
        self.files: dict[str, str] = {}

    def add(self, name: str) -> None:
        """Raises ArchiveError when the name is taken."""
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            key = same_name(folder)
            if self.folders.setdefault(key, folder) != folder:
                raise _collision(self.folders[key], folder)
            if key in self.files:
                raise _collision(self.files[key], folder)
        key = same_name(name)
        taken = self.files.get(key) or self.folders.get(key)
        if taken:
            raise _collision(taken, name)
        self.files[key] = name


def _collision(one: str, other: str) -> ArchiveError:
    return ArchiveError(
        "duplicate-name",
        f"The archive holds {shortened(one)} and {shortened(other)}, which are one name on many computers, so one "
        "would overwrite the other. Rename one of them and make the archive again.",
    )
