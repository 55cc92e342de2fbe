"""Measurements of the platform against what the machine could do at best, in the same run.

An app registers its own in `<app>/benchmarks.py`; `manage.py benchmark NAME` runs one. Each runs in a process of its
own with an empty database and empty folders, which are removed afterwards: the site's own data are never touched.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils.module_loading import autodiscover_modules

SANDBOX = "BENCHMARK_SANDBOX"
# An empty PostgreSQL database to measure on instead of a new file; it is filled and not removed.
DATABASE = "BENCHMARK_DATABASE_URL"
Run = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Benchmark:
    """run: options to figures (JSON); arguments: adds the options to a parser."""

    name: str
    help: str
    run: Run
    arguments: Callable[[ArgumentParser], None]


_known: dict[str, Benchmark] = {}


def register(name: str, help: str, arguments: Callable[[ArgumentParser], None]) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        _known[name] = Benchmark(name, help, run, arguments)
        return run

    return add


def known() -> dict[str, Benchmark]:
    autodiscover_modules("benchmarks", "audit_benchmark")
    return dict(sorted(_known.items()))


def in_sandbox() -> bool:
    return SANDBOX in os.environ


class BenchmarkFailed(Exception):
    """A measurement ended with an error; the text says which."""


def arguments_for(benchmark: Benchmark, options: dict[str, Any]) -> list[str]:
    """What to write behind `manage.py benchmark` for these options."""
    parser = ArgumentParser(add_help=False)
    benchmark.arguments(parser)
    given = {name: options[name] for name in vars(parser.parse_args([])) if options[name] is not None}
    return [benchmark.name, *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())]


def run_in_sandbox(arguments: list[str]) -> dict[str, Any]:
    """`manage.py benchmark` with the same arguments on empty folders; returns its figures. Raises BenchmarkFailed."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        environment = {
            **os.environ,
            SANDBOX: name,
            "SECRET_KEY": "benchmark",
            "DATABASE_URL": os.environ.get(DATABASE, f"sqlite:///{folder / 'db.sqlite3'}"),
            "DATASET_ROOT": str(folder / "Dataset"),
            "MODEL_ROOT": str(folder / "models"),
            "MIN_FREE_DISK_GB": "0.5",
            "LOG_LEVEL": "WARNING",
        }
        (folder / "Dataset").mkdir()
        (folder / "models").mkdir()
        manage = [sys.executable, str(settings.BASE_DIR / "manage.py")]
        subprocess.run(
            [*manage, "migrate", "--noinput", "--verbosity", "0"],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        done = subprocess.run(
            [*manage, "benchmark", *arguments, "--json"],
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
    return _answer(done)


def _answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {"error": f"The measurement ended with status {done.returncode}."}
    if done.returncode:
        raise BenchmarkFailed(answer.get("error", ""))
    return answer
