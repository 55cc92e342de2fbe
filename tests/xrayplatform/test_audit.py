"""The audit log: what an entry says, that it is only ever added, and that nothing happens without one."""

import pytest
from django.db import DatabaseError
from django.urls import reverse

from datasets.models import Scan
from tests.factories import UserFactory
from xrayplatform import audit
from xrayplatform.audit import AuditEntry


def test_an_entry_says_who_did_what_to_which_object_and_from_where(alice, world):
    audit.context.set(audit.Context(address="10.1.2.3", request_id="abc", channel="api"))
    entry = audit.record("dataset.prepare", world.dataset, actor=alice, before={"a": 1}, after={"a": 2})
    entry.refresh_from_db()
    assert (entry.actor, entry.actor_name) == (alice, "alice")
    assert entry.role == "clinician, data scientist, model manager"
    assert (entry.address, entry.request_id, entry.channel) == ("10.1.2.3", "abc", "api")
    assert (entry.action, entry.outcome) == ("dataset.prepare", "success")
    assert (entry.object_type, entry.object_id) == ("dataset", str(world.dataset.pk))
    assert entry.object_label == "CHEST/secret study"
    assert (entry.before, entry.after) == ({"a": 1}, {"a": 2})
    assert entry.at.utcoffset().total_seconds() == 0


def test_a_superuser_is_named_as_such_besides_the_roles(admin_user):
    assert audit.record("x.y", actor=admin_user).role == "superuser"


def test_who_is_not_logged_in_is_told_apart_by_the_channel(db):
    def actor_name(**where):
        audit.context.set(audit.Context(**where))
        return audit.record("x.y").actor_name

    assert actor_name(channel="system") == "system"
    assert actor_name(channel="web", address="10.0.0.1") == "anonymous"
    assert actor_name(channel="command").startswith("command line")


def test_entries_are_numbered_and_listed_newest_first(db):
    first, second = audit.record("a.b"), audit.record("c.d")
    assert first.seq < second.seq
    assert list(AuditEntry.objects.all()) == [second, first]


def test_an_entry_cannot_be_changed_or_deleted(db):
    entry = audit.record("user.login", actor_name="mallory")
    entry.actor_name = "alice"
    with pytest.raises(TypeError, match="never changed"):
        entry.save()
    with pytest.raises(TypeError, match="never deleted"):
        entry.delete()
    assert AuditEntry.objects.get().actor_name == "mallory"


def test_a_user_with_entries_cannot_be_deleted(alice):
    audit.record("x.y", actor=alice)
    with pytest.raises(DatabaseError):
        alice.delete()


@pytest.fixture
def broken_audit(monkeypatch):
    def fail(*args, **kwargs):
        raise DatabaseError("the audit table is full")

    monkeypatch.setattr(audit, "record", fail)


def test_an_action_whose_entry_cannot_be_written_does_not_happen(alice, client, broken_audit):
    client.force_login(alice)
    with pytest.raises(DatabaseError):
        client.post(reverse("datasets:scan-start"))
    assert not Scan.objects.exists()


def test_a_login_whose_entry_cannot_be_written_does_not_happen(alice, client, password, broken_audit):
    with pytest.raises(DatabaseError):
        client.post(reverse("xrayplatform:login"), {"username": "alice", "password": password})
    assert client.get(reverse("xrayplatform:dashboard")).status_code == 302


def test_a_token_whose_entry_cannot_be_written_does_not_exist(alice, client, broken_audit):
    client.force_login(alice)
    with pytest.raises(DatabaseError):
        client.post(reverse("xrayplatform:token-list"))
    assert not alice.auth_token_set.exists()


def test_the_entry_of_an_action_that_fails_later_is_taken_back_with_it(alice, client, monkeypatch):
    def fail(self):
        raise DatabaseError("the queue is gone")

    monkeypatch.setattr(Scan, "enqueue", fail)
    client.force_login(alice)
    with pytest.raises(DatabaseError):
        client.post(reverse("datasets:scan-start"))
    assert not AuditEntry.objects.filter(action="dataset.scan").exists()


def test_entries_of_a_request_bear_the_id_that_the_answer_tells(alice, client):
    client.force_login(alice)
    response = client.post(reverse("datasets:scan-start"), REMOTE_ADDR="10.9.8.7")
    entry = AuditEntry.objects.get(action="dataset.scan")
    assert entry.request_id == response["X-Request-Id"]
    assert (entry.address, entry.channel) == ("10.9.8.7", "web")


def test_two_requests_have_two_ids(client, db):
    addresses = [client.get(reverse("xrayplatform:health"))["X-Request-Id"] for _ in range(2)]
    assert addresses[0] != addresses[1]


def test_the_api_is_a_channel_of_its_own(alice, client):
    client.force_login(alice)
    client.post(reverse("api:dataset-scan"))
    assert AuditEntry.objects.get(action="dataset.scan").channel == "api"


def test_a_refusal_tells_what_was_tried(bob, client):
    client.force_login(bob)
    client.post(reverse("datasets:scan-start"))
    entry = AuditEntry.objects.get(action="access.refused")
    assert (entry.actor, entry.outcome) == (bob, "refused")
    assert entry.after == {"method": "POST", "path": reverse("datasets:scan-start")}


def test_looking_at_a_prediction_is_recorded_on_the_page_and_over_the_api(bob, client, world):
    client.force_login(bob)
    client.get(world.prediction.get_absolute_url())
    client.get(reverse("api:prediction-detail", args=[world.prediction.pk]))
    views = AuditEntry.objects.filter(action="prediction.view", actor=bob, object_id=str(world.prediction.pk))
    assert sorted(entry.channel for entry in views) == ["api", "web"]


@pytest.fixture
def log(auditor, client):
    audit.record("user.login", actor_name="mallory", outcome=AuditEntry.Outcome.REFUSED)
    audit.record("user.login", actor=UserFactory(username="nora"))
    audit.record("dataset.scan", actor_name="system", after={"images": 12})
    client.force_login(auditor)
    return lambda **query: client.get(reverse("xrayplatform:auditentry-list"), query)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["system", "nora", "mallory"]),
        ({"action": "login"}, ["nora", "mallory"]),
        ({"actor": "NORA"}, ["nora"]),
        ({"outcome": "refused"}, ["mallory"]),
        ({"action": "login", "outcome": "success"}, ["nora"]),
        ({"action": "nothing"}, []),
        ({"outcome": "no such outcome"}, []),
    ],
)
def test_the_page_finds_entries_by_action_user_and_outcome(log, query, found):
    response = log(**query)
    assert [entry.actor_name for entry in response.context["page"]] == found
    assert ("No entry fits" in response.content.decode()) == (not found)


def test_the_page_shows_what_an_entry_carries_and_escapes_it(log):
    audit.record("x.y", actor_name="<script>alert(1)</script>", after={"name": "<img onerror=x>"})
    page = log().content.decode()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert "&lt;img onerror=x&gt;" in page


def test_the_api_lists_entries_for_the_auditor(log, client):
    answer = client.get(reverse("api:auditentry-list"), {"action": "dataset.scan"}).json()
    assert [(row["actor_name"], row["after"]) for row in answer["results"]] == [("system", {"images": 12})]
