"""Images over HTTP: what a body may look like, what is answered, and how little a hostile one can do."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage

from inference import inbox as inboxes
from inference.inbox import Inbox, Instance
from inference.sending import SendError, WebPeer, store_web
from inference.stow import Limits, StowError, multipart, parts, receive
from tests.inference.results import TAGS, image, source
from tests.inference.test_dicom_network import LOOPBACK, results

TYPE = 'multipart/related; type="application/dicom"; boundary=abc'
PART = b"--abc\r\nContent-Type: application/dicom\r\n\r\n"
END = b"\r\n--abc--"
SMALL = Limits(part_bytes=1000, body_bytes=5000, parts=3)


class Slow:
    """A body that comes a few bytes at a time, and counts how much of it was asked for."""

    def __init__(self, data: bytes, at_once: int) -> None:
        self.data, self.at_once, self.read_bytes = BytesIO(data), at_once, 0

    def read(self, size: int, /) -> bytes:
        chunk = self.data.read(min(size, self.at_once))
        self.read_bytes += len(chunk)
        return chunk


class Endless:
    """A body without an end."""

    def __init__(self, start: bytes) -> None:
        self.start, self.read_bytes = start, 0

    def read(self, size: int, /) -> bytes:
        chunk, self.start = self.start[:size] or b"x" * size, self.start[size:]
        self.read_bytes += len(chunk)
        return chunk


def taken(body: bytes, content_type: str = TYPE, limits: Limits = SMALL, at_once: int = 10**6) -> list[bytes]:
    return list(parts(content_type, Slow(body, at_once), limits))


# --- The body ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 7, 10**6])
@pytest.mark.parametrize("before", [b"", b"\r\n"])
@pytest.mark.parametrize("after", [b"", b"\r\n", b"\r\n\r\n"])
def test_the_parts_come_out_as_they_were_sent(at_once: int, before: bytes, after: bytes) -> None:
    files = [b"one", b"\r\n--ab", b"", b"--abc"][:3]
    body = before + b"".join(b"%s%s\r\n" % (PART, file) for file in files) + b"--abc--" + after
    assert taken(body, at_once=at_once) == files


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(1, 300))
def test_what_is_packed_is_unpacked(files: list[bytes], at_once: int) -> None:
    content_type, body = multipart(files)
    assert list(parts(content_type, Slow(body, at_once), Limits())) == files


def test_a_boundary_is_none_that_the_images_hold() -> None:
    hostile = b"\r\n--xray-0--\r\n--xray-1"
    content_type, body = multipart([hostile])
    assert list(parts(content_type, BytesIO(body), Limits())) == [hostile]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("", 415),
        ("application/dicom", 415),
        ("multipart/form-data; boundary=abc", 415),
        ("multipart/related; boundary=abc", 415),
        ('multipart/related; type="application/dicom+json"; boundary=abc', 415),
        ('multipart/related; type="application/dicom"', 400),
        ('multipart/related; type="application/dicom"; boundary=', 400),
        (f'multipart/related; type="application/dicom"; boundary={"a" * 71}', 400),
        ('multipart/related; type="application/dicom"; boundary="a\\"b"', 400),
        ('multipart/related; type="application/dicom"; boundary="a b"', 400),
        (TYPE + "\r\nX-Evil: 1", 400),
        (TYPE + "; x=" + "y" * 10000, 400),
    ],
)
def test_another_content_type_is_refused(content_type: str, status: int) -> None:
    with pytest.raises(StowError) as caught:
        taken(PART + b"one" + END, content_type)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"--abc--", 400),
        (b"--abc", 400),
        (b"junk\r\n" + PART + b"one" + END, 400),
        (b"--abcd\r\nContent-Type: application/dicom\r\n\r\none" + END, 400),
        (PART + b"one", 400),
        (PART + b"one\r\n--abc", 400),
        (PART + b"one\r\n--abcX", 400),
        (PART + b"one\r\n--abc-", 400),
        (PART + b"one" + END + b"more", 400),
        (PART + b"one" + END + b"\r\n" * 1000 + b"more", 400),
        (b"--abc\r\n\r\none" + END, 415),
        (b"--abc\r\nContent-Type: text/html\r\n\r\none" + END, 415),
        (b"--abc\r\nContent-Type: application/dicom\r\nContent-Type: text/html\r\n\r\none" + END, 400),
        (b"--abc\r\nContent-Type: application/dicom\r\nContent-Transfer-Encoding: base64\r\n\r\none" + END, 415),
        (b"--abc\r\nno header\r\n\r\none" + END, 400),
        (b"--abc\r\nX: " + b"y" * 9000 + b"\r\n\r\none" + END, 413),
        (b"--abc\nContent-Type: application/dicom\n\none\n--abc--", 400),
        (PART + b"x" * 1001 + END, 413),
        ((PART + b"one\r\n") * 4 + b"--abc--", 413),
        ((PART + b"x" * 999 + b"\r\n") * 6 + b"--abc--", 413),
    ],
)
@pytest.mark.parametrize("at_once", [3, 10**6])
def test_a_body_that_is_laid_out_otherwise_is_refused(body: bytes, status: int, at_once: int) -> None:
    with pytest.raises(StowError) as caught:
        taken(body, at_once=at_once)
    assert caught.value.status == status


@pytest.mark.parametrize("start", [b"", PART, b"--abc\r\n", PART + b"one" + END])
def test_an_endless_body_is_not_read_for_long(start: bytes) -> None:
    body = Endless(start)
    with pytest.raises(StowError):
        list(parts(TYPE, body, Limits(part_bytes=10**6, body_bytes=2 * 10**6, parts=3)))
    assert body.read_bytes < 2 * 10**6 + 10**5


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_fail_in_any_other_way(body: bytes) -> None:
    try:
        taken(body)
        taken(PART + body)
    except StowError:
        pass


# --- What is answered -------------------------------------------------------------------------------------------------


class Desk:
    """An inbox with what was handed over."""

    def __init__(self, folder: Path) -> None:
        self.inbox = Inbox(folder, 0)
        self.handed: list[tuple[str, Instance]] = []

    def post(self, *files: bytes, study_uid: str = "") -> tuple[int, dict[str, Any]]:
        content_type, body = multipart(files)
        return receive(
            content_type,
            BytesIO(body),
            study_uid=study_uid,
            sender="user-7",
            inbox=self.inbox,
            received=lambda name, instance: self.handed.append((name, instance)),
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "inbox")


def failed(body: dict[str, Any]) -> list[tuple[str, int]]:
    """Instance UID and reason of what failed."""
    return [
        (item["00081155"].get("Value", [""])[0], item["00081197"]["Value"][0]) for item in body["00081198"]["Value"]
    ]


def test_images_that_are_taken_are_in_the_inbox_and_named_in_the_answer(desk: Desk) -> None:
    status, body = desk.post(image(), image(SOPInstanceUID="1.2.3"))
    assert status == 200
    assert "00081198" not in body
    names = [item["00081155"]["Value"][0] for item in body["00081199"]["Value"]]
    assert names == [source().SOPInstanceUID, "1.2.3"]
    assert sorted(desk.inbox.waiting()) == sorted(name for name, _ in desk.handed)
    assert desk.handed[0][1].sender == "user-7"


def test_some_that_fail_are_told_apart_from_those_that_are_taken(desk: Desk) -> None:
    status, body = desk.post(image(), image(SOPClassUID=CTImageStorage, SOPInstanceUID="1.2.3"))
    assert status == 202
    assert failed(body) == [("1.2.3", inboxes.SOP_CLASS_NOT_SUPPORTED)]
    assert len(body["00081199"]["Value"]) == len(desk.inbox.waiting()) == 1


def test_when_none_is_taken_the_answer_is_a_conflict(desk: Desk) -> None:
    status, body = desk.post(b"no dicom", image()[:200])
    assert status == 409
    assert "00081199" not in body
    assert failed(body)[0][1] == inboxes.TRANSFER_SYNTAX_NOT_SUPPORTED
    assert desk.inbox.waiting() == []


def test_an_image_of_another_study_than_that_of_the_address_fails(desk: Desk) -> None:
    assert desk.post(image(), study_uid=TAGS["StudyInstanceUID"])[0] == 200
    status, body = desk.post(image(), study_uid="1.2.3")
    assert status == 409
    assert failed(body) == [(TAGS["SOPInstanceUID"], inboxes.DOES_NOT_MATCH)]


def test_a_full_disk_is_told_image_by_image(desk: Desk) -> None:
    desk.inbox.min_free_bytes = 2**62
    status, body = desk.post(image())
    assert status == 409
    assert failed(body) == [(TAGS["SOPInstanceUID"], inboxes.OUT_OF_RESOURCES)]


def test_no_patient_is_in_the_answer(desk: Desk) -> None:
    _, body = desk.post(image(), image(SOPClassUID=CTImageStorage))
    assert "ller" not in str(body)
    assert "P1" not in str(body)


# --- Sending to others ------------------------------------------------------------------------------------------------


class Archive(BaseHTTPRequestHandler):
    """Takes what is posted; the server keeps it."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Not into the output of the tests."""


@pytest.fixture
def archive() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Archive)
    server.got, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_results_are_sent_over_http_one_by_one(archive: Any) -> None:
    made = results()
    store_web(WebPeer(f"http://127.0.0.1:{archive.server_port}/dicomweb/", "Bearer abc"), made, LOOPBACK)
    assert [path for path, _, _ in archive.got] == ["/dicomweb/studies"] * 2
    assert archive.got[0][1]["Authorization"] == "Bearer abc"
    for (_, headers, body), dataset in zip(archive.got, made, strict=True):
        (data,) = parts(headers["Content-Type"], BytesIO(body), Limits())
        assert dataset.SOPInstanceUID.encode() in data


@pytest.mark.parametrize(("status", "is_temporary"), [(409, False), (503, True)])
def test_an_archive_that_refuses_over_http_is_told_apart_from_one_that_is_busy(
    archive: Any, status: int, is_temporary: bool
) -> None:
    archive.status = status
    with pytest.raises(SendError, match=str(status)) as caught:
        store_web(WebPeer(f"http://127.0.0.1:{archive.server_port}"), results(), LOOPBACK)
    assert caught.value.is_temporary == is_temporary
    assert len(archive.got) == 1


def test_a_network_that_is_not_listed_is_not_called(archive: Any) -> None:
    with pytest.raises(SendError, match="no public address"):
        store_web(WebPeer(f"http://127.0.0.1:{archive.server_port}"), results(), ())
    assert archive.got == []
