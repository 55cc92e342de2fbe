"""Nobody with access to the database alone can alter, add, remove or reorder entries without being found."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO

import pytest
from django.core import serializers
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from tests.tampering import tampered
from xrayplatform import audit, audit_chain, audit_verification, immutability
from xrayplatform import tasks as platform_tasks
from xrayplatform.audit import AuditEntry, AuditHead
from xrayplatform.audit_verification import keep_end, verify
from xrayplatform.notifications import Notification

CONTENT_COLUMNS = ("actor_name", "action", "object_label", "outcome", "after", "at", "nonce", "hmac", "key_id")


@pytest.fixture
def entries(db):
    for number in range(1, 7):
        audit.record("dataset.scan", actor_name=f"user {number}", after={"images": number, "share": 0.5})
    audit.seal()
    return list(AuditEntry.objects.order_by("seq"))


def removed(*rows):
    with immutability.suspended():
        AuditEntry.objects.filter(pk__in=[row.pk for row in rows])._raw_delete("default")


def problem():
    found = verify().problem
    return (found.kind, found.number) if found else None


def test_entries_have_numbers_without_gaps_and_name_the_seal_before_theirs(entries):
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry.prev_hash for entry in entries] == [audit_chain.START, *(entry.seal for entry in entries[:-1])]
    assert verify().entries == 6 and problem() is None


def test_what_was_taken_back_leaves_no_gap(entries):
    with transaction.atomic():
        audit.record("a.b")
        transaction.set_rollback(True)
    audit.record("c.d")
    assert problem() is None
    assert AuditEntry.objects.first().number == 7


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("actor_name", "alice"),
        ("action", "dataset.view"),
        ("object_label", "another"),
        ("outcome", "refused"),
        ("after", {"images": 4, "share": 0.5}),
        ("before", {}),
        ("at", timezone.now() - timedelta(days=1)),
        ("address", "10.0.0.1"),
        ("request_id", "x"),
        ("nonce", "x"),
        ("hmac", "0" * 64),
    ],
)
def test_an_altered_row_is_named(entries, column, value):
    tampered(entries[2], **{column: value})
    found = verify().problem
    assert (found.kind, found.seq, found.number) == ("altered", entries[2].pk, 3)
    assert f"seq {entries[2].pk}" in found.message and "altered" in found.message


@pytest.mark.parametrize(("gone", "first"), [([0], 1), ([2], 3), ([2, 3], 3), ([1, 4], 2)])
def test_a_removed_row_is_named(entries, gone, first):
    removed(*(entries[index] for index in gone))
    assert problem() == ("missing", first)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_the_newest_rows_cannot_be_cut_off(entries, count):
    removed(*entries[-count:])
    assert problem() == ("missing", 7 - count)
    audit.record("a.b")
    assert problem() == ("missing", 7 - count)


def test_a_gap_that_was_closed_by_other_numbers_is_found(entries):
    removed(entries[2])
    with immutability.suspended():
        for entry in entries[3:]:
            AuditEntry.objects.filter(pk=entry.pk).update(number=F("number") - 1)
    assert problem() == ("reordered", 3)


def test_two_rows_that_changed_their_contents_are_found(entries):
    first, second = entries[1], entries[4]
    contents = [{name: getattr(row, name) for name in CONTENT_COLUMNS} for row in (first, second)]
    tampered(first, **contents[1])
    tampered(second, **contents[0])
    assert problem() == ("reordered", 2)


def test_two_rows_that_changed_their_places_are_found(entries):
    first, second = entries[1], entries[4]
    places = [{name: getattr(row, name) for name in ("prev_hash", "seal")} for row in (first, second)]
    tampered(first, number=None)
    tampered(second, number=first.number, **places[0])
    tampered(first, number=second.number, **places[1])
    assert problem() == ("reordered", 2)


def test_a_row_added_past_the_platform_is_found(entries):
    AuditEntry.objects.bulk_create([AuditEntry(actor_name="alice", action="version.activate", channel="web")])
    found = verify().problem
    assert found.kind == "inserted" and "past the platform" in found.message


def test_a_copy_of_a_genuine_row_is_found(entries):
    copy = AuditEntry.objects.get(pk=entries[0].pk)
    copy.pk = copy.number = None
    AuditEntry.objects.bulk_create([copy])
    found = verify().problem
    assert (found.kind, found.number) == ("inserted", 7) and f"copy of the row seq {entries[0].pk}" in found.message


def test_with_another_key_nothing_fits(entries, settings):
    settings.SECRET_KEY = "another"
    assert problem() == ("unknown-key", 1)


def test_a_key_that_was_appended_signs_and_the_others_still_verify(entries, settings, tmp_path):
    path = tmp_path / "audit.keys"
    path.touch(0o600)
    path.write_text("ab" * 32 + "\n")
    settings.AUDIT_KEY = str(path)
    new = audit.record("a.b")
    assert new.key_id != entries[0].key_id
    assert verify().entries == 7 and problem() is None
    settings.AUDIT_KEY = ""
    assert problem() == ("unknown-key", 7)


@pytest.mark.parametrize("content", ["", "no key\n", "ab" * 31])
def test_without_a_usable_key_nothing_is_recorded(db, settings, tmp_path, content):
    path = tmp_path / "audit.keys"
    path.touch(0o600)
    path.write_text(content)
    settings.AUDIT_KEY = str(path)
    with pytest.raises(audit.audit_keys.AuditKeyError), transaction.atomic():
        audit.record("a.b")
    assert not AuditEntry.objects.exists()


def test_a_key_that_others_may_read_is_not_used(db, settings, tmp_path):
    path = tmp_path / "audit.keys"
    path.write_text("ab" * 32)
    path.chmod(0o644)
    settings.AUDIT_KEY = str(path)
    with pytest.raises(audit.audit_keys.AuditKeyError, match="chmod 600"):
        audit.record("a.b")
    assert [found.id for found in audit.check_key()] == ["xrayplatform.E001"]


@pytest.mark.parametrize("changes", [{"number": 5}, {"seal": "0" * 64}, {"hmac": "0" * 64}, {"key_id": "other"}])
def test_an_altered_end_is_found(entries, changes):
    AuditHead.objects.update(**changes)
    assert problem() == ("head", None)


def test_a_removed_end_is_found_and_hides_nothing(entries):
    AuditHead.objects.all().delete()
    audit.record("a.b")
    assert problem() == ("head", None)


def test_an_earlier_end_put_back_with_the_rows_is_found_by_the_file_outside(entries):
    early = AuditHead.objects.values().get()
    audit.record("a.b")
    audit.seal()
    path = keep_end()
    assert keep_end() is None
    removed(AuditEntry.objects.first())
    AuditHead.objects.update(**early)
    found = verify().problem
    assert (found.kind, found.number) == ("missing", 7) and path.name in found.message
    path.unlink()
    assert problem() is None


@pytest.mark.parametrize(
    "line",
    ["no JSON", "{}", '{"number": "x"}', json.dumps({"number": 2, "seal": "a", "at": "b", "key_id": "c", "hmac": ""})],
)
def test_a_file_of_ends_that_was_altered_is_told(entries, tmp_path, line):
    path = tmp_path / "copy.jsonl"
    path.write_text(keep_end().read_text() + line + "\n")
    found = verify(anchor=path).problem
    assert found.kind == "head" and "copy.jsonl, line 2" in found.message


def test_a_part_can_be_verified_alone(entries):
    tampered(entries[1], action="x.y")
    assert verify(since=entries[3].pk).problem is None and verify(since=entries[3].pk).entries == 3
    assert verify(since=entries[1].pk).problem.number == 2


VALUES = {
    "floats": [1.0, -0.0, 1e22, 1e23, 1e-7, 0.1, 123456789.125],
    "integers": [2**53 + 1, -1, 0],
    "texts": ["Müller \u2028 \U0001f600 ::1", ""],
    "nested": {"b": {"z": None, "a": [True, False, {}]}},
}


def test_an_entry_is_the_same_after_the_database_has_had_it(db):
    audit.context.set(audit.Context(address="2001:DB8:0::1", channel="web"))
    audit.record("a.b", actor_name="Jürgen", before=VALUES, after={"tuple": (1, 2)})
    audit.seal()
    assert problem() is None


def test_an_entry_is_the_same_after_a_dump_was_restored(entries):
    audit.record("a.b", before=VALUES)
    audit.seal()
    dump = serializers.serialize("json", [*AuditEntry.objects.all(), *AuditHead.objects.all()])
    with immutability.suspended():
        AuditEntry.objects.all()._raw_delete("default")
        AuditHead.objects.all().delete()
        for row in serializers.deserialize("json", dump):
            row.save()
    assert verify().entries == 7 and problem() is None


def test_numbers_that_a_database_writes_in_another_way_count_as_the_same():
    """PostgreSQL gives 1e23 back as an integer, SQLite as it was written."""
    row = dict.fromkeys(audit_chain.CONTENT, "x") | {"at": timezone.now()}
    keys = audit.keyring()
    row["key_id"] = keys.current
    pairs = [([1e23], [10**23]), ([-0.0], [0]), ([2.0], [2])]
    for one, other in pairs:
        assert audit_chain.content_hmac(row | {"after": one}, keys) == audit_chain.content_hmac(
            row | {"after": other}, keys
        )
    assert audit_chain.content_hmac(row | {"after": [1]}, keys) != audit_chain.content_hmac(
        row | {"after": ["1"]}, keys
    )


@pytest.mark.django_db(transaction=True)
def test_many_writers_at_once_make_one_chain():
    if connection.vendor == "sqlite":
        pytest.skip("the database of the tests is in memory, for one writer; a file lets in one at a time itself")

    # As in a database that was emptied: all of them want to begin the chain.
    AuditHead.objects.all().delete()

    def write(writer):
        try:
            for number in range(15):
                with transaction.atomic():
                    audit.record("a.b", after={"writer": writer, "number": number})
                    audit.record("c.d")
        finally:
            connection.close()

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(write, range(5)))
    # Each who came while another held the chain relied on that one.
    assert not AuditEntry.objects.filter(number=None).exists()
    assert verify().entries == 150 and problem() is None


def run(*arguments):
    out = StringIO()
    try:
        call_command("verify_audit", *arguments, stdout=out)
    except SystemExit as end:
        return out.getvalue(), end.code
    return out.getvalue(), 0


def test_the_command_says_what_is_wrong_and_ends_with_status_1(entries):
    text, status = run()
    assert status == 0 and "All 6 entries are as they were written" in text
    tampered(entries[2], action="x.y")
    text, status = run("--json")
    assert status == 1
    assert json.loads(text)["problem"]["seq"] == entries[2].pk
    text, status = run()
    assert status == 1 and "was altered" in text and "The 2 entries before it" in text


def test_an_anchor_that_is_not_there_is_an_error(entries):
    with pytest.raises(CommandError, match="--anchor"):
        run("--anchor", "/nonexistent")


def test_of_a_problem_auditors_are_told_once(entries, auditor, bob):
    tampered(entries[2], action="x.y")
    platform_tasks.verify_audit()
    platform_tasks.verify_audit()
    assert [(row.user, "was altered" in row.text) for row in Notification.objects.all()] == [(auditor, True)]


def test_system_status_tells_of_the_last_verification(entries, auditor, client):
    client.force_login(auditor)
    assert "Never verified" in client.get("/system/").content.decode()
    platform_tasks.verify_audit()
    assert "As it was written" in client.get("/system/").content.decode()
    tampered(entries[2], action="x.y")
    platform_tasks.verify_audit()
    page = client.get("/system/").content.decode()
    assert "Not as it was written" in page and "(entry number 3) was altered" in page


def test_the_queue_verifies_once_a_day(entries, monkeypatch):
    asked = []
    monkeypatch.setattr(audit_verification, "async_task", lambda task, **options: asked.append(task))
    audit_verification.ask_for_verification()
    assert asked == [audit_verification.VERIFY]
    audit_verification.verify_and_record()
    audit_verification.ask_for_verification()
    assert len(asked) == 1
