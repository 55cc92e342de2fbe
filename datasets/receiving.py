"""Files on their way in: streamed to disk under names of the server's choice, gone unless an upload takes them over."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler, SkipFile
from django.http import HttpRequest

from xrayplatform.http import announced_length
from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk, require_disk

from .models import Upload
from .models.upload import INCOMING

FIELD: Final = "files"
NAMES: Final = "received.json"


class Inbox:
    """A folder below MODEL_ROOT for what one request, or one command, brings."""

    def __init__(self) -> None:
        self.folder = Upload.root() / f"{INCOMING}{uuid.uuid4().hex}"
        self.names: list[str] = []
        self.size = 0

    def open(self, name: str) -> BinaryIO:
        """A new file for the bytes of the file that the sender calls `name`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names.append(name)
        return (self.folder / _numbered(len(self.names) - 1)).open("xb")

    def add(self, name: str, source: Path) -> None:
        """A copy of a file of this machine. Raises JobError when it cannot be read or written."""
        with _as_job_error(), source.open("rb") as file, self.open(name) as out:
            shutil.copyfileobj(file, out)
            self.size += out.tell()

    @property
    def files(self) -> list[tuple[str, Path]]:
        """What has been received so far: the sender's name of each file, and where it is."""
        return [(name, self.folder / _numbered(number)) for number, name in enumerate(self.names)]

    def submit(self, by: Any, **options: Any) -> Upload:
        """Make an upload of what was received; see `Upload.create`. Raises JobError."""
        return Upload.create(self.seal(), files=len(self.names), size=self.size, by=by, **options)

    def seal(self) -> Path:
        """The folder, complete with the names, for a job to take over. Raises JobError when it holds no file."""
        if not self.names:
            raise JobError("No file was sent.", "Choose images or a zip archive.")
        with _as_job_error():
            (self.folder / NAMES).write_text(json.dumps(self.names))
        return self.folder

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def received(folder: Path) -> list[tuple[str, Path]]:
    """The files in the folder of an upload, with the names that their sender gave them."""
    names = json.loads((folder / NAMES).read_text())
    return [(name, folder / _numbered(number)) for number, name in enumerate(names)]


def files_of(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Files of this machine with their names: those in a folder with the folders below it. Links are not followed.

    Raises JobError for a path where nothing is.
    """
    for path in paths:
        if path.is_dir():
            yield from _files_below(path)
        elif path.is_file():
            yield path.name, path
        else:
            raise JobError(f"{path} is no file or folder.", "Correct the path.")


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    for above, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(above, name)
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path


def _numbered(number: int) -> str:
    return f"received-{number:06d}"


@contextlib.contextmanager
def receiving(request: HttpRequest) -> Iterator[Inbox]:
    """Send the files of the request into an inbox. To be entered before anything has read the request's body."""
    inbox = Inbox()
    handler = InboxHandler(request, inbox)
    request.upload_handlers = [handler]
    try:
        yield inbox
    finally:
        handler.upload_interrupted()
        inbox.discard()


def require_room(request: HttpRequest) -> None:
    """Raise JobError when the announced body does not fit on the disk."""
    try:
        require_disk(announced_length(request))
    except NotEnoughDisk as error:
        raise JobError(str(error), "Ask an administrator to free some space, then upload again.") from error


class InboxHandler(FileUploadHandler):
    """Writes each file as it comes; at no time more than a chunk of it is in memory."""

    chunk_size = 256 * 1024

    def __init__(self, request: HttpRequest, inbox: Inbox) -> None:
        super().__init__(request)
        self.inbox = inbox
        self._out: BinaryIO | None = None

    def new_file(self, field_name: str, *args: Any, **options: Any) -> None:
        super().new_file(field_name, *args, **options)
        if field_name != FIELD:
            raise SkipFile
        with _as_job_error():
            self._out = self.inbox.open(str(self.file_name))

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if self._out:
            with _as_job_error():
                self._out.write(raw_data)
        self.inbox.size += len(raw_data)

    def file_complete(self, file_size: int) -> UploadedFile:
        with _as_job_error():
            self._close()
        return ReceivedFile(name=self.file_name, content_type=self.content_type, size=file_size)

    def upload_interrupted(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._out:
            self._out.close()


class ReceivedFile(UploadedFile):
    """What a form sees of a file in the inbox: its name and size. Its bytes are the upload job's business."""

    def close(self) -> None:
        return None


@contextlib.contextmanager
def _as_job_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # The text of an OSError names the path, which is nobody's business but the administrator's.
        raise JobError(
            f"The upload could not be written: {error.strerror}.", "Tell an administrator; the disk may be full."
        ) from error
