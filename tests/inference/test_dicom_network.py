"""Images that other systems send and results that go back: real associations on the loopback interface."""

import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from django.core.management import CommandError, call_command
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from inference import inbox as inboxes
from inference.dicom_context import source_header
from inference.inbox import Inbox, Instance, Refused, examine
from inference.receiver import Caller, Limits, Receiver, parse_callers
from inference.routing import Route, route
from inference.secondary_capture import secondary_capture
from inference.sending import Peer, SendError, echo, store
from inference.structured_report import structured_report
from tests.inference.results import image, result, source
from tests.inference.test_structured_report import PICTURE

LOOPBACK = (ip_network("127.0.0.0/8"),)
SCANNER = Caller("SCANNER", LOOPBACK)
Received = list[tuple[str, Instance]]


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox", min_free_bytes=0)


@pytest.fixture
def received() -> Received:
    return []


Start = Callable[..., Receiver]


@pytest.fixture
def start(inbox: Inbox, received: Received) -> Iterator[Start]:
    running: list[Receiver] = []

    def begin(
        callers: Sequence[Caller] = (SCANNER,), limits: Limits | None = None, handle: Callable[..., None] | None = None
    ) -> Receiver:
        receiver = Receiver(
            "XRAY",
            ("127.0.0.1", 0),
            callers,
            inbox,
            handle or (lambda name, instance: received.append((name, instance))),
            limits or Limits(silence_seconds=5),
        )
        receiver.start()
        running.append(receiver)
        return receiver

    yield begin
    for receiver in running:
        receiver.stop(grace_seconds=1)


def peer(receiver: Receiver, title: str = "XRAY") -> Peer:
    return Peer(title, "127.0.0.1", receiver.port)


def radiograph(**tags: Any) -> Dataset:
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(image(**tags)))


def send(receiver: Receiver, *datasets: Dataset, calling: str = "SCANNER", called: str = "XRAY") -> None:
    store(peer(receiver, called), calling, datasets or (radiograph(),), timeout=5)


def until(condition: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# --- Receiving --------------------------------------------------------------------------------------------------------


def test_an_image_is_in_the_inbox_when_its_sender_is_told_of_success(
    start: Start, inbox: Inbox, received: Received
) -> None:
    send(start())
    ((name, instance),) = received
    assert inbox.waiting() == [name]
    found = inbox.read(name)
    assert found is not None
    data, again = found
    assert again == instance
    assert (instance.modality, instance.body_part, instance.sender) == ("DX", "CHEST", "SCANNER")
    assert str(source_header(data).PatientName) == "Müller^Änne"
    path = inbox.folder / name
    assert path.stat().st_mode & 0o777 == 0o600
    assert pydicom.dcmread(path).pixel_array.shape == radiograph().pixel_array.shape


def test_implicit_and_several_images_of_one_association_arrive(start: Start, received: Received) -> None:
    images = [radiograph(SOPInstanceUID=f"1.2.3.{number}") for number in range(3)]
    send(start(), *images)
    assert [instance.sop_uid for _, instance in received] == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]


def test_who_is_there_is_asked_by_c_echo(start: Start) -> None:
    receiver = start()
    echo(peer(receiver), "SCANNER", timeout=5)
    with pytest.raises(SendError):
        echo(peer(receiver), "STRANGER", timeout=5)


@pytest.mark.parametrize(
    ("callers", "calling", "called"),
    [
        ((SCANNER,), "STRANGER", "XRAY"),
        ((SCANNER,), "SCANNER", "OTHER"),
        ((), "SCANNER", "XRAY"),
        ((Caller("SCANNER", (ip_network("10.1.2.0/24"),)),), "SCANNER", "XRAY"),
        # Each is listed, but not together.
        ((Caller("SCANNER", (ip_network("10.1.2.0/24"),)), Caller("OTHER", LOOPBACK)), "SCANNER", "XRAY"),
    ],
)
def test_who_is_not_listed_is_turned_away(
    start: Start, inbox: Inbox, callers: Sequence[Caller], calling: str, called: str
) -> None:
    with pytest.raises(SendError):
        send(start(callers), calling=calling, called=called)
    assert inbox.waiting() == []


def test_only_images_that_may_be_radiographs_are_agreed_on(start: Start) -> None:
    with pytest.raises(SendError, match="does not take objects of the class CT"):
        send(start(), radiograph(SOPClassUID=CTImageStorage))


def test_an_image_that_does_not_say_where_it_belongs_is_refused_and_the_next_one_taken(
    start: Start, inbox: Inbox
) -> None:
    receiver = start()
    with pytest.raises(SendError, match="0xC000") as caught:
        send(receiver, radiograph(StudyInstanceUID=None), radiograph())
    assert not caught.value.is_temporary
    send(receiver)
    assert len(inbox.waiting()) == 1


def test_an_image_that_is_too_long_ends_the_association_and_leaves_nothing(
    start: Start, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = start(limits=Limits(dataset_bytes=1500, silence_seconds=5))
    with pytest.raises(SendError):
        send(receiver)
    assert inbox.waiting() == []
    assert "longer than 1500 bytes" in caplog.text
    small = radiograph(Rows=8, Columns=8, PixelData=bytes(128))
    send(receiver, small, small)
    assert len(inbox.waiting()) == 2


def test_many_small_images_in_one_association_are_not_one_long_one(start: Start, inbox: Inbox) -> None:
    small = radiograph(Rows=8, Columns=8, PixelData=bytes(128))
    send(start(limits=Limits(dataset_bytes=1500, silence_seconds=5)), *[small] * 12)
    assert len(inbox.waiting()) == 12


def test_a_command_that_does_not_end_is_not_collected_for_ever(start: Start) -> None:
    receiver = start(limits=Limits(dataset_bytes=10_000, silence_seconds=5))
    entity = AE("SCANNER")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", receiver.port, ae_title="XRAY")
    channel = association.dul.socket.socket
    # PS3.8 9.3.5: a value of 1002 bytes in context 1 that is a command, and not its last fragment.
    fragment = struct.pack(">BBLLBB", 4, 0, 1006, 1002, 1, 1) + bytes(1000)
    with pytest.raises(OSError):
        for _ in range(100):
            channel.sendall(fragment)
            time.sleep(0.02)
    assert until(lambda: receiver._server is not None and not receiver._server.active_associations)


def test_a_pdu_that_claims_gigabytes_is_not_waited_for(start: Start) -> None:
    receiver = start()
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=5) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1) + bytes(100))
        began = time.monotonic()
        while connection.recv(4096):
            pass
        assert time.monotonic() - began < 3
    send(receiver)


@pytest.mark.parametrize("beginning", [b"", b"\x01\x00\x00", b"\x01\x00\x00\x00\x10\x00half a request"])
def test_who_falls_silent_does_not_hold_a_place(start: Start, beginning: bytes) -> None:
    receiver = start(limits=Limits(associations=1, silence_seconds=0.5))
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=5) as connection:
        connection.sendall(beginning)
        assert connection.recv(100) == b""
    assert until(lambda: receiver._server is not None and not receiver._server.active_associations)


def test_who_sends_a_byte_at_a_time_does_not_hold_a_place(start: Start) -> None:
    receiver = start(limits=Limits(associations=1, silence_seconds=0.5))
    entity = AE("SCANNER")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", receiver.port, ae_title="XRAY")
    channel = association.dul.socket.socket
    channel.sendall(struct.pack(">BBL", 4, 0, 500))
    began = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - began < 5:
            channel.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - began < 4
    assert until(lambda: receiver._server is not None and not receiver._server.active_associations)


def test_bytes_that_are_no_dicom_do_not_stop_the_receiver(start: Start) -> None:
    receiver = start()
    for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), bytes([1, 0, 0, 0, 0, 4]) + bytes(4)):
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=5) as connection:
            connection.sendall(noise)
    send(receiver)


def test_a_full_disk_is_told_to_the_sender_and_leaves_nothing_behind(
    start: Start, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = start()
    inbox.min_free_bytes = 2**62
    with pytest.raises(SendError, match="0xA700") as caught:
        send(receiver)
    assert caught.value.is_temporary
    inbox.min_free_bytes = 0

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("inference.inbox.os.fsync", full)
        with pytest.raises(SendError, match="0xA700"):
            send(receiver)
    assert list(inbox.folder.iterdir()) == []
    send(receiver)
    assert len(inbox.waiting()) == 1


def test_an_image_that_cannot_be_handed_over_waits_in_the_inbox(start: Start, inbox: Inbox) -> None:
    def fail(name: str, instance: Instance) -> None:
        raise RuntimeError("the queue is away")

    send(start(handle=fail))
    assert len(inbox.waiting()) == 1


def test_a_receiver_that_starts_again_finds_what_waited_and_clears_what_was_half_written(
    start: Start, inbox: Inbox
) -> None:
    first = start()
    send(first)
    port = first.port
    first.stop()
    (inbox.folder / "half.part").write_bytes(b"x")
    second = Receiver("XRAY", ("127.0.0.1", port), (SCANNER,), inbox, lambda name, instance: None)
    second.start()
    try:
        (name,) = inbox.waiting()
        assert not (inbox.folder / "half.part").exists()
        send(second)
        assert len(inbox.waiting()) == 2
    finally:
        second.stop()
    inbox.done(name)
    assert inbox.read(name) is None
    inbox.done(name)


def test_stopping_lets_an_image_that_is_being_stored_end_and_takes_no_more(start: Start, inbox: Inbox) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(name: str, instance: Instance) -> None:
        entered.set()
        go_on.wait(5)

    receiver = start(handle=slow)
    target = peer(receiver)
    errors: list[Exception] = []

    def sender() -> None:
        try:
            store(target, "SCANNER", [radiograph()], timeout=5)
        except SendError as error:
            errors.append(error)

    sending = threading.Thread(target=sender)
    sending.start()
    assert entered.wait(5)
    stopping = threading.Thread(target=receiver.stop, args=(5,))
    stopping.start()
    go_on.set()
    stopping.join(10)
    sending.join(10)
    assert errors == []
    assert len(inbox.waiting()) == 1
    with pytest.raises(SendError, match="cannot be reached"):
        store(target, "SCANNER", [radiograph()], timeout=2)


def test_more_associations_than_allowed_are_turned_away_for_now(start: Start) -> None:
    receiver = start(limits=Limits(associations=1, silence_seconds=5))
    entity = AE("SCANNER")
    entity.add_requested_context(Verification)
    first = entity.associate("127.0.0.1", receiver.port, ae_title="XRAY")
    assert first.is_established
    with pytest.raises(SendError) as caught:
        echo(peer(receiver), "SCANNER", timeout=5)
    assert caught.value.is_temporary
    first.release()
    assert until(lambda: receiver._server is not None and not receiver._server.active_associations)
    echo(peer(receiver), "SCANNER", timeout=5)


def test_no_patient_is_in_the_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        receiver = start()
        send(receiver)
        with pytest.raises(SendError):
            send(receiver, radiograph(StudyInstanceUID=None))
    assert "ller" not in caplog.text
    assert "P1" not in caplog.text


# --- The inbox --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", inboxes.TRANSFER_SYNTAX_NOT_SUPPORTED),
        (bytes(128) + b"DICM" + bytes(400), inboxes.TRANSFER_SYNTAX_NOT_SUPPORTED),
        (image(StudyInstanceUID=None), inboxes.CANNOT_UNDERSTAND),
        (image(SOPInstanceUID="../../etc"), inboxes.CANNOT_UNDERSTAND),
        (image(SOPClassUID=CTImageStorage), inboxes.SOP_CLASS_NOT_SUPPORTED),
    ],
)
def test_what_cannot_be_a_radiograph_is_refused_with_a_status(data: bytes, status: int) -> None:
    with pytest.raises(Refused) as caught:
        examine(data, "SCANNER")
    assert caught.value.status == status


def test_the_sender_comes_back_with_the_file_whatever_its_name(inbox: Inbox) -> None:
    for sender in ("A/B..%2e\\", "ÄRZTE", "", "x" * 500):
        found = inbox.read(inbox.keep(image(), sender))
        assert found is not None
        assert found[1].sender == sender[:64]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a.dcm", "x" * 36 + ".a.dcm"])
def test_a_name_that_the_inbox_did_not_give_is_refused(inbox: Inbox, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        inbox.read(name)


def test_the_disk_that_is_nearly_full_is_left_alone(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    inbox.min_free_bytes = 10**6
    with pytest.raises(Refused, match="free") as caught:
        inbox.keep(image(), "SCANNER")
    assert caught.value.status == inboxes.OUT_OF_RESOURCES


# --- Routing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "body_part", "sender", "expected"),
    [
        ("DX", "CHEST", "ROOM1", "dx-chest"),
        ("DX", "CHEST", "ROOM2", "room-2"),
        ("DX", "CHEST", "room2", "dx-chest"),
        ("CR", "chest ", "ROOM1", "chest"),
        ("CR", "KNEE", "ROOM1", "cr"),
        ("DX", "KNEE", "ROOM1", None),
        ("", "", "ROOM2", None),
    ],
)
def test_the_first_route_that_fits_decides(modality: str, body_part: str, sender: str, expected: str | None) -> None:
    routes = [
        Route("", "CHEST", "room-2", sender="ROOM2"),
        Route("DX", "Chest", "dx-chest"),
        Route("", "CHEST", "chest"),
        Route("CR", "", "cr"),
        Route("DX", "CHEST", "never"),
    ]
    assert route(modality, body_part, routes, sender) == expected


def test_a_route_for_anything_takes_what_no_other_does() -> None:
    assert route("", "", [Route("CR", "", "cr"), Route("", "", "rest")]) == "rest"
    assert route("CR", "CHEST", []) is None


# --- Sending results --------------------------------------------------------------------------------------------------


@pytest.fixture
def archive() -> Iterator[SimpleNamespace]:
    """An archive that takes reports and pictures in Implicit VR only, as old ones do."""
    kept: list[Dataset] = []
    answers = SimpleNamespace(status=0, kept=kept)

    def on_store(event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        kept.append(dataset)
        return answers.status

    entity = AE("ARCHIVE")
    for sop_class in ("1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"):
        entity.add_supported_context(sop_class, [ImplicitVRLittleEndian])
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    answers.peer = Peer("ARCHIVE", "127.0.0.1", server.server_address[1])
    yield answers
    server.shutdown()


def results() -> list[Dataset]:
    header = source()
    return [
        structured_report(result(header), header),
        secondary_capture(result(header), header, PICTURE, "PNEUMONIA"),
    ]


def test_report_and_picture_reach_an_archive_in_the_study_of_the_image(archive: SimpleNamespace) -> None:
    store(archive.peer, "XRAY", results(), timeout=5)
    assert [dataset.Modality for dataset in archive.kept] == ["SR", "OT"]
    assert {dataset.StudyInstanceUID for dataset in archive.kept} == {source().StudyInstanceUID}
    assert str(archive.kept[0].PatientName) == "Müller^Änne"


@pytest.mark.parametrize(("status", "is_temporary"), [(0xA700, True), (0xC000, False), (0x0122, False)])
def test_an_archive_that_refuses_is_told_apart_from_one_that_is_busy(
    archive: SimpleNamespace, status: int, is_temporary: bool
) -> None:
    archive.status = status
    with pytest.raises(SendError, match=f"0x{status:04X}") as caught:
        store(archive.peer, "XRAY", results()[:1], timeout=5)
    assert caught.value.is_temporary == is_temporary


def test_a_warning_of_the_archive_is_no_failure(archive: SimpleNamespace) -> None:
    archive.status = 0xB000
    store(archive.peer, "XRAY", results()[:1], timeout=5)


def test_an_archive_that_is_away_is_tried_again_later() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SendError, match="cannot be reached") as caught:
        store(Peer("ARCHIVE", "127.0.0.1", port), "XRAY", results()[:1], timeout=2)
    assert caught.value.is_temporary


# --- The command ------------------------------------------------------------------------------------------------------


def test_callers_are_read_from_the_settings() -> None:
    callers = parse_callers(["PACS@10.1.2.0/24", " ROOM 2@::1", "PACS@10.9.9.9"])
    assert [caller.ae_title for caller in callers] == ["PACS", "ROOM 2"]
    assert callers[0].is_at("10.1.2.77")
    assert callers[0].is_at("::ffff:10.9.9.9")
    assert not callers[0].is_at("10.1.3.1")
    assert callers[1].is_at("::1")


@pytest.mark.parametrize(
    "text", ["", "PACS", "PACS@", "@10.1.2.3", "PACS@10.1.2.3/24", "A" * 17 + "@10.1.2.3", "A\\B@::1"]
)
def test_a_caller_that_is_written_wrongly_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not"):
        parse_callers([text])


def test_a_receiver_for_nobody_does_not_start(settings: Any) -> None:
    with pytest.raises(CommandError, match="Nobody may send"):
        call_command("dicom_receiver", port=0)
    settings.DICOM_CALLERS = ["PACS"]
    with pytest.raises(CommandError, match="DICOM_CALLERS"):
        call_command("dicom_receiver", port=0)


@pytest.mark.slow
def test_the_command_receives_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
        "MODEL_ROOT": str(tmp_path),
        "MIN_FREE_DISK_GB": "0",
        "SECRET_KEY": "only-for-this-test",
        "DJANGO_SETTINGS_MODULE": "xrayplatform.settings",
        "DICOM_CALLERS": "SCANNER@127.0.0.1",
    }
    command = [sys.executable, "manage.py", "dicom_receiver", "--port", str(port), "--json"]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        target = Peer("XRAYPLATFORM", "127.0.0.1", port)
        assert until(lambda: _is_there(target), seconds=30)
        # Without tables nothing can be queued, and still the image is safe and acknowledged.
        store(target, "SCANNER", [radiograph()], timeout=5)
        running.send_signal(signal.SIGTERM)
        output, _ = running.communicate(timeout=20)
    finally:
        running.kill()
    assert running.returncode == 0
    assert json.loads(output) == {"stopped": True, "kept": 1}


def _is_there(target: Peer) -> bool:
    try:
        echo(target, "SCANNER", timeout=1)
    except SendError:
        return False
    return True


# --- Another implementation -------------------------------------------------------------------------------------------

needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="storescu is not installed (Debian: dcmtk)")


@needs_dcmtk
def test_dcmtk_sends_to_the_receiver(start: Start, inbox: Inbox, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(image())
    for title, is_taken in (("SCANNER", True), ("STRANGER", False)):
        command = ["storescu", "-aet", title, "-aec", "XRAY", "127.0.0.1", str(start().port), str(path)]
        sent = subprocess.run(command, capture_output=True, timeout=30)
        assert (sent.returncode == 0) == is_taken, sent.stderr
    (name,) = inbox.waiting()
    found = inbox.read(name)
    assert found is not None
    assert found[1].sop_uid == source().SOPInstanceUID


@needs_dcmtk
def test_results_reach_dcmtk(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = subprocess.Popen(["storescp", "-aet", "ARCHIVE", "-od", str(tmp_path), "--fork", str(port)])
    try:
        target = Peer("ARCHIVE", "127.0.0.1", port)
        assert until(lambda: _is_there(target), seconds=10)
        store(target, "XRAY", results(), timeout=5)
    finally:
        running.kill()
        running.wait()
    arrived = [pydicom.dcmread(path) for path in tmp_path.iterdir()]
    assert {dataset.SOPInstanceUID for dataset in arrived} == {dataset.SOPInstanceUID for dataset in results()}
    assert {dataset.StudyInstanceUID for dataset in arrived} == {source().StudyInstanceUID}
