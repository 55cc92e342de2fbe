"""Unpacking a zip that somebody sent: what is taken, what is left out, and what is refused without a trace."""

import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import archives
from datasets.archives import ArchiveError, extract

MB = 1024**2


def member(name, mode=0, **fields):
    """An entry with any name: the constructor of ZipInfo cuts a name at NUL, so it is set afterwards."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.fixture
def make(tmp_path):
    """Write an archive of (name or entry, content) pairs."""

    def write(*members, method=zipfile.ZIP_STORED):
        path = tmp_path / "sent.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                entry = name if isinstance(name, zipfile.ZipInfo) else member(name)
                entry.compress_type = method
                archive.writestr(entry, content)
        return path

    return write


@pytest.fixture
def unpacked(tmp_path):
    return tmp_path / "unpacked"


def refusal(path, folder, **options):
    """The code of the refusal; nothing may be left of what was unpacked before it."""
    with pytest.raises(ArchiveError) as refused:
        extract(path, folder, **({"max_bytes": 100 * MB} | options))
    assert not folder.exists()
    assert str(refused.value) == refused.value.message
    assert len(refused.value.message.split()) > 8, "says what, why and what to do"
    return refused.value.code


def names(content):
    return [taken.name for taken in content.members]


# -- What is taken


def test_images_and_csv_files_come_out_with_their_bytes_under_numbers(make, unpacked):
    path = make(("NORMAL/a.png", b"one"), ("NORMAL/b.JPEG", b"two!"), ("c.dcm", b"three"), ("labels.csv", b"a,b"))
    content = extract(path, unpacked, max_bytes=MB)
    assert names(content) == ["NORMAL/a.png", "NORMAL/b.JPEG", "c.dcm", "labels.csv"]
    assert [taken.path.read_bytes() for taken in content.members] == [b"one", b"two!", b"three", b"a,b"]
    assert [taken.size for taken in content.members] == [3, 4, 5, 3]
    assert sorted(file.name for file in unpacked.iterdir()) == ["000000", "000001", "000002", "000003"]
    assert (content.left_out, content.hidden) == ([], 0)


def test_other_kinds_of_files_are_left_out_with_a_reason_and_the_others_are_taken(make, unpacked):
    path = make(("a.png", b"1"), ("inner.zip", b"2"), ("notes.docx", b"3"), ("README", b"4"), ("b.tar.gz", b"5"))
    content = extract(path, unpacked, max_bytes=MB)
    assert names(content) == ["a.png"]
    reasons = {problem.path: problem.reason for problem in content.left_out}
    assert list(reasons) == ["inner.zip", "notes.docx", "README", "b.tar.gz"]
    assert "not unpacked" in reasons["inner.zip"] and "not unpacked" in reasons["b.tar.gz"]
    assert "not .docx" in reasons["notes.docx"]
    assert "without an ending" in reasons["README"]


def test_hidden_files_and_what_macos_adds_are_skipped(make, unpacked):
    path = make((".DS_Store", b""), ("__MACOSX/NORMAL/._a.png", b"x"), ("NORMAL/.a.png", b"x"), ("NORMAL/a.png", b"1"))
    content = extract(path, unpacked, max_bytes=MB)
    assert names(content) == ["NORMAL/a.png"]
    assert (content.hidden, content.left_out) == (3, [])


def test_entries_of_folders_are_no_files(make, unpacked):
    path = make((member("NORMAL/", stat.S_IFDIR | 0o755), b""), ("NORMAL/a.png", b"1"))
    assert names(extract(path, unpacked, max_bytes=MB)) == ["NORMAL/a.png"]


@pytest.mark.parametrize("name", ["x" * 197 + ".png", "ä" * 100 + ".png", "/".join(["d" * 100] * 8) + "/a.png"])
def test_a_name_that_is_too_long_to_be_stored_is_left_out(make, unpacked, name):
    content = extract(make((name, b"1"), ("a.png", b"2")), unpacked, max_bytes=MB)
    assert names(content) == ["a.png"]
    assert "Shorten" in content.left_out[0].reason
    assert len(content.left_out[0].path) <= 120


def test_an_archive_without_files_has_no_content(make, unpacked):
    content = extract(make(), unpacked, max_bytes=MB)
    assert (content.members, content.left_out) == ([], [])


def test_progress_is_told_in_bytes_and_may_stop_the_extraction(make, unpacked):
    path = make(("a.png", b"x" * MB), ("b.png", b"y" * MB))
    told = []
    extract(path, unpacked, max_bytes=4 * MB, progress=lambda done, total: told.append((done, total)))
    assert told == [(MB, 2 * MB), (2 * MB, 2 * MB)]

    class Stopped(Exception):
        pass

    def stop(done, total):
        raise Stopped

    with pytest.raises(Stopped):
        extract(path, unpacked.with_name("other"), max_bytes=4 * MB, progress=stop)
    assert not unpacked.with_name("other").exists()


# -- What is refused


@pytest.mark.parametrize(
    "name",
    [
        "../escape.png",
        "NORMAL/../../escape.png",
        "NORMAL/..",
        "/etc/cron.d/x.png",
        "//server/share/x.png",
        "C:/Windows/x.png",
        "c:x.png",
        "NORMAL\\x.png",
        "..\\..\\x.png",
        "x.png\0.exe",
        "NORMAL/a\nb.png",
        "a\x1b[2Jb.png",
        "gnp.\u202eexe.png",
        "NORMAL//x.png",
        "./x.png",
        "/",
        "../",
    ],
)
def test_a_name_that_could_lead_elsewhere_or_deceive_refuses_the_whole_archive(make, unpacked, name):
    assert refusal(make(("NORMAL/a.png", b"1"), (name, b"2")), unpacked) == "unsafe-name"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
@pytest.mark.parametrize("system", [0, 3])
def test_links_and_devices_refuse_the_whole_archive(make, unpacked, kind, system):
    link = member("NORMAL/link.png", kind | 0o777, create_system=system)
    assert refusal(make(("NORMAL/a.png", b"1"), (link, b"/etc/passwd")), unpacked) == "not-regular"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("NORMAL/a.png", "NORMAL/a.png"),
        ("NORMAL/a.png", "NORMAL/A.PNG"),
        ("NORMAL/a.png", "normal/b.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("straße.png", "STRASSE.png"),
        ("a.png", "a.png/b.png"),
        ("a.png/b.png", "A.png"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_names_that_are_one_on_some_file_systems_refuse_the_archive(make, unpacked, one, other):
    assert refusal(make((one, b"1"), (other, b"2")), unpacked) == "duplicate-name"


def patched(path, offset_in_entry, value, signature=b"PK\1\2", size="<H"):
    """Overwrite a field of every entry with that signature."""
    data = bytearray(path.read_bytes())
    start = data.find(signature)
    while start >= 0:
        struct.pack_into(size, data, start + offset_in_entry, value)
        start = data.find(signature, start + 4)
    path.write_bytes(data)
    return path


def test_an_encrypted_archive_is_refused(make, unpacked):
    assert refusal(patched(make(("a.png", b"1")), 8, 0x1), unpacked) == "encrypted"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_decode_without_bound_are_refused(make, unpacked, method):
    assert refusal(make(("a.png", b"1" * 1000), method=method), unpacked) == "method"


def test_an_archive_that_unpacks_to_more_than_may_be_used_is_refused(make, unpacked):
    path = make(("a.png", b"x" * 600_000), ("b.png", b"y" * 600_000))
    assert refusal(path, unpacked, max_bytes=MB) == "too-large"


def test_a_bomb_is_refused_by_its_ratio(make, unpacked):
    path = make(("a.png", bytes(20 * MB)), method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 30_000
    assert refusal(path, unpacked) == "ratio"


def test_a_small_file_may_have_any_ratio(make, unpacked):
    path = make(("blank.dcm", bytes(MB)), method=zipfile.ZIP_DEFLATED)
    assert extract(path, unpacked, max_bytes=MB).members[0].size == MB


def test_members_that_share_their_bytes_are_refused_by_the_ratio_of_all_together(make, unpacked, monkeypatch):
    """Each entry of the list points to the same data, as in the bombs that do without nesting."""
    path = make(("000.png", b"x" * 200_000))
    data = path.read_bytes()
    start, end = data.find(b"PK\1\2"), data.find(b"PK\5\6")
    entry = data[start:end]
    # The local header names 000.png: so do all of these, and the duplicate names are let through for this test.
    many = entry * 150
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 150, 150, len(many))
    path.write_bytes(data[:start] + many + bytes(tail))
    monkeypatch.setattr(archives._Names, "add", lambda self, name: None)
    assert refusal(path, unpacked) == "ratio"


def test_sizes_in_the_header_are_not_believed(make, unpacked):
    """A header that says 10 bytes for 5 MB: the true bytes do not fit the checksum."""
    path = patched(make(("a.png", bytes(range(256)) * 20_000)), 24, 10, size="<I")
    assert refusal(path, unpacked) == "damaged"


def test_a_size_that_is_announced_too_large_changes_nothing(make, unpacked):
    path = patched(make(("a.png", b"x" * 1000), method=zipfile.ZIP_DEFLATED), 24, 2**31, size="<I")
    assert extract(path, unpacked, max_bytes=MB).members[0].size == 1000


def test_too_many_members_are_refused(make, unpacked, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    assert refusal(make(*((f"{n}.png", b"") for n in range(4))), unpacked) == "too-many-members"
    assert len(extract(make(*((f"{n}.png", b"") for n in range(3))), unpacked, max_bytes=MB).members) == 3


def test_a_list_of_members_that_would_fill_the_memory_is_refused_before_it_is_read(make, unpacked, monkeypatch):
    path = make(*((f"{n:0150d}.png", b"") for n in range(1000)))
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 100_000)
    assert refusal(path, unpacked) == "too-many-members"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"just text",
        lambda data: data[: len(data) // 2],
        lambda data: data[:40] + b"\xff" + data[41:],
        lambda data: data[-22:],
        lambda data: b"7z\xbc\xaf\x27\x1c" + data[6:],
    ],
)
def test_what_is_no_complete_zip_is_refused(make, unpacked, damage):
    path = make(("a.png", b"x" * 100), ("b.png", b"y" * 100))
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(path, unpacked) == "damaged"


def test_a_full_disk_is_no_fault_of_the_archive(make, unpacked, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    path = make(("a.png", b"1"))
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        extract(path, unpacked, max_bytes=MB)
    assert not unpacked.exists()


def test_an_existing_folder_is_never_unpacked_into(make, unpacked):
    unpacked.mkdir()
    (unpacked / "mine").write_text("stays")
    with pytest.raises(FileExistsError):
        extract(make(("a.png", b"1")), unpacked, max_bytes=MB)
    assert (unpacked / "mine").read_text() == "stays"


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_no_change_of_an_archive_gets_anything_out_of_the_folder(tmp_path_factory, position, byte, cut):
    """Flip a byte and cut the end: it is unpacked, or refused by an ArchiveError, and nothing else is written."""
    tmp_path = tmp_path_factory.mktemp("fuzz")
    path = tmp_path / "sent.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"NORMAL/{number}.png", bytes(range(256)) * (number + 1))
    data = bytearray(path.read_bytes())
    data[position % len(data)] = byte
    path.write_bytes(data[: len(data) - cut % 30])
    folder = tmp_path / "unpacked"
    try:
        content = extract(path, folder, max_bytes=MB)
        assert {taken.path.parent for taken in content.members} <= {folder}
    except ArchiveError:
        assert not folder.exists()
    assert {entry.name for entry in tmp_path.iterdir()} <= {"sent.zip", "unpacked"}


# -- Names alone


@pytest.mark.parametrize("name", ["NORMAL/a.png", "Röntgen/1 (2).png", "肺/x.dcm", "a..b.png", "train/0/x.jpg"])
def test_ordinary_names_are_harmless(name):
    assert archives.path_danger(name) == ""
    assert archives.left_out_because(name) == ""
