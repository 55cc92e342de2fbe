"""The keys of the audit log: they live outside of the database, so that who can write there cannot forge an entry.

Without a key file the key is derived from SECRET_KEY. A file holds one key a line (64 hexadecimal digits): the last
one signs, those before it and the derived one still verify, so that a key is changed by appending a line.
"""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")


class AuditKeyError(Exception):
    """The key file cannot be used; without a key no action can be recorded, and none happens."""


@dataclass(frozen=True, repr=False)
class Keyring:
    """Keys (32 bytes) by their id; `current` is the id of the one that signs. It never shows the keys."""

    keys: Mapping[str, bytes]
    current: str

    def __repr__(self) -> str:
        return f"<Keyring {self.current}>"

    def mac(self, message: bytes, key_id: str = "") -> str:
        """HMAC-SHA256 in hexadecimal, under the current key or a named one. KeyError: that key is not here."""
        return hmac.new(self.keys[key_id or self.current], message, hashlib.sha256).hexdigest()

    def sign(self, message: bytes) -> str:
        """An Ed25519 signature (hexadecimal) that everybody can verify who knows `public_key`."""
        return self._private(self.current).sign(message).hex()

    def public_key(self, key_id: str = "") -> str:
        return self._private(key_id or self.current).public_key().public_bytes_raw().hex()

    def _private(self, key_id: str) -> Ed25519PrivateKey:
        # A key of its own for each purpose, from the one secret.
        seed = hmac.new(self.keys[key_id], b"audit export signature", hashlib.sha256).digest()
        return Ed25519PrivateKey.from_private_bytes(seed)


def keyring(secret: str, path: Path | None) -> Keyring:
    """The key derived from `secret` and, where a file is given, those in it. Raises AuditKeyError."""
    derived = hmac.new(secret.encode(), b"audit log", hashlib.sha256).digest()
    found = [derived, *(_read(path) if path else [])]
    return Keyring({_key_id(key): key for key in found}, _key_id(found[-1]))


def is_signed(message: bytes, signature: str, public_key: str) -> bool:
    """Whether the signature (hexadecimal) over these bytes was made by the owner of the public key."""
    if not (_HEX.fullmatch(signature) and _KEY.fullmatch(public_key)):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"audit key id" + key).hexdigest()[:16]


def _read(path: Path) -> list[bytes]:
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = [line.strip() for line in file.read(65536).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise AuditKeyError(f"The audit key file {path.name} (AUDIT_KEY) cannot be read: {error}.") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AuditKeyError(f"Other users of this computer may read the audit key {path.name}. Run chmod 600 on it.")
    if not lines or not all(_KEY.fullmatch(line) for line in lines):
        raise AuditKeyError(
            f"The audit key file {path.name} must hold one key a line, 64 digits and letters from a to f each. "
            "Make one with `openssl rand -hex 32`."
        )
    return [bytes.fromhex(line) for line in lines]
