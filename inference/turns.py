"""Who computes now, who waits, and who is told to come back: a bounded queue before what uses the processor.

Decoding and inference use whole cores. More of them at once than there are cores make every answer later and none
sooner; and a queue without an end answers people who have left.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .engine import EngineError

# Of the newest duration in the mean that waiting times are estimated from.
_WEIGHT = 0.1
_FIRST_GUESS_SECONDS = 1.0
_LONGEST_ADVICE_SECONDS = 60


class Busy(EngineError):
    """As many as may wait do so. retry_after: whole seconds after which another try makes sense."""

    def __init__(self, retry_after: int) -> None:
        unit = "second" if retry_after == 1 else "seconds"
        super().__init__(
            "More radiographs wait for an answer than the platform can take at the moment. This one was not analysed; "
            f"send it again in {retry_after} {unit}."
        )
        self.retry_after = retry_after


class Turns:
    """Lets so many work at once and so many wait, each in the order in which they came. For threads of one process."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._at_once = max(1, at_once)
        self._most_waiting = max(0, waiting)
        self._working = 0
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()
        self._seconds: float | None = None

    @contextmanager
    def take(self) -> Iterator[None]:
        """A turn, after those who came before. Raises Busy at once when too many wait already."""
        self._enter()
        start = time.monotonic()
        try:
            yield
        finally:
            self._leave(time.monotonic() - start)

    @property
    def working(self) -> int:
        return self._working

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _enter(self) -> None:
        with self._lock:
            if self._working < self._at_once:
                self._working += 1
                return
            if len(self._waiting) >= self._most_waiting:
                raise Busy(self._retry_after())
            called = threading.Event()
            self._waiting.append(called)
        called.wait()

    def _leave(self, seconds: float) -> None:
        with self._lock:
            mean = seconds if self._seconds is None else self._seconds
            self._seconds = mean + _WEIGHT * (seconds - mean)
            if self._waiting:
                # The turn is handed on as it is, so that nobody who comes now can slip in between.
                self._waiting.popleft().set()
            else:
                self._working -= 1

    def _retry_after(self) -> int:
        """Until those who wait now have been answered, at the pace of late; at least a second."""
        pace = _FIRST_GUESS_SECONDS if self._seconds is None else self._seconds
        seconds = math.ceil(pace * (len(self._waiting) + self._working) / self._at_once)
        return min(max(1, seconds), _LONGEST_ADVICE_SECONDS)
