"""Putting a version in service: its files are verified first, history and audit log are kept, nothing is half done."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError
from django.urls import reverse

from registry.models import Activation, ActivationError, Deployment, ThresholdSet
from tests.factories import ConditionFactory
from tests.inference.versions import make_version
from xrayplatform import audit
from xrayplatform.audit import AuditEntry


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def versions(chest):
    return [make_version(chest, threshold=threshold) for threshold in (0.4, 0.6)]


@pytest.fixture
def served(versions, alice):
    versions[0].activate(by=alice, reason="first")
    return versions


def in_service(condition):
    deployment = Deployment.objects.filter(condition=condition).first()
    return (deployment.active.number, deployment.epoch) if deployment else None


def test_the_first_activation_puts_the_version_in_service(chest, versions, alice):
    deployment = versions[0].activate(by=alice, reason="agreed")
    assert (deployment.active, deployment.previous, deployment.epoch) == (versions[0], None, 1)


def test_each_activation_raises_the_epoch_and_keeps_the_previous_version(served, alice):
    deployment = served[1].activate(by=alice, reason="agreed")
    assert (deployment.active, deployment.previous, deployment.epoch) == (served[1], served[0], 2)
    back = served[0].activate(by=alice, reason="agreed")
    assert (back.active, back.previous, back.epoch) == (served[0], served[1], 3)


def test_the_history_keeps_who_put_what_in_service_instead_of_what_and_why(served, alice, bob):
    served[1].activate(by=bob, reason="fewer misses")
    newest, oldest = Activation.objects.all()
    assert (newest.by, newest.from_version, newest.to_version, newest.reason) == (bob, *served, "fewer misses")
    assert (oldest.by, oldest.from_version, oldest.to_version, oldest.reason) == (alice, None, served[0], "first")
    newest.reason = "another reason"
    with pytest.raises(TypeError, match="never changed"):
        newest.save()


def test_the_audit_log_says_what_was_in_service_before_and_after(served, bob):
    served[1].activate(by=bob, reason="fewer misses")
    entry = AuditEntry.objects.filter(action="version.activate").first()
    assert (entry.actor, entry.object_id) == (bob, str(served[1].pk))
    assert entry.before == {"active": "chest v1", "threshold": 0.4}
    assert entry.after == {"active": "chest v2", "threshold": 0.6, "reason": "fewer misses"}


def test_activating_what_is_in_service_already_changes_nothing(chest, served, alice):
    before = in_service(chest)
    served[0].activate(by=alice, reason="agreed")
    assert in_service(chest) == before
    assert Activation.objects.count() == AuditEntry.objects.filter(action="version.activate").count() == 1


def test_each_condition_has_its_own_version_in_service(chest, served, alice):
    knee = ConditionFactory(slug="knee")
    make_version(knee).activate(by=alice, reason="agreed")
    assert in_service(chest) == in_service(knee) == (1, 1)


def spoil_weights(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def spoil_manifest(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"threshold": 0.01}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "weights.safetensors").unlink(), "is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "not where they should be"),
        (spoil_weights, "was changed after it was registered"),
        (spoil_manifest, "was changed after it was registered"),
    ],
    ids=["file missing", "manifest missing", "weights changed", "manifest changed"],
)
def test_a_version_whose_files_are_not_whole_is_refused_and_the_active_one_stays(chest, served, alice, spoil, reason):
    spoil(served[1].folder)
    with pytest.raises(ActivationError, match=reason) as refusal:
        served[1].activate(by=alice, reason="agreed")
    assert "The version in service stays" in str(refusal.value)
    assert in_service(chest) == (1, 1)
    assert Activation.objects.count() == 1


def test_an_archived_version_is_refused(chest, served, alice):
    served[1].state = "archived"
    served[1].save(update_fields=["state"])
    with pytest.raises(ActivationError, match="chest v2 is archived"):
        served[1].activate(by=alice, reason="agreed")
    assert in_service(chest) == (1, 1)


def test_an_activation_whose_audit_entry_fails_does_not_happen(chest, served, alice, monkeypatch):
    def fail(*args, **kwargs):
        raise DatabaseError("no audit")

    monkeypatch.setattr(audit, "record", fail)
    with pytest.raises(DatabaseError):
        served[1].activate(by=alice, reason="agreed")
    assert in_service(chest) == (1, 1)
    assert Activation.objects.count() == 1


# -- By page, API and command


def test_a_manager_activates_on_the_page_of_the_version(chest, served, alice, client):
    client.force_login(alice)
    url = reverse("registry:version-activate", args=[served[1].pk])
    page = client.post(url, {"reason": "better", "epoch": 1}, follow=True)
    assert "chest v2 is in service for Chest. No restart is needed." in page.content.decode()
    assert in_service(chest) == (2, 2)
    assert Activation.objects.first().reason == "better"


def test_the_page_says_why_a_version_was_refused(chest, served, alice, client):
    spoil_weights(served[1].folder)
    client.force_login(alice)
    page = client.post(
        reverse("registry:version-activate", args=[served[1].pk]), {"reason": "better", "epoch": 1}, follow=True
    ).content.decode()
    assert "chest v2 was not activated" in page
    assert in_service(chest) == (1, 1)


def test_a_reason_that_is_too_long_is_refused_on_the_page_and_by_the_api(chest, served, alice, client):
    client.force_login(alice)
    page = client.post(
        reverse("registry:version-activate", args=[served[1].pk]), {"reason": "x" * 501, "epoch": 1}, follow=True
    ).content.decode()
    assert "The reason is too long; 500 characters at most." in page
    answer = client.post(reverse("api:version-activate", args=[served[1].pk]), {"reason": "x" * 501})
    assert answer.status_code == 400
    assert in_service(chest) == (1, 1)


def test_a_manager_activates_over_the_api(served, alice, client):
    client.force_login(alice)
    answer = client.post(reverse("api:version-activate", args=[served[1].pk]), {"reason": "better"})
    assert answer.status_code == 200
    assert answer.json() == {
        "condition": "chest",
        "active": served[1].pk,
        "previous": served[0].pk,
        "threshold": 0.6,
        "threshold_set": None,
        "epoch": 2,
    }


def test_the_api_answers_409_with_the_reason(served, alice, client):
    spoil_manifest(served[1].folder)
    client.force_login(alice)
    answer = client.post(reverse("api:version-activate", args=[served[1].pk]), {"reason": "better"})
    assert answer.status_code == 409
    assert "was changed after it was registered" in answer.json()["detail"]


def test_the_command_activates_and_prints_one_json_object(chest, served):
    out = StringIO()
    call_command("activate", "chest", "2", reason="agreed", json=True, stdout=out)
    trained = {"threshold": 0.6, "threshold_set": None}
    assert json.loads(out.getvalue()) == {"condition": "chest", "active": 2, "previous": 1} | trained
    assert in_service(chest) == (2, 2)
    assert AuditEntry.objects.filter(action="version.activate").first().channel == "command"


def test_the_command_acts_as_the_user_it_is_told(served, alice, bob):
    call_command("activate", "chest", "2", reason="agreed", user="alice", stdout=StringIO())
    assert Activation.objects.first().by == alice
    with pytest.raises(CommandError, match="bob has no role that allows this"):
        call_command("activate", "chest", "1", reason="agreed", user="bob", stdout=StringIO())
    with pytest.raises(CommandError, match="There is no active user nobody"):
        call_command("activate", "chest", "1", reason="agreed", user="nobody", stdout=StringIO())


def test_the_command_finds_no_version_of_another_team(chest, served, charlie):
    with pytest.raises(CommandError, match=r"no version 2 of 'chest'\. Known versions: none"):
        call_command("activate", "chest", "2", user="charlie", reason="agreed", stdout=StringIO())
    assert in_service(chest) == (1, 1)


def test_the_command_fails_with_a_reason_for_an_unknown_version(served):
    with pytest.raises(CommandError, match=r"no version 9 of 'chest'\. Known versions: chest v1, chest v2"):
        call_command("activate", "chest", "9", reason="agreed", stdout=StringIO())


def test_the_command_reports_a_failure_as_json_with_a_bad_exit_status(chest, served):
    spoil_weights(served[1].folder)
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        call_command("activate", "chest", "2", reason="agreed", json=True, stdout=out)
    assert end.value.code == 1
    assert "chest v2 was not activated" in json.loads(out.getvalue())["error"]
    assert in_service(chest) == (1, 1)


# -- At another threshold


@pytest.fixture
def point(served, alice):
    return ThresholdSet.objects.add(served[0], 0.25, by=alice, reason="fewer misses", criterion="by hand")


def test_the_version_in_service_goes_on_at_another_threshold(chest, served, alice, point):
    deployment = served[0].activate(by=alice, reason="agreed on Monday", threshold_set=point)
    assert (deployment.active, deployment.previous, deployment.threshold, deployment.epoch) == (
        served[0],
        None,
        0.25,
        2,
    )
    newest = Activation.objects.first()
    assert (newest.from_version, newest.to_version, newest.threshold_set) == (served[0], served[0], point)
    entry = AuditEntry.objects.filter(action="version.activate").first()
    assert (entry.before["threshold"], entry.after["threshold"]) == (0.4, 0.25)


def test_activating_without_a_set_goes_back_to_the_threshold_of_the_training(served, alice, point):
    served[0].activate(by=alice, reason="agreed", threshold_set=point)
    deployment = served[0].activate(by=alice, reason="agreed")
    assert (deployment.threshold_set, deployment.threshold) == (None, 0.4)


def test_a_threshold_set_of_another_version_is_refused(chest, served, alice, point):
    with pytest.raises(ActivationError, match="belongs to another version"):
        served[1].activate(by=alice, reason="agreed", threshold_set=point)
    assert in_service(chest) == (1, 1)


def test_the_page_offers_the_sets_of_a_version_that_is_in_service(chest, served, alice, point, client):
    client.force_login(alice)
    page = client.get(served[0].get_absolute_url()).content.decode()
    assert "As trained: 40.0 %" in page
    assert "Set 1: 25.0 %, fewer misses" in page
    assert "Put this threshold in service" in page
    url = reverse("registry:version-activate", args=[served[0].pk])
    page = client.post(url, {"threshold_set": point.pk, "reason": "agreed", "epoch": 1}, follow=True).content.decode()
    assert "from a probability of 25.0\xa0% (threshold set 1)" in page
    assert "25.0\xa0% (set 1)" in page
    assert "40.0\xa0% (as trained)" in page
    assert Deployment.objects.get(condition=chest).threshold == 0.25


def test_the_page_takes_no_threshold_set_of_another_version(chest, served, alice, point, client):
    ThresholdSet.objects.add(served[1], 0.7, by=alice, reason="x", criterion="by hand")
    client.force_login(alice)
    url = reverse("registry:version-activate", args=[served[1].pk])
    page = client.post(url, {"threshold_set": point.pk, "reason": "x", "epoch": 1}, follow=True).content.decode()
    assert "Select a valid choice" in page
    assert in_service(chest) == (1, 1)


def test_without_other_thresholds_the_version_in_service_offers_no_form(served, alice, client):
    client.force_login(alice)
    assert "/activate/" not in client.get(served[0].get_absolute_url()).content.decode()


def test_the_api_activates_at_a_threshold_set_by_its_number(chest, served, alice, point, client):
    client.force_login(alice)
    url = reverse("api:version-activate", args=[served[0].pk])
    answer = client.post(url, {"threshold_set": 1, "reason": "agreed"}).json()
    assert (answer["threshold"], answer["threshold_set"]) == (0.25, 1)
    refused = client.post(url, {"threshold_set": 7, "reason": "agreed"})
    assert refused.status_code == 400
    assert refused.json()["errors"] == {"threshold_set": ["chest v1 has no threshold set 7."]}


def test_the_command_activates_at_a_threshold_set(chest, served, point):
    out = StringIO()
    call_command("activate", "chest", "1", reason="agreed", threshold_set=1, stdout=out)
    assert "It decides at a probability of 0.25 (threshold set 1)." in out.getvalue()
    assert Deployment.objects.get(condition=chest).threshold_set == point
    with pytest.raises(CommandError, match="chest v1 has no threshold set 2"):
        call_command("activate", "chest", "1", reason="agreed", threshold_set=2, stdout=StringIO())
