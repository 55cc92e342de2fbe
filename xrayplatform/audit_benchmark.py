"""`manage.py benchmark audit`: how many entries a second writers at once get into the audit log, and reading it over.

"plain" is the same transaction without the chain: the row, its HMAC and the commit; "chained" is what the platform
does; "waiting" has the chain grow within the transaction on every database, where each writer waits for the others.
"""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from . import audit
from .audit_verification import verify
from .benchmarks import BenchmarkFailed, register

WRITERS = (1, 4, 8)
# For a process to start, and one more for each that starts beside it.
START_SECONDS = 3.0


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--entries", type=int, default=400, help="that each writer adds (default 400)")
    parser.add_argument("--rows", type=int, default=100_000, help="entries to verify (default 100,000)")


@register("audit", "entries a second with several writers at once, with and without the chain", _arguments)
def measure(options: dict[str, Any]) -> dict[str, Any]:
    count = options["entries"]
    writing = {str(writers): {way: _written(writers, count, way) for way in WAYS} for writers in WRITERS}
    audit.seal()
    return {
        "database": connection.vendor,
        "entries_a_second": writing,
        "entries_each": count,
        "verification": _verified(options["rows"]),
    }


def _written(writers: int, count: int, way: str) -> float:
    """Entries a second from the first to the last, with processes that start together."""
    start = time.time() + START_SECONDS + writers
    program = "import django; django.setup(); from xrayplatform.audit_benchmark import write; "
    program += f"write({way!r}, {count}, {start})"
    command = [sys.executable, "-c", program]
    # What was added without the chain is not for the next writers to chain.
    audit.seal()
    running = [
        subprocess.Popen(command, env=os.environ, cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True)
        for _ in range(writers)
    ]
    told = [process.communicate()[0].split() for process in running]
    if any(process.returncode for process in running):
        raise BenchmarkFailed("A writer ended with an error.")
    begin, end = min(float(times[0]) for times in told), max(float(times[1]) for times in told)
    return round(writers * count / (end - begin), 1)


def write(way: str, count: int, start: float) -> None:
    """One writer: waits for the common start, then adds entries, each in a transaction of its own; tells its times."""
    write_one = WAYS[way]
    connection.ensure_connection()
    time.sleep(max(0.0, start - time.time()))
    begin = time.time()
    for number in range(count):
        write_one(number)
    sys.stdout.write(f"{begin} {time.time()}")
    connection.close()


def _plain(number: int) -> None:
    with transaction.atomic():
        audit.AuditEntry(actor_name="benchmark", action="benchmark.write", channel="system", after={"n": number}).save()


def _chained(number: int) -> None:
    with transaction.atomic():
        audit.record("benchmark.write", after={"n": number})


def _waiting(number: int) -> None:
    with transaction.atomic():
        _plain(number)
        audit.seal()


WAYS = {"plain": _plain, "chained": _chained, "waiting": _waiting}


def _verified(rows: int) -> dict[str, float]:
    missing = rows - audit.AuditEntry.objects.count()
    for _ in range(0, missing, 1000):
        with transaction.atomic():
            for number in range(1000):
                _plain(number)
    sealing = _seconds(audit.seal)
    seconds = _seconds(verify)
    count = audit.AuditEntry.objects.count()
    return {"entries": count, "sealing_seconds": sealing, "seconds": seconds}


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return round(time.perf_counter() - begin, 2)
