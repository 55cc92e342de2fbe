"""A condition that answers what arrives over the DICOM network, and archives on the loopback interface for results."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from inference.models import DicomDelivery, DicomDestination, DicomRoute, ReceivedObject
from inference.models.dicom import inbox
from tests.datasets.files import dicom
from tests.inference.results import TAGS
from tests.inference.versions import make_version
from xrayplatform.conditions import Condition

SIDE = 160


def film(dark: bool = False) -> NDArray[np.uint16]:
    """A picture that no check before the model minds: a bright spot in the middle, as a body is."""
    distance = ((np.mgrid[0:SIDE, 0:SIDE] - SIDE / 2) ** 2).sum(axis=0)
    return np.asarray(((25 if dark else 205) + 30 * np.exp(-distance / 2500)) * 16, np.uint16)


def radiograph(*, dark: bool = False, **tags: Any) -> bytes:
    """The bytes of a DICOM chest; a tag set to None is left out."""
    return dicom(
        film(dark), **({"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096} | TAGS | tags)
    )


def in_service(condition: Condition, by: Any) -> Any:
    """A version that answers by brightness, and a route for chests to it."""
    version = make_version(condition)
    version.activate(by=by, reason="agreed")
    DicomRoute.objects.create(modality="DX", body_part="CHEST", condition=condition)
    return version


def arrive(data: bytes | None = None, sender: str = "ROOM1") -> str:
    """An image in the inbox, as the receiver leaves it; its name there."""
    return inbox().keep(radiograph() if data is None else data, sender)


def destination(condition: Condition | None, **fields: Any) -> DicomDestination:
    defaults = {"name": "Archive", "kind": "cstore", "host": "127.0.0.1", "port": 104, "ae_title": "ARCHIVE"}
    made = DicomDestination.objects.create(**(defaults | fields))
    if condition is not None:
        made.conditions.add(condition)
    return made


def only_row() -> ReceivedObject:
    return ReceivedObject.objects.get()


def states() -> list[tuple[str, str]]:
    return list(DicomDelivery.objects.order_by("what").values_list("what", "state"))


@contextmanager
def archive(status: int = 0) -> Iterator[tuple[int, list[Dataset]]]:
    """A real storage SCP; its port, and what it was sent. status: of its answers."""
    taken: list[Dataset] = []

    def store(event: Any) -> int:
        taken.append(event.dataset)
        return status

    entity = AE("ARCHIVE")
    for sop_class in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
        entity.add_supported_context(sop_class)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.server_address[1], taken
    finally:
        server.shutdown()


@contextmanager
def web_archive(status: int = 200) -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    """A small HTTP server as an archive for STOW-RS; its address, and path, headers and body of what it was sent."""
    taken: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.path, dict(self.headers), body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web", taken
    finally:
        server.shutdown()
        server.server_close()
