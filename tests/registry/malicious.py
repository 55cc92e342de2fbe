"""Packages that somebody made to do harm, or that were damaged, each with the reason for which it is refused.

`CASES` is the corpus: name, function that makes the bytes, reason. All are signed with a trusted key unless the case
is about the signature, so that nothing but the fault itself can be the reason. `build` and `assemble` make others: a
zip is put together by hand here, because `zipfile` does not write such files.
"""

import hashlib
import io
import json
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry import packages
from registry.packages import CARD, CARD_TEXT, EVALUATIONS, GOLDEN, MANIFEST, PACKAGE, SIGNATURE, WEIGHTS
from registry.signing import SigningKey

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(b"a site of these tests, no secret"))
STRANGER = SigningKey(Ed25519PrivateKey.from_private_bytes(b"another site that nobody trusts!"))
TRUSTED = {KEY.key_id: KEY.public_key}
DEFLATED = zipfile.ZIP_DEFLATED
MB = 1024**2
DESCRIPTION = {
    "origin": {"name": "St. Example"},
    "condition": {"slug": "chest-pneumonia", "name": "Pneumonia", "body_part": "chest", "intended_use": "Research."},
    "version": {"number": 3, "architecture": "Custom_CNN"},
}
ARRAYS = {"head/kernel": np.arange(6, dtype=np.float32).reshape(3, 2), "head/count": np.array(7, np.int32)}


@dataclass(frozen=True)
class Entry:
    """One file of a zip. packed: its data when it is not what `content` gives; local, central: fields that lie."""

    name: bytes
    content: bytes
    method: int = zipfile.ZIP_STORED
    mode: int = 0o100644
    attributes: int = 0
    extra: bytes = b""
    comment: bytes = b""
    packed: bytes | None = None
    both: Mapping[str, int] = field(default_factory=dict)
    local: Mapping[str, Any] = field(default_factory=dict)
    central: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        if self.packed is not None:
            return self.packed
        return deflate(self.content) if self.method == DEFLATED else self.content

    def fields(self) -> dict[str, Any]:
        told = {"needed": 20, "flags": 0, "method": self.method, "time": 0, "date": 33, "crc": zlib.crc32(self.content)}
        return told | {"packed": len(self.data), "size": len(self.content), "name": self.name} | dict(self.both)


def deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush()


def _local_header(entry: Entry) -> bytes:
    told = entry.fields() | dict(entry.local)
    name = told.pop("name")
    extra = told.pop("extra", entry.extra)
    return struct.pack("<4s5H3L2H", b"PK\3\4", *told.values(), len(name), len(extra)) + name + extra


def _central_header(entry: Entry, offset: int) -> bytes:
    told = entry.fields() | dict(entry.central)
    name, offset = told.pop("name"), told.pop("offset", offset)
    disk = told.pop("disk", 0)
    lengths = (len(name), len(entry.extra), len(entry.comment), disk, 0)
    attributes = entry.mode << 16 | entry.attributes
    header = struct.pack("<4s6H3L5H2L", b"PK\1\2", 3 << 8 | 20, *told.values(), *lengths, attributes, offset)
    return header + name + entry.extra + entry.comment


def assemble(
    entries: list[Entry],
    *,
    before: bytes = b"",
    between: bytes = b"",
    behind: bytes = b"",
    inside: bytes = b"",
    last: bytes = b"",
    after: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
) -> bytes:
    """The bytes of a zip. between: after the first entry; behind: after the last; inside: at the end of the directory;
    last: before the end record; after: at the end of the file."""
    content, directory = before, b""
    for number, entry in enumerate(entries):
        directory += _central_header(entry, len(content))
        content += _local_header(entry) + entry.data + (between if number == 0 else b"")
    content, directory = content + behind, directory + inside
    told = len(entries) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, told, told, len(directory), len(content), len(comment))
    return content + directory + last + end + comment + after


def members(changes: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The content of each member of a sound package; the manifest fits the weights."""
    given = dict(changes or {})
    weights = given.get(WEIGHTS, safetensors.numpy.save(ARRAYS))
    golden = {"seed": 7, "count": 1, "outputs": [[0.25, 0.75]]}
    manifest = {"format": 1, "architecture": "Custom_CNN", "golden": golden, "members": {WEIGHTS: measured(weights)}}
    return {
        MANIFEST: packages.to_bytes(manifest),
        CARD: packages.to_bytes({"format": 1, "title": "Pneumonia v3", "sections": []}),
        CARD_TEXT: "# Pneumonia v3\n\nFür die Forschung.\n".encode(),
        EVALUATIONS: packages.to_bytes([{"title": "Test part", "accuracy": 0.9}]),
        GOLDEN: packages.to_bytes(golden),
        WEIGHTS: weights,
    } | given


def measured(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def build(
    changes: Mapping[str, bytes] | None = None,
    *,
    description: Mapping[str, Any] | bytes | None = None,
    listed: Mapping[str, Any] | None = None,
    key: SigningKey | None = KEY,
) -> list[Entry]:
    """The entries of a package that is signed and lists what is in it; description, listed: told instead."""
    contents = members(changes)
    if not isinstance(description, bytes):
        origin = {**DESCRIPTION["origin"], "key_id": key.key_id if key else None}
        told = {**DESCRIPTION, "origin": origin, "format": 1}
        told["members"] = {name: measured(content) for name, content in contents.items()} | dict(listed or {})
        description = packages.to_bytes(told | dict(description or {}))
    files = {PACKAGE: description, **({SIGNATURE: key.sign(description)} if key else {}), **contents}
    return [Entry(name.encode(), content) for name, content in files.items()]


def sound() -> bytes:
    return assemble(build())


def changed(name: str, **changes: Any) -> bytes:
    """A sound package, one of whose entries is told otherwise."""
    return assemble([replace(entry, **changes) if entry.name == name.encode() else entry for entry in build()])


def with_file(name: bytes, content: bytes = b"{}", **fields: Any) -> bytes:
    """A sound package with one file more, which package.json lists as well."""
    shown = name.decode("latin-1")
    return assemble([*build(listed={shown: measured(content)}), Entry(name, content, **fields)])


def with_weights(content: bytes) -> bytes:
    return assemble(build({WEIGHTS: content}))


def weights(head: Any, numbers: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file. head: JSON, or bytes as they are; length: what it says about its head."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + numbers


def described(dtype: str, shape: list[Any], *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


Case = tuple[str, Callable[[], bytes], str]
CASES: list[Case] = []


def case(reason: str, name: str, make: Callable[[], bytes]) -> None:
    CASES.append((name, make, reason))


# -- Names

case("path-traversal", "a name with ..", lambda: with_file(b"../manifest.json"))
case("path-traversal", "a name with .. in the middle", lambda: with_file(b"cards/../../manifest.json"))
case("path-traversal", "the name ..", lambda: with_file(b".."))
case("absolute-path", "an absolute name", lambda: with_file(b"/etc/cron.d/xray"))
case("drive-letter", "a drive letter", lambda: with_file(b"C:\\Windows\\evil.dll"))
case("drive-letter", "a drive letter without a backslash", lambda: with_file(b"c:evil.dll"))
case("backslash", "a backslash", lambda: with_file(b"..\\manifest.json"))
case("nul", "a NUL in a name", lambda: with_file(b"manifest.json\0.txt"))
case("unusual-name", "an empty name", lambda: with_file(b""))
case("unusual-name", "a name with a folder", lambda: with_file(b"openvino/model.xml"))
case("unusual-name", "a folder", lambda: with_file(b"openvino/", b""))
case("unusual-name", "a name that is not ASCII", lambda: with_file("mänifest.json".encode()))
case("unusual-name", "a name with a line break", lambda: with_file(b"manifest\n.json"))
case("unusual-name", "a name of 200 characters", lambda: assemble([*build(), Entry(b"a" * 200, b"")]))
case("duplicate-names", "a name twice", lambda: with_file(MANIFEST.encode()))
case("duplicate-names", "package.json twice", lambda: with_file(PACKAGE.encode(), b'{"format": 1}'))
case("colliding-names", "names that differ in case", lambda: with_file(b"Manifest.json"))
case("header-mismatch", "another name in the local header", lambda: changed(CARD, local={"name": b"model_card.jsoN"}))
case("header-mismatch", "a longer name in the local header", lambda: changed(WEIGHTS, local={"name": b"weights.st"}))

# -- What is no ordinary file

case("symlink", "a symlink", lambda: with_file(b"card", b"/etc/passwd", mode=stat.S_IFLNK | 0o777))
case("symlink", "the weights are a symlink", lambda: changed(WEIGHTS, mode=stat.S_IFLNK | 0o777))
case(
    "extra-field", "a hard link in an extra field", lambda: changed(CARD, extra=struct.pack("<HH", 0x0D, 8) + bytes(8))
)
case("extra-field", "an extra field in the local header", lambda: changed(CARD, local={"extra": bytes(4)}))
case("special-entry", "a device", lambda: with_file(b"card", b"", mode=stat.S_IFBLK | 0o600))
case("special-entry", "a pipe", lambda: changed(CARD, mode=stat.S_IFIFO | 0o600))
case("special-entry", "a folder by its DOS attribute", lambda: changed(CARD, attributes=0x10))
case("special-entry", "a reparse point of Windows", lambda: changed(CARD, attributes=0x400))
case("special-entry", "a comment of a file", lambda: changed(CARD, comment=b"hello"))
case("special-entry", "a file on another disk", lambda: changed(CARD, central={"disk": 1}))
case("encrypted", "an encrypted file", lambda: changed(CARD, both={"flags": 1}))
case("encrypted", "a strongly encrypted file", lambda: changed(CARD, both={"flags": 1 << 6}))
case("encrypted", "an encrypted directory", lambda: changed(CARD, both={"flags": 1 << 13}))
case("unsupported-method", "a data descriptor", lambda: changed(CARD, both={"flags": 1 << 3}))
case("unsupported-method", "a name in UTF-8 by its flag", lambda: changed(CARD, both={"flags": 1 << 11}))
case("unsupported-method", "LZMA", lambda: changed(CARD, both={"method": zipfile.ZIP_LZMA}))
case("unsupported-method", "bzip2", lambda: changed(CARD, both={"method": zipfile.ZIP_BZIP2}))
case("header-mismatch", "another method in the local header", lambda: changed(CARD, local={"method": DEFLATED}))
case("header-mismatch", "encrypted by the local header alone", lambda: changed(CARD, local={"flags": 1}))
case("header-mismatch", "another checksum in the local header", lambda: changed(CARD, local={"crc": 1}))

# -- Amounts


def shared_bytes() -> bytes:
    """Many files in the directory, all with the data of one: a bomb without nesting."""
    bomb = Entry(b"bomb", bytes(MB // 16), method=DEFLATED)
    offset = assemble([*build(), bomb]).rindex(b"PK\3\4")
    names = [b"%d" % number for number in range(10)]
    lies = [bomb.fields() | {"name": name, "offset": offset} for name in names]
    return assemble([*build(), bomb, *(Entry(lie["name"], b"", central=lie) for lie in lies)])


case("ratio", "a bomb by its ratio", lambda: with_file(b"bomb", bytes(4 * MB), method=DEFLATED))
case(
    "ratio",
    "weights that are a bomb",
    lambda: assemble(
        [
            replace(entry, content=bytes(4 * MB), method=DEFLATED) if entry.name == WEIGHTS.encode() else entry
            for entry in build({WEIGHTS: bytes(4 * MB)})
        ]
    ),
)
case("ratio", "a file from no bytes", lambda: with_file(b"bomb", bytes(MB), method=DEFLATED, packed=b""))
case(
    "too-large",
    "more than 4 GB in all",
    lambda: assemble(
        [
            *build(),
            *(
                Entry(b"%d" % number, b"", method=DEFLATED, packed=bytes(22 * MB), both={"size": 2**31 - 1})
                for number in range(3)
            ),
        ]
    ),
)
case("too-large", "package.json of megabytes", lambda: assemble(build(description=b" " * (2 * MB))))
case("too-large", "a document of megabytes", lambda: assemble(build({EVALUATIONS: b"[" + b" " * (9 * MB) + b"]"})))
case("too-many-members", "33 files", lambda: assemble([*build(), *(Entry(b"%d" % n, b"") for n in range(25))]))
case("damaged", "a count of files that is too large", lambda: assemble(build(), count=20))
case("hidden-data", "a count of files that is too small", lambda: assemble(build(), count=7))
case("nested-archive", "a zip as the model card", lambda: assemble(build({CARD_TEXT: sound()})))
case("nested-archive", "gzip as a document", lambda: assemble(build({EVALUATIONS: b"\x1f\x8b\x08" + bytes(99)})))
case("unknown-member", "a zip in the package", lambda: with_file(b"inner.zip", sound()))
case("lying-size", "a larger size in the local header", lambda: changed(CARD, local={"size": 10**6}))
case("lying-size", "a smaller size in the directory", lambda: changed(CARD, central={"size": 5}))
case("lying-size", "another packed size in the local header", lambda: changed(CARD, local={"packed": 3}))
case("lying-size", "stored, but of two sizes", lambda: changed(CARD, both={"size": 10**3}))
case(
    "lying-size",
    "more comes out than both headers say",
    lambda: changed(EVALUATIONS, method=DEFLATED, packed=deflate(members()[EVALUATIONS] + bytes(5 * MB))),
)
case(
    "lying-size",
    "less comes out than both headers say",
    lambda: changed(EVALUATIONS, method=DEFLATED, packed=deflate(members()[EVALUATIONS][:-1])),
)
case("zip64", "a size for zip64", lambda: changed(CARD, both={"size": 0xFFFFFFFF}))
case("zip64", "an offset for zip64", lambda: changed(CARD, central={"offset": 0xFFFFFFFF}))
case("zip64", "a count for zip64", lambda: assemble(build(), count=0xFFFF))
case("zip64", "a locator of zip64", lambda: assemble(build(), last=b"PK\6\7" + bytes(16)))

# -- The layout


def full_block() -> bytes:
    """What is read at once ends where the deflated data end, and the hidden ones begin with the next read."""
    content = bytes(MB // 16 - 5)
    header = struct.pack("<HH", len(content), 0xFFFF - len(content))
    packed = b"".join(bytes([number == 15]) + header + content for number in range(16))
    entries = {entry.name: entry for entry in build({CARD: content * 16})}
    entries[CARD.encode()] = replace(entries[CARD.encode()], method=DEFLATED, packed=packed + b"hidden")
    return assemble(list(entries.values()))


case("hidden-data", "data before", lambda: assemble(build(), before=b"#!/bin/sh\n"))
case("hidden-data", "data before, offsets as without", lambda: b"MZ" + bytes(98) + sound())
case("hidden-data", "data between files", lambda: assemble(build(), between=b"hidden"))
case("hidden-data", "data before the directory", lambda: assemble(build(), behind=b"hidden"))
case("hidden-data", "data in the directory", lambda: assemble(build(), inside=b"hidden"))
case("hidden-data", "data after the directory", lambda: assemble(build(), last=b"hidden"))
case("hidden-data", "data after", lambda: sound() + b"hidden")
case("hidden-data", "another package after", lambda: sound() + bytes(3) + sound())
case("hidden-data", "a comment", lambda: assemble(build(), comment=b"hidden"))
case("hidden-data", "a comment that is not there", lambda: sound()[:-2] + b"\5\0")
case("damaged", "one part of an archive of several", lambda: sound()[:-18] + b"\1" + sound()[-17:])
case("hidden-data", "a comment that ends like an archive", lambda: assemble(build(), comment=sound()[-22:] + b"!"))
case(
    "hidden-data",
    "data after the end of a deflated file",
    lambda: changed(CARD, method=DEFLATED, packed=deflate(members()[CARD]) + b"hidden"),
)
case("hidden-data", "data after a deflated file that fills a block", full_block)
case("overlap", "files that share their bytes", shared_bytes)
case(
    "overlap",
    "a file inside another",
    lambda: assemble([*build(), Entry(b"inside", b"", packed=b"", central={"offset": 40})]),
)
case(
    "overlap",
    "the last file reaches into the directory",
    lambda: changed(WEIGHTS, both={"packed": len(members()[WEIGHTS]) + 30, "size": len(members()[WEIGHTS]) + 30}),
)
case("damaged", "no header where a file should begin", lambda: sound().replace(b"PK\3\4", b"PK\3\5", 1))
case("damaged", "a checksum that fits nothing", lambda: changed(CARD, both={"crc": 5}))
case("damaged", "deflated data that are none", lambda: changed(CARD, method=DEFLATED, packed=b"\xff" * 50))
case(
    "damaged",
    "deflated data that are cut off",
    lambda: changed(CARD, method=DEFLATED, packed=deflate(members()[CARD])[:-3]),
)
case("not-a-zip", "nothing", lambda: b"")
case("not-a-zip", "a text", lambda: b"This is not a package, although its name says so.")
case("not-a-zip", "half a package", lambda: sound()[: len(sound()) // 2])
case("not-a-package", "an empty zip", lambda: assemble([]))
case("not-a-package", "another zip", lambda: assemble([Entry(b"photo.png", b"\x89PNG")]))
case("not-a-package", "package.json is not the first", lambda: assemble([*build()[1:], build()[0]]))

# -- Members and digests

case("unlisted-member", "a file that is not listed", lambda: assemble([*build(), Entry(b"install.sh", b"rm -rf /")]))
case("unknown-member", "predictions of patients", lambda: with_file(b"predictions.npz", b"numbers"))
case(
    "missing-member",
    "no weights",
    lambda: assemble([entry for entry in build() if entry.name != b"weights.safetensors"]),
)
case(
    "missing-member",
    "no golden outputs",
    lambda: assemble([entry for entry in build() if entry.name != b"golden.json"]),
)
case("wrong-size", "another size than listed", lambda: assemble(build(listed={CARD: measured(b"x" * 5)})))
case(
    "wrong-digest",
    "another digest than listed",
    lambda: assemble(build(listed={CARD: {**measured(members()[CARD]), "sha256": "0" * 64}})),
)
case("wrong-digest", "a changed card", lambda: changed(CARD, content=members()[CARD].replace(b"v3", b"v4")))
case(
    "wrong-digest",
    "weights of another manifest",
    lambda: assemble(
        build({MANIFEST: members()[MANIFEST], WEIGHTS: safetensors.numpy.save({"other": np.zeros(3, np.float32)})})
    ),
)
case("not-text", "a model card that is no text", lambda: assemble(build({CARD_TEXT: b"\xff\xfe\x00"})))
case("not-text", "a model card that writes to the terminal", lambda: assemble(build({CARD_TEXT: b"\x1b]0;title\x07"})))

# -- Signatures


def signed(signature: bytes, key: SigningKey = KEY) -> bytes:
    entries = build(key=key)
    return assemble(
        [replace(entry, content=signature) if entry.name == b"signature.json" else entry for entry in entries]
    )


def told(**changes: Any) -> bytes:
    """A signature over the right bytes, in which something is told otherwise."""
    return packages.to_bytes(json.loads(KEY.sign(build()[0].content)) | changes)


case("wrong-signature", "a signature over other bytes", lambda: signed(KEY.sign(b"other")))
case(
    "wrong-signature",
    "package.json changed after signing",
    lambda: changed(PACKAGE, content=build()[0].content.replace(b'"number": 3', b'"number": 4')),
)
case(
    "wrong-signature",
    "the signature of a stranger under a trusted key",
    lambda: signed(told(signature=json.loads(STRANGER.sign(build()[0].content))["signature"])),
)
case(
    "wrong-signature",
    "the key of a stranger under a trusted id",
    lambda: signed(packages.to_bytes(json.loads(STRANGER.sign(build()[0].content)) | {"key_id": KEY.key_id})),
)
case("wrong-signature", "signed by another than the origin", lambda: signed(STRANGER.sign(build()[0].content)))
case("wrong-signature", "a signature that is no JSON", lambda: signed(b"\x00\x01"))
case("wrong-signature", "a signature that is a list", lambda: signed(b"[]"))
case("wrong-signature", "a signature of another kind", lambda: signed(told(algorithm="none")))
case("wrong-signature", "a short signature", lambda: signed(told(signature="00")))
case("wrong-signature", "a public key that is a number", lambda: signed(told(public_key=5)))
case("wrong-signature", "a signature without its key's id", lambda: signed(told(key_id=None)))
case(
    "wrong-signature",
    "unsigned, but of an origin with a key",
    lambda: assemble([entry for entry in build() if entry.name != b"signature.json"]),
)
case("unsigned", "no signature", lambda: assemble(build(key=None)))
case("unknown-key", "signed by a stranger", lambda: assemble(build(key=STRANGER)))

# -- package.json and documents

case("newer-format", "a newer format", lambda: assemble(build(description={"format": 2})))
case("newer-format", "a newer format of the version", lambda: assemble(build({MANIFEST: b'{"format": 99}'})))
case("malformed", "no format", lambda: assemble(build(description={"format": None})))
case("malformed", "a format that is true", lambda: assemble(build(description={"format": True})))
case("malformed", "a negative format", lambda: assemble(build(description={"format": -1})))
case("malformed", "package.json is a list", lambda: assemble(build(description=b"[1, 2]")))
case("malformed", "no condition", lambda: assemble(build(description={"condition": None})))
case(
    "malformed",
    "a condition that is a path",
    lambda: assemble(build(description={"condition": {**DESCRIPTION["condition"], "slug": "../../etc"}})),
)
case(
    "malformed",
    "an origin that writes backwards",
    lambda: assemble(build(description={"origin": {"name": "\u202eelpmaxE", "key_id": KEY.key_id}})),
)
case(
    "malformed",
    "an origin of several lines",
    lambda: assemble(build(description={"origin": {"name": "Example\nTrusted: yes", "key_id": KEY.key_id}})),
)
case(
    "malformed",
    "a condition with an endless name",
    lambda: assemble(build(description={"condition": {**DESCRIPTION["condition"], "name": "x" * 10_000}})),
)
case("malformed", "a version without a number", lambda: assemble(build(description={"version": {"number": "3"}})))
case("malformed", "members that are a list", lambda: assemble(build(description={"members": []})))
case("malformed", "a negative size", lambda: assemble(build(listed={CARD: {"size": -1, "sha256": "0" * 64}})))
case("malformed", "a digest that is a number", lambda: assemble(build(listed={CARD: {"size": 1, "sha256": 7}})))
case("malformed", "a manifest that is a list", lambda: assemble(build({MANIFEST: b"[]"})))
case("not-json", "package.json that is no JSON", lambda: assemble(build(description=b"{'format': 1}")))
case("not-json", "package.json that is not UTF-8", lambda: assemble(build(description=b'{"a": "\xff"}')))
case("not-json", "package.json with a byte order mark", lambda: assemble(build(description=b"\xef\xbb\xbf{}")))
case(
    "not-json",
    "JSON nested 100,000 levels deep",
    lambda: assemble(build({EVALUATIONS: b"[" * 100_000 + b"]" * 100_000})),
)
case("not-json", "JSON nested 40 levels deep", lambda: assemble(build({EVALUATIONS: b"[" * 40 + b"]" * 40})))
case("not-json", "JSON of a million lists", lambda: assemble(build({EVALUATIONS: b"[" + b"[]," * 10**6 + b"[]]"})))
case("not-json", "NaN in JSON", lambda: assemble(build({GOLDEN: b'{"outputs": [NaN]}'})))
case("not-json", "Infinity in JSON", lambda: assemble(build({GOLDEN: b'{"outputs": [-Infinity]}'})))
case("not-json", "a number that becomes infinite", lambda: assemble(build({GOLDEN: b'{"outputs": [1e999]}'})))
case("not-json", "a whole number of 5,000 digits", lambda: assemble(build({GOLDEN: b"[" + b"9" * 5000 + b"]"})))
case("not-json", "a whole number beyond 64 bits", lambda: assemble(build({GOLDEN: b"[9223372036854775808]"})))
case("not-json", "a name twice in JSON", lambda: assemble(build({GOLDEN: b'{"seed": 1, "seed": 2}'})))
case("not-json", "NUL in a text of JSON", lambda: assemble(build({CARD: b'{"title": "\\u0000"}'})))
case("not-json", "half a character in JSON", lambda: assemble(build({CARD: b'{"\\ud800": 1}'})))
case("not-json", "an empty document", lambda: assemble(build({CARD: b""})))

# -- Weights


class Trap:
    """Pickled, it runs a command when somebody unpickles it."""

    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


def pickled() -> bytes:
    return pickle.dumps({"kernel": Trap()})


def keras_archive() -> bytes:
    """A .keras file with a Lambda layer."""
    config = {
        "class_name": "Functional",
        "config": {"layers": [{"class_name": "Lambda", "config": {"function": "..."}}]},
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
    return file.getvalue()


def floats(*values: float, dtype: Any = np.float32) -> bytes:
    return with_weights(safetensors.numpy.save({"head/kernel": np.array(values, dtype)}))


F32 = described("F32", [2], 0, 8)

case("disguised", "a pickle as weights", lambda: with_weights(pickled()))
case("disguised", "a .keras file with a Lambda as weights", lambda: with_weights(keras_archive()))
case("disguised", "HDF5 as weights", lambda: with_weights(b"\x89HDF\r\n\x1a\n" + bytes(100)))
case("disguised", "a numpy file as weights", lambda: with_weights(b"\x93NUMPY\x01\x00" + bytes(100)))
case("disguised", "a program as weights", lambda: with_weights(b"\x7fELF\x02\x01\x01\x00" + bytes(100)))
case("head", "a head of 2^62 bytes", lambda: with_weights(weights({"a": F32}, bytes(8), length=2**62)))
case("head", "a head of 2^64 - 1 bytes", lambda: with_weights(weights({"a": F32}, bytes(8), length=2**64 - 1)))
case("head", "a head that is longer than the file", lambda: with_weights(weights({"a": F32}, bytes(8), length=500)))
case("head", "a head of megabytes", lambda: with_weights(weights(b"{" + b" " * (5 * MB) + b"}")))
case("head", "a head that is no JSON", lambda: with_weights(weights(b"{head}")))
case("head", "a head that is a list", lambda: with_weights(weights([F32], bytes(8))))
case("head", "a head without arrays", lambda: with_weights(weights({})))
case("head", "a head with an array twice", lambda: with_weights(weights(b'{"a": 1, "a": 2}')))
case("head", "an array that is a number", lambda: with_weights(weights({"a": 5})))
case("head", "an array with a field more", lambda: with_weights(weights({"a": {**F32, "code": "x"}}, bytes(8))))
case("head", "an array without a name", lambda: with_weights(weights({"": F32}, bytes(8))))
case("head", "notes that are no texts", lambda: with_weights(weights({"__metadata__": {"a": 1}, "a": F32}, bytes(8))))
case("head", "seven bytes", lambda: with_weights(b"1234567"))
case("head", "no bytes at all", lambda: with_weights(b""))
case(
    "dtype",
    "a dtype that is not taken",
    lambda: with_weights(weights({"a": described("F8_E4M3", [8], 0, 8)}, bytes(8))),
)
case("dtype", "objects", lambda: with_weights(weights({"a": described("O", [1], 0, 8)}, bytes(8))))
case("dtype", "a dtype that is a list", lambda: with_weights(weights({"a": {**F32, "dtype": ["F32"]}}, bytes(8))))
case(
    "shape",
    "a shape that is larger than its bytes",
    lambda: with_weights(weights({"a": described("F32", [2**40, 2**40], 0, 8)}, bytes(8))),
)
case(
    "shape",
    "a shape whose product overflows to the right one",
    lambda: with_weights(weights({"a": described("F32", [2**62 + 2, 4], 0, 8 * 4)}, bytes(32))),
)
case(
    "shape",
    "a shape with a negative number",
    lambda: with_weights(weights({"a": described("F32", [-1, -2], 0, 8)}, bytes(8))),
)
case("shape", "a shape with true", lambda: with_weights(weights({"a": described("F32", [2, True], 0, 8)}, bytes(8))))
case("shape", "a shape with a fraction", lambda: with_weights(weights({"a": described("F32", [2.0], 0, 8)}, bytes(8))))
case(
    "shape",
    "a shape of 100 dimensions",
    lambda: with_weights(weights({"a": described("F32", [1] * 100, 0, 4)}, bytes(4))),
)
case("shape", "an empty array", lambda: with_weights(weights({"a": described("F32", [0, 2**60], 0, 0)})))
case(
    "shape",
    "an array that ends before it begins",
    lambda: with_weights(weights({"a": described("F32", [2], 0, 8), "b": described("F32", [2], 8, 0)}, bytes(8))),
)
case(
    "offsets",
    "arrays that share bytes",
    lambda: with_weights(weights({"a": F32, "b": described("F32", [2], 4, 12)}, bytes(12))),
)
case(
    "offsets",
    "a gap between arrays",
    lambda: with_weights(weights({"a": F32, "b": described("F32", [2], 12, 20)}, bytes(20))),
)
case("offsets", "a negative offset", lambda: with_weights(weights({"a": described("F32", [2], -8, 0)}, bytes(8))))
case("offsets", "one offset", lambda: with_weights(weights({"a": described("F32", [2], 0)}, bytes(8))))
case(
    "truncated",
    "an offset beyond the file",
    lambda: with_weights(weights({"a": described("F32", [4], 0, 16)}, bytes(8))),
)
case(
    "truncated",
    "whole numbers beyond the file",
    lambda: with_weights(weights({"a": described("I32", [4], 0, 16)}, bytes(8))),
)
case("head", "a head after a space", lambda: with_weights(weights(b" " + json.dumps({"a": F32}).encode(), bytes(8))))
case("surplus", "bytes after the arrays", lambda: with_weights(weights({"a": F32}, bytes(8) + b"hidden")))
case("not-finite", "NaN weights", lambda: floats(1.0, float("nan")))
case("not-finite", "infinite weights", lambda: floats(float("inf"), 1.0))
case("not-finite", "negatively infinite weights", lambda: floats(float("-inf")))
case("not-finite", "NaN weights of double precision", lambda: floats(0.0, float("nan"), dtype=np.float64))
case("not-finite", "infinite weights of half precision", lambda: floats(0.0, float("inf"), dtype=np.float16))
