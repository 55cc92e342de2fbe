"""Reading a dataset's files once: every file ends as a record, as unchanged or as a problem with a reason."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets import imaging, scanning
from datasets.layouts import Candidate, Problem, find_datasets
from datasets.scanning import Record, Unchanged, label_conflicts, map_ahead, scan_files
from tests.datasets.files import NO_SHARED, SHARED, dicom, encode, gradient, save


def candidate(path: Path, patient: str | None = None) -> Candidate:
    return Candidate(path, path.name, "A", "train", patient, "csv" if patient else "")


def scan(*paths: Path, known: dict[str, tuple[int, int]] | None = None) -> dict[str, scanning.Outcome]:
    return {outcome.path: outcome for outcome in scan_files([candidate(path) for path in paths], known or {})}


def signature(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def test_a_record_says_what_is_in_the_file(tmp_path: Path):
    path = save(tmp_path / "a.png")

    (record,) = scan(path).values()

    assert isinstance(record, Record)
    assert (record.path, record.class_name, record.source_split) == ("a.png", "A", "train")
    assert (record.size, record.mtime_ns) == signature(path)
    assert (record.width, record.height, record.format) == (32, 24, "PNG")
    assert record.digest == imaging.read(path).digest
    assert (record.patient, record.patient_source) == (None, "")


def test_the_patient_of_a_dicom_file_comes_before_that_of_the_csv_file(tmp_path: Path):
    named = save(tmp_path / "a.dcm", dicom(gradient(), PatientID="12"))
    nameless = save(tmp_path / "b.dcm", dicom(gradient(), PatientID=""))

    records = list(scan_files([candidate(named, "csv-1"), candidate(nameless, "csv-2")], {}))

    assert {(record.patient, record.patient_source) for record in records} == {("|12", "dicom"), ("csv-2", "csv")}


def test_an_unreadable_file_is_a_problem_with_its_reason_and_the_others_go_on(tmp_path: Path):
    good = save(tmp_path / "good.jpg")
    outcomes = scan(
        save(tmp_path / "empty.jpg", b""),
        save(tmp_path / "cut.jpg", encode(gradient(200, 200), "JPEG")[:3000]),
        save(tmp_path / "page.jpg", b"<html>not found</html>"),
        good,
        tmp_path / "gone.jpg",
    )

    assert isinstance(outcomes["good.jpg"], Record)
    codes = {path: outcome.code for path, outcome in outcomes.items() if isinstance(outcome, Problem)}
    assert codes == {
        "empty.jpg": "empty",
        "cut.jpg": "truncated",
        "page.jpg": "not-an-image",
        "gone.jpg": "unreadable",
    }


def test_a_file_of_the_same_size_and_time_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save(tmp_path / "a.jpg")
    monkeypatch.setattr(imaging, "read", lambda path: pytest.fail(f"{path} was opened"))

    (outcome,) = scan(path, known={"a.jpg": signature(path)}).values()

    assert outcome == Unchanged("a.jpg", "A", "train")


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_read_again(tmp_path: Path, change):
    path = save(tmp_path / "a.jpg")
    known = {"a.jpg": signature(path)}
    if change == "size":
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(known["a.jpg"][1],) * 2)
    else:
        os.utime(path, ns=(known["a.jpg"][1] + 1,) * 2)

    assert isinstance(scan(path, known=known)["a.jpg"], Record)


def test_pipes_links_and_folders_are_skipped_without_hanging(tmp_path: Path):
    target = save(tmp_path / "target.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(target)
    (tmp_path / "folder.jpg").mkdir()

    outcomes = scan(*(tmp_path / f"{name}.jpg" for name in ("pipe", "link", "folder")))

    assert {path: outcome.code for path, outcome in outcomes.items()} == {
        "pipe.jpg": "not-a-file",
        "link.jpg": "link",
        "folder.jpg": "not-a-file",
    }


def write_while_reading(monkeypatch: pytest.MonkeyPatch, path: Path, times: int) -> list[Path]:
    """Let somebody else replace the file behind each of the first so many reads; returns the reads."""
    reads: list[Path] = []
    real = imaging.read

    def read(source: Path) -> imaging.Radiograph:
        found = real(source)
        reads.append(source)
        if len(reads) <= times:
            save(path, seed=len(reads))
            os.utime(path, ns=(len(reads), len(reads)))
        return found

    monkeypatch.setattr(imaging, "read", read)
    return reads


def test_a_file_that_changes_while_it_is_read_is_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save(tmp_path / "a.png")
    reads = write_while_reading(monkeypatch, path, times=1)

    record = scan(path)["a.png"]

    assert len(reads) == 2
    assert isinstance(record, Record)
    assert (record.size, record.mtime_ns) == signature(path)
    assert record.digest == imaging.read(path).digest


def test_a_file_that_keeps_changing_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save(tmp_path / "a.png")
    write_while_reading(monkeypatch, path, times=9)

    assert scan(path)["a.png"].code == "changing"


def test_files_are_asked_for_as_they_are_needed(tmp_path: Path):
    """A million names must not be read before the first picture is."""
    path = save(tmp_path / "a.png")
    asked = 0

    def endless() -> Iterator[Candidate]:
        nonlocal asked
        while True:
            asked += 1
            yield candidate(path)

    outcomes = scan_files(endless(), {}, workers=2)
    next(outcomes)

    assert asked <= 2 * scanning.LOOK_AHEAD
    outcomes.close()


def test_results_come_in_order_however_long_each_takes():
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number

    assert list(map_ahead(slow_at_first, range(20), workers=4)) == list(range(20))


def test_whoever_stops_early_does_not_wait_for_what_was_not_begun():
    begun: list[int] = []
    results = map_ahead(begun.append, range(1000), workers=2)
    next(results)
    results.close()

    assert len(begun) <= 2 * scanning.LOOK_AHEAD


def test_what_the_work_raises_comes_out_at_its_place():
    results = map_ahead(lambda number: 6 // number, [1, 2, 0, 3], workers=2)

    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_path_that_is_too_long_is_a_problem_with_a_short_name(tmp_path: Path):
    path = save(tmp_path / "a.png")

    (problem,) = scan_files([Candidate(path, f"A/{'x' * 800}/a.png", "A")], {})

    assert isinstance(problem, Problem)
    assert (problem.code, len(problem.path)) == ("name-too-long", 120)
    assert problem.path.startswith("A/xxx") and problem.path.endswith("xxx/a.png")


def test_every_file_gives_one_outcome_with_many_workers(tmp_path: Path):
    paths = [save(tmp_path / f"{number}.png", seed=number) for number in range(40)]

    outcomes = list(scan_files(map(candidate, paths), {}, workers=6))

    assert sorted(outcome.path for outcome in outcomes) == sorted(path.name for path in paths)


ROWS = [
    ("A/1", "x", "A"),
    ("A/2", "x", "A"),
    ("B/3", "y", "B"),
    ("B/4", "z", "B"),
    ("A/5", "z", "A"),
    ("A/6", "z", "A"),
]


def test_equal_pixels_under_two_labels_are_told_for_each_file():
    problems = label_conflicts(ROWS)

    assert [problem.path for problem in problems] == ["A/5", "A/6", "B/4"]
    assert problems[0].reason == "The same pixels are labelled A here and differently in B/4 (B)."
    assert problems[2].reason == "The same pixels are labelled B here and differently in A/5 (A) and 1 more."


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
def test_of_all_real_files_three_are_unreadable():
    outcomes = [outcome for found in find_datasets(SHARED / "Dataset") for outcome in scan_files(found.files(), {})]

    problems = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    assert len(outcomes) == 4139
    assert {(Path(problem.path).name, problem.code) for problem in problems} == {
        (f"IMG000{number}.jpg", "truncated") for number in (4134, 4143, 4148)
    }
