"""The client in docs/api.md is run as it stands there, so that it goes on working."""

import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from django.conf import settings
from django.urls import resolve
from knox.models import AuthToken

from inference.engine import Engine
from inference.models import Batch, Prediction, prediction
from inference.tasks import analyse_batch
from tests.factories import ConditionFactory, TeamFactory, UserFactory
from tests.inference.test_batch import BRIGHT_PNG, DARK_PNG, LETTER, packed
from tests.inference.versions import make_version
from xrayplatform.idempotency import IdempotentAnswer
from xrayplatform.teams import sync_roles

GUIDE = Path(settings.BASE_DIR) / "docs" / "api.md"


@pytest.fixture
def client_file(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    path = tmp_path / "client.py"
    path.write_text(code)
    return path


@pytest.fixture
def platform(live_server, monkeypatch):
    """A served platform with a condition that has a model, and the token of a clinician."""
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    sync_roles()
    team = TeamFactory()
    user = UserFactory(roles=["clinician"])
    team.members.add(user)
    make_version(ConditionFactory(slug="chest", name="Chest", team=team)).activate(by=None, reason="agreed")
    return {"XRAY_URL": live_server.url, "XRAY_TOKEN": AuthToken.objects.create(user)[1]}


def start(client_file, environment, *arguments):
    return subprocess.Popen(
        [sys.executable, client_file, *map(str, arguments)],
        env={**os.environ, **environment, "NO_PROXY": "*"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process):
    out, errors = process.communicate(timeout=60)
    return process.returncode, out.strip(), errors


def test_one_radiograph_is_answered(platform, client_file, tmp_path):
    (tmp_path / "film.png").write_bytes(BRIGHT_PNG)
    status, out, errors = told(start(client_file, platform, "chest", tmp_path / "film.png"))
    assert status == 0, errors
    assert out.startswith("PNEUMONIA 0.")
    assert (IdempotentAnswer.objects.get().status, Prediction.objects.count()) == (201, 1)


def test_several_become_a_batch_that_the_client_waits_for(platform, client_file, tmp_path):
    (tmp_path / "films.zip").write_bytes(packed([("a.png", DARK_PNG), ("b.png", LETTER)]))
    process = start(client_file, platform, "chest", tmp_path / "films.zip")
    deadline = time.monotonic() + 30
    # The last thing that is stored of the request.
    while (
        not IdempotentAnswer.objects.filter(status=202).exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    analyse_batch(Batch.objects.get().pk, 1)
    status, out, errors = told(process)
    assert status == 0, errors
    first, second = out.splitlines()
    assert first == "a.png: NORMAL" and second.startswith("b.png: ") and "text file" in second


def test_a_refusal_is_told_with_its_reason(platform, client_file, tmp_path):
    (tmp_path / "letter.dcm").write_bytes(LETTER)
    status, _, errors = told(start(client_file, platform, "chest", tmp_path / "letter.dcm"))
    assert status == 1 and errors.startswith("400: ") and "a text file" in errors


def test_a_busy_platform_is_asked_again_under_the_same_key(client_file, tmp_path):
    keys = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self):
            keys.append(self.headers["Idempotency-Key"])
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"decision": "NORMAL", "probabilities": {"NORMAL": 1.0}, "warnings": []}'
            self.send_response(503 if len(keys) < 3 else 201)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            """Nothing."""

    (tmp_path / "film.png").write_bytes(BRIGHT_PNG)
    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"XRAY_URL": f"http://127.0.0.1:{server.server_port}", "XRAY_TOKEN": "t"}
        status, out, errors = told(start(client_file, environment, "chest", tmp_path / "film.png"))
        server.shutdown()
    assert (status, out) == (0, "NORMAL 1.000"), errors
    assert len(keys) == 3 and len(set(keys)) == 1


def test_an_answer_that_got_lost_on_the_way_is_asked_for_again_under_the_same_key(client_file, tmp_path):
    keys = []

    class Losing(BaseHTTPRequestHandler):
        def do_POST(self):
            keys.append(self.headers["Idempotency-Key"])
            self.rfile.read(int(self.headers["Content-Length"]))
            if len(keys) < 2:
                return
            body = b'{"decision": "NORMAL", "probabilities": {"NORMAL": 1.0}, "warnings": []}'
            self.send_response(201)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            """Nothing."""

    (tmp_path / "film.png").write_bytes(BRIGHT_PNG)
    with HTTPServer(("127.0.0.1", 0), Losing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"XRAY_URL": f"http://127.0.0.1:{server.server_port}", "XRAY_TOKEN": "t"}
        status, out, errors = told(start(client_file, environment, "chest", tmp_path / "film.png"))
        server.shutdown()
    assert (status, out) == (0, "NORMAL 1.000"), errors
    assert len(keys) == 2 and len(set(keys)) == 1


def test_every_address_of_the_guide_exists():
    text = GUIDE.read_text()
    for path in re.findall(r"/api/v1/[a-z0-9/.-]*", text):
        resolve(path.rstrip("."))
