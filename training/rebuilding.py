"""Networks of versions are rebuilt in a process of its own: neither the web nor a queue worker loads TensorFlow."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings

from registry.models import ModelVersion
from registry.packages import PackageError
from registry.rebuilding import ExportError
from xrayplatform.jobs import JobError
from xrayplatform.processes import child_environment, stop_group

PARENT_VARIABLE = "REBUILD_PARENT_PID"
POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
# The largest architecture needs some 30 seconds on two slow processors.
REBUILD_SECONDS = 900.0
EXPORT_SECONDS = 300.0
FAILED = "The process that rebuilds the network ended without an answer."
FAILED_HINT = "The machine may lack memory; System Status shows how much there is. Try again, or tell an administrator."


def rebuild(package: Path, manifest: dict[str, Any], target: Path, look: Callable[[], None]) -> str:
    """Prove an unpacked package and write it as a version folder; see registry.rebuilding. Raises PackageError."""
    told = _run(
        "package", {"package": str(package), "manifest": manifest, "target": str(target)}, REBUILD_SECONDS, look
    )
    if told is None:
        raise JobError(FAILED, FAILED_HINT)
    if "reason" in told:
        raise PackageError(told["reason"], told["error"])
    return str(told["sha256"])


def writer(form: str) -> Callable[[ModelVersion, Path], None]:
    """Writes a version as a verified file: "keras" or "onnx"; see registry.rebuilding."""

    def write(version: ModelVersion, target: Path) -> None:
        """Raises ExportError."""
        asked = {"folder": str(version.folder), "sha256": version.sha256, "target": str(target)}
        told = _run(form, asked, EXPORT_SECONDS, lambda: None)
        if told is None:
            raise ExportError(f"{FAILED} {FAILED_HINT}")
        if "error" in told:
            raise ExportError(told["error"])

    return write


def _run(what: str, asked: dict[str, Any], seconds: float, look: Callable[[], None]) -> dict[str, Any] | None:
    """The answer of `manage.py rebuild_version`; None when it gave none within the time."""
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch) / "question.json", Path(scratch) / "answer.json"
        question.write_text(json.dumps(asked))
        child = subprocess.Popen(
            [sys.executable, str(settings.BASE_DIR / "manage.py"), "rebuild_version", what, str(question), str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=child_environment(**{PARENT_VARIABLE: str(os.getpid())}),
            cwd=settings.BASE_DIR,
            start_new_session=True,
        )
        try:
            _wait(child, time.monotonic() + seconds, look)
        finally:
            stop_group(child, GRACE_SECONDS)
        told: dict[str, Any] | None = json.loads(answer.read_text()) if answer.exists() else None
        return told


def _wait(child: "subprocess.Popen[bytes]", until: float, look: Callable[[], None]) -> None:
    while child.poll() is None and time.monotonic() < until:
        look()
        time.sleep(POLL_SECONDS)
