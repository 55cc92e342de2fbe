"""A whole platform of its own: folders, database, web server and queue workers as separate processes."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"
START_SECONDS = 40


@dataclass
class Instance:
    """Run `start()` for the servers; `manage` and `command` work without them. `stop()` ends everything."""

    folder: Path
    database_url: str = ""
    dataset_root: Path | None = None
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    port: int = 0
    debug: bool = True
    # What starts the queues; `impatient.py` waits less long than a hospital would.
    program: Path = ROOT / "manage.py"

    def __post_init__(self) -> None:
        self.datasets = self.dataset_root or self.folder / "Dataset"
        self.models = self.folder / "models"
        self.datasets.mkdir(parents=True, exist_ok=True)
        self.models.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")},
            "ENV_FILE": "/nonexistent",
            "SECRET_KEY": "journey",
            "DATABASE_URL": self.database_url or f"sqlite:///{self.folder / 'db.sqlite3'}",
            "DATASET_ROOT": str(self.datasets),
            "MODEL_ROOT": str(self.models),
            "MIN_FREE_DISK_GB": "0.1",
            "LOG_LEVEL": "WARNING",
            # With DEBUG, static files need no collectstatic; without, the platform runs as a hospital runs it.
            "DEBUG": str(self.debug),
            "STATIC_ROOT": str(self.folder / "static"),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def manage(self, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; its output is in the result."""
        command = [sys.executable, str(ROOT / "manage.py"), *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        words = f"{arguments} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert not check or done.returncode == 0, words
        return done

    def command(self, *arguments: object, check: bool = True) -> Any:
        """Run a command with --json; the one JSON object that it printed."""
        return json.loads(self.manage(*arguments, "--json", check=check).stdout)

    def python(self, code: str) -> str:
        """Run code with Django set up, in a process of its own; what it printed."""
        return self.manage("shell", "--verbosity", "0", "--command", code).stdout

    def set_up(self) -> None:
        self.manage("migrate", "--noinput", "--verbosity", "0")
        self.manage("init_platform")
        if not self.debug:
            self.manage("collectstatic", "--noinput", "--verbosity", "0")

    def add_user(self, name: str, *roles: str, superuser: bool = False) -> None:
        create = "create_superuser" if superuser else "create_user"
        self.python(
            "from django.contrib.auth.models import Group, User\n"
            f"user = User.objects.{create}({name!r}, password={PASSWORD!r})\n"
            f"user.groups.set(Group.objects.filter(name__in={list(roles)!r}))"
        )

    def start(self, *, web: bool = True, worker: bool = True, trainer: bool = True) -> None:
        if web:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            bind = f"127.0.0.1:{self.port}"
            options = ["--bind", bind, "--threads", "4", "--no-control-socket"]
            self.spawn("web", "-m", "gunicorn", "xrayplatform.wsgi", *options)
        if worker:
            self.spawn("worker", str(self.program), "run_queue", "xray")
        if trainer:
            self.spawn("trainer", str(self.program), "run_queue", "train")
        if web:
            self.wait_for_web()

    def spawn(self, name: str, *arguments: str, **extra: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.processes.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment | extra,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def wait_for_web(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                requests.get(f"{self.url}/health/", timeout=2)
                return
            except requests.RequestException:
                time.sleep(0.2)
        raise AssertionError("The web server did not start:\n" + (self.folder / "web.log").read_text()[-3000:])

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
        self.processes.clear()
