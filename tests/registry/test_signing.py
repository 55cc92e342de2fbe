"""Who made a package: one key a site, which nobody else can read, and four answers about a signature."""

import json
import os
import stat
import subprocess
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from registry import signing
from registry.signing import SignatureState, SigningError, SigningKey, verify

MESSAGE = b"what package.json says"
# RFC 8032, section 7.1, test 2.
RFC_SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_SECRET)))
STRANGER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
TRUSTED = {KEY.key_id: KEY.public_key}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys" / "signing.pem"


def changed(signature, changes):
    return json.dumps(json.loads(signature) | changes).encode()


# -- The key of this site


def test_a_new_key_is_readable_by_its_owner_alone_and_loads_again(path):
    before = os.umask(0)
    try:
        created = signing.create_key(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.load_key(path).public_key == created.public_key
    assert list(path.parent.iterdir()) == [path]


def test_a_key_is_never_replaced(path):
    created = signing.create_key(path)
    with pytest.raises(FileExistsError):
        signing.create_key(path)
    assert signing.load_key(path).key_id == created.key_id
    assert list(path.parent.iterdir()) == [path]


def test_every_new_key_is_another(tmp_path):
    assert signing.create_key(tmp_path / "one").key_id != signing.create_key(tmp_path / "two").key_id


def test_processes_that_need_the_key_at_once_get_the_same(path):
    barrier = threading.Barrier(8)
    got = []

    def start():
        barrier.wait()
        got.append(signing.load_or_create_key(path).key_id)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8 and len(set(got)) == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_may_use_is_refused_with_what_to_do(path, mode):
    signing.create_key(path)
    path.chmod(mode)
    with pytest.raises(SigningError, match="chmod 600") as refused:
        signing.load_or_create_key(path)
    assert refused.value.reason == "readable-by-others"


def test_a_missing_key_is_told(path):
    with pytest.raises(SigningError) as refused:
        signing.load_key(path)
    assert refused.value.reason == "missing"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
        ),
    ],
    ids=["empty", "text", "damaged", "another kind", "with a password"],
)
def test_a_file_that_holds_no_such_key_is_refused(tmp_path, content):
    path = tmp_path / "signing.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SigningError) as refused:
        signing.load_key(path)
    assert refused.value.reason == "not-a-key"
    assert refused.value.__cause__ is None, "its text may quote the file"


def test_a_key_does_not_show_its_secret():
    assert repr(KEY) == f"<SigningKey {KEY.key_id}>"


def test_the_id_of_a_key_is_the_beginning_of_the_digest_of_its_public_part():
    digest = subprocess.run(["sha256sum"], input=bytes.fromhex(RFC_PUBLIC), capture_output=True, check=True).stdout
    assert KEY.key_id == digest[:16].decode()


def test_a_public_key_is_taken_as_people_paste_it():
    assert signing.read_public_key(f"  {RFC_PUBLIC.upper()[:32]} {RFC_PUBLIC[32:]}\n") == RFC_PUBLIC
    for wrong in ("", RFC_PUBLIC[:-1], RFC_PUBLIC + "00", "g" * 64, KEY.key_id):
        with pytest.raises(SigningError) as refused:
            signing.read_public_key(wrong)
        assert refused.value.reason == "not-a-key"


# -- Signatures


def test_a_signature_is_that_of_the_standard():
    assert KEY.public_key == RFC_PUBLIC
    assert json.loads(KEY.sign(b"\x72"))["signature"] == RFC_SIGNATURE


def test_the_signature_of_a_trusted_key_is_trusted():
    told = verify(MESSAGE, KEY.sign(MESSAGE), TRUSTED)
    assert (told.state, told.key_id, told.public_key) == (SignatureState.TRUSTED, KEY.key_id, RFC_PUBLIC)


def test_a_stranger_is_told_by_key_so_that_it_can_become_trusted():
    told = verify(MESSAGE, STRANGER.sign(MESSAGE), TRUSTED)
    assert told.state == SignatureState.UNKNOWN_KEY
    trusted = TRUSTED | {told.key_id: told.public_key}
    assert verify(MESSAGE, STRANGER.sign(MESSAGE), trusted).state == SignatureState.TRUSTED


def test_no_signature_is_something_else_than_a_wrong_one():
    assert verify(MESSAGE, None, TRUSTED).state == SignatureState.UNSIGNED
    assert verify(MESSAGE, b"", TRUSTED).state == SignatureState.WRONG


@pytest.mark.parametrize("key", [KEY, STRANGER])
def test_other_content_makes_a_signature_wrong_whoever_signed(key):
    assert verify(MESSAGE + b" ", key.sign(MESSAGE), TRUSTED).state == SignatureState.WRONG


def test_a_key_whose_short_id_is_that_of_a_trusted_one_is_not_trusted():
    """The id has 64 bits, so that a second key with the same can be made."""
    told = verify(MESSAGE, STRANGER.sign(MESSAGE), {STRANGER.key_id: KEY.public_key})
    assert told.state == SignatureState.WRONG


@pytest.mark.parametrize(
    "changes",
    [
        {"key_id": KEY.key_id[:-1] + "x"},
        {"key_id": STRANGER.key_id},
        {"public_key": STRANGER.public_key, "key_id": STRANGER.key_id},
        {"public_key": RFC_PUBLIC[:-2]},
        {"public_key": None},
        {"public_key": "ff" * 32},
        {"signature": "00" * 64},
        {"signature": RFC_SIGNATURE},
        {"signature": ["00"] * 64},
        {"algorithm": "HS256"},
        {"algorithm": None},
    ],
)
def test_a_signature_that_contradicts_itself_is_wrong(changes):
    assert verify(MESSAGE, changed(KEY.sign(MESSAGE), changes), TRUSTED).state == SignatureState.WRONG


@given(content=st.binary(max_size=100))
def test_any_bytes_as_a_signature_are_wrong(content):
    assert verify(MESSAGE, content, TRUSTED).state == SignatureState.WRONG


@given(position=st.integers(0, 10_000), bits=st.integers(1, 255))
def test_a_changed_signature_is_trusted_only_where_it_says_the_same(position, bits):
    signature = bytearray(KEY.sign(MESSAGE))
    signature[position % len(signature)] ^= bits
    told = verify(MESSAGE, bytes(signature), TRUSTED)
    assert told.state == SignatureState.WRONG or json.loads(bytes(signature)) == json.loads(KEY.sign(MESSAGE))
