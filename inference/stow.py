"""STOW-RS: images that arrive over HTTP, several in one body (PS3.18 10.5, RFC 2387, RFC 2046).

The body is read as a stream and strictly: what a part or the whole may be long is bounded, and anything that is not
laid out as the standard has it is refused instead of guessed at.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final, Protocol

from .inbox import DOES_NOT_MATCH, Inbox, Instance, Refused, examine

MEDIA_TYPE: Final = "application/dicom+json"
_CHUNK: Final = 64 * 1024
_LONGEST_HEADERS: Final = 8 * 1024
_LONGEST_EPILOGUE: Final = 1024
# Without the blank that RFC 2046 allows inside: nobody uses it, and it is where parsers differ.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")


class StowError(Exception):
    """The body as a whole cannot be taken. status: of the HTTP answer, 400, 413 or 415."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Readable(Protocol):
    """What a body is read from."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Limits:
    """How much one request may bring."""

    part_bytes: int = 128 * 1024**2
    body_bytes: int = 512 * 1024**2
    parts: int = 100


@dataclass(frozen=True)
class Failure:
    """An image that was not taken, by the UIDs that it names ("" when it names none), and why."""

    sop_class_uid: str
    sop_uid: str
    reason: int


def receive(
    content_type: str,
    body: Readable,
    *,
    study_uid: str,
    sender: str,
    inbox: Inbox,
    received: Callable[[str, Instance], None],
    limits: Limits | None = None,
) -> tuple[int, dict[str, Any]]:
    """Take the images of a request into the inbox; returns HTTP status and DICOM JSON of the answer.

    study_uid: of the address that was posted to; images of other studies fail then. "" for any. received: called with
    name and instance of each image that is safely kept. Raises StowError for a body that is not laid out properly;
    what came before the fault is kept all the same, and the sender may send it all again.
    """
    taken: list[Instance] = []
    failures: list[Failure] = []
    for data in parts(content_type, body, limits or Limits()):
        try:
            instance = examine(data, sender)
            if study_uid and instance.study_uid != study_uid:
                failures.append(Failure(instance.sop_class_uid, instance.sop_uid, DOES_NOT_MATCH))
                continue
            name = inbox.keep(data, sender)
        except Refused as error:
            failures.append(Failure(*_claimed(data), error.status))
            continue
        taken.append(instance)
        received(name, instance)
    return answer(taken, failures)


def answer(taken: Sequence[Instance], failures: Sequence[Failure]) -> tuple[int, dict[str, Any]]:
    """HTTP status and DICOM JSON (PS3.18 10.5.3, I.2): 200 all were taken, 202 some, 409 none."""
    body: dict[str, Any] = {"00081190": {"vr": "UR"}}
    if taken:
        body["00081199"] = _sequence([_reference(item.sop_class_uid, item.sop_uid) for item in taken])
    if failures:
        items = [
            _reference(failure.sop_class_uid, failure.sop_uid) | {"00081197": {"vr": "US", "Value": [failure.reason]}}
            for failure in failures
        ]
        body["00081198"] = _sequence(items)
    return (200 if not failures else 202 if taken else 409), body


def parts(content_type: str, body: Readable, limits: Limits) -> Iterator[bytes]:
    """The parts of a multipart/related body, each a DICOM file. Raises StowError."""
    reader = _Reader(body, limits.body_bytes)
    delimiter = f"--{_boundary(content_type)}".encode()
    reader.skip_start(delimiter)
    count = 0
    while not reader.is_last():
        count += 1
        if count > limits.parts:
            raise StowError(413, f"The request holds more than {limits.parts} images. Send fewer at a time.")
        _check_headers(reader.until(b"\r\n\r\n", _LONGEST_HEADERS, "headers of a part"))
        yield reader.until(b"\r\n" + delimiter, limits.part_bytes, "image")
    if not count:
        raise StowError(400, "The request holds no image.")


def multipart(files: Sequence[bytes]) -> tuple[str, bytes]:
    """Content type and body of a STOW-RS request with these DICOM files; the boundary is in none of them."""
    number = 0
    while any(f"\r\n--xray-{number}".encode() in data for data in files):
        number += 1
    boundary = f"xray-{number}"
    pieces = [b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (boundary.encode(), data) for data in files]
    content_type = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    return content_type, b"".join(pieces) + f"--{boundary}--\r\n".encode()


def _boundary(content_type: str) -> str:
    if len(content_type) > _LONGEST_HEADERS or not content_type.isprintable():
        raise StowError(400, "The Content-Type header cannot be read.")
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() != "multipart/related" or _parameter(header, "type").lower() != "application/dicom":
        raise StowError(415, 'Send the images as multipart/related; type="application/dicom".')
    boundary = _parameter(header, "boundary")
    if not _BOUNDARY.fullmatch(boundary):
        raise StowError(400, "The Content-Type header names no boundary that RFC 2046 allows.")
    return boundary


def _parameter(header: Message, name: str) -> str:
    value = header.get_param(name)
    return value if isinstance(value, str) else ""


def _check_headers(raw: bytes) -> None:
    """A part is a DICOM file as it is: no other type, and no encoding around it."""
    lines = [line.partition(b":") for line in raw.split(b"\r\n") if line]
    names = [name.strip().lower() for name, _, _ in lines]
    if len(set(names)) != len(names) or not all(colon for _, colon, _ in lines):
        raise StowError(400, "The headers of a part of the body cannot be read.")
    headers = {name: value.strip().lower() for name, (_, _, value) in zip(names, lines, strict=True)}
    if headers.get(b"content-type", b"").partition(b";")[0].strip() != b"application/dicom":
        raise StowError(415, "Every part of the body has to be of the type application/dicom.")
    if headers.get(b"content-transfer-encoding", b"binary") not in (b"binary", b"8bit"):
        raise StowError(415, "The images have to be sent as they are, without a transfer encoding.")


class _Reader:
    """Reads a stream up to delimiters, and never more of it than is allowed."""

    def __init__(self, body: Readable, most: int) -> None:
        self._body, self._left, self._buffer = body, most, bytearray()

    def skip_start(self, delimiter: bytes) -> None:
        """Past the first delimiter, which begins the body but for one line break."""
        self._fill(len(delimiter) + 2)
        if self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        if not self._buffer.startswith(delimiter):
            raise StowError(400, "The body does not begin with the boundary that the Content-Type header names.")
        del self._buffer[: len(delimiter)]

    def is_last(self) -> bool:
        """Whether the delimiter just passed closes the body. Otherwise goes on to the headers of the next part."""
        self._fill(2)
        mark = bytes(self._buffer[:2])
        if mark == b"--":
            self._check_epilogue()
            return True
        if mark != b"\r\n":
            raise StowError(400, "A boundary in the body is followed by something else than a line break.")
        # The line break stays when a part has no headers, as the end of them.
        self._fill(4)
        if self._buffer[:4] != b"\r\n\r\n":
            del self._buffer[:2]
        return False

    def until(self, delimiter: bytes, most: int, what: str) -> bytes:
        """The bytes before the next delimiter, which is passed."""
        seen = 0
        while (at := self._buffer.find(delimiter, seen)) < 0:
            seen = max(0, len(self._buffer) - len(delimiter) + 1)
            if seen > most:
                raise StowError(413, f"An {what} of the request is longer than {most} bytes.")
            if not self._more():
                raise StowError(400, "The body ends before its last boundary. Send it again.")
        if at > most:
            raise StowError(413, f"An {what} of the request is longer than {most} bytes.")
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(delimiter)]
        return found

    def _check_epilogue(self) -> None:
        while len(self._buffer) <= _LONGEST_EPILOGUE and self._more():
            pass
        if len(self._buffer) > _LONGEST_EPILOGUE or self._buffer[2:].strip():
            raise StowError(400, "Something follows the last boundary of the body.")

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size and self._more():
            pass

    def _more(self) -> bool:
        chunk = self._body.read(_CHUNK)
        self._left -= len(chunk)
        if self._left < 0:
            raise StowError(413, "The request is longer than is allowed. Send fewer images at a time.")
        self._buffer += chunk
        return bool(chunk)


def _claimed(data: bytes) -> tuple[str, str]:
    """SOP class and instance UID that a refused file names in its file meta information; "" for what it does not."""
    found = [re.search(tag + rb"UI..([0-9.]{1,64})", data[132:1024], re.DOTALL) for tag in _META_UIDS]
    return tuple(match[1].decode() if match else "" for match in found)  # type: ignore[return-value]


_META_UIDS: Final = (rb"\x02\x00\x02\x00", rb"\x02\x00\x03\x00")


def _sequence(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": items}


def _reference(sop_class_uid: str, sop_uid: str) -> dict[str, Any]:
    """PS3.18 F.2: an element without a value has none at all."""
    pairs = (("00081150", sop_class_uid), ("00081155", sop_uid))
    return {tag: {"vr": "UI"} | ({"Value": [uid]} if uid else {}) for tag, uid in pairs}
