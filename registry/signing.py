"""Signatures of model packages: Ed25519 (RFC 8032), one private key a site, so that a package tells who made it.

The public key travels with the signature. That lets an administrator see and trust a new origin, and tells a package
that was changed from one that was made by somebody unknown; it proves nothing about who that is.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from registry import strict_json
from registry.artifacts import sync

ALGORITHM: Final = "Ed25519"
_PUBLIC_KEY: Final = re.compile(r"[0-9a-f]{64}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")
_LARGEST_KEY_FILE: Final = 16 * 1024


class SigningError(Exception):
    """A key cannot be used. `reason`: missing, readable-by-others, not-a-key."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SignatureState(StrEnum):
    """What a signature says. WRONG: it is damaged, or belongs to other content or to another key."""

    TRUSTED = "trusted"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown-key"
    WRONG = "wrong-signature"


@dataclass(frozen=True)
class Signature:
    """Who signed. key_id, public_key (hexadecimal): as the signature tells them, empty where it tells none."""

    state: SignatureState
    key_id: str = ""
    public_key: str = ""


class SigningKey:
    """The private key of this site. It never shows itself, not even in an error report."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes_raw().hex()
        self.key_id = key_id(self.public_key)

    def __repr__(self) -> str:
        return f"<SigningKey {self.key_id}>"

    def sign(self, message: bytes) -> bytes:
        """The signature over exactly these bytes, as the JSON text that `verify` reads."""
        content = {
            "algorithm": ALGORITHM,
            "key_id": self.key_id,
            "public_key": self.public_key,
            "signature": self._private.sign(message).hex(),
        }
        return json.dumps(content, indent=1, sort_keys=True).encode()


def key_id(public_key: str) -> str:
    """A short name for a public key: the first 16 digits of its sha256. To tell keys apart, not to prove anything."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:16]


def read_public_key(text: str) -> str:
    """A public key that somebody typed or pasted (64 hexadecimal digits), as the other functions take it.

    Raises SigningError (not-a-key).
    """
    public_key = re.sub(r"[\s:]", "", text).lower()
    if not _PUBLIC_KEY.fullmatch(public_key):
        raise SigningError(
            "not-a-key",
            "This is not the public key of a site: that has 64 digits and letters from a to f. Ask the site for the "
            "key that its page of trusted origins shows.",
        )
    return public_key


def create_key(path: Path) -> SigningKey:
    """Make a new private key (PEM, PKCS 8) that its owner alone can read.

    It appears whole or not at all. Raises FileExistsError where there is one: a key is never replaced.
    """
    private = Ed25519PrivateKey.generate()
    content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link fails where another process was faster.
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)
    return SigningKey(private)


def load_key(path: Path) -> SigningKey:
    """Raises SigningError: there is no file, others may read it, or it holds no Ed25519 private key."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LARGEST_KEY_FILE)
    except OSError as error:
        raise SigningError("missing", f"The signing key {path.name} cannot be read: {error.strerror}.") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SigningError(
            "readable-by-others",
            f"Other users of this computer may read or change the signing key {path.name}, so that its signatures "
            f"prove nothing. Run chmod 600 on it, or replace it if it may have been copied.",
        )
    return SigningKey(_private_key(content, path.name))


def load_or_create_key(path: Path) -> SigningKey:
    """The key of this site, made at first use; of two processes that make it at once, both get the same."""
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            return create_key(path)
    return load_key(path)


def verify(message: bytes, signature: bytes | None, trusted: Mapping[str, str]) -> Signature:
    """What a signature (None: there is none) says about these bytes. Raises nothing, whatever it holds.

    trusted: public keys in hexadecimal by their key id. The key itself decides, never its id, which is short.
    """
    if signature is None:
        return Signature(SignatureState.UNSIGNED)
    told = _read(signature)
    if told is None:
        return Signature(SignatureState.WRONG)
    public_key = told["public_key"]
    name = key_id(public_key)
    state = _state(message, told, name, trusted)
    return Signature(state, name, public_key)


def _private_key(content: bytes, name: str) -> Ed25519PrivateKey:
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        private = load_pem_private_key(content, password=None)
        if isinstance(private, Ed25519PrivateKey):
            return private
    raise SigningError("not-a-key", f"{name} does not hold an {ALGORITHM} private key without a password; restore it.")


def _read(signature: bytes) -> dict[str, Any] | None:
    try:
        told = strict_json.parse(signature)
    except ValueError:
        return None
    if not isinstance(told, dict) or told.get("algorithm") != ALGORITHM:
        return None
    fits = _is(told.get("public_key"), _PUBLIC_KEY) and _is(told.get("signature"), _SIGNATURE)
    return told if fits else None


def _is(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _state(message: bytes, told: dict[str, Any], name: str, trusted: Mapping[str, str]) -> SignatureState:
    if told.get("key_id") != name:
        return SignatureState.WRONG
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(told["public_key"])).verify(
            bytes.fromhex(told["signature"]), message
        )
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return SignatureState.WRONG
    known = trusted.get(name)
    if known is None:
        return SignatureState.UNKNOWN_KEY
    return SignatureState.TRUSTED if known == told["public_key"] else SignatureState.WRONG
