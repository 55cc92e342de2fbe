"""Time a few training steps in a process of its own, with limits on its time and memory.

Runs in a queue worker and never imports TensorFlow; the child (`manage.py time_steps`) alone does.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

import psutil
from django.conf import settings

from xrayplatform.jobs import JobError
from xrayplatform.processes import child_environment, memory_of, stop_group

from .models import SpeedTest

PARENT_VARIABLE = "SPEED_TEST_PARENT_PID"
TIME_LIMIT_SECONDS = 600.0
POLL_SECONDS = 0.5
TERMINATE_GRACE_SECONDS = 3.0
# The child is stopped before the machine has to choose a victim.
LEAST_FREE_SHARE = 0.05
# How long it usually takes, for the progress bar.
USUAL_SECONDS = 40.0
SMALLER = "Choose a smaller batch size, image size or architecture."


def measure(test: SpeedTest) -> None:
    """Measure and finish a claimed test. Raises JobError when it cannot be measured here."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = _start(test, output, errors)
        try:
            peak = _watch(test, child)
        finally:
            stop_group(child, TERMINATE_GRACE_SECONDS)
        result = _result(output)
        if child.returncode != 0 or result is None:
            raise _explain(child.returncode, errors)
    test.write(
        step_seconds=result["step_seconds"],
        prediction_seconds=result["prediction_seconds"],
        start_seconds=result["start_seconds"],
        peak_memory=max(peak, result["peak_memory"]),
    )
    test.succeed(f"{test.images_per_second:.1f} images a second", after={"step_seconds": test.step_seconds})


def _start(test: SpeedTest, output: IO[bytes], errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable, str(settings.BASE_DIR / "manage.py"), "time_steps", test.architecture,
        "--image-size", str(test.image_size), "--batch-size", str(test.batch_size),
    ]  # fmt: skip
    if test.fine_tuning:
        command.append("--fine-tuning")
    # It tells nobody anything: without the password of the mail server. Empty, or it would be read from `.env`.
    environment = child_environment(TF_CPP_MIN_LOG_LEVEL="2", EMAIL_URL="", **{PARENT_VARIABLE: str(os.getpid())})
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=environment,
        cwd=settings.BASE_DIR,
        start_new_session=True,
    )


def _watch(test: SpeedTest, child: "subprocess.Popen[bytes]") -> int:
    """Until the child has ended; its largest memory in bytes. Raises JobError beyond a limit."""
    started = time.monotonic()
    report = test.reporter()
    peak = 0
    while child.poll() is None:
        time.sleep(POLL_SECONDS)
        peak = max(peak, memory_of(child.pid))
        seconds = time.monotonic() - started
        memory = psutil.virtual_memory()
        if memory.available < LEAST_FREE_SHARE * memory.total:
            raise JobError(f"The memory ran out: {peak / 1024**3:.1f} GB were not enough for a step.", SMALLER)
        if seconds > TIME_LIMIT_SECONDS:
            raise JobError(f"A few steps did not end within {TIME_LIMIT_SECONDS / 60:.0f} minutes.", SMALLER)
        report(round(100 * min(seconds / USUAL_SECONDS, 0.95)), 100, "Timing a few steps")
    return peak


def _result(output: IO[bytes]) -> dict[str, Any] | None:
    """The object on the last line; libraries may have written others before it."""
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def _explain(code: int | None, errors: IO[bytes]) -> JobError:
    if code is not None and code < 0:
        return JobError("The process that timed the steps was killed, most likely for lack of memory.", SMALLER)
    errors.seek(0)
    last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    why = last[0].removeprefix("CommandError: ").rstrip(".") if last else f"the process ended with status {code}"
    return JobError(
        f"The steps could not be timed: {why}.",
        "Tell an administrator; a training can be started without an estimate.",
    )
