"""Decode radiographs on all cores, in processes of their own that are ended when a file breaks them.

A file can make a decoder written in C crash, never end, or eat all memory. Here that costs one child process and
becomes an error of that file; the worker that asked goes on with the others.
"""

import itertools
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeVar

WORKERS: Final = min(16, os.cpu_count() or 1)
# Requests that wait in a child's pipe: enough to keep it busy, few enough that neither pipe ever fills up.
AHEAD: Final = 16
LIMIT_SECONDS: Final = 30.0
START_SECONDS: Final = 60.0
DESKS: Final = 2
WAIT_SECONDS: Final = 10.0
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE")

# Exit status of a child that had nothing to do for a while, and of one that could not be loaded.
ENDED_IDLE, FAILED_TO_START = 0, 1
CRASHED: Final = "The file made its decoder crash, so it is damaged or hostile."

Key = TypeVar("Key")
Answer = dict[str, Any]


class DecoderError(RuntimeError):
    """The decoding processes cannot be started at all."""


@dataclass(eq=False)
class _Child(Generic[Key]):
    process: "subprocess.Popen[bytes]"
    requests: IO[bytes]
    answers: IO[bytes]
    waiting: deque[tuple[Key, Answer]] = field(default_factory=deque)
    since: float = 0.0
    received: bytearray = field(default_factory=bytearray)
    answered: bool = False

    def send(self, requests: list[tuple[Key, Answer]]) -> None:
        if not self.waiting:
            self.since = time.monotonic()
        self.waiting.extend(requests)
        try:
            self.requests.write(b"".join(json.dumps(request).encode() + b"\n" for _, request in requests))
        except OSError:
            return  # it has just died; whoever reads from it finds out

    def read(self) -> list[tuple[Key, Answer]] | None:
        """The answers that have come; None when the child has died."""
        content = os.read(self.answers.fileno(), 1 << 20)
        if not content:
            return None
        self.received += content
        *lines, rest = self.received.split(b"\n")
        self.received = bytearray(rest)
        if lines:
            self.since, self.answered = time.monotonic(), True
        return [(self.waiting.popleft()[0], json.loads(line)) for line in lines]

    @property
    def is_late(self) -> bool:
        limit = LIMIT_SECONDS if self.answered else LIMIT_SECONDS + START_SECONDS
        return bool(self.waiting) and time.monotonic() - self.since > limit

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.requests, self.answers):
            pipe.close()
        self.process.wait()


class Decoders:
    """A pool of decoding processes, started when there is work and kept for the next job of this process."""

    def __init__(self, workers: int = WORKERS) -> None:
        self.workers = workers
        self._children: list[_Child[Any]] = []
        self._lock = threading.Lock()

    def run(self, requests: Iterable[tuple[Key, Answer]]) -> Iterator[tuple[Key, Answer]]:
        """Answer requests (key, request), each as soon as it is known; the order is not kept.

        An answer is what `decoder` says, or {"error": code, "message": text} with the code "decoder-crashed" or
        "timeout" where the file ended its decoder. Requests are drawn as they can be worked on, so they may be a
        generator over a million files. Whoever stops early ends the decoders; the next call starts new ones.
        """
        with self._lock:
            for child in [child for child in self._children if child.process.poll() is not None]:
                self._drop(child)
            run = _Run(self, iter(requests))
            try:
                yield from run.answers()
            finally:
                if any(child.waiting for child in self._children):
                    self.close()

    def ask(self, request: Answer) -> Answer:
        """Answer one request."""
        return next(answer for _, answer in self.run([(None, request)]))

    def close(self) -> None:
        for child in self._children:
            child.end()
        self._children = []

    def _start(self) -> _Child[Any]:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # One process a core: threads of numerical libraries would only fight for it, and each reserves memory.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "datasets.decoder"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parents[1],
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise DecoderError(f"No decoding process could be started: {error.strerror}.") from error
        if process.stdin is None or process.stdout is None:
            raise DecoderError("The decoding process has no pipes.")
        child: _Child[Any] = _Child(process, process.stdin, process.stdout)
        self._children.append(child)
        return child

    def _drop(self, child: _Child[Any]) -> None:
        self._children.remove(child)
        child.end()


class _Run(Generic[Key]):
    """One pass over requests."""

    def __init__(self, pool: Decoders, requests: Iterator[tuple[Key, Answer]]) -> None:
        self.pool = pool
        self.requests = requests
        # What waited in a child that broke: sent one at a time, to find the one that breaks it.
        self.suspects: deque[tuple[Key, Answer]] = deque()
        self.exhausted = False

    def answers(self) -> Iterator[tuple[Key, Answer]]:
        with selectors.DefaultSelector() as selector:
            for child in self.pool._children:
                selector.register(child.answers, selectors.EVENT_READ, child)
            while self._feed(selector):
                yield from self._collect(selector)

    def _feed(self, selector: selectors.BaseSelector) -> bool:
        """Hand out requests to the children that run low; whether anything is left to wait for."""
        for number in range(self.pool.workers):
            child = self._child(number)
            if child is not None and len(child.waiting) > AHEAD // 2:
                continue
            batch = self._batch(child)
            if not batch:
                continue
            if child is None:
                child = self.pool._start()
                selector.register(child.answers, selectors.EVENT_READ, child)
            child.send(batch)
        return any(child.waiting for child in self.pool._children)

    def _child(self, number: int) -> "_Child[Key] | None":
        return self.pool._children[number] if number < len(self.pool._children) else None

    def _batch(self, child: "_Child[Key] | None") -> list[tuple[Key, Answer]]:
        waiting = len(child.waiting) if child else 0
        if self.suspects:
            return [] if waiting else [self.suspects.popleft()]
        if self.exhausted:
            return []
        # A first taste each, so that a few large files do not all wait for one child.
        room = AHEAD - waiting if waiting else 2
        batch = list(itertools.islice(self.requests, room))
        self.exhausted = len(batch) < room
        return batch

    def _collect(self, selector: selectors.BaseSelector) -> Iterator[tuple[Key, Answer]]:
        for key, _ in selector.select(timeout=1.0):
            child: _Child[Key] = key.data
            found = child.read()
            if found is None:
                yield from self._broken(selector, child, "decoder-crashed", CRASHED)
            else:
                yield from found
        for child in [child for child in self.pool._children if child.is_late]:
            late = f"The file could not be decoded within {LIMIT_SECONDS:.0f} seconds."
            yield from self._broken(selector, child, "timeout", late)

    def _broken(
        self, selector: selectors.BaseSelector, child: "_Child[Key]", code: str, message: str
    ) -> Iterator[tuple[Key, Answer]]:
        """End the child. If one request alone waited it is the culprit, otherwise each is tried alone."""
        selector.unregister(child.answers)
        ended = child.process.wait(5) if code == "decoder-crashed" else None
        self.pool._drop(child)
        if not child.answered and ended == FAILED_TO_START:
            raise DecoderError("The decoding process ended before it could work.")
        if len(child.waiting) > 1 or ended == ENDED_IDLE:
            self.suspects.extend(child.waiting)
        elif child.waiting:
            yield child.waiting[0][0], {"error": code, "message": f"{message} Copy or export it again."}


class Busy(RuntimeError):
    """All that answer single questions are at work."""


_shared: dict[int, Decoders] = {}
_desks: dict[int, "queue.LifoQueue[Decoders]"] = {}


def shared() -> Decoders:
    """The pool for the jobs of this process. A forked process gets one of its own."""
    if os.getpid() not in _shared:
        _shared.clear()
        _shared[os.getpid()] = Decoders()
    return _shared[os.getpid()]


def ask(request: Answer) -> Answer:
    """Answer a single request, as a web page has it; up to DESKS at the same time, apart from the jobs' pool.

    Raises Busy when none is free within WAIT_SECONDS: a file that never ends must not hold up everybody.
    """
    if os.getpid() not in _desks:
        _desks.clear()
        desks: queue.LifoQueue[Decoders] = queue.LifoQueue()
        for _ in range(DESKS):
            desks.put(Decoders(workers=1))
        _desks[os.getpid()] = desks
    idle = _desks[os.getpid()]
    try:
        decoders = idle.get(timeout=WAIT_SECONDS)
    except queue.Empty as error:
        raise Busy("Too many pictures are being decoded at this moment. Try again.") from error
    try:
        return decoders.ask(request)
    finally:
        idle.put(decoders)
