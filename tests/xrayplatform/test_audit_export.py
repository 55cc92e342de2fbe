"""Searching the audit log and taking it along: what is found, and that a changed file is told from a genuine one."""

import csv
import json
from datetime import UTC, datetime
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.urls import reverse

from tests.tampering import tampered
from xrayplatform import audit, audit_export
from xrayplatform.audit import AuditEntry


@pytest.fixture
def log(auditor, client, world, alice):
    audit.context.set(audit.Context(channel="web", request_id="abc"))
    audit.record("dataset.scan", world.dataset, actor=alice, after={"images": 12})
    audit.context.set(audit.Context(channel="api", request_id="def"))
    audit.record("user.login", actor_name="=cmd|' /C calc'!A0", outcome=AuditEntry.Outcome.REFUSED)
    old = audit.record("x.y", actor_name="past")
    tampered(old, at=datetime(2001, 1, 31, 23, 59, 59, tzinfo=UTC))
    client.force_login(auditor)
    return lambda where="xrayplatform", page="list", **query: client.get(reverse(f"{where}:auditentry-{page}"), query)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"object": "secret study"}, ["dataset.scan"]),
        ({"object": "dataset"}, ["dataset.scan"]),
        ({"object": "dataset {pk}"}, ["dataset.scan"]),
        ({"object": "dataset 0"}, []),
        ({"channel": "web"}, ["dataset.scan"]),
        ({"request_id": "abc"}, ["dataset.scan"]),
        ({"since": "2001-01-31", "until": "2001-01-31"}, ["x.y"]),
        ({"until": "2001-01-30"}, []),
        ({"since": "yesterday"}, []),
    ],
)
def test_the_page_finds_entries(log, world, query, found):
    query = {name: text.format(pk=world.dataset.pk) for name, text in query.items()}
    assert [entry.action for entry in log(**query).context["page"]] == found


def test_a_day_that_is_none_is_told(log):
    assert "Write days as" in log(since="yesterday").content.decode()
    assert log(page="export", since="yesterday").status_code == 404
    assert log("api", "list", since="yesterday").status_code == 400
    assert log("api", "export", since="yesterday").status_code == 400


def content(response):
    assert response.status_code == 200
    return b"".join(response.streaming_content)


@pytest.mark.parametrize("where", ["xrayplatform", "api"])
def test_the_csv_holds_what_was_asked_for_and_computes_nothing(log, where):
    rows = list(csv.DictReader(StringIO(content(log(where, "export", outcome="refused")).decode())))
    assert [row["seq"] for row in rows[-1:]] == ["signature"]
    assert [row["actor_name"] for row in rows[:-1]] == ["'=cmd|' /C calc'!A0"]


@pytest.mark.parametrize("where", ["xrayplatform", "api"])
def test_the_json_holds_what_was_asked_for_oldest_first(log, where):
    told = json.loads(content(log(where, "export", **{"as": "json", "since": "2001-02-01"})))
    scan, login = told["entries"][-2:]
    assert (scan["action"], login["action"]) == ("dataset.scan", "user.login")
    assert scan["after"] == {"images": 12}
    assert login["number"] == scan["number"] + 1 and login["prev_hash"] == scan["seal"]
    assert told["about"]["exported_by"] == "otto" and told["about"]["filters"] == {"since": "2001-02-01"}


def test_an_export_is_recorded(log, auditor):
    content(log(page="export", action="login"))
    entry = AuditEntry.objects.get(action="audit.export")
    assert entry.actor == auditor and entry.after == {"as": "csv", "filters": {"action": "login"}}


def test_there_are_two_kinds_of_files(log):
    assert log(page="export", **{"as": "xml"}).status_code == 404
    assert log("api", "export", **{"as": "xml"}).status_code == 400


@pytest.fixture(params=["csv", "json"])
def exported(request, log, tmp_path):
    path = tmp_path / f"log.{request.param}"
    call_command("export_audit", "--out", str(path), stdout=StringIO())
    return path


def verified(path, public_key=""):
    return audit_export.verify(path, audit.keyring(), public_key)


def test_a_genuine_file_is_known_as_such(exported, settings):
    found = verified(exported)
    assert found.whole and found.trusted
    call_command("verify_audit_export", str(exported), stdout=StringIO())
    key = audit.keyring().public_key()
    settings.SECRET_KEY = "of another site"
    assert not verified(exported).trusted and verified(exported).whole
    assert verified(exported, key).trusted


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"dataset.scan", b"dataset.skip"),
        lambda data: b"\n".join(data.split(b"\n")[:2] + data.split(b"\n")[3:]),
        lambda data: data[: len(data) // 2],
        lambda data: data + data.splitlines(keepends=True)[1],
        lambda data: data[:-20] + b"0" * 10 + data[-10:],
        lambda data: b"",
    ],
    ids=["altered", "row removed", "cut", "row added", "signature altered", "empty"],
)
def test_a_changed_file_is_found(exported, change):
    exported.write_bytes(change(exported.read_bytes()))
    assert not verified(exported).whole
    with pytest.raises(SystemExit) as end:
        call_command("verify_audit_export", str(exported), stdout=StringIO())
    assert end.value.code == 1


def test_the_command_writes_some_days_and_replaces_nothing(log, tmp_path):
    path = tmp_path / "january.json"
    call_command("export_audit", "--out", str(path), "--until", "2001-01-31", stdout=StringIO())
    assert [row["action"] for row in json.loads(path.read_text())["entries"]] == ["x.y"]
    with pytest.raises(CommandError, match="exists already"):
        call_command("export_audit", "--out", str(path))
    with pytest.raises(CommandError, match=r"2026-01-31"):
        call_command("export_audit", "--out", str(tmp_path / "b.csv"), "--since", "soon")
    with pytest.raises(CommandError, match=r"\.csv or \.json"):
        call_command("export_audit", "--out", str(tmp_path / "b.pdf"))
