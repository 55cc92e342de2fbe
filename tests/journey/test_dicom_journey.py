"""A modality sends a radiograph, and the archive gets report and picture: real receiver, real queue, real network."""

import signal
import socket
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from inference.sending import Peer, SendError, echo, store
from tests.inference.dicom_network import archive, radiograph
from tests.inference.results import TAGS
from tests.journey.instance import ROOT, Instance

pytestmark = pytest.mark.slow
SET_UP = """
from tests.inference.dicom_network import destination, in_service
from xrayplatform.conditions import Condition
chest = Condition.objects.create(slug="chest", name="Chest")
in_service(chest, None)
destination(chest, port={port})
"""


def until(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def is_there(peer: Peer) -> bool:
    try:
        echo(peer, "ROOM1", timeout=2)
    except SendError:
        return False
    return True


def kept(instance: Instance) -> list[Path]:
    return list((instance.models / "dicom-inbox").glob("*.dcm"))


def test_a_radiograph_that_is_sent_comes_back_as_report_and_picture(instance: Instance) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sent = pydicom.dcmread(BytesIO(radiograph()))
    platform = Peer("XRAYPLATFORM", "127.0.0.1", port)
    with archive() as (archive_port, taken):
        instance.python(SET_UP.format(port=archive_port))
        callers = {"DICOM_CALLERS": "ROOM1@127.0.0.1"}
        instance.spawn("receiver", str(ROOT / "manage.py"), "dicom_receiver", "--port", str(port), **callers)
        receiver = instance.processes[-1]
        until(lambda: is_there(platform), 40)
        # Nobody works in the queue yet: what is acknowledged waits, and is not lost with the receiver.
        store(platform, "ROOM1", [sent], timeout=10)
        assert len(kept(instance)) == 1
        receiver.send_signal(signal.SIGTERM)
        assert receiver.wait(20) == 0
        with pytest.raises(SendError):
            store(platform, "ROOM1", [sent], timeout=5)
        instance.start(web=False, trainer=False)
        until(lambda: len(taken) == 2, 90)
        until(lambda: not kept(instance), 20)
    assert {found.Modality for found in taken} >= {"SR"}
    for found in taken:
        assert found.StudyInstanceUID == sent.StudyInstanceUID == TAGS["StudyInstanceUID"]
        assert found.PatientName == sent.PatientName
    told = instance.python("from inference.models import Prediction; print(Prediction.objects.get().channel)")
    assert told.strip() == "dicom"
