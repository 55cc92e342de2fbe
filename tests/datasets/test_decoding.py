"""Decoding in processes of their own: what a file does to its decoder is that file's problem alone."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import decoding
from datasets.decoding import Decoders
from tests.datasets.files import encode, gradient, save


@pytest.fixture(scope="module")
def decoders():
    pool = Decoders(workers=2)
    yield pool
    pool.close()


def examine(path: Path) -> dict[str, Any]:
    return {"op": "examine", "path": str(path)}


def test_each_request_is_answered_once_with_its_key(tmp_path: Path, decoders: Decoders):
    paths = [save(tmp_path / f"{number}.png", seed=number) for number in range(40)]
    answers = dict(decoders.run((path.name, examine(path)) for path in paths))
    assert set(answers) == {path.name for path in paths}
    assert {(answer["width"], answer["height"], answer["format"]) for answer in answers.values()} == {(32, 24, "PNG")}
    assert len({answer["digest"] for answer in answers.values()}) == 40


def test_an_unusable_file_is_an_error_with_its_reason(tmp_path: Path, decoders: Decoders):
    answer = decoders.ask(examine(save(tmp_path / "letter.png", b"Dear colleague,\n" * 20)))
    assert answer["error"] == "not-an-image"
    assert "a text file" in answer["message"]


def test_requests_are_drawn_as_they_can_be_worked_on(tmp_path: Path, decoders: Decoders):
    """So that a million files need no more memory than a few."""
    path = save(tmp_path / "a.png")
    drawn = 0

    def requests():
        nonlocal drawn
        for number in range(200):
            drawn += 1
            yield number, examine(path)

    answers = decoders.run(requests())
    next(answers)
    assert drawn <= 2 * decoding.AHEAD + 2
    answers.close()


def test_whoever_stops_early_can_go_on_with_others(tmp_path: Path, decoders: Decoders):
    path = save(tmp_path / "a.png")
    answers = decoders.run((number, examine(path)) for number in range(100))
    next(answers)
    answers.close()
    assert decoders.ask(examine(path))["width"] == 32


def test_a_file_that_crashes_its_decoder_costs_the_others_nothing(tmp_path: Path, decoders: Decoders):
    paths = [save(tmp_path / f"{number}.png", seed=number) for number in range(30)]
    decoders.ask(examine(paths[0]))

    def requests():
        for number, path in enumerate(paths):
            if number == 10:
                os.kill(decoders._children[0].process.pid, signal.SIGSEGV)
            yield number, examine(path)

    answers = dict(decoders.run(requests()))
    assert len(answers) == 30
    broken = [answer for answer in answers.values() if "error" in answer]
    assert [answer["error"] for answer in broken] in ([], ["decoder-crashed"])
    assert all("made its decoder crash" in answer["message"] for answer in broken)


def test_a_file_that_never_ends_is_given_up(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(decoding, "LIMIT_SECONDS", 1.0)
    pool = Decoders(workers=1)
    path = save(tmp_path / "a.png")
    pool.ask(examine(path))
    os.kill(pool._children[0].process.pid, signal.SIGSTOP)
    started = time.monotonic()
    assert pool.ask(examine(path))["error"] == "timeout"
    assert time.monotonic() - started < 20
    assert pool.ask(examine(path))["width"] == 32, "the next file got another decoder"
    pool.close()


def test_files_that_only_waited_behind_a_breaking_one_are_tried_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(decoding, "LIMIT_SECONDS", 1.0)
    pool = Decoders(workers=1)
    path = save(tmp_path / "a.png")
    pool.ask(examine(path))
    os.kill(pool._children[0].process.pid, signal.SIGSTOP)
    answers = dict(pool.run((number, examine(path)) for number in range(30)))
    assert [answers[number]["width"] for number in range(30)] == [32] * 30
    pool.close()


def test_a_decoder_that_cannot_start_is_no_fault_of_a_file(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(decoding.sys, "executable", "/bin/false")
    pool = Decoders(workers=1)
    with pytest.raises(decoding.DecoderError, match="before it could work"):
        pool.ask(examine(save(tmp_path / "a.png")))
    pool.close()


def test_decoders_know_no_secrets(decoders: Decoders, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "very secret")
    pool = Decoders(workers=1)
    pool.ask(examine(save(tmp_path / "a.png")))
    environment = Path(f"/proc/{pool._children[0].process.pid}/environ").read_bytes()
    assert b"secret" not in environment and b"DATABASE" not in environment
    pool.close()


def test_decoders_end_with_the_process_that_started_them(tmp_path: Path):
    pool = Decoders(workers=1)
    pool.ask(examine(save(tmp_path / "a.png")))
    process = pool._children[0].process
    pool._children[0].requests.close()  # as when the parent dies
    assert process.wait(10) == 0


def test_a_picture_that_needs_too_much_memory_is_refused(tmp_path: Path, decoders: Decoders):
    blank = np.zeros((6300, 6300), np.uint8)
    answer = decoders.ask(examine(save(tmp_path / "big.png", encode(blank, "PNG"))))
    assert "error" not in answer, "just under 40 megapixels are decoded"
    huge = encode(np.zeros((6400, 6400), np.uint8), "PNG")
    assert decoders.ask(examine(save(tmp_path / "huge.png", huge)))["error"] == "too-large"


def test_a_render_shows_the_picture_and_the_network_input(tmp_path: Path, decoders: Decoders):
    path = save(tmp_path / "a.png", encode(gradient(300, 400), "PNG"))
    answer = decoders.ask({"op": "render", "path": str(path), "longest": 100, "size": 64, "fit": "pad"})
    assert {"picture", "input", "steps", "digest"} <= set(answer)


def test_a_decoder_without_work_ends_and_the_next_question_gets_another(tmp_path: Path):
    pool = Decoders(workers=1)
    path = save(tmp_path / "a.png")
    pool.ask(examine(path))
    first = pool._children[0].process
    first.send_signal(signal.SIGTERM)  # as if it had been idle for a minute
    first.wait(10)
    assert pool.ask(examine(path))["width"] == 32
    assert pool._children[0].process.pid != first.pid
    pool.close()


def test_single_questions_do_not_wait_for_a_job_nor_for_each_other(tmp_path: Path, monkeypatch):
    path = save(tmp_path / "a.png")
    job = decoding.shared().run((number, examine(path)) for number in range(100))
    next(job)
    assert decoding.ask(examine(path))["width"] == 32, "while the job's pool is at work"
    job.close()
    monkeypatch.setattr(decoding, "WAIT_SECONDS", 0.1)
    desks = decoding._desks[os.getpid()]
    taken = [desks.get() for _ in range(decoding.DESKS)]
    with pytest.raises(decoding.Busy, match="Try again"):
        decoding.ask(examine(path))
    for decoders in taken:
        desks.put(decoders)


def test_a_forked_process_gets_decoders_of_its_own(monkeypatch):
    mine = decoding.shared()
    monkeypatch.setattr(decoding.os, "getpid", lambda: 12345678)
    assert decoding.shared() is not mine
