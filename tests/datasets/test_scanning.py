"""What a scan asks about a file and makes of the answer: a record of the radiograph, or a problem with a reason."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datasets import decoder, decoding, imaging, scanning
from datasets.layouts import Candidate, Problem, find_datasets
from datasets.scanning import Record, map_ahead
from tests.datasets.files import NO_SHARED, SHARED, dicom, encode, gradient, save


def candidate(path: Path, patient: str | None = None) -> Candidate:
    return Candidate(path, path.name, "A", "train", patient, "csv" if patient else "")


def scan(*candidates: Candidate) -> dict[str, Record | Problem]:
    """Read the files as a scan does, in the decoding processes."""
    asked = ((one, scanning.request(one)) for one in candidates)
    return {one.relative: scanning.outcome(one, answer) for one, answer in decoding.shared().run(asked)}


def signature(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def test_a_record_says_what_is_in_the_file(tmp_path: Path):
    path = save(tmp_path / "a.png")

    (record,) = scan(candidate(path)).values()

    assert isinstance(record, Record)
    assert (record.path, record.class_name, record.source_split) == ("a.png", "A", "train")
    assert (record.size, record.mtime_ns) == signature(path)
    assert (record.width, record.height, record.format) == (32, 24, "PNG")
    assert record.digest == imaging.read(path).digest
    assert (record.patient, record.patient_source) == (None, "")


def test_a_record_brings_the_measures_and_the_fingerprint_of_the_picture(tmp_path: Path):
    first, again, other = (
        save(tmp_path / name, encode(gradient(200, 200, seed=seed), "PNG"))
        for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2))
    )

    records = scan(candidate(first), candidate(again), candidate(other))

    prints = [records[name].fingerprint for name in ("a.png", "b.png", "c.png")]
    assert prints[0] == prints[1] != prints[2]
    assert {"colour", "burned_in"} < set(records["a.png"].measures)
    assert all(isinstance(value, float) for value in records["a.png"].measures.values())


def test_the_patient_of_a_dicom_file_comes_before_that_of_the_csv_file(tmp_path: Path):
    named = save(tmp_path / "a.dcm", dicom(gradient(), PatientID="12"))
    nameless = save(tmp_path / "b.dcm", dicom(gradient(), PatientID=""))

    records = scan(candidate(named, "csv-1"), candidate(nameless, "csv-2")).values()

    assert {(record.patient, record.patient_source) for record in records} == {("|12", "dicom"), ("csv-2", "csv")}


def test_an_unreadable_file_is_a_problem_with_its_reason_and_the_others_go_on(tmp_path: Path):
    paths = [
        save(tmp_path / "empty.jpg", b""),
        save(tmp_path / "cut.jpg", encode(gradient(200, 200), "JPEG")[:3000]),
        save(tmp_path / "page.jpg", b"<html>not found</html>"),
        save(tmp_path / "good.jpg"),
        tmp_path / "gone.jpg",
    ]

    outcomes = scan(*map(candidate, paths))

    assert isinstance(outcomes["good.jpg"], Record)
    codes = {path: outcome.code for path, outcome in outcomes.items() if isinstance(outcome, Problem)}
    assert codes == {
        "empty.jpg": "empty",
        "cut.jpg": "truncated",
        "page.jpg": "not-an-image",
        "gone.jpg": "unreadable",
    }
    assert all(str(tmp_path) not in problem.reason for problem in outcomes.values() if isinstance(problem, Problem))


def test_pipes_and_folders_that_took_a_files_place_are_problems_without_hanging(tmp_path: Path):
    """The walk lists regular files only; what is here now came between the walk and the reading."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()

    outcomes = scan(candidate(tmp_path / "pipe.jpg"), candidate(tmp_path / "folder.jpg"))

    assert {path: outcome.code for path, outcome in outcomes.items()} == {
        "pipe.jpg": "not-a-file",
        "folder.jpg": "not-a-file",
    }


def test_a_link_that_took_a_files_place_is_not_followed(tmp_path: Path):
    """A link may lead out of the dataset, to another team's images."""
    (tmp_path / "link.jpg").symlink_to(save(tmp_path / "target.jpg"))

    assert isinstance(scan(candidate(tmp_path / "link.jpg"))["link.jpg"], Problem)


def write_while_reading(monkeypatch: pytest.MonkeyPatch, path: Path, times: int) -> list[Any]:
    """Let somebody else replace the file behind each of the first so many reads; returns the reads."""
    reads: list[Any] = []
    real = imaging.read

    def read(*args: Any) -> imaging.Radiograph:
        found = real(*args)
        reads.append(args)
        if len(reads) <= times:
            save(path, seed=len(reads))
            os.utime(path, ns=(len(reads), len(reads)))
        return found

    monkeypatch.setattr(imaging, "read", read)
    return reads


def test_a_file_that_changes_while_it_is_read_is_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = candidate(save(tmp_path / "a.png"))
    reads = write_while_reading(monkeypatch, one.path, times=1)

    record = scanning.outcome(one, decoder.examine(scanning.request(one)))

    assert len(reads) == 2
    assert isinstance(record, Record)
    assert (record.size, record.mtime_ns) == signature(one.path)
    assert record.digest == imaging.read(one.path).digest


def test_a_file_that_keeps_changing_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = candidate(save(tmp_path / "a.png"))
    reads = write_while_reading(monkeypatch, one.path, times=9)

    problem = scanning.outcome(one, decoder.examine(scanning.request(one)))

    assert isinstance(problem, Problem)
    assert (problem.code, len(reads)) == ("changing", 2)


def test_a_path_that_is_too_long_is_a_problem_with_a_short_name(tmp_path: Path):
    path = save(tmp_path / "a.png")

    problem = scanning.name_problem(Candidate(path, f"A/{'x' * 800}/a.png", "A"))

    assert problem is not None
    assert (problem.code, len(problem.path)) == ("name-too-long", 120)
    assert problem.path.startswith("A/xxx") and problem.path.endswith("xxx/a.png")
    assert scanning.name_problem(Candidate(path, f"A/{'x' * 692}/a.png", "A")) is None, "700 characters are stored"


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


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
def test_of_all_real_files_three_are_unreadable():
    problems, count = Counter(), 0
    for found in find_datasets(SHARED / "Dataset"):
        for name, outcome in scan(*found.files()).items():
            count += 1
            if isinstance(outcome, Problem):
                problems[Path(name).name, outcome.code] += 1

    assert count == 4139
    assert set(problems) == {(f"IMG000{number}.jpg", "truncated") for number in (4134, 4143, 4148)}
