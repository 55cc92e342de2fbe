"""A package carries a version from site to site; what else claims to be one is refused, and nothing is left of it."""

import hashlib
import shutil
import stat
import tracemalloc
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from registry import artifacts, packages, strict_json
from registry.packages import CARD, EVALUATIONS, GOLDEN, MANIFEST, MEMBERS, PACKAGE, WEIGHTS, Limits, PackageError
from registry.signing import SignatureState
from tests.registry import malicious
from tests.registry.malicious import CASES, DESCRIPTION, KEY, MB, STRANGER, TRUSTED

REASONS = {reason for _, _, reason in CASES}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "received.xrpkg.zip"


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "staging" / "import"


def write(file, *, changes=None, key=KEY, description=DESCRIPTION, **options):
    return packages.write(file, description, malicious.members(changes), key=key, **options)


def refusal(file, staging, *, trusted=TRUSTED, **options):
    """The refusal of a package; nothing may be left of what was unpacked before it."""
    with pytest.raises(PackageError) as refused:
        packages.read(file, staging, trusted=trusted, **options)
    assert not staging.exists()
    assert list(staging.parent.iterdir()) == []
    return refused.value


# -- Round trip


def test_what_is_exported_is_imported_byte_by_byte(file, staging):
    digest = write(file)
    package = packages.read(file, staging, trusted=TRUSTED)
    assert package.label.sha256 == digest
    assert package.label.description["condition"]["slug"] == "chest-pneumonia"
    assert package.label.description["origin"] == {"name": "St. Example", "key_id": KEY.key_id}
    assert package.label.signature.state == SignatureState.TRUSTED
    assert {path.name: path.read_bytes() for path in staging.iterdir()} == malicious.members()
    assert package.documents.keys() == {MANIFEST, CARD, EVALUATIONS, GOLDEN}
    assert package.documents[GOLDEN]["outputs"] == [[0.25, 0.75]]
    assert package.shapes == {"head/kernel": (3, 2), "head/count": ()}


def test_members_are_streamed_from_files_as_well(file, staging, tmp_path):
    contents = malicious.members()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    packages.write(file, DESCRIPTION, {name: tmp_path / name for name in contents}, key=KEY)
    packages.read(file, staging, trusted=TRUSTED)
    assert {path.name: path.read_bytes() for path in staging.iterdir()} == contents


def test_a_version_of_the_registry_travels_without_its_predictions(file, staging, tmp_path):
    folder = tmp_path / "registry" / "3"
    predictions = {"test_labels": np.array([0, 1])}
    sha256 = artifacts.save(
        folder, manifest={"architecture": "x"}, weights=malicious.ARRAYS, openvino=None, predictions=predictions
    )
    saved = artifacts.load(folder, sha256)
    manifest = packages.to_bytes(packages.portable(saved.manifest))
    write(file, changes={WEIGHTS: (folder / WEIGHTS).read_bytes(), MANIFEST: manifest})
    package = packages.read(file, staging, trusted=TRUSTED)
    assert package.documents[MANIFEST]["members"].keys() == {WEIGHTS}
    assert (staging / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert b"predictions" not in file.read_bytes()


def test_the_same_version_gives_the_same_bytes(tmp_path):
    assert write(tmp_path / "one") == write(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_other_programs_can_open_a_package(file):
    write(file)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [PACKAGE, "signature.json", *MEMBERS]
        assert {stat.filemode(entry.external_attr >> 16) for entry in archive.infolist()} == {"-rw-r--r--"}


def test_the_corpus_is_made_like_a_sound_package(file, staging):
    """So that each of its cases is refused for its own fault."""
    file.write_bytes(malicious.sound())
    assert packages.read(file, staging, trusted=TRUSTED).label.sha256 == write(file.with_name("written"))
    assert file.read_bytes() == file.with_name("written").read_bytes()


def test_deflated_members_are_taken_too(file, staging):
    text = packages.to_bytes([{"title": f"Test part {number}", "accuracy": 0.9} for number in range(40)])
    entries = malicious.build({EVALUATIONS: text})
    packed = [replace(entry, method=malicious.DEFLATED) for entry in entries]
    file.write_bytes(malicious.assemble(packed))
    assert len(file.read_bytes()) < len(malicious.assemble(entries))
    packages.read(file, staging, trusted=TRUSTED)
    assert (staging / EVALUATIONS).read_bytes() == text


def test_facts_that_this_platform_does_not_know_are_taken_along(file, staging):
    write(file, description={**DESCRIPTION, "later": {"unknown": [1, 2]}})
    assert packages.read(file, staging, trusted=TRUSTED).label.description["later"] == {"unknown": [1, 2]}


def test_progress_is_told_while_writing_and_reading(file, staging):
    total = sum(len(content) for content in malicious.members().values())
    for act in (
        lambda note: write(file, progress=note),
        lambda note: packages.read(file, staging, trusted=TRUSTED, progress=note),
    ):
        told = []
        act(lambda done, all_of_them, told=told: told.append((done, all_of_them)))
        assert told[-1] == (total, total)
        assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_portable_manifest_leaves_out_what_stays_at_the_site():
    manifest = {"format": 1, "members": {WEIGHTS: {"size": 1}, "predictions.npz": {}, "openvino/model.xml": {}}}
    assert packages.portable(manifest) == {"format": 1, "members": {WEIGHTS: {"size": 1}}}


def test_a_package_is_named_after_its_condition_and_number():
    assert packages.file_name("chest-pneumonia", 12) == "chest-pneumonia-v12.xrpkg.zip"


# -- Writing


def test_a_package_that_could_not_be_read_is_not_written(file):
    for description, reason in (
        ({**DESCRIPTION, "condition": {"slug": "../x"}}, "malformed"),
        ({**DESCRIPTION, "version": {}}, "malformed"),
        ({**DESCRIPTION, "notes": "x" * 2 * MB}, "too-large"),
    ):
        with pytest.raises(PackageError) as refused:
            write(file, description=description)
        assert refused.value.reason == reason
    with pytest.raises(PackageError) as refused:
        packages.write(file, DESCRIPTION, {MANIFEST: b"{}"}, key=KEY)
    assert refused.value.reason == "missing-member"
    with pytest.raises(PackageError) as refused:
        packages.write(file, DESCRIPTION, malicious.members() | {"predictions.npz": b""}, key=KEY)
    assert list(file.parent.iterdir()) == []


def test_a_file_that_changes_during_the_export_gives_no_package(file, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(malicious.members()[WEIGHTS])

    def change(done, total):
        source.write_bytes(bytes(reversed(malicious.members()[WEIGHTS])))

    with pytest.raises(PackageError, match="changed while") as refused:
        packages.write(file, DESCRIPTION, malicious.members() | {WEIGHTS: source}, key=KEY, progress=change)
    assert refused.value.reason == "changed"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_export_that_is_cancelled_leaves_the_file_that_was_there(file):
    write(file)
    before = file.read_bytes()

    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(file, key=STRANGER, progress=cancel)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


# -- Who signed


def test_the_label_tells_the_origin_before_anything_is_unpacked(file, tmp_path):
    for key, trusted, state in (
        (KEY, TRUSTED, SignatureState.TRUSTED),
        (KEY, {}, SignatureState.UNKNOWN_KEY),
        (None, TRUSTED, SignatureState.UNSIGNED),
    ):
        write(file, key=key)
        label = packages.read_label(file, trusted=trusted)
        assert label.signature.state == state
        assert label.description["origin"]["name"] == "St. Example"
        assert label.size > sum(len(content) for content in malicious.members().values())
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("key", "state"), [(None, SignatureState.UNSIGNED), (STRANGER, SignatureState.UNKNOWN_KEY)])
def test_a_package_without_a_trusted_origin_needs_exactly_the_yes_to_that(file, staging, key, state):
    write(file, key=key)
    assert refusal(file, staging).reason == state.value
    others = set(SignatureState) - {state}
    assert refusal(file, staging, accept=others).reason == state.value
    assert packages.read(file, staging, trusted=TRUSTED, accept={state}).label.signature.state == state


def test_a_wrong_signature_is_refused_whatever_is_accepted(file, staging):
    for name, make, reason in CASES:
        if reason == "wrong-signature":
            file.write_bytes(make())
            assert refusal(file, staging, accept=set(SignatureState)).reason == reason, name
            with pytest.raises(PackageError):
                packages.read_label(file, trusted=TRUSTED)


# -- The corpus


@pytest.mark.parametrize(("make", "reason"), [pytest.param(make, reason, id=name) for name, make, reason in CASES])
def test_a_malicious_package_is_refused_for_its_reason(file, staging, make, reason):
    file.write_bytes(make())
    refused = refusal(file, staging)
    assert refused.reason == reason
    assert len(str(refused).split()) > 8, "says what is wrong and what to do"
    assert str(refused).isprintable()


def test_the_names_of_the_cases_are_all_different():
    assert len({name for name, _, _ in CASES}) == len(CASES)


def test_limits_can_be_lower(file, staging):
    write(file)
    for limits, reason in (
        (Limits(members=7), "too-many-members"),
        (Limits(total_bytes=1000), "too-large"),
        (Limits(ratio=0), "ratio"),
        (Limits(package_bytes=100), "too-large"),
        (Limits(document_bytes=100), "too-large"),
        (Limits(weights_head_bytes=10), "head"),
    ):
        assert refusal(file, staging, limits=limits).reason == reason


# -- Nothing is left, and memory stays small


def test_whatever_ends_the_reading_the_folder_is_removed(file, staging, monkeypatch):
    write(file)

    def stop(done, total):
        assert any(staging.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packages.read(file, staging, trusted=TRUSTED, progress=stop)
    assert not staging.exists()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packages, "_extract", full)
    with pytest.raises(OSError, match="No space left"):
        packages.read(file, staging, trusted=TRUSTED)
    assert not staging.exists()


def test_a_folder_that_is_there_is_never_unpacked_into(file, staging):
    write(file)
    staging.mkdir(parents=True)
    (staging / "mine").write_text("stays")
    with pytest.raises(FileExistsError):
        packages.read(file, staging, trusted=TRUSTED)
    assert (staging / "mine").read_text() == "stays"


def peak_memory(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_large_weights_pass_through_in_blocks(file, staging, tmp_path):
    source = tmp_path / "weights"
    safetensors.numpy.save_file({"kernel": np.ones(12 * MB, np.float32)}, source)
    with source.open("rb") as opened:
        weights = {"size": source.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
    manifest = packages.to_bytes({"format": 1, "members": {WEIGHTS: weights}})
    contents = malicious.members({MANIFEST: manifest}) | {WEIGHTS: source}
    assert peak_memory(lambda: packages.write(file, DESCRIPTION, contents, key=KEY)) < 8 * MB
    assert peak_memory(lambda: packages.read(file, staging, trusted=TRUSTED)) < 8 * MB


@pytest.mark.parametrize("told", [256 * MB, 3 * MB], ids=["true size", "lying size"])
def test_a_bomb_costs_no_memory_even_when_its_ratio_were_allowed(file, staging, told):
    """256 MB of zeros in 256 kB: without the limit of the ratio they pass in blocks, or end where they lie."""
    compressor = zlib.compressobj(9, malicious.DEFLATED, -15)
    packed = b"".join(compressor.compress(bytes(MB)) for _ in range(256)) + compressor.flush()
    entries = malicious.build({WEIGHTS: b""}, listed={WEIGHTS: {"size": told, "sha256": "0" * 64}})
    lie = {"method": malicious.DEFLATED, "packed": packed, "both": {"size": told, "crc": 0}}
    bomb = [replace(entry, **lie) if entry.name == WEIGHTS.encode() else entry for entry in entries]
    file.write_bytes(malicious.assemble(bomb))
    del packed, lie, bomb
    limits = Limits(ratio=2000)
    written = []
    expected = "lying-size" if told < 256 * MB else "damaged"

    def attempt():
        assert refusal(file, staging, limits=limits, progress=lambda *done: written.append(done[0])).reason == expected

    assert peak_memory(attempt) < 8 * MB
    assert max(written) <= told + MB
    if told == 256 * MB:
        assert refusal(file, staging).reason == "ratio"


def test_the_corpus_costs_little_memory(file, staging):
    for name, make, _ in CASES:
        file.write_bytes(make())
        assert peak_memory(lambda: refusal(file, staging)) < 64 * MB, name


# -- Any change at all


def content_of(file, staging):
    package = packages.read(file, staging, trusted=TRUSTED)
    files = {path.name: path.read_bytes() for path in staging.iterdir()}
    shutil.rmtree(staging)
    return package.label, package.documents, package.shapes, files


def check_changed(folder, content):
    """It is refused by a PackageError, or is the same package; nothing else is written either way."""
    file, staging = folder / "received.zip", folder / "staging"
    file.write_bytes(malicious.sound())
    original = content_of(file, staging)
    file.write_bytes(content)
    try:
        assert content_of(file, staging) == original
    except PackageError as refused:
        assert refused.reason in REASONS
    assert list(folder.iterdir()) == [file]


QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=150, **QUIET)
@given(position=st.integers(0, 10**6), bits=st.integers(1, 255))
def test_any_flipped_byte_is_refused_or_changes_nothing(tmp_path, position, bits):
    content = bytearray(malicious.sound())
    content[position % len(content)] ^= bits
    check_changed(tmp_path, bytes(content))


@settings(max_examples=80, **QUIET)
@given(start=st.integers(0, 10**6), length=st.integers(0, 300), put=st.binary(max_size=40))
@example(start=0, length=0, put=b"PK\3\4")
def test_any_cut_or_added_bytes_are_refused_or_change_nothing(tmp_path, start, length, put):
    content = malicious.sound()
    start %= len(content)
    check_changed(tmp_path, content[:start] + put + content[start + length :])


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, **QUIET)
@given(field=st.sampled_from(["format", "members", "origin", "condition", "version"]), value=JSON)
def test_a_trusted_origin_that_tells_nonsense_gets_a_refusal(tmp_path, field, value):
    file, staging = tmp_path / "received.zip", tmp_path / "staging"
    file.write_bytes(malicious.assemble(malicious.build(description={field: value})))
    with pytest.raises(PackageError):
        packages.read(file, staging, trusted=TRUSTED)
    assert list(tmp_path.iterdir()) == [file]


@settings(max_examples=80, **QUIET)
@given(name=st.sampled_from([MANIFEST, CARD, EVALUATIONS, GOLDEN, WEIGHTS]), content=st.binary(max_size=60))
def test_any_bytes_as_a_member_give_a_package_or_a_refusal(tmp_path, name, content):
    file, staging = tmp_path / "received.zip", tmp_path / "staging"
    file.write_bytes(malicious.assemble(malicious.build({name: content})))
    try:
        packages.read(file, staging, trusted=TRUSTED)
        shutil.rmtree(staging)
    except PackageError as refused:
        assert refused.reason in REASONS
    assert list(tmp_path.iterdir()) == [file]


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60) | JSON.map(lambda value: packages.to_bytes(value)))
def test_strict_json_gives_a_value_or_a_value_error(content):
    try:
        value = strict_json.parse(content)
    except ValueError:
        return
    assert strict_json.parse(packages.to_bytes(value)) == value
