"""Rows without their files and files without their rows: all are found, and only what nobody needs is removed."""

import json
import os
import shutil
import time
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from registry import backups, orphans
from registry.models import ModelVersion, VerificationRun, package
from registry.models.evaluation import file_of, folder
from registry.orphans import Kind
from registry.tasks import verify_all
from tests.factories import ConditionFactory, PackageImportFactory, ReceivedPackageFactory
from tests.inference.versions import make_version
from tests.registry.evaluations import make_evaluation
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import Job

IN_TWO_DAYS = 2 * 86_400


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest):
    return make_version(chest)


@pytest.fixture
def root(settings):
    return settings.MODEL_ROOT


@pytest.fixture
def two_days_later(monkeypatch):
    """What lies about is not young any more."""
    now = time.time()
    monkeypatch.setattr(orphans.time, "time", lambda: now + IN_TWO_DAYS)


def put(path, content=b"x" * 100):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def clear_staging(root):
    """What the factory of versions leaves."""
    shutil.rmtree(root / "registry" / ".staging", ignore_errors=True)


def found():
    return {(one.kind, one.what) for one in orphans.look().orphans}


def check(**options):
    """Exit status and the JSON object."""
    out = StringIO()
    try:
        call_command("registry_check", json=True, stdout=out, **options)
    except SystemExit as end:
        return end.code, json.loads(out.getvalue())
    return 0, json.loads(out.getvalue())


def test_a_registry_in_order_has_no_orphans(version, root, two_days_later):
    make_evaluation(version, patients=10)
    backups.keep(version)
    clear_staging(root)
    assert found() == set()
    status, told = check()
    assert (status, told["orphans"], told["failed"]) == (0, [], 0)


def test_rows_without_their_files_are_named_with_what_helps(chest, version, root, two_days_later):
    whole = make_version(chest)
    evaluation = make_evaluation(whole, patients=10)
    shutil.rmtree(version.folder)
    file_of(evaluation.key).unlink()
    waiting = ReceivedPackageFactory()
    clear_staging(root)
    assert found() == {
        (Kind.VERSION, "chest v1"),
        (Kind.EVALUATION, f"evaluation {evaluation.pk} of chest v2"),
        (Kind.PACKAGE, str(waiting)),
    }
    status, told = check(remove=True)
    assert (status, told["removed"], told["failed"]) == (1, 0, 3)
    assert "`restore_version chest 1`" in told["orphans"][0]["advice"]
    assert ModelVersion.objects.count() == 2


LEFT = {
    "registry/chest/7/manifest.json": (Kind.FOLDER, "registry/chest/7"),
    "registry/gone/1/manifest.json": (Kind.FOLDER, "registry/gone/1"),
    "registry/chest/1.orphan/manifest.json": (Kind.LEFT_OVER, "registry/chest/1.orphan"),
    "registry/.staging/run-3/manifest.json": (Kind.LEFT_OVER, "registry/.staging/run-3"),
    "backups/chest/9/manifest.json": (Kind.BACKUP, "backups/chest/9"),
    "backups/chest/1-abc.part/manifest.json": (Kind.LEFT_OVER, "backups/chest/1-abc.part"),
    "evaluations/lost.npz": (Kind.ANSWERS, "evaluations/lost.npz"),
    "evaluations/lost.part": (Kind.ANSWERS, "evaluations/lost.part"),
    "packages/lost.zip": (Kind.PACKAGE_FILE, "packages/lost.zip"),
}


def test_files_without_a_row_are_found_and_removed_and_nothing_else(version, root, two_days_later):
    evaluation = make_evaluation(version, patients=10)
    backups.keep(version)
    undecided = ReceivedPackageFactory()
    put(undecided.file)
    clear_staging(root)
    for path in LEFT:
        put(root / path)
    keep = [put(root / path) for path in ("registry/README.md", "registry/chest/notes.txt", "backups/db/dump.sql")]
    assert found() == set(LEFT.values())
    status, told = check()
    assert (status, told["failed"], told["freed"]) == (1, len(LEFT), 0)
    assert all((root / path).exists() for path in LEFT)
    status, told = check(remove=True)
    assert (status, told["removed"], told["freed"], told["failed"]) == (0, len(LEFT), 100 * len(LEFT), 0)
    assert not any((root / path).exists() for path in LEFT)
    assert all(path.exists() for path in [*keep, undecided.file, file_of(evaluation.key), backups.folder_of(version)])
    assert not version.verify().is_damaged
    assert found() == set()
    entry = AuditEntry.objects.get(action="registry.clean")
    assert (entry.after["count"], entry.after["bytes"]) == (len(LEFT), 100 * len(LEFT))


def test_what_is_younger_than_a_day_may_be_work_under_way(version, root):
    for path in LEFT:
        put(root / path)
    assert found() == set()


def test_a_folder_in_which_somebody_writes_is_not_left_over(version, root):
    clear_staging(root)
    file = put(root / "registry" / ".staging" / "import-5" / "weights.part")
    now = time.time()
    os.utime(file, (now + IN_TWO_DAYS, now + IN_TWO_DAYS))
    assert orphans.look(now + IN_TWO_DAYS + 100).orphans == []


def test_files_that_go_while_they_are_looked_at_are_no_orphans_and_no_error(version, root, two_days_later, monkeypatch):
    clear_staging(root)
    left = [put(folder() / "x.part"), put(root / "registry" / ".staging" / "run-9" / "weights.safetensors").parent]

    def listed(self, pattern, real=Path.glob):
        paths = list(real(self, pattern))
        for path in set(left) & set(paths):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return iter(paths)

    monkeypatch.setattr(Path, "glob", listed)
    assert found() == set()
    assert not any(path.exists() for path in left)


def test_a_folder_whose_version_appeared_meanwhile_is_not_removed(chest, version, root, two_days_later):
    clear_staging(root)
    put(root / "registry" / "chest" / "2" / "manifest.json")
    seen = orphans.look()
    assert len(seen.removable) == 1
    newer = make_version(chest)
    assert orphans.remove(seen, by=None) == []
    assert not newer.verify().is_damaged


def test_a_package_that_is_being_imported_keeps_its_file(version, root, two_days_later):
    clear_staging(root)
    running, done = PackageImportFactory(), PackageImportFactory(state=Job.State.SUCCEEDED)
    for one in (running, done):
        put(package.file_of(one.package.key))
    assert found() == {(Kind.PACKAGE_FILE, f"packages/{done.package.key}.zip")}


def test_without_the_disk_of_the_models_nothing_is_an_orphan(version, root, two_days_later):
    make_evaluation(version, patients=10)
    shutil.rmtree(root / "registry")
    lost = put(folder() / "lost.npz")
    status, told = check(remove=True)
    assert (status, told["orphans"], told["removed"]) == (1, [], 0)
    assert "is the disk mounted?" in told["obstacle"]
    assert lost.exists()


def test_with_an_empty_database_nothing_is_an_orphan(db, root, two_days_later):
    file = put(root / "registry" / "chest" / "1" / "manifest.json")
    status, told = check(remove=True)
    assert (status, told["orphans"]) == (1, [])
    assert "is it the right database?" in told["obstacle"]
    assert file.exists()


def test_an_empty_platform_is_in_order(db, two_days_later):
    assert check()[0] == 0


def test_the_nightly_look_at_the_files_tells_of_orphans_without_names(version, root, two_days_later):
    clear_staging(root)
    put(root / "registry" / "chest" / "7" / "manifest.json")
    run = VerificationRun.objects.create()
    verify_all(run.pk, 1)
    run.refresh_from_db()
    assert run.message == (
        "1 versions verified, 0 damaged; rows without their files: 0, files without a row: 1; registry_check names them"
    )
    (root / "registry" / "chest" / "7" / "manifest.json").unlink()
    (root / "registry" / "chest" / "7").rmdir()
    run = VerificationRun.objects.create()
    verify_all(run.pk, 1)
    run.refresh_from_db()
    assert run.message == "1 versions verified, 0 damaged"


def test_the_command_is_for_those_who_may_delete(version, alice, capsys):
    with pytest.raises(CommandError, match="no role that allows this"):
        call_command("registry_check", user="alice", stdout=StringIO())


def test_the_command_tells_people_in_sentences(version, root, two_days_later):
    clear_staging(root)
    out = StringIO()
    call_command("registry_check", stdout=out)
    assert out.getvalue().strip() == "Every row has its files, and every file its row."
    put(root / "registry" / "chest" / "7" / "manifest.json")
    out = StringIO()
    with pytest.raises(SystemExit):
        call_command("registry_check", stdout=out)
    assert "Folder of a version that does not exist: registry/chest/7. 0.0 MB; --remove removes it" in out.getvalue()
