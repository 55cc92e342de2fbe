"""A platform of its own for each journey, and a browser to go through it with."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.journey.instance import Instance

CHROMIUM = "/usr/bin/chromium"


@contextlib.contextmanager
def own_database() -> Iterator[str]:
    """The DATABASE_URL of a fresh database on the server under test; "" for SQLite in the instance's folder."""
    url = os.environ.get("DATABASE_URL", "")
    if not url.startswith("postgres"):
        yield ""
        return
    import psycopg

    name = f"journey_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    yield url.rsplit("/", 1)[0] + "/" + name
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with own_database() as database_url:
        platform = Instance(tmp_path / "platform", database_url)
        platform.set_up()
        yield platform
        platform.stop()


@pytest.fixture
def production(tmp_path: Path) -> Iterator[Instance]:
    """Without DEBUG: hashed static files, the platform's own error pages."""
    platform = Instance(tmp_path / "production", debug=False)
    platform.set_up()
    yield platform
    platform.stop()


@pytest.fixture
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists() and not shutil.which("chromium"):
        assert not os.environ.get("CI"), "CI must install chromium"
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield chromium
        chromium.close()
