"""A model version as one file that travels between sites, and that nobody needs to trust before it is proved.

`<condition>-v<number>.xrpkg.zip` is a zip (of the strict kind, see strict_zip) of these files, in this order:

    package.json         what the package is: format, origin, condition, version, and size and sha256 of each member
    signature.json       over the exact bytes of package.json (see signing); missing when the origin has no key
    manifest.json        the registry's manifest of the version, without what stays at the site
    model_card.json, model_card.md, evaluations.json, golden.json
    weights.safetensors

No image, prediction, patient or file name is in it. The same version gives the same bytes: members are stored, times
are fixed. Reading takes what is written here and nothing else, in the order: the structure of the zip, the signature,
package.json, then each member as it streams into a staging folder, which is gone again when anything is refused.
Whether weights fit an architecture of this platform and answer as they should is proved later, by rebuilding it.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeGuard

from registry import artifacts, signing, strict_json, strict_zip, weights_file
from registry.signing import Signature, SignatureState, SigningKey
from registry.strict_zip import Entry

FORMAT: Final = 1
PACKAGE: Final = "package.json"
SIGNATURE: Final = "signature.json"
MANIFEST: Final = artifacts.MANIFEST
WEIGHTS: Final = artifacts.WEIGHTS
CARD: Final = "model_card.json"
CARD_TEXT: Final = "model_card.md"
EVALUATIONS: Final = "evaluations.json"
GOLDEN: Final = "golden.json"
DOCUMENTS: Final = (MANIFEST, CARD, EVALUATIONS, GOLDEN)
# The weights last: whatever is wrong with the rest is found before they are unpacked.
MEMBERS: Final = (MANIFEST, CARD, CARD_TEXT, EVALUATIONS, GOLDEN, WEIGHTS)
# What package.json must tell, and how long it may be. Further facts are taken as they are.
REQUIRED: Final = {
    "origin": {"name": 200},
    "condition": {"slug": 100, "name": 120, "body_part": 40, "intended_use": 10_000},
}
LARGEST_NUMBER: Final = 2**31 - 1
_SLUG: Final = re.compile(r"[-a-zA-Z0-9_]+")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# Control characters other than tabs and line breaks, and those that reorder the text around them to disguise it.
_UNSHOWABLE: Final = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FIXED_TIME: Final = (1980, 1, 1, 0, 0, 0)
_ORDINARY_FILE: Final = 0o100644
_BLOCK: Final = 1024**2

Progress = Callable[[int, int], None]


class PackageError(Exception):
    """The package is refused. `reason` is a stable code; the text says what is wrong and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """What a package may have at most. ratio: unpacked by packed bytes of a member; the others count files or bytes."""

    members: int = 32
    total_bytes: int = 4 * 1024**3
    ratio: int = 100
    package_bytes: int = 1024**2
    document_bytes: int = 8 * 1024**2
    weights_head_bytes: int = weights_file.MAX_HEAD_BYTES


LIMITS: Final = Limits()


@dataclass(frozen=True)
class Label:
    """What a package says about itself, before any other file of it is looked at.

    sha256: of package.json, which names the digest of everything else: equal for packages of the same content.
    description: package.json. size: of all members, unpacked, in bytes. Only a trusted signature makes it true.
    """

    sha256: str
    description: dict[str, Any]
    signature: Signature
    size: int


@dataclass(frozen=True)
class Package:
    """A package that was read whole and found sound.

    folder: holds MEMBERS; documents: the parsed content of DOCUMENTS by name; shapes: of the weights by name.
    """

    folder: Path
    label: Label
    documents: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def file_name(slug: str, number: int) -> str:
    return f"{slug}-v{number}.xrpkg.zip"


def portable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A version's manifest without the members that stay at its site: its predictions, and what is derived."""
    return {**manifest, "members": {WEIGHTS: manifest["members"][WEIGHTS]}}


def to_bytes(document: Any) -> bytes:
    """A document as the package holds it. Raises ValueError when it holds numbers that are none."""
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode()


# -- Writing


def write(
    target: Path,
    description: Mapping[str, Any],
    members: Mapping[str, Path | bytes],
    *,
    key: SigningKey | None,
    progress: Progress | None = None,
) -> str:
    """Write a package and return the sha256 of its package.json.

    description: origin, condition and version (see REQUIRED; version has a number). members: all of MEMBERS, each a
    file, which is streamed, or its bytes. key: signs; None for a package without a signature. progress: called with
    the bytes written and those to write; what it raises ends the writing. The target appears whole or not at all;
    one that is there is replaced. Raises PackageError, OSError.
    """
    content = _described(description, members, key)
    described = _parsed(PACKAGE, content)
    _check_description(described)
    listed = described["members"]
    _check_sizes({PACKAGE: len(content), **{name: listed[name]["size"] for name in MEMBERS}}, LIMITS)
    count = _Counter(sum(member["size"] for member in listed.values()), progress)
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            _write_zip(file, content, key, members, listed, count)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    artifacts.sync(target.parent)
    return hashlib.sha256(content).hexdigest()


def _described(description: Mapping[str, Any], members: Mapping[str, Path | bytes], key: SigningKey | None) -> bytes:
    if members.keys() != set(MEMBERS):
        raise PackageError("missing-member", f"A package holds exactly {', '.join(MEMBERS)}.")
    listed = {name: _measured(members[name]) for name in MEMBERS}
    origin = {**description.get("origin", {}), "key_id": key.key_id if key else None}
    return to_bytes({**description, "origin": origin, "format": FORMAT, "members": listed})


def _measured(member: Path | bytes) -> dict[str, Any]:
    size, digest = 0, hashlib.sha256()
    for block in _read_blocks(member):
        size += len(block)
        digest.update(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _read_blocks(member: Path | bytes) -> Iterator[bytes]:
    if isinstance(member, bytes):
        yield member
        return
    with member.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _write_zip(
    file: BinaryIO,
    content: bytes,
    key: SigningKey | None,
    members: Mapping[str, Path | bytes],
    listed: Mapping[str, Mapping[str, Any]],
    count: "_Counter",
) -> None:
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
            archive.writestr(_entry(PACKAGE), content)
            if key is not None:
                archive.writestr(_entry(SIGNATURE), key.sign(content))
            for name in MEMBERS:
                _copy(archive, name, members[name], listed[name], count)
    except zipfile.LargeZipFile as error:
        raise PackageError("too-large", "The version has files of 2 GB or more, which no package holds.") from error


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _FIXED_TIME)
    entry.create_system = 3
    entry.external_attr = _ORDINARY_FILE << 16
    return entry


def _copy(
    archive: zipfile.ZipFile, name: str, member: Path | bytes, expected: Mapping[str, Any], count: "_Counter"
) -> None:
    entry = _entry(name)
    entry.file_size = expected["size"]
    digest = hashlib.sha256()
    with archive.open(entry, "w") as copy:
        for block in _read_blocks(member):
            copy.write(block)
            digest.update(block)
            count.add(len(block))
    if digest.hexdigest() != expected["sha256"]:
        raise PackageError("changed", f"{name} changed while the package was written. Start the export again.")


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done = 0
        self.total = total
        self.progress = progress or (lambda done, total: None)

    def add(self, amount: int) -> None:
        self.done += amount
        self.progress(self.done, self.total)


# -- Reading


def read_label(file: Path, *, limits: Limits = LIMITS, trusted: Mapping[str, str]) -> Label:
    """What a package says about itself and who signed it; nothing is unpacked, nothing is written.

    trusted: public keys by key id (see signing). A package without a signature or of an unknown key has a label too, so
    that somebody can decide about it; one with a wrong signature is refused. Raises PackageError, OSError.
    """
    with _refused(), file.open("rb") as opened:
        return _label(opened, _entries(opened, limits), limits, trusted)


def read(
    file: Path,
    staging: Path,
    *,
    limits: Limits = LIMITS,
    trusted: Mapping[str, str],
    accept: Collection[SignatureState] = (),
    progress: Progress | None = None,
) -> Package:
    """Verify a package and unpack it into a new folder.

    trusted: public keys by key id (see signing). accept: UNSIGNED or UNKNOWN_KEY, when somebody answers for a package
    whose origin is not trusted; a wrong signature is never accepted. progress: called with the bytes unpacked and those
    to unpack; what it raises ends the reading. Raises PackageError; OSError of this computer's own (a full disk,
    `staging` exists). Whatever is raised, the folder is removed.
    """
    staging.mkdir(parents=True)
    try:
        with _refused(), file.open("rb") as opened:
            entries = _entries(opened, limits)
            label = _label(opened, entries, limits, trusted)
            _refuse_untrusted(label, accept)
            listed = _listed(label.description, entries)
            return _unpacked(opened, entries, listed, label, staging, limits, progress)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except strict_zip.ZipError as error:
        raise PackageError(error.reason, f"{error} Get the file again from where it was exported.") from error
    except weights_file.WeightsError as error:
        raise PackageError(error.reason, str(error)) from error


def _entries(opened: BinaryIO, limits: Limits) -> dict[str, Entry]:
    entries = strict_zip.entries(opened, members=limits.members, total_bytes=limits.total_bytes, ratio=limits.ratio)
    if not entries or entries[0].name != PACKAGE:
        raise PackageError(
            "not-a-package",
            f"This zip does not begin with {PACKAGE}, so it is no package of a model version. Upload a file that the "
            "export of a version gave.",
        )
    return {entry.name: entry for entry in entries}


def _label(opened: BinaryIO, entries: Mapping[str, Entry], limits: Limits, trusted: Mapping[str, str]) -> Label:
    content = _content(opened, entries[PACKAGE], limits)
    signature = _content(opened, entries[SIGNATURE], limits) if SIGNATURE in entries else None
    told = signing.verify(content, signature, trusted)
    if told.state == SignatureState.WRONG:
        raise _wrong_signature()
    description = _parsed(PACKAGE, content)
    _check_format(description)
    _check_description(description)
    if description["origin"].get("key_id") != (told.key_id or None):
        raise _wrong_signature()
    size = sum(entry.size for entry in entries.values())
    return Label(hashlib.sha256(content).hexdigest(), description, told, size)


def _wrong_signature() -> PackageError:
    return PackageError(
        SignatureState.WRONG.value,
        "The signature does not belong to this package: it was changed after it was signed, or damaged on the way. "
        "Get the file again from where it was made.",
    )


def _refuse_untrusted(label: Label, accept: Collection[SignatureState]) -> None:
    state = label.signature.state
    if state == SignatureState.TRUSTED or state in accept:
        return
    if state == SignatureState.UNSIGNED:
        raise PackageError(
            state.value,
            "The package is not signed, so that anybody can have made it. Import it only if you know where it comes "
            "from, and say so, or ask for a signed one.",
        )
    raise PackageError(
        state.value,
        f"The package is signed with the key {label.signature.key_id}, which is not one of the trusted origins. Ask "
        "an administrator to add the origin, or say that you answer for this package.",
    )


def _content(opened: BinaryIO, entry: Entry, limits: Limits) -> bytes:
    _check_sizes({entry.name: entry.size}, limits)
    return b"".join(strict_zip.blocks(opened, entry))


def _check_sizes(sizes: Mapping[str, int], limits: Limits) -> None:
    """Of what is read into memory; the weights are not."""
    for name, size in sizes.items():
        limit = limits.package_bytes if name in (PACKAGE, SIGNATURE) else limits.document_bytes
        if name != WEIGHTS and size > limit:
            raise PackageError("too-large", f"{name} has {size:,} bytes; a package holds at most {limit:,} of it.")


def _parsed(name: str, content: bytes) -> Any:
    try:
        return strict_json.parse(content)
    except ValueError as error:
        raise PackageError("not-json", f"{name} is not sound JSON ({error}). Ask for another export.") from error


# -- What package.json says


def _check_format(description: Any) -> None:
    number = description.get("format") if isinstance(description, dict) else None
    if not _is_number(number):
        raise _malformed("tells no format")
    if number > FORMAT:
        raise PackageError(
            "newer-format",
            f"The package has format {number}; this platform reads up to {FORMAT}. Upgrade it, or ask for an export "
            "from an older one.",
        )


def _check_description(description: dict[str, Any]) -> None:
    for part, fields in REQUIRED.items():
        told = description.get(part)
        if not isinstance(told, dict):
            raise _malformed(f"tells nothing about the {part}")
        for field, longest in fields.items():
            if not _is_text(told.get(field), longest, lines=field == "intended_use"):
                raise _malformed(f"has no {field} of the {part}, or none that can be shown")
    if not _SLUG.fullmatch(description["condition"]["slug"]):
        raise _malformed("names the condition in a way that is no name here")
    version = description.get("version")
    if not isinstance(version, dict) or not _is_number(version.get("number")):
        raise _malformed("has no number of the version")


def _is_text(value: Any, longest: int, *, lines: bool) -> bool:
    if not isinstance(value, str) or len(value) > longest or _UNSHOWABLE.search(value):
        return False
    return lines or len(value.splitlines()) <= 1


def _is_number(value: Any) -> TypeGuard[int]:
    return type(value) is int and 1 <= value <= LARGEST_NUMBER


def _listed(description: dict[str, Any], entries: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each member, when the zip holds exactly those that are listed, and those are MEMBERS."""
    listed = description.get("members")
    if not isinstance(listed, dict) or not all(_is_measured(member) for member in listed.values()):
        raise _malformed("does not tell size and sha256 of each member")
    there = entries.keys() - {PACKAGE, SIGNATURE}
    _refuse_members("unlisted-member", there - listed.keys(), f"which {PACKAGE} does not list")
    _refuse_members("unknown-member", listed.keys() - set(MEMBERS), "which is no part of a package")
    missing = set(MEMBERS) - there
    if missing:
        raise PackageError(
            "missing-member",
            f"The package lacks {_shown(missing)}, so that it makes no version. Ask for another export.",
        )
    for name, member in listed.items():
        if entries[name].size != member["size"]:
            raise PackageError("wrong-size", f"{name} does not have the size that {PACKAGE} tells; it was changed.")
    return listed


def _is_measured(member: Any) -> bool:
    if not isinstance(member, dict):
        return False
    size, sha256 = member.get("size"), member.get("sha256")
    return type(size) is int and size >= 0 and isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None


def _refuse_members(reason: str, names: Collection[str], problem: str) -> None:
    if names:
        raise PackageError(reason, f"The package holds {_shown(names)}, {problem}. Ask for another export.")


def _shown(names: Collection[str]) -> str:
    first = min(names)[:60]
    return repr(first) if len(names) == 1 else f"{first!r} and {len(names) - 1} more"


def _malformed(problem: str) -> PackageError:
    return PackageError("malformed", f"{PACKAGE} {problem}. Ask for another export of the version.")


# -- The members


def _unpacked(
    opened: BinaryIO,
    entries: Mapping[str, Entry],
    listed: Mapping[str, Mapping[str, Any]],
    label: Label,
    staging: Path,
    limits: Limits,
    progress: Progress | None,
) -> Package:
    _check_sizes({name: entry.size for name, entry in entries.items()}, limits)
    count = _Counter(sum(member["size"] for member in listed.values()), progress)
    documents = {}
    for name in MEMBERS:
        _extract(opened, entries[name], staging / name, listed[name]["sha256"], count)
        if name in DOCUMENTS:
            documents[name] = _parsed(name, (staging / name).read_bytes())
    _check_text((staging / CARD_TEXT).read_bytes())
    _check_manifest(documents[MANIFEST], listed)
    shapes = weights_file.check(staging / WEIGHTS, max_head_bytes=limits.weights_head_bytes)
    return Package(staging, label, documents, shapes)


def _extract(opened: BinaryIO, entry: Entry, target: Path, sha256: str, count: _Counter) -> None:
    digest = hashlib.sha256()
    beginning = b""
    with target.open("xb") as file:
        for block in strict_zip.blocks(opened, entry):
            beginning = beginning or block[:8]
            file.write(block)
            digest.update(block)
            count.add(len(block))
    if digest.hexdigest() != sha256:
        raise PackageError(
            "wrong-digest", f"{entry.name} is not what {PACKAGE} says; it was changed. Get the file again."
        )
    kind = weights_file.archive_kind(beginning)
    if kind and entry.name != WEIGHTS:
        raise PackageError("nested-archive", f"{entry.name} is a {kind} under another name, which is not unpacked.")


def _check_text(content: bytes) -> None:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if _UNSHOWABLE.search(text):
        raise PackageError("not-text", f"{CARD_TEXT} is not a text in UTF-8. Ask for another export.")


def _check_manifest(manifest: Any, listed: Mapping[str, Mapping[str, Any]]) -> None:
    number = manifest.get("format") if isinstance(manifest, dict) else None
    if not _is_number(number):
        raise PackageError("malformed", f"{MANIFEST} tells no format. Ask for another export of the version.")
    if number > artifacts.FORMAT:
        raise PackageError(
            "newer-format",
            f"The version has format {number}; this platform reads up to {artifacts.FORMAT}. Upgrade it.",
        )
    weights = {field: listed[WEIGHTS][field] for field in ("size", "sha256")}
    if manifest.get("members") != {WEIGHTS: weights}:
        raise PackageError("wrong-digest", f"{MANIFEST} belongs to other weights than those in the package.")
