"""A DICOM receiver: C-STORE and C-ECHO for the systems that are listed, and for nobody else (PS3.4 B, PS3.8).

An image is acknowledged only when it is safely in the inbox. What a sender may claim and how slow it may be is
bounded here, because the library itself waits for a PDU of 4 GB, and for ever.
"""

import functools
import logging
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from datasets.dicom import TRANSFER_SYNTAXES

from .inbox import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SOP_CLASSES, SUCCESS, Inbox, Instance, Refused, examine, part10

logger = logging.getLogger(__name__)

# Its own handlers would write every association into the log, several lines each.
_config.LOG_HANDLER_LEVEL = "none"

# An association request lists contexts, a data PDU is at most as long as was agreed: nothing longer is honest.
_LONGEST_REQUEST: Final = 1024**2
_CHUNK: Final = 64 * 1024
# PS3.8 9.3.4: rejected for good, by the service user, calling AE title not recognised.
_REJECTED: Final = (0x01, 0x01, 0x03)
# Deflated and big-endian files are read, but hardly anything sends them, and the retired one invites mistakes.
_NOT_OFFERED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})


@dataclass(frozen=True)
class Caller:
    """A system that may send: its AE title, and from where."""

    ae_title: str
    networks: tuple[IPv4Network | IPv6Network, ...]

    def is_at(self, address: str) -> bool:
        """Whether an address is one of this system's."""
        found = ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None) or found
        return any(mapped.version == network.version and mapped in network for network in self.networks)


def parse_callers(texts: Sequence[str]) -> tuple[Caller, ...]:
    """Callers written as TITLE@network, such as PACS@10.1.2.0/24; a title may be there several times.

    Raises ValueError with what is wrong.
    """
    networks: dict[str, list[IPv4Network | IPv6Network]] = {}
    for text in texts:
        title, _, where = text.strip().rpartition("@")
        if not re.fullmatch(r"[!-\[\]-~][ -\[\]-~]{0,15}", title):
            raise ValueError(f"{text!r} does not begin with an AE title of at most 16 characters and an @.")
        try:
            networks.setdefault(title, []).append(ip_network(where))
        except ValueError as error:
            raise ValueError(f"{text!r} does not end with an address or network: {error}.") from error
    return tuple(Caller(title, tuple(found)) for title, found in networks.items())


@dataclass(frozen=True)
class Limits:
    """What one sender may take: bytes of an image on its way, seconds of silence, associations of all at once."""

    dataset_bytes: int = 128 * 1024**2
    pdu_bytes: int = 128 * 1024
    associations: int = 8
    silence_seconds: float = 30.0


class Receiver:
    """Listens on one address. `received` is called with the file's name and its instance once it is in the inbox.

    An exception of `received` is logged and the sender still told of success: the file is safe, and is handed over
    again by whoever looks through the inbox.
    """

    def __init__(
        self,
        ae_title: str,
        address: tuple[str, int],
        callers: Sequence[Caller],
        inbox: Inbox,
        received: Callable[[str, Instance], None],
        limits: Limits | None = None,
    ) -> None:
        self.address, self.callers, self.inbox, self.received = address, tuple(callers), inbox, received
        self.limits = limits or Limits()
        self.ae = self._application_entity(ae_title)
        self._meters: weakref.WeakKeyDictionary[Association, _Meter] = weakref.WeakKeyDictionary()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """Where it listens: the number that the system chose when port 0 was asked for."""
        if self._server is None:
            raise RuntimeError("The receiver is not running.")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to listen, in a thread. Raises OSError when the address cannot be had."""
        self.inbox.sweep()
        server = self.ae.make_server(
            self.address,
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_request),
                (evt.EVT_PDU_RECV, self._on_pdu),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_C_ECHO, lambda event: SUCCESS),
            ],
            server_class=_Server,
            request_handler=_Handler,
        )
        server.callers, server.most = self.callers, 2 * self.limits.associations
        self.ae._servers.append(server)
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="dicom-receiver", daemon=True)
        self._thread.start()

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Take no new associations, let the running ones end, and abort what is left after the grace time."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        deadline = time.monotonic() + grace_seconds
        while server.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        for association in server.active_associations:
            association.abort(block=False)

    def _application_entity(self, ae_title: str) -> AE:
        entity = AE(ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = [caller.ae_title for caller in self.callers]
        entity.maximum_associations = self.limits.associations
        entity.maximum_pdu_size = self.limits.pdu_bytes
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.limits.silence_seconds
        entity.add_supported_context(Verification)
        for sop_class in SOP_CLASSES:
            entity.add_supported_context(sop_class, sorted(TRANSFER_SYNTAXES - _NOT_OFFERED))
        return entity

    def _on_request(self, event: Any) -> None:
        """Turn away who is not listed with this title at this address."""
        association = event.assoc
        title, address = association.requestor.primitive.calling_ae_title, association.requestor.address_info.address
        if any(caller.ae_title.strip() == title.strip() and caller.is_at(address) for caller in self.callers):
            return
        logger.warning("A DICOM association from %s was rejected: its AE title is not listed for that address", address)
        association.acse.send_reject(*_REJECTED)
        association.kill()

    def _on_pdu(self, event: Any) -> None:
        """Count the bytes of images that are on their way, and end the association when they are too many."""
        items = getattr(event.pdu, "presentation_data_value_items", None)
        if not items:
            return
        meter = self._meters.setdefault(event.assoc, _Meter())
        fragments = [item.presentation_data_value or b"" for item in items]
        # The first byte tells commands and last fragments (PS3.8 E.2). A command that ends is done with at once.
        size = sum(len(fragment) - 1 for fragment in fragments if fragment and fragment[0] & 3 != 3)
        if meter.add(size) > self.limits.dataset_bytes:
            address = event.assoc.requestor.address_info.address
            logger.warning("A DICOM image from %s was longer than %s bytes", address, self.limits.dataset_bytes)
            event.assoc.abort(block=False)

    def _on_store(self, event: Any) -> int:
        """Status of PS3.4 B.2.3 for one image."""
        encoded = event.request.DataSet.getvalue() if event.request.DataSet else b""
        try:
            return self._store(event, encoded)
        except Refused as error:
            logger.warning("A DICOM image from %s was refused: %s", event.assoc.requestor.ae_title, error)
            return error.status
        finally:
            self._meters.setdefault(event.assoc, _Meter()).add(-len(encoded))

    def _store(self, event: Any, encoded: bytes) -> int:
        if len(encoded) > self.limits.dataset_bytes:  # all of it was there before the association could be ended
            raise Refused(OUT_OF_RESOURCES, f"It is longer than {self.limits.dataset_bytes} bytes.")
        sender = event.assoc.requestor.ae_title.strip()
        request = event.request
        data = part10(
            encoded,
            sop_class_uid=str(request.AffectedSOPClassUID),
            sop_uid=str(request.AffectedSOPInstanceUID),
            transfer_syntax=str(event.context.transfer_syntax),
            sender=sender,
        )
        instance = examine(data, sender)
        if (instance.sop_class_uid, instance.sop_uid) != (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID):
            raise Refused(CANNOT_UNDERSTAND, "The image is not the one that the request names.")
        name = self.inbox.keep(data, sender)
        try:
            self.received(name, instance)
        except Exception:
            logger.exception("A received image could not be handed over; it waits in the inbox")
        return SUCCESS


class _Meter:
    """Bytes of an association that are in memory: those of the image on its way and of images not yet stored."""

    def __init__(self) -> None:
        self._bytes, self._lock = 0, threading.Lock()

    def add(self, size: int) -> int:
        with self._lock:
            self._bytes = max(0, self._bytes + size)
            return self._bytes


def _receive(channel: socket.socket, seconds: float, size: int) -> bytearray:
    """So many bytes of a PDU, or what came before the sender closed; raises OSError for too many or too slow ones."""
    if size > _LONGEST_REQUEST:
        raise OSError("The PDU is longer than was agreed.")
    deadline = time.monotonic() + seconds
    found = bytearray()
    while len(found) < size:
        channel.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = channel.recv(min(size - len(found), _CHUNK))
        if not chunk:
            break
        found += chunk
    channel.settimeout(seconds)
    return found


class _Handler(RequestHandler):  # type: ignore[misc]
    """Neither waits for a PDU that is longer than any honest one, nor for one that drips in."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        self.request.settimeout(association.network_timeout)
        receive = functools.partial(_receive, self.request, association.network_timeout)
        association.dul.socket.recv = receive
        return association


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    """Closes connections from addresses that no listed system has, before a byte of theirs is read."""

    callers: tuple[Caller, ...] = ()
    most = 0

    def verify_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> bool:
        is_known = any(caller.is_at(client_address[0]) for caller in self.callers)
        return is_known and len(self.active_associations) < self.most
