"""`manage.py benchmark`: measured in a sandbox, which leaves nothing behind and touches nothing of the site."""

import json
import os
import subprocess
import sys
from io import StringIO

import pytest
from django.conf import settings as platform_settings
from django.core.management import CommandError, call_command

from xrayplatform import benchmarks

RATE = {"seconds", "per_second"}


@pytest.fixture
def site(tmp_path):
    """The environment of a site with a database and data of its own, and an empty folder for temporary files."""
    for name in ("Dataset", "models", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "db.sqlite3").write_bytes(b"the site's own")
    environment = {name: value for name, value in os.environ.items() if name != benchmarks.SANDBOX}
    return environment | {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
        "DATASET_ROOT": str(tmp_path / "Dataset"),
        "MODEL_ROOT": str(tmp_path / "models"),
        "TMPDIR": str(tmp_path / "tmp"),
        "SECRET_KEY": "the site's key",
        "ENV_FILE": "/nonexistent",
        "LOG_LEVEL": "WARNING",
    }


def benchmark(site, *arguments):
    command = [sys.executable, str(platform_settings.BASE_DIR / "manage.py"), "benchmark", *arguments]
    return subprocess.run(command, env=site, cwd=site["TMPDIR"], capture_output=True, text=True, timeout=300)


def assert_untouched(tmp_path):
    assert (tmp_path / "db.sqlite3").read_bytes() == b"the site's own"
    for name in ("Dataset", "models", "tmp"):
        assert list((tmp_path / name).iterdir()) == [], name


@pytest.mark.slow
def test_a_scan_is_measured_beside_the_bare_walk_and_decoding_alone(site, tmp_path):
    done = benchmark(site, "scan", "--files", "60", "--folders", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    figures = json.loads(done.stdout)
    assert figures.keys() >= {
        "files", "first_scan", "decoding_alone", "first_scan_ratio", "rescan", "bare_walk", "rescan_ratio", "memory",
    }  # fmt: skip
    assert figures["files"] == 60
    for name in ("first_scan", "decoding_alone", "rescan", "bare_walk"):
        assert figures[name].keys() >= RATE
        assert figures[name]["per_second"] > 0
    ratio = figures["first_scan"]["seconds"] / figures["decoding_alone"]["seconds"]
    assert figures["first_scan_ratio"] == pytest.approx(ratio, rel=0.1)
    assert figures["memory"]["peak_mib"] > 10 and figures["memory"]["largest_child_peak_mib"] > 10
    assert_untouched(tmp_path)


@pytest.mark.slow
def test_a_preparation_is_measured_beside_decoding_and_resizing_alone(site, tmp_path):
    done = benchmark(site, "prepare", "--files", "40", "--side", "96", "--json")
    assert done.returncode == 0, done.stderr
    (dataset,) = json.loads(done.stdout)["datasets"]
    assert dataset["images"] == 40
    assert dataset["prepare"]["per_second"] > 0 and dataset["decode_and_resize_alone"]["per_second"] > 0
    assert dataset["ratio"] > 0 and len(dataset["ratios"]) == 3
    assert_untouched(tmp_path)


@pytest.mark.slow
def test_a_measurement_that_fails_says_why_and_leaves_nothing_behind_either(site, tmp_path):
    # More class folders than a dataset can have.
    done = benchmark(site, "scan", "--files", "150", "--folders", "150", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"].startswith("Of 150 files 0 were found")
    assert str(tmp_path) not in done.stdout
    assert_untouched(tmp_path)


def test_both_measurements_of_datasets_are_known():
    assert benchmarks.known().keys() >= {"scan", "prepare"}
    assert all(benchmark.help for benchmark in benchmarks.known().values())


def test_an_unknown_measurement_is_refused_with_those_there_are():
    with pytest.raises(CommandError, match=r"invalid choice: 'speed'.*prepare"):
        call_command("benchmark", "speed", stdout=StringIO())


def test_the_sandbox_gets_what_the_command_got(monkeypatch):
    """Also when another program, and not a shell, calls the command."""
    asked = []
    monkeypatch.setattr(benchmarks, "run_in_sandbox", lambda arguments: asked.append(arguments) or {"files": 60})
    monkeypatch.setattr(sys, "argv", ["something", "else"])
    out = StringIO()
    call_command("benchmark", "scan", "--files=60", "--folders=3", "--json", stdout=out)
    assert json.loads(out.getvalue()) == {"files": 60}
    assert asked == [["scan", "--files=60", "--folders=3"]]
