"""Results on their way back: C-STORE to an archive, or STOW-RS to one that speaks HTTP. One try; the caller repeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from registry.outgoing import Network, OutgoingError
from registry.outgoing import send as post

from .stow import MEDIA_TYPE, multipart

_config.LOG_HANDLER_LEVEL = "none"

TIMEOUT_SECONDS: Final = 30.0
# Statuses of C-STORE (PS3.4 B.2.3) that another try may turn into success: out of resources.
_TEMPORARY: Final = range(0xA700, 0xA800)
_WARNINGS: Final = range(0xB000, 0xC000)


class SendError(Exception):
    """The result did not arrive. is_temporary: another try later may succeed."""

    def __init__(self, message: str, *, is_temporary: bool) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary


@dataclass(frozen=True)
class Peer:
    """A system that takes images by C-STORE."""

    ae_title: str
    host: str
    port: int


@dataclass(frozen=True)
class WebPeer:
    """A system that takes images by STOW-RS. url: up to and without /studies. authorization: of the header, or ""."""

    url: str
    authorization: str = ""


def store(peer: Peer, calling: str, datasets: Sequence[Dataset], timeout: float = TIMEOUT_SECONDS) -> None:
    """Send data sets by C-STORE over one association, under our AE title `calling`. Raises SendError.

    Data sets are Explicit VR Little Endian and are converted when the peer takes only Implicit VR.
    """
    entity = _entity(calling, timeout)
    for sop_class in sorted({str(dataset.SOPClassUID) for dataset in datasets}):
        entity.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    association = _associate(entity, peer)
    try:
        for dataset in datasets:
            _check_status(peer, _send(association, dataset, peer))
    finally:
        _end(association)


def echo(peer: Peer, calling: str, timeout: float = TIMEOUT_SECONDS) -> None:
    """Ask whether a system is there and takes associations from us (C-ECHO). Raises SendError."""
    entity = _entity(calling, timeout)
    entity.add_requested_context(Verification)
    association = _associate(entity, peer)
    try:
        _check_status(peer, association.send_c_echo())
    except (RuntimeError, ValueError) as error:
        raise SendError(f"{peer.ae_title} does not answer C-ECHO: {error}.", is_temporary=False) from error
    finally:
        _end(association)


def store_web(peer: WebPeer, datasets: Sequence[Dataset], listed: Sequence[Network]) -> None:
    """Send data sets by STOW-RS, one a request, so that an answer is about one of them. Raises SendError.

    listed: networks that may be called although they are not public.
    """
    headers = {"Accept": MEDIA_TYPE} | ({"Authorization": peer.authorization} if peer.authorization else {})
    for dataset in datasets:
        content_type, body = multipart([encoded(dataset)])
        try:
            post(f"{peer.url.rstrip('/')}/studies", body, headers | {"Content-Type": content_type}, listed)
        except OutgoingError as error:
            # What the archive itself says no to stays so; everything else may be the network's, or a restart.
            raise SendError(str(error), is_temporary=error.status not in range(400, 500)) from error


def encoded(dataset: Dataset) -> bytes:
    """A data set as a DICOM file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _entity(calling: str, timeout: float) -> AE:
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = timeout
    return entity


def _associate(entity: AE, peer: Peer) -> Association:
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if association.is_established:
        return association
    if association.rejected_contexts:
        raise _not_taken(peer, [context.abstract_syntax for context in association.rejected_contexts])
    if association.is_rejected:
        message = f"{peer.ae_title} at {peer.host}:{peer.port} rejected us: it may not know {entity.ae_title}."
    else:
        message = f"{peer.ae_title} at {peer.host}:{peer.port} cannot be reached."
    raise SendError(message, is_temporary=True)


def _send(association: Association, dataset: Dataset, peer: Peer) -> Dataset:
    try:
        return association.send_c_store(dataset)
    except ValueError as error:  # the peer accepted none of the contexts for it
        raise _not_taken(peer, [dataset.SOPClassUID]) from error
    except RuntimeError as error:
        raise SendError(f"{peer.ae_title} ended the association.", is_temporary=True) from error


def _not_taken(peer: Peer, classes: Sequence[UID | None]) -> SendError:
    names = ", ".join(sorted({UID(uid or "").name for uid in classes}))
    return SendError(f"{peer.ae_title} does not take objects of the class {names}.", is_temporary=False)


def _check_status(peer: Peer, answer: Dataset) -> None:
    """Raise SendError unless the status is success or a warning. No answer at all is an empty data set."""
    status = answer.get("Status")
    if status is None:
        raise SendError(f"{peer.ae_title} did not answer in time.", is_temporary=True)
    if status != 0 and status not in _WARNINGS:
        raise SendError(f"{peer.ae_title} answered 0x{status:04X}.", is_temporary=status in _TEMPORARY)


def _end(association: Association) -> None:
    if association.is_established:
        association.release()
