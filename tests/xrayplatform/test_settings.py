"""The platform does not start with an unsafe setting, and takes its folders and database from the environment."""

import os
import subprocess
import sys

from django.conf import settings

SHOWN = (
    "import xrayplatform.settings as s; print(s.DATASET_ROOT, s.MODEL_ROOT, s.DATABASES['default']['NAME'], s.DEBUG)"
)


def start(program=SHOWN, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("SECRET_KEY", "DATABASE_URL", "DEBUG")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=settings.BASE_DIR,
        env=clean | {"ENV_FILE": "/nonexistent"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_secret_key_the_platform_refuses_to_start_and_says_what_to_do():
    done = start()
    assert done.returncode != 0
    assert "SECRET_KEY is not set" in done.stderr
    assert "make setup" in done.stderr


def test_an_empty_secret_key_is_none():
    assert start(SECRET_KEY="").returncode != 0


def test_with_a_secret_key_it_starts_with_debugging_off():
    done = start(SECRET_KEY="x")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"


def test_only_debugging_does_without_a_secret_key():
    assert start(DEBUG="1").returncode == 0


def test_folders_and_database_come_from_the_environment(tmp_path):
    done = start(
        SECRET_KEY="x",
        DATASET_ROOT=str(tmp_path / "images"),
        MODEL_ROOT=str(tmp_path / "models"),
        DATABASE_URL=f"sqlite:///{tmp_path}/other.sqlite3",
    )
    assert done.stdout.split()[:3] == [f"{tmp_path}/images", f"{tmp_path}/models", f"{tmp_path}/other.sqlite3"]


def test_the_secret_key_is_read_from_the_env_file(tmp_path):
    (tmp_path / "env").write_text("SECRET_KEY=from-the-file\n")
    program = "import xrayplatform.settings as s; print(s.SECRET_KEY)"
    assert start(program, ENV_FILE=str(tmp_path / "env")).stdout == "from-the-file\n"


def test_sqlite_waits_for_its_turn_and_survives_a_power_cut():
    program = "import xrayplatform.settings as s; print(s.DATABASES['default']['OPTIONS'])"
    options = start(program, SECRET_KEY="x").stdout
    for needed in ("'transaction_mode': 'IMMEDIATE'", "journal_mode=WAL", "synchronous=FULL"):
        assert needed in options
