"""Versions are switched under load in a real web server of two processes: nobody notices but by the answers."""

import json
import subprocess
import sys

import pytest

from tests.journey.instance import ROOT


@pytest.mark.slow
def test_switching_versions_under_load_fails_no_request_and_mixes_no_answer():
    command = [sys.executable, str(ROOT / "manage.py"), "benchmark", "serve", "--json"]
    options = ["--parts=swap", "--networks=Custom_CNN", "--kinds=jpeg", "--seconds=4"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["swap"]["Custom_CNN"]
    assert found["switches"] >= 6 and found["during"]["answers"] > 50
    assert found["imported"] and found["during"]["failed"] == 0
    assert (found["mixed_answers"], found["answers_of_no_version_in_service"]) == (0, 0)
