"""Images that other systems sent: looked at, written to disk so that they outlast a crash, and only then acknowledged.

A file stays until its analysis is stored, so that the header for the result can be read from it; then it is deleted.
"""

import hashlib
import math
import os
import re
import shutil
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote
from uuid import uuid4

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from datasets.dicom import code_string, header
from datasets.radiograph import ImageError

# What a radiograph may arrive as.
SOP_CLASSES: Final = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

# Statuses of PS3.4 B.2.3 and failure reasons of PS3.18 10.5.3, which are the same numbers.
SUCCESS: Final = 0x0000
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
OUT_OF_RESOURCES: Final = 0xA700
DOES_NOT_MATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
TRANSFER_SYNTAX_NOT_SUPPORTED: Final = 0xC122

# An AE title has 16 characters; a file name has room for more.
LONGEST_SENDER: Final = 64
_NAME: Final = re.compile(r"[0-9a-f-]{36}\.[\w.%~-]*\.dcm", re.ASCII)
_UIDS: Final = ("SOPClass", "SOPInstance", "StudyInstance", "SeriesInstance")


class Refused(Exception):
    """The image was not taken. status: as in the answer to its sender."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Instance:
    """An image as its header tells of it, without the patient. sender: the calling AE title or the user's name."""

    sop_class_uid: str
    sop_uid: str
    study_uid: str
    series_uid: str
    modality: str
    body_part: str
    sender: str


def part10(dataset: bytes, *, sop_class_uid: str, sop_uid: str, transfer_syntax: str, sender: str) -> bytes:
    """A DICOM file (PS3.10) with an encoded data set as it came over the network."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class_uid
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = transfer_syntax
    meta.SourceApplicationEntityTitle = sender
    buffer = BytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue() + dataset


def examine(data: bytes, sender: str) -> Instance:
    """What a DICOM file says it is, before it is kept. Raises Refused; its pixels are only looked at later."""
    try:
        dataset = header(data)
    except ImageError as error:
        unsupported = error.code == "unsupported-transfer-syntax"
        raise Refused(TRANSFER_SYNTAX_NOT_SUPPORTED if unsupported else CANNOT_UNDERSTAND, str(error)) from error
    uids = {level: _matching(r"[0-9.]{1,64}", dataset.get(f"{level}UID")) for level in _UIDS}
    if not all(uids.values()):
        raise Refused(CANNOT_UNDERSTAND, "The image does not name its class, instance, series and study.")
    if uids["SOPClass"] not in SOP_CLASSES:
        raise Refused(
            SOP_CLASS_NOT_SUPPORTED, "Only computed and digital radiographs and secondary captures are taken."
        )
    return Instance(
        uids["SOPClass"],
        uids["SOPInstance"],
        uids["StudyInstance"],
        uids["SeriesInstance"],
        code_string(dataset, "Modality"),
        code_string(dataset, "BodyPartExamined"),
        sender,
    )


def _matching(pattern: str, value: object) -> str:
    text = str(value or "").strip("\0 ")
    return text if re.fullmatch(pattern, text) else ""


def content_digest(data: bytes) -> str:
    """SHA-256 of a DICOM file's data set: without the head, in which everybody who passes the file on writes."""
    start = 132
    # The length of the head stands in its first element, (0002,0000) UL (PS3.10 7.1).
    if data[start : start + 8] == b"\x02\x00\x00\x00UL\x04\x00":
        start += 12 + int.from_bytes(data[start + 8 : start + 12], "little")
    return hashlib.sha256(data[start:]).hexdigest()


def _modified(path: Path) -> float:
    """When a file was written; never, for one that was deleted in between."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


class Inbox:
    """A folder of received files, readable by the platform's own user only.

    Their names are <uuid>.<sender>.dcm, so that who sent a file outlasts a crash with it. min_free_bytes: what has to
    stay free on the disk.
    """

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self.folder, self.min_free_bytes = folder, min_free_bytes

    def keep(self, data: bytes, sender: str) -> str:
        """Write a file so that it survives a power cut, and return its name. Raises Refused when it cannot be."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_space(len(data))
            return self._write(data, f"{uuid4()}.{quote(sender[:LONGEST_SENDER], safe='')}.dcm")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise Refused(OUT_OF_RESOURCES, f"The image could not be written: {reason}.") from error

    def read(self, name: str) -> tuple[bytes, Instance] | None:
        """A file and what it says it is; None when it is done with. Raises Refused for one that was damaged since."""
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        return data, examine(data, unquote(name[37:-4]))

    def waiting(self, least_age_seconds: float = 0) -> list[str]:
        """Names of the files that were received, at least so long ago, and are not done with, oldest first."""
        latest = time.time() - least_age_seconds
        found = [(_modified(path), path.name) for path in self.folder.glob("*.dcm") if _NAME.fullmatch(path.name)]
        return [name for moment, name in sorted(found) if moment <= latest]

    def done(self, name: str) -> None:
        """Delete a file: its analysis is stored, or nobody wants it."""
        self._path(name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what a receiver that was killed left half written; for the only receiver, before it begins."""
        for path in self.folder.glob("*.part"):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError("That is no name of a received file.")
        return self.folder / name

    def _check_space(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free - size < self.min_free_bytes:
            raise Refused(OUT_OF_RESOURCES, f"The disk has only {free // 1024**2} MB free.")

    def _write(self, data: bytes, name: str) -> str:
        path = self._path(name)
        part = path.with_suffix(".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._sync_folder()
        return name

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
