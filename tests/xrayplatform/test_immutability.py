"""Rows that must never change are refused by the database itself, also past Django's models."""

import io

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

from registry.models import DeletedVersion, ModelVersion
from tests.factories import ModelVersionFactory, PredictionFactory
from tests.tampering import tampered
from xrayplatform import immutability
from xrayplatform.audit import AuditEntry, record

pytestmark = pytest.mark.django_db


def execute(statement, *values):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)


def test_raw_sql_cannot_change_what_a_version_is():
    version = ModelVersionFactory()
    with pytest.raises(IntegrityError, match="registry_modelversion: rows never change"):
        execute("UPDATE registry_modelversion SET sha256 = %s WHERE id = %s", "f" * 64, version.pk)
    version.refresh_from_db()
    assert version.sha256 != "f" * 64


def test_a_queryset_cannot_change_what_a_version_is():
    version = ModelVersionFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        ModelVersion.objects.filter(pk=version.pk).update(threshold=0.9)


def test_the_state_of_a_version_may_change():
    version = ModelVersionFactory()
    version.state = ModelVersion.State.ARCHIVED
    version.save(update_fields=["state"])
    version.refresh_from_db()
    assert version.state == "archived"


@pytest.mark.parametrize(
    "make", [ModelVersionFactory, PredictionFactory, lambda: record("test.entry")], ids=["version", "answer", "entry"]
)
def test_raw_sql_cannot_delete_a_row(make):
    row = make()
    table = row._meta.db_table
    with pytest.raises(IntegrityError, match=f"{table}: rows are never deleted"):
        execute(f"DELETE FROM {table}")  # noqa: S608
    assert type(row)._base_manager.filter(pk=row.pk).exists()


def test_the_audit_log_cannot_be_rewritten():
    entry = record("test.entry")
    with pytest.raises(IntegrityError, match="xrayplatform_auditentry: rows never change"):
        execute("UPDATE xrayplatform_auditentry SET actor_name = 'nobody' WHERE seq = %s", entry.pk)


def test_the_row_of_a_version_goes_only_after_it_is_written_down_as_deleted():
    version = ModelVersionFactory()
    remembered = {"version_key": version.pk, "condition": version.condition, "number": version.number}
    facts = {"architecture": version.architecture, "sha256": version.sha256, "size": version.size}
    DeletedVersion.objects.create(**remembered, **facts, made_at=version.created_at, reason="never used")
    ModelVersion.objects.filter(pk=version.pk).delete()
    assert not ModelVersion.objects.filter(pk=version.pk).exists()


def test_every_guarded_table_has_its_triggers_after_migrate():
    assert immutability.missing() == []


def test_a_table_without_its_triggers_is_told_by_the_check():
    immutability.uninstall()
    assert "registry_modelversion" in immutability.missing()
    out = io.StringIO()
    call_command("check", databases=["default"], stderr=out)
    assert "does not guard the rows of" in out.getvalue() and "manage.py migrate" in out.getvalue()


def test_migrate_puts_lost_triggers_back_and_does_not_complain_of_what_it_does_itself():
    immutability.uninstall()
    out = io.StringIO()
    call_command("migrate", verbosity=0, interactive=False, stdout=out, stderr=out)
    assert immutability.missing() == [] and "does not guard" not in out.getvalue()


def test_a_row_is_refused_in_python_with_words_before_the_database_is_asked():
    version = ModelVersionFactory()
    version.sha256 = "f" * 64
    with pytest.raises(TypeError, match="A model version is never changed"):
        version.save()
    with pytest.raises(TypeError, match="A model version is never deleted"):
        version.delete()


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "sqlite", reason="Other databases do not make a table anew")
def test_a_table_made_anew_gives_no_number_of_a_deleted_row_again():
    with immutability.suspended():
        ModelVersionFactory()
        gone = ModelVersionFactory().pk
        ModelVersion.objects.filter(pk=gone).delete()
        with immutability.numbers_kept(), connection.schema_editor() as editor:
            editor._remake_table(ModelVersion)
    assert ModelVersionFactory().pk == gone + 1


def test_the_database_can_be_dumped_and_loaded_again(tmp_path):
    version, dump = ModelVersionFactory(), tmp_path / "dump.json"
    call_command("dumpdata", "xrayplatform", "registry", output=str(dump), verbosity=0)
    with immutability.suspended():
        ModelVersion.objects.all().delete()
    call_command("loaddata", str(dump), verbosity=0)
    assert ModelVersion.objects.get().sha256 == version.sha256


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no TRUNCATE")
def test_truncating_is_refused():
    record("test.entry")
    connection.check_constraints()
    with pytest.raises(IntegrityError, match="rows are never deleted"):
        execute("TRUNCATE xrayplatform_auditentry")
    assert AuditEntry.objects.exists()


def test_tests_can_still_make_what_must_not_be():
    version = ModelVersionFactory()
    tampered(version, sha256="f" * 64)
    version.refresh_from_db()
    assert version.sha256 == "f" * 64
