"""A version is a candidate, approved or archived: who changes that, when they may not, and what follows from it."""

import json
import threading
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.urls import reverse
from django.utils import timezone

from registry.artifacts import ArtifactError
from registry.models import (
    USES,
    ActivationError,
    Deployment,
    IntegrityCheck,
    ModelVersion,
    ScheduledActivation,
    StateChange,
    StateError,
)
from tests.factories import ConditionFactory, ModelVersionFactory, UserFactory
from tests.inference.versions import make_version
from xrayplatform import audit
from xrayplatform.audit import AuditEntry
from xrayplatform.management.commands.demo import Command as Demo
from xrayplatform.notifications import Notification

PAGES = {
    "approve": "registry:version-approve",
    "archive": "registry:version-archive",
    "reopen": "registry:version-reopen",
}


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest, alice):
    """Trained by alice; its files are not there."""
    return ModelVersionFactory(condition=chest, number=3, created_by=alice)


@pytest.fixture
def carol(team):
    user = UserFactory(username="carol", roles=["model manager"])
    team.members.add(user)
    return user


@pytest.fixture
def in_service(chest, version):
    return Deployment.objects.create(condition=chest, active=version, epoch=1)


def state(version):
    return ModelVersion.objects.get(pk=version.pk).state


def page_of(client, version):
    return client.get(version.get_absolute_url()).content.decode()


def press(client, version, change, reason="looked through"):
    return client.post(reverse(PAGES[change], args=[version.pk]), {"reason": reason}, follow=True).content.decode()


def call(client, version, change, reason="looked through"):
    return client.post(reverse(f"api:version-{change}", args=[version.pk]), {"reason": reason})


# -- What is kept


def test_approving_archiving_and_reopening_are_kept_with_who_when_and_why(version, alice, carol):
    version.approve(by=carol, reason="  looked through  ")
    version.archive(by=alice, reason="replaced")
    version.reopen(by=None, reason="the newer one is worse")
    rows = version.state_changes.values_list("from_state", "to_state", "by__username", "reason")
    assert list(rows) == [
        ("archived", "candidate", None, "the newer one is worse"),
        ("approved", "archived", "alice", "replaced"),
        ("candidate", "approved", "carol", "looked through"),
    ]
    assert state(version) == "candidate"


def test_every_change_is_in_the_audit_log_with_the_state_before_and_after(version, carol):
    version.approve(by=carol, reason="looked through")
    entry = AuditEntry.objects.get(action="version.approve")
    assert (entry.actor, entry.object_id, entry.outcome) == (carol, str(version.pk), "success")
    assert entry.before == {"state": "candidate"}
    assert entry.after == {"state": "approved", "reason": "looked through"}


def test_a_change_whose_audit_entry_fails_does_not_happen(version, carol, monkeypatch):
    def fail(*args, **kwargs):
        raise DatabaseError("no audit")

    monkeypatch.setattr(audit, "record", fail)
    with pytest.raises(DatabaseError):
        version.approve(by=carol, reason="looked through")
    assert state(version) == "candidate"
    assert not StateChange.objects.exists()


def test_the_history_of_states_is_never_changed(version, carol):
    change = version.approve(by=carol, reason="looked through")
    change.reason = "another"
    with pytest.raises(TypeError, match="never changed"):
        change.save()
    with pytest.raises(TypeError, match="never deleted"):
        change.delete()
    for spoil in (lambda rows: rows.update(reason="another"), lambda rows: rows.delete()):
        with pytest.raises(DatabaseError), transaction.atomic():
            spoil(StateChange.objects.all())
    assert StateChange.objects.get().reason == "looked through"


def test_who_trained_it_is_told_but_not_of_what_they_did_themselves(version, alice, carol):
    version.approve(by=carol, reason="looked through")
    version.reopen(by=alice, reason="wait")
    version.archive(by=None, reason="replaced")
    texts = list(Notification.objects.filter(user=alice).order_by("pk").values_list("text", flat=True))
    assert texts == [
        "chest v3 was approved, by carol: looked through",
        "chest v3 was archived, by the command line: replaced",
    ]


def test_who_left_the_team_is_not_told(version, team, alice, carol):
    team.members.remove(alice)
    version.approve(by=carol, reason="looked through")
    assert not Notification.objects.exists()


# -- What is refused


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501, "a\0b"])
def test_a_change_needs_a_reason_that_can_be_kept(version, alice, client, reason):
    with pytest.raises(StateError, match="reason"):
        version.approve(by=alice, reason=reason)
    client.force_login(alice)
    assert "Nothing was changed:" in press(client, version, "approve", reason)
    assert call(client, version, "approve", reason).status_code == 400
    assert state(version) == "candidate"


@pytest.mark.parametrize(
    ("before", "change", "said"),
    [
        ("candidate", "reopen", "chest v3 is a candidate already."),
        ("approved", "approve", "chest v3 is approved already."),
        ("archived", "archive", "chest v3 is archived already."),
        ("archived", "approve", "chest v3 is archived. Reopen it first"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_and_the_refusal_recorded(chest, alice, client, before, change, said):
    version = ModelVersionFactory(condition=chest, number=3, state=before)
    with pytest.raises(StateError) as refusal:
        getattr(version, change)(by=alice, reason="x")
    assert str(refusal.value).startswith(said)
    entry = AuditEntry.objects.get(action=f"version.{change}")
    assert (entry.outcome, entry.actor) == ("refused", alice)
    assert entry.after["reason"].startswith(said)
    client.force_login(alice)
    assert said in press(client, version, change)
    answer = call(client, version, change)
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith(said)
    assert state(version) == before
    assert not StateChange.objects.exists()


def test_what_is_in_service_is_not_archived(version, alice, in_service):
    with pytest.raises(StateError, match="it is in service for Chest; put another version there first"):
        version.archive(by=alice, reason="old")
    assert state(version) == "candidate"


def test_what_is_planned_to_go_into_service_is_not_archived(version, alice):
    ScheduledActivation.objects.create(
        version=version, at=timezone.now() + timedelta(hours=1), reason="x", by=alice, epoch=0
    )
    with pytest.raises(StateError, match="its activation is planned; cancel that first"):
        version.archive(by=alice, reason="old")


def test_what_another_app_uses_is_not_archived(version, alice, monkeypatch):
    monkeypatch.setattr(
        "registry.models.version.USES", [*USES, lambda versions: {version.pk: ["it answers in experiment 4"]}]
    )
    with pytest.raises(StateError, match="chest v3 cannot be archived: it answers in experiment 4"):
        version.archive(by=alice, reason="old")


def test_a_damaged_version_is_not_approved_but_may_be_archived(version, alice):
    IntegrityCheck.objects.note(version, ArtifactError("missing", "weights.safetensors is missing."))
    with pytest.raises(StateError, match="chest v3 cannot be approved:"):
        version.approve(by=alice, reason="x")
    version.archive(by=alice, reason="damaged")
    assert state(version) == "archived"


# -- Two people


def test_with_the_two_person_rule_nobody_approves_what_they_trained(version, alice, carol, client, settings):
    settings.TWO_PERSON_RULE = True
    client.force_login(alice)
    page = page_of(client, version)
    assert "alice started the training of chest v3. Another model manager has to approve it." in page
    assert reverse(PAGES["approve"], args=[version.pk]) not in page
    assert "Another model manager has to approve it." in press(client, version, "approve")
    assert state(version) == "candidate"
    version.approve(by=carol, reason="looked through")
    assert state(version) == "approved"


def test_a_superuser_is_not_exempt_and_the_command_line_names_somebody(version, alice, carol, settings):
    settings.TWO_PERSON_RULE = True
    alice.is_superuser = True
    alice.save()
    with pytest.raises(StateError, match="Another model manager has to approve it"):
        version.approve(by=alice, reason="mine")
    with pytest.raises(CommandError, match="say who approves, with --user"):
        call_command("version_state", "chest", 3, "approve", reason="x")
    call_command("version_state", "chest", 3, "approve", reason="x", user="carol", stdout=StringIO())
    assert StateChange.objects.get().by == carol


# -- What follows for service


@pytest.fixture
def real(chest, alice):
    return [make_version(chest, by=alice, threshold=threshold) for threshold in (0.4, 0.6)]


def test_where_approval_is_required_only_approved_versions_go_into_service(real, alice, client, settings):
    settings.REQUIRE_APPROVAL = True
    client.force_login(alice)
    refusal = "chest v1 is not approved, and only approved versions go into service here."
    page = page_of(client, real[0])
    assert refusal in page
    assert "/activate/" not in page
    url = reverse("api:version-activate", args=[real[0].pk])
    answer = client.post(url, {"reason": "better"})
    assert (answer.status_code, answer.json()["detail"]) == (409, refusal)
    assert AuditEntry.objects.get(action="version.activate").outcome == "refused"
    with pytest.raises(ActivationError, match="is not approved"):
        ScheduledActivation.objects.plan(real[0], timezone.now() + timedelta(hours=1), by=alice, reason="x")
    real[0].approve(by=alice, reason="looked through")
    assert "/activate/" in page_of(client, real[0])
    assert client.post(url, {"reason": "better"}).status_code == 200


def test_a_rollback_needs_no_approval(chest, real, alice, client, settings):
    for version in real:
        version.activate(by=alice, reason="x")
    settings.REQUIRE_APPROVAL = True
    client.force_login(alice)
    page = page_of(client, real[1])
    assert "Roll back to v1" in page
    assert "It is in service without an approval." in page
    real[1].roll_back(by=alice, reason="false alarms")
    assert Deployment.objects.get(condition=chest).active == real[0]


def test_there_is_no_way_back_to_an_archived_version_and_the_page_says_so(real, alice, client):
    for version in real:
        version.activate(by=alice, reason="x")
    client.force_login(alice)
    assert "A rollback would go back to this version" in page_of(client, real[0])
    real[0].archive(by=alice, reason="wrong labels")
    page = page_of(client, real[1])
    assert "chest v1 is archived. Only candidates and approved versions go into service." in page
    assert "Roll back to v1" not in page
    with pytest.raises(ActivationError, match="chest v1 is archived"):
        real[1].roll_back(by=alice, reason="x")


def test_a_version_that_is_archived_while_its_files_are_verified_is_not_planned(real, alice, carol, monkeypatch):
    """Whoever plans has seen a candidate, and somebody else archives it before the plan is kept."""
    other = ModelVersion.objects.get(pk=real[0].pk)
    require = ModelVersion.require_activatable

    def archived_meanwhile(version, **wish):
        require(version, **wish)
        other.archive(by=carol, reason="replaced")

    monkeypatch.setattr(ModelVersion, "require_activatable", archived_meanwhile)
    with pytest.raises(ActivationError, match="chest v1 is archived"):
        ScheduledActivation.objects.plan(real[0], timezone.now() + timedelta(hours=1), by=alice, reason="x")
    assert not ScheduledActivation.objects.exists()


def test_a_version_that_is_archived_while_its_files_are_verified_does_not_go_into_service(
    chest, real, alice, carol, monkeypatch
):
    other = ModelVersion.objects.get(pk=real[0].pk)
    require = ModelVersion.require_activatable

    def archived_meanwhile(version, **wish):
        require(version, **wish)
        other.archive(by=carol, reason="replaced")

    monkeypatch.setattr(ModelVersion, "require_activatable", archived_meanwhile)
    with pytest.raises(ActivationError, match="chest v1 is archived"):
        real[0].activate(by=alice, reason="better")
    assert not Deployment.objects.filter(condition=chest, active__isnull=False).exists()


@pytest.mark.django_db(transaction=True)
def test_of_archiving_and_activating_at_the_same_moment_one_wins(chest, real, alice, carol):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite in memory refuses a second writer instead of letting it wait; runs on PostgreSQL")
    barrier, outcomes = threading.Barrier(2), {}

    def click(change, user):
        version = ModelVersion.objects.select_related("condition").get(pk=real[0].pk)
        try:
            barrier.wait()
            getattr(version, change)(by=user, reason=f"by {user}")
            outcomes[change] = "won"
        except (ActivationError, StateError) as error:
            outcomes[change] = str(error)
        finally:
            connection.close()

    clicks = [threading.Thread(target=click, args=pair) for pair in (("activate", alice), ("archive", carol))]
    for thread in clicks:
        thread.start()
    for thread in clicks:
        thread.join(60)
    assert sorted(outcomes) == ["activate", "archive"]
    active = Deployment.objects.filter(condition=chest, active=real[0]).exists()
    if outcomes["archive"] == "won":
        assert "is archived" in outcomes["activate"]
        assert (active, state(real[0])) == (False, "archived")
    else:
        assert "it is in service for Chest" in outcomes["archive"]
        assert (active, state(real[0])) == (True, "candidate")


# -- On the page


def test_the_page_offers_what_is_possible_and_tells_the_history_newest_first(version, alice, carol, client):
    client.force_login(alice)
    page = page_of(client, version)
    assert [reverse(PAGES[change], args=[version.pk]) in page for change in PAGES] == [True, True, False]
    assert "chest v3 is approved." in press(client, version, "approve", "<b>fine</b>")
    page = page_of(client, version)
    assert "Withdraw the approval" in page
    assert [reverse(PAGES[change], args=[version.pk]) in page for change in PAGES] == [False, True, True]
    assert "&lt;b&gt;fine&lt;/b&gt;" in page
    version.reopen(by=carol, reason="not on the new device")
    page = page_of(client, version)
    assert page.index("Approval withdrawn") < page.index("Approved</strong>")
    assert "is archived and cannot go into service." in press(client, version, "archive")
    page = page_of(client, version)
    assert [reverse(PAGES[change], args=[version.pk]) in page for change in PAGES] == [False, False, True]
    assert "is a candidate again." in press(client, version, "reopen")


def test_the_page_says_why_a_change_is_not_offered(version, alice, client, in_service):
    client.force_login(alice)
    page = page_of(client, version)
    assert "chest v3 cannot be archived: it is in service for Chest; put another version there first." in page
    assert reverse(PAGES["archive"], args=[version.pk]) not in page
    assert reverse(PAGES["approve"], args=[version.pk]) in page


def test_who_may_not_change_the_state_sees_it_with_its_history_and_no_form(version, carol, bob, client):
    version.approve(by=carol, reason="looked through")
    client.force_login(bob)
    page = page_of(client, version)
    assert "looked through" in page
    assert "carol" in page
    assert not any(reverse(name, args=[version.pk]) in page for name in PAGES.values())


def test_a_change_of_state_needs_a_post(version, alice, client):
    client.force_login(alice)
    for name in PAGES.values():
        assert client.get(reverse(name, args=[version.pk])).status_code == 405


# -- Over the API and by command


def test_the_api_changes_the_state_and_lists_the_changes(version, alice, bob, charlie, client):
    client.force_login(alice)
    answer = call(client, version, "approve")
    assert answer.status_code == 200
    assert (answer.json()["from_state"], answer.json()["to_state"]) == ("candidate", "approved")
    assert (answer.json()["by"], answer.json()["reason"]) == ("alice", "looked through")
    call(client, version, "reopen", "wait")
    client.force_login(bob)
    url = reverse("api:version-states", args=[version.pk])
    assert [row["to_state"] for row in client.get(url).json()] == ["candidate", "approved"]
    assert call(client, version, "approve").status_code == 403
    client.force_login(charlie)
    assert client.get(url).status_code == call(client, version, "approve").status_code == 404


def test_the_command_changes_the_state_and_prints_one_json_object(version, alice, bob, charlie):
    out = StringIO()
    call_command("version_state", "chest", 3, "approve", reason="looked through", user="alice", json=True, stdout=out)
    assert json.loads(out.getvalue()) == {
        "condition": "chest",
        "version": 3,
        "state": "approved",
        "before": "candidate",
        "reason": "looked through",
    }
    out = StringIO()
    call_command("version_state", "chest", "3", "archive", "--reason", "replaced", stdout=out)
    assert out.getvalue() == "Version 3 of chest is archived (before: approved).\n"
    with pytest.raises(CommandError, match="chest v3 is archived already"):
        call_command("version_state", "chest", 3, "archive", reason="again")
    with pytest.raises(CommandError, match="bob has no role that allows this"):
        call_command("version_state", "chest", 3, "reopen", reason="x", user="bob")
    with pytest.raises(CommandError, match="no version 3 of 'chest'"):
        call_command("version_state", "chest", 3, "reopen", reason="x", user="charlie")
    with pytest.raises(CommandError, match="--reason"):
        call_command("version_state", "chest", 3, "reopen")


@pytest.mark.parametrize("approved", [False, True], ids=["candidate", "approved before"])
def test_the_demo_approves_before_it_activates_where_that_is_required(chest, alice, settings, approved):
    settings.REQUIRE_APPROVAL = True
    version = make_version(chest)
    if approved:
        version.approve(by=alice, reason="before")
    dataset = type("Dataset", (), {"condition": chest})
    Demo(stdout=StringIO())._activate(dataset, version.number)
    assert state(version) == "approved"
    assert Deployment.objects.get(condition=chest).active == version
