"""`python -m datasets.decoder`: reads radiographs for `decoding`, in a process that may be killed.

What a hostile file does to a decoder written in C ends this process and no other. It gets no secrets in its
environment, a limit on its memory, and one JSON object a line: a request comes in, its answer goes out.
"""

import base64
import errno
import hashlib
import json
import os
import resource
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets import duplicates, imaging, quality

Answer = dict[str, Any]
MEMORY_BYTES: Final = 2 * 1024**3
FLUSH_SECONDS: Final = 0.02
IDLE_SECONDS: Final = 60.0


def main() -> None:
    answers = _private_output()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    received = b""
    # Idle, it ends by itself: a worker that scans once a day should not keep its decoders in memory until tomorrow.
    while select.select([0], [], [], IDLE_SECONDS)[0] and (content := os.read(0, 1 << 16)):
        *lines, received = (received + content).split(b"\n")
        flushed = time.monotonic()
        for line in lines:
            answers.write(json.dumps(_answer(json.loads(line))) + "\n")
            # Small pictures are answered together; a large one lets nobody wait for its answer.
            if time.monotonic() - flushed > FLUSH_SECONDS:
                answers.flush()
                flushed = time.monotonic()
        answers.flush()


def _private_output() -> TextIO:
    """Where answers go. Whatever a library prints goes nowhere: it may quote the file."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return answers


def _answer(request: dict[str, Any]) -> Answer:
    try:
        return OPERATIONS[request["op"]](request)
    except imaging.ImageError as error:
        return {"error": error.code, "message": str(error)}
    except MemoryError:
        return {"error": "too-large", "message": "The picture needs more memory than one picture may take."}
    except Exception as error:  # the text may quote the file
        return {"error": "damaged", "message": f"The file could not be read ({type(error).__name__})."}


def examine(request: dict[str, Any]) -> Answer:
    """All that a scan wants to know of a file. It is read again when it changes meanwhile, as files being copied do."""
    path = Path(request["path"])
    for _ in range(2):
        try:
            before = _signature(path)
            answer = _examined(path)
            if _signature(path) == before:
                return answer | {"size": before[0], "mtime_ns": before[1]}
        except OSError as error:
            return {"error": "unreadable", "message": f"The file cannot be opened: {error.strerror}."}
    return {"error": "changing", "message": "The file changes while it is read; scan again when it is complete."}


def _radiograph(path: Path | str) -> imaging.Radiograph:
    """A file that became a link since the walk could lead anywhere: it is not followed."""
    return imaging.read(imaging.read_bytes(path, follow=False))


def _signature(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_size, status.st_mtime_ns


def _examined(path: Path) -> Answer:
    found = _radiograph(path)
    grey = found.grey
    measures = quality.measure(grey) | {"colour": round(found.colour, 5), "burned_in": float(found.burned_in)}
    return {
        "digest": found.digest,
        "width": found.width,
        "height": found.height,
        "format": found.format,
        "patient": found.patient,
        "institution": found.institution,
        "sex": found.sex,
        "age": found.age,
        "measures": measures,
        "fingerprint": base64.b64encode(duplicates.fingerprint(grey)).decode(),
    }


def prepare(request: dict[str, Any]) -> Answer:
    """Write a file's pixels, as the network will see them, into its row of the cache. Answers the row's SHA-256.

    By `pwrite`, not through a memory map: a full disk is then an error of this call and not the end of the process.
    """
    radiograph = _radiograph(request["path"])
    if radiograph.digest != request["digest"]:
        return {"error": "changed", "message": "The file has other pixels than at the scan."}
    pixels = _input(radiograph, request).tobytes()
    digest = hashlib.sha256(pixels).digest()
    try:
        _write_row(request["images"], pixels, request)
        # After the pixels: a row with a hash is a row that was written.
        _write_row(request["hashes"], digest, request)
    except OSError as error:
        return {"error": "not-written", "message": str(error.strerror)}
    return {"sha256": digest.hex()}


def _input(radiograph: imaging.Radiograph, request: dict[str, Any]) -> NDArray[np.uint8]:
    return imaging.model_input(radiograph, request["size"], request["fit"], request.get("steps", ()))


def _write_row(path: str, content: bytes, request: dict[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(descriptor, content, request["offset"] + request["row"] * len(content)) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def render(request: dict[str, Any]) -> Answer:
    """Pictures for a page, as base64 PNG: "picture", the radiograph with at most `longest` pixels a side, and, where a
    `size` is asked for, "input", what a model with that input sees."""
    radiograph = _radiograph(request["path"])
    shrunk = Image.fromarray(radiograph.grey)
    shrunk.thumbnail((request["longest"], request["longest"]), Image.Resampling.BILINEAR)
    answer = {
        "picture": _png(np.asarray(shrunk)),
        "digest": radiograph.digest,
        "width": radiograph.width,
        "height": radiograph.height,
        "format": radiograph.format,
        "steps": list(radiograph.steps),
    }
    if request.get("size"):
        answer["input"] = _png(_input(radiograph, request))
    return answer


def _png(grey: NDArray[np.uint8]) -> str:
    return base64.b64encode(imaging.to_png(grey)).decode()


OPERATIONS: Final[dict[str, Callable[[dict[str, Any]], Answer]]] = {
    "examine": examine,
    "prepare": prepare,
    "render": render,
}

if __name__ == "__main__":
    main()
