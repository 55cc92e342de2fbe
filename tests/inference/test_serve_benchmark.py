"""The parts of `manage.py benchmark serve` that judge: late and wrong answers, rates, aims; and its clients."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from inference import benchmarks
from inference.benchmarks import delay_of
from inference.load import Clients, Specification
from xrayplatform.benchmarks import BenchmarkFailed, known

# Version 1 in service from second 10 on, 2 from 20 on, 1 again from 30 on.
SERVICE = [(10.0, 1), (20.0, 2), (30.0, 1)]


@pytest.mark.parametrize(
    ("version", "began", "ended", "delay"),
    [
        (1, 12, 13, 0.0),
        (2, 25, 26, 0.0),
        (1, 19, 21, 0.0),
        (2, 19, 21, 0.0),
        (1, 22, 23, 2.0),
        (2, 31, 32, 1.0),
        (2, 12, 13, None),
        (3, 25, 26, None),
    ],
)
def test_an_answer_is_on_time_late_or_wrong(version, began, ended, delay):
    assert delay_of(SERVICE, version, began, ended) == delay


def test_answers_are_compared_with_what_their_version_says():
    known = {1: [0.9, 0.1], 2: [0.2, 0.8]}

    def row(version, probabilities, status=201):
        return [25.0, 0.1, status, {"version": version, "probabilities": dict(zip("ab", probabilities, strict=True))}]

    fine, late, mixed = row(2, [0.2, 0.8]), row(1, [0.9, 0.1]), row(2, [0.9, 0.1])
    found = benchmarks._judged([fine, late, mixed, [25.0, 0.1, 503, None]], SERVICE, known)
    assert found == {
        "mixed_answers": 1,
        "answers_of_no_version_in_service": 0,
        "late_answers": 1,
        "latest_seconds": 5.0,
    }


def test_refusals_for_lack_of_time_are_no_failures_and_no_answers():
    turn = benchmarks._Turn.of([[0.0, 0.5, 201, None], [0.5, 0.5, 503, None], [1.0, 1.0, 0, None]], 1.0, 0.02)
    assert (turn.latencies, turn.rate, turn.processor_ms, turn.busy, turn.failed) == ([500.0], 0.5, 20.0, 1, 1)


def test_aims_are_met_or_not():
    speed = {
        "limit": {"p50_ms": 20.0},
        "platform": {"1": {"p50_ms": 31.0}},
        "ratios": {"rate_at_8_to_limit": 0.79, "rate_at_8_to_keras": 7.0},
    }
    swap = {"p99_ratio": 1.5, "during": {"failed": 1}, "mixed_answers": 0, "answers_of_no_version_in_service": 0}
    figures = {"speed": {"DenseNet121": {"jpeg": speed}}, "swap": {"DenseNet121": swap}}
    aims = benchmarks._aims(figures)
    assert [aim["met"] for aim in aims] == [True, False, True, True, False, True]
    assert (aims[0]["at_most"], aims[1]["at_least"]) == (31.0, 0.8)


def test_an_unknown_part_is_refused_in_words():
    with pytest.raises(BenchmarkFailed, match="'speed,flight' is not a list of speed, swap, memory"):
        benchmarks._listed("speed,flight", benchmarks.PARTS)


def test_it_is_one_of_the_benchmarks():
    assert "serve" in known()


class Answers(BaseHTTPRequestHandler):
    """201, but every third request 503 with an hour to wait."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Answers.asked += 1
        busy = Answers.asked % 3 == 0
        body = json.dumps({"version": 1}).encode()
        self.send_response(503 if busy else 201)
        if busy:
            self.send_header("Retry-After", "3600")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Answers.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_clients_ask_again_when_answered_and_wait_when_told_to(server, tmp_path):
    (tmp_path / "body").write_bytes(b"picture")
    asked = Specification(
        server.server_port, "/", str(tmp_path / "body"), {}, clients=1, seconds=0.5, requests=3, answers=True
    )
    clients = Clients(asked)
    clients.run()
    rows = clients.rows()
    assert [row[2] for row in rows] == [201, 201, 503]
    assert [row[3] for row in rows] == [{"version": 1}, {"version": 1}, None]


def test_a_broken_connection_is_a_failed_request(tmp_path):
    (tmp_path / "body").write_bytes(b"picture")
    clients = Clients(Specification(1, "/", str(tmp_path / "body"), {}, clients=2, seconds=5, requests=2))
    clients.run()
    assert [row[2] for row in clients.rows()] == [0, 0]
