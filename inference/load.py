"""Clients that ask a server all the time, in a process of their own: `python -m inference.load SPECIFICATION`.

Each client is a thread with one connection that is kept open, and asks again as soon as it was answered. Prints one
JSON list with a row a request: when it began (Unix time), how many seconds it took, the HTTP status (0 where the
connection broke), and the answer where answers are asked for.
"""

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

BUSY = 503


@dataclass(frozen=True)
class Specification:
    """What is asked. body: path of a file with what is sent. seconds: after which no client asks again.

    requests: so many over all clients, and then no more; 0 for no such end. answers: whether they are kept.
    """

    port: int
    path: str
    body: str
    headers: dict[str, str]
    clients: int
    seconds: float
    requests: int = 0
    answers: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Asked:
    began: float
    seconds: float
    status: int
    answer: bytes


class Clients:
    """All clients of one measurement."""

    def __init__(self, specification: Specification) -> None:
        self._what = specification
        self._body = Path(specification.body).read_bytes()
        self._left = specification.requests or sys.maxsize
        self._lock = threading.Lock()
        self.asked: list[Asked] = []

    def run(self) -> None:
        end = time.time() + self._what.seconds
        threads = [threading.Thread(target=self._ask_until, args=(end,)) for _ in range(self._what.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def rows(self) -> list[list[Any]]:
        keep = self._what.answers
        return [
            [one.began, one.seconds, one.status, json.loads(one.answer) if keep and one.status == 201 else None]
            for one in self.asked
        ]

    def _ask_until(self, end: float) -> None:
        connection = HTTPConnection("127.0.0.1", self._what.port, timeout=120)
        while time.time() < end and self._take():
            pause = self._ask(connection)
            if pause:
                # A server does not keep a silent connection.
                connection.close()
                time.sleep(max(0.0, min(pause, end - time.time())))
        connection.close()

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _ask(self, connection: HTTPConnection) -> float:
        """Ask once; returns how many seconds the server wants to be left alone."""
        began, start = time.time(), time.perf_counter()
        status, answer, pause = 0, b"", 0.0
        try:
            connection.request("POST", self._what.path, self._body, self._what.headers)
            response = connection.getresponse()
            answer, status = response.read(), response.status
            pause = float(response.headers.get("Retry-After", 0)) if status == BUSY else 0.0
        except (OSError, HTTPException):
            connection.close()
        self.asked.append(Asked(began, time.perf_counter() - start, status, answer))
        return pause


if __name__ == "__main__":
    clients = Clients(Specification(**json.loads(sys.argv[1])))
    clients.run()
    sys.stdout.write(json.dumps(clients.rows()))
