"""A zip file of which every byte is accounted for, or none at all.

`zipfile` reads what it can: data before and after the archive, gaps, entries that share bytes, headers that contradict
each other, sizes that lie. Two programs may then see two different contents in one file. Here the file is exactly

    local header, name, data; local header, name, data; ...; central directory; end of central directory

with ASCII names, no extra fields, no comments, no encryption, no data descriptors, no zip64, stored or deflated, and
both headers of an entry agree. That is what `zipfile` writes for plain names below 2 GiB. Field names and layout:
PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.
"""

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

BLOCK: Final = 1024**2
STORED: Final = 0
DEFLATED: Final = 8
MAX_NAME: Final = 100
# Signature, version needed, flags, method, time, date, crc, packed, size, name length, extra length.
_LOCAL: Final = struct.Struct("<4s5H3L2H")
# Signature, version made by, then as in _LOCAL, then comment length, disk, internal and external attributes, offset.
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
# Signature, this disk, its first disk, entries here, entries, directory size, directory offset, comment length.
_END: Final = struct.Struct("<4s4H2LH")
_LOCAL_SIGN: Final = b"PK\x03\x04"
_CENTRAL_SIGN: Final = b"PK\x01\x02"
_END_SIGN: Final = b"PK\x05\x06"
_ZIP64_LOCATOR_SIGN: Final = b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES: Final = 20
_LONGEST_COMMENT: Final = 0xFFFF
_ENCRYPTED: Final = 1 << 0 | 1 << 6 | 1 << 13
# Their true values are in headers of the zip64 kind.
_ELSEWHERE_16: Final = 0xFFFF
_ELSEWHERE_32: Final = 0xFFFFFFFF
# Read-only and archive; others mark folders, volumes, devices and links.
_HARMLESS_DOS_BITS: Final = 0x21
_ORDINARY_KINDS: Final = (0, stat.S_IFREG)
_NAME: Final = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ZipError(Exception):
    """The file is refused. `reason` is a stable code, the text says what is wrong."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Entry:
    """One file in the zip. start: of its data; packed, size: bytes in the zip and outside of it."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    start: int


@dataclass(frozen=True)
class _Listed:
    """An entry as the central directory has it. shared: the fields that its local header repeats."""

    name: bytes
    shared: tuple[int, ...]
    offset: int

    @property
    def method(self) -> int:
        return self.shared[2]

    @property
    def sizes(self) -> tuple[int, int]:
        return self.shared[6], self.shared[7]

    @property
    def start(self) -> int:
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def stop(self) -> int:
        return self.start + self.sizes[0]


def entries(file: BinaryIO, *, members: int, total_bytes: int, ratio: int) -> list[Entry]:
    """The entries in the order in which they lie in the file; names are plain ASCII without folders.

    members: at most this many; total_bytes: of them together, unpacked; ratio: unpacked by packed bytes, of each.
    Raises ZipError before any data is read.
    """
    start, count, length = _directory(file, members)
    listed = _central(_read_at(file, start, length), count)
    _refuse_same_names(listed)
    in_order = sorted(listed, key=lambda entry: entry.offset)
    _check_layout(file, in_order, start)
    _check_amounts(in_order, total_bytes, ratio)
    return [
        Entry(entry.name.decode("ascii"), entry.method, entry.shared[5], *entry.sizes, entry.start)
        for entry in in_order
    ]


def blocks(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The content of an entry, at most BLOCK bytes at a time and never more than its size in all.

    Raises ZipError where it is not what the headers say; the consumer must not use what came before then.
    """
    produced, crc = 0, 0
    for block in _stored(file, entry) if entry.method == STORED else _inflated(file, entry):
        produced += len(block)
        if produced > entry.size:
            raise _lying_size(entry.name)
        crc = zlib.crc32(block, crc)
        yield block
    if produced != entry.size:
        raise _lying_size(entry.name)
    if crc != entry.crc:
        raise ZipError("damaged", f"{entry.name} is damaged: its checksum is wrong.")


# -- The directory


def _directory(file: BinaryIO, members: int) -> tuple[int, int, int]:
    """Where the central directory starts, its entries and its bytes. It ends where the end record starts."""
    end = file.seek(0, 2) - _END.size
    if end < 0:
        raise ZipError("not-a-zip", "The file is no zip archive, or it is cut off.")
    sign, *disks, count, length, start, comment = _END.unpack(_read_at(file, end, _END.size))
    if sign != _END_SIGN or comment:
        raise _no_end(file, end)
    if _ELSEWHERE_16 in (*disks, count) or _ELSEWHERE_32 in (length, start):
        raise _zip64()
    if disks != [0, 0, count]:
        raise ZipError("damaged", "The zip archive is one part of several.")
    if count > members:
        raise ZipError("too-many-members", f"The archive holds {count} files; at most {members} are taken.")
    if length > count * (_CENTRAL.size + MAX_NAME):
        raise ZipError("special-entry", "The list of files in the archive holds more than names.")
    if start + length != end:
        locator = _read_at(file, max(end - _ZIP64_LOCATOR_BYTES, 0), 4)
        raise _zip64() if locator == _ZIP64_LOCATOR_SIGN else _hidden()
    return start, count, length


def _no_end(file: BinaryIO, end: int) -> ZipError:
    first = max(end - _LONGEST_COMMENT, 0)
    tail = _read_at(file, first, end - first + _END.size)
    if _END_SIGN in tail:
        return _hidden()
    return ZipError("not-a-zip", "The file is no zip archive, or it is cut off.")


def _central(content: bytes, count: int) -> list[_Listed]:
    listed, position = [], 0
    for _ in range(count):
        header = content[position : position + _CENTRAL.size]
        if len(header) < _CENTRAL.size or not header.startswith(_CENTRAL_SIGN):
            raise ZipError("damaged", "The list of files in the archive is damaged.")
        fields = _CENTRAL.unpack(header)
        position += _CENTRAL.size + fields[10]
        name = content[position - fields[10] : position]
        if len(name) != fields[10]:
            raise ZipError("damaged", "The list of files in the archive is damaged.")
        _refuse_name(name)
        _refuse_special(name, fields)
        listed.append(_Listed(name, fields[2:10], fields[16]))
    if position != len(content):
        raise _hidden()
    return listed


def _refuse_name(name: bytes) -> None:
    reasons = {
        "nul": b"\0" in name,
        "drive-letter": re.match(rb"[A-Za-z]:", name),
        "backslash": b"\\" in name,
        "absolute-path": name.startswith(b"/"),
        "path-traversal": b".." in name.split(b"/"),
        "unusual-name": len(name) > MAX_NAME or not _NAME.fullmatch(name),
    }
    for reason, applies in reasons.items():
        if applies:
            raise ZipError(
                reason, f"The archive holds a file with the name {_shown(name)}, which could lead to another place."
            )


def _refuse_special(name: bytes, fields: tuple[int, ...]) -> None:
    flags, method, packed, size, extra, comment, disk = (*fields[3:5], *fields[8:10], *fields[11:14])
    attributes, offset = fields[15:17]
    if disk == _ELSEWHERE_16 or _ELSEWHERE_32 in (packed, size, offset):
        raise _zip64()
    if flags & _ENCRYPTED:
        raise ZipError("encrypted", f"{_shown(name)} is encrypted, so that nobody can check it.")
    if flags or method not in (STORED, DEFLATED):
        raise ZipError("unsupported-method", f"{_shown(name)} is packed in a way that is not unpacked here.")
    if extra:
        raise ZipError("extra-field", f"{_shown(name)} has extra fields, which can turn a file into a link.")
    if stat.S_ISLNK(attributes >> 16):
        raise ZipError("symlink", f"{_shown(name)} is a link to another place, not a file.")
    if stat.S_IFMT(attributes >> 16) not in _ORDINARY_KINDS or attributes & 0xFFFF & ~_HARMLESS_DOS_BITS:
        raise ZipError("special-entry", f"{_shown(name)} is a folder or a device, not a file.")
    if comment or disk:
        raise ZipError("special-entry", f"{_shown(name)} has a comment, or lies in another part of the archive.")


def _refuse_same_names(listed: list[_Listed]) -> None:
    seen: dict[bytes, bytes] = {}
    for entry in listed:
        other = seen.setdefault(entry.name.lower(), entry.name)
        if other != entry.name:
            raise ZipError(
                "colliding-names",
                f"The archive holds {_shown(other)} and {_shown(entry.name)}, which are one name on many computers.",
            )
    if len(seen) != len(listed):
        raise ZipError("duplicate-names", "The archive holds two files of the same name.")


# -- The layout


def _check_layout(file: BinaryIO, in_order: list[_Listed], directory: int) -> None:
    """The entries follow each other from the first byte to the directory, each with a fitting header before it."""
    position = 0
    for entry in in_order:
        if entry.offset < position:
            raise ZipError("overlap", f"{_shown(entry.name)} shares its bytes with another file in the archive.")
        if entry.offset > position:
            raise _hidden()
        _check_local(file, entry)
        position = entry.stop
    if position > directory:
        raise ZipError("overlap", "The last file in the archive shares its bytes with the list of files.")
    if position < directory:
        raise _hidden()


def _check_local(file: BinaryIO, entry: _Listed) -> None:
    sign, *fields, name_length, extra = _LOCAL.unpack(_read_at(file, entry.offset, _LOCAL.size))
    if sign != _LOCAL_SIGN:
        raise ZipError("damaged", f"The archive is damaged: {_shown(entry.name)} does not begin where it should.")
    if extra:
        raise ZipError("extra-field", f"{_shown(entry.name)} has extra fields, which can turn a file into a link.")
    if tuple(fields[6:8]) != entry.sizes:
        raise _lying_size(_shown(entry.name))
    same_name = name_length == len(entry.name) and _read_at(file, entry.start - name_length, name_length) == entry.name
    if tuple(fields) != entry.shared or not same_name:
        raise ZipError("header-mismatch", f"The archive says two different things about {_shown(entry.name)}.")


def _check_amounts(in_order: list[_Listed], total_bytes: int, ratio: int) -> None:
    for entry in in_order:
        packed, size = entry.sizes
        if entry.method == STORED and packed != size:
            raise _lying_size(_shown(entry.name))
        if size > ratio * packed:
            raise ZipError(
                "ratio",
                f"{_shown(entry.name)} becomes more than {ratio} times larger when it is unpacked, as no model does; "
                "such archives are made to fill a disk.",
            )
    total = sum(entry.sizes[1] for entry in in_order)
    if total > total_bytes:
        raise ZipError("too-large", f"Unpacked, the archive has {total:,} bytes; at most {total_bytes:,} are taken.")


# -- Data


def _stored(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    for position in range(0, entry.packed, BLOCK):
        yield _read_at(file, entry.start + position, min(BLOCK, entry.packed - position))


def _inflated(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(file, entry):
            if inflate.eof:
                raise _hidden()
            while packed and not inflate.eof:
                yield inflate.decompress(packed, BLOCK)
                packed = inflate.unconsumed_tail
        # What is left is at most what a few bits can stand for, some kilobytes.
        yield inflate.flush()
    except zlib.error as error:
        raise ZipError("damaged", f"{entry.name} is damaged and cannot be unpacked.") from error
    if not inflate.eof:
        raise ZipError("damaged", f"{entry.name} is cut off.")
    if inflate.unused_data:
        raise _hidden()


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise ZipError("damaged", "The archive is cut off.")
    return content


# -- Words


def _hidden() -> ZipError:
    return ZipError("hidden-data", "There are bytes before, between or after the files in the archive.")


def _zip64() -> ZipError:
    return ZipError("zip64", "The archive has headers for files of more than 4 GB, which no model has.")


def _lying_size(name: str) -> ZipError:
    return ZipError("lying-size", f"The archive does not tell the true size of {name}.")


def _shown(name: bytes) -> str:
    return repr(name[:60].decode("ascii", "replace"))
