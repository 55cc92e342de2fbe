"""`python -m tests.postgres [pytest arguments]`: the fast tests on a PostgreSQL server of their own.

Needs Debian's `postgresql` package; says so and ends well where it is not installed, unless CI is set.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNPRIVILEGED = "postgres"
FAST = ["-m", "not slow or postgres", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]


def main(arguments: list[str]) -> int:
    programs = find_programs()
    if programs is None:
        print("PostgreSQL is not installed (apt-get install postgresql): its tests were not run.")
        return 1 if os.environ.get("CI") else 0
    with server(programs) as url:
        command = [sys.executable, "-m", "pytest", *(arguments or FAST)]
        return subprocess.run(command, env={**os.environ, "DATABASE_URL": url}, check=False).returncode


def find_programs() -> Path | None:
    """The folder of initdb and pg_ctl."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    initdb = debian[-1] if debian else Path(on_path) if on_path else None
    return initdb.parent if initdb else None


@contextlib.contextmanager
def server(programs: Path) -> Iterator[str]:
    """A throw-away server on a free port of the loopback interface; yields its DATABASE_URL."""
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="xray-postgres-"))
    if user:
        shutil.chown(folder, user)
    run(user, programs / "initdb", "-D", folder / "data", "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync")
    port = free_port()
    settings = f"port={port} listen_addresses=127.0.0.1 unix_socket_directories={folder} fsync=off max_connections=60"
    options = " ".join(f"-c {setting}" for setting in settings.split())
    run(user, programs / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start")
    try:
        yield f"postgres://tests@127.0.0.1:{port}/postgres"
    finally:
        run(user, programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(user: str | None, *command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, user=user, stdout=subprocess.DEVNULL, cwd="/")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
