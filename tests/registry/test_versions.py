"""Versions: numbered by their condition, never numbered twice, never changed."""

import json
import shutil
import threading
from pathlib import Path

import pytest
from django.db import DatabaseError, connection

from registry import artifacts
from registry.models import ModelVersion
from tests.factories import ConditionFactory
from tests.inference.versions import make_version, stage
from xrayplatform import audit
from xrayplatform.audit import AuditEntry


def register(condition, staged, sha256, manifest):
    origin = {"dataset_name": "d", "dataset_digest": "d", "split_digest": "s", "origin": "test"}
    return ModelVersion.objects.register(condition, staged, sha256=sha256, manifest=manifest, by=None, **origin)


@pytest.fixture
def chest(db):
    return ConditionFactory(slug="chest")


def test_each_condition_counts_its_own_versions(chest):
    knee = ConditionFactory(slug="knee")
    numbers = [make_version(condition, graph=False).number for condition in (chest, knee, chest, chest)]
    assert numbers == [1, 1, 2, 3]


def test_a_version_is_found_by_condition_and_number(chest):
    version = make_version(chest, graph=False)
    assert ModelVersion.objects.numbered("chest", 1) == version
    with pytest.raises(ModelVersion.DoesNotExist, match=r"There is no version 7 of 'chest'\. Known versions: chest v1"):
        ModelVersion.objects.numbered("chest", 7)


def test_the_files_lie_under_condition_and_number_and_fit_the_digest(chest, settings):
    version = make_version(chest, graph=False)
    assert version.folder == Path(settings.MODEL_ROOT) / "registry" / "chest" / "1"
    assert artifacts.load(version.folder, version.sha256).manifest["classes"] == version.classes
    assert version.size == sum(path.stat().st_size for path in version.folder.rglob("*") if path.is_file())


def test_what_the_manifest_says_is_in_the_row(chest):
    version = make_version(chest, graph=False, threshold=0.31, architecture="ResNet50")
    version.refresh_from_db()
    assert (version.threshold, version.architecture) == (0.31, "ResNet50")
    assert (version.accuracy, version.auc) == (0.9, 0.95)
    assert version.state == "candidate"


def test_registering_is_in_the_audit_log(chest, alice):
    version = make_version(chest, by=alice, graph=False)
    entry = AuditEntry.objects.get(action="version.register")
    assert (entry.actor, entry.object_id, entry.after) == (alice, str(version.pk), {"sha256": version.sha256})


def test_the_content_of_a_version_cannot_be_changed(chest):
    version = make_version(chest, graph=False)
    version.threshold = 0.9
    with pytest.raises(TypeError, match="never changed"):
        version.save()
    with pytest.raises(TypeError, match="never changed"):
        version.save(update_fields=["threshold"])
    with pytest.raises(TypeError, match="never changed"):
        version.save(update_fields=["state", "threshold"])
    assert ModelVersion.objects.get(pk=version.pk).threshold == 0.5


def test_the_state_of_a_version_may_change(chest):
    version = make_version(chest, graph=False)
    version.state = "archived"
    version.save(update_fields=["state"])
    assert ModelVersion.objects.get(pk=version.pk).state == "archived"


def test_a_version_cannot_be_deleted(chest):
    version = make_version(chest, graph=False)
    with pytest.raises(TypeError, match="never deleted"):
        version.delete()
    assert ModelVersion.objects.filter(pk=version.pk).exists() and version.folder.exists()


def test_a_registration_whose_audit_entry_fails_leaves_no_row_and_hinders_no_later_one(chest, monkeypatch):
    def fail(*args, **kwargs):
        raise DatabaseError("no audit")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "record", fail)
        with pytest.raises(DatabaseError):
            make_version(chest, graph=False)
    assert not ModelVersion.objects.exists()
    version = make_version(chest, graph=False)
    assert version.number == 1
    artifacts.load(version.folder, version.sha256)


def test_a_folder_that_a_crash_left_under_the_next_number_is_replaced(chest, settings):
    orphan = Path(settings.MODEL_ROOT) / "registry" / "chest" / "1"
    orphan.mkdir(parents=True)
    (orphan / "manifest.json").write_text(json.dumps({"format": 1}))
    version = make_version(chest, graph=False)
    artifacts.load(version.folder, version.sha256)
    assert [path.name for path in orphan.parent.iterdir()] == ["1"]


@pytest.mark.django_db(transaction=True)
def test_versions_registered_at_once_get_distinct_numbers(settings):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite in memory refuses a second writer instead of letting it wait; runs on PostgreSQL")
    chest = ConditionFactory(slug="chest")
    staged = [stage(graph=False) for _ in range(4)]
    start = threading.Barrier(len(staged))
    failures = []

    def work(args):
        try:
            start.wait(10)
            register(chest, *args)
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=[args]) for args in staged]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    versions = ModelVersion.objects.order_by("number")
    assert [version.number for version in versions] == [1, 2, 3, 4]
    assert sorted(version.sha256 for version in versions) == sorted(sha256 for _, sha256, _ in staged)
    for version in versions:
        artifacts.load(version.folder, version.sha256)
    shutil.rmtree(settings.MODEL_ROOT)
