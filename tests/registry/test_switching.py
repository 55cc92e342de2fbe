"""Deciding what is in service: with a reason, on what one has seen, by another person if that is the rule, and back."""

import json
import threading
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.urls import reverse

from registry.models import Activation, ActivationConflict, ActivationError, Deployment, ThresholdSet
from registry.outlook import outlook
from tests.factories import ConditionFactory, PackageImportFactory, UserFactory
from tests.inference.versions import make_version
from tests.registry.evaluations import make_evaluation
from xrayplatform.audit import AuditEntry


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def versions(chest):
    return [make_version(chest, threshold=threshold) for threshold in (0.4, 0.6, 0.7)]


@pytest.fixture
def served(versions, alice):
    versions[0].activate(by=alice, reason="first")
    return versions


@pytest.fixture
def carol(team):
    user = UserFactory(username="carol", roles=["model manager"])
    team.members.add(user)
    return user


def in_service(condition):
    deployment = Deployment.objects.get(condition=condition)
    return deployment.active.number, deployment.epoch


def text(response):
    return response.content.decode()


def post(client, name, version, **data):
    return client.post(reverse(name, args=[version.pk]), data, follow=name.startswith("registry"))


# -- A reason


@pytest.mark.parametrize("reason", ["", "   "])
def test_nothing_goes_into_service_without_a_reason(chest, served, alice, client, reason):
    with pytest.raises(ActivationError, match="give the reason"):
        served[1].activate(by=alice, reason=reason)
    client.force_login(alice)
    page = text(post(client, "registry:version-activate", served[1], reason=reason, epoch=1))
    assert "Give the reason; it is kept in the history." in page
    answer = post(client, "api:version-activate", served[1], reason=reason)
    assert answer.status_code == 400
    assert "reason" in answer.json()["errors"]
    assert in_service(chest) == (1, 1)


def test_the_command_asks_for_a_reason(served):
    with pytest.raises(CommandError, match="--reason"):
        call_command("activate", "chest", "2")


def test_a_refused_activation_is_in_the_audit_log(served, alice):
    (served[1].folder / "weights.safetensors").unlink()
    with pytest.raises(ActivationError):
        served[1].activate(by=alice, reason="better")
    entry = AuditEntry.objects.filter(action="version.activate").first()
    assert (entry.outcome, entry.actor, entry.object_id) == ("refused", alice, str(served[1].pk))
    assert "is missing" in entry.after["reason"]


# -- What one has seen


def test_the_form_says_which_state_was_seen(served, alice, client):
    client.force_login(alice)
    page = text(client.get(served[1].get_absolute_url()))
    assert '<input type="hidden" name="epoch" value="1"' in page


def test_of_two_managers_who_looked_at_the_same_state_the_second_is_told_what_the_first_did(
    chest, served, alice, carol, client
):
    served[1].activate(by=carol, reason="fewer misses", seen_epoch=1)
    client.force_login(alice)
    page = text(post(client, "registry:version-activate", served[2], reason="newest", epoch=1))
    assert "carol put chest v2 in service at" in page
    assert "fewer misses" in page
    answer = post(client, "api:version-activate", served[2], reason="newest", epoch=1)
    assert answer.status_code == 409
    assert "carol put chest v2 in service at" in answer.json()["detail"]
    assert in_service(chest) == (2, 2)
    assert post(client, "api:version-activate", served[2], reason="newest", epoch=2).status_code == 200


def test_a_form_that_does_not_say_what_was_seen_is_refused(chest, served, alice, client):
    client.force_login(alice)
    page = text(post(client, "registry:version-activate", served[1], reason="better"))
    assert "does not say what was in service when you looked" in page
    assert in_service(chest) == (1, 1)


def test_a_second_click_on_the_same_button_does_no_harm(chest, served, alice):
    served[1].activate(by=alice, reason="better", seen_epoch=1)
    served[1].activate(by=alice, reason="better", seen_epoch=1)
    assert in_service(chest) == (2, 2)
    assert Activation.objects.count() == 2


def test_a_command_may_name_the_epoch_it_decided_on(chest, served):
    with pytest.raises(CommandError, match="put chest v1 in service"):
        call_command("activate", "chest", "2", reason="better", epoch=0)
    call_command("activate", "chest", "2", reason="better", epoch=1, stdout=StringIO())
    assert in_service(chest) == (2, 2)


def test_a_deployment_is_read_over_the_api_with_its_epoch(served, bob, charlie, client):
    client.force_login(bob)
    url = reverse("api:deployment-detail", args=["chest"])
    assert client.get(url).json() == {
        "condition": "chest",
        "active": served[0].pk,
        "previous": None,
        "threshold": 0.4,
        "threshold_set": None,
        "epoch": 1,
    }
    assert len(client.get(reverse("api:deployment-list")).json()["results"]) == 1
    client.force_login(charlie)
    assert client.get(url).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_of_two_activations_at_the_same_moment_one_wins(chest, served, alice, carol):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite in memory refuses a second writer instead of letting it wait; runs on PostgreSQL")
    barrier, outcomes = threading.Barrier(2), {}

    def click(version, user):
        try:
            barrier.wait()
            version.activate(by=user, reason=f"by {user}", seen_epoch=1)
            outcomes[user.username] = "won"
        except ActivationConflict as error:
            outcomes[user.username] = str(error)
        finally:
            connection.close()

    clicks = [threading.Thread(target=click, args=pair) for pair in ((served[1], alice), (served[2], carol))]
    for thread in clicks:
        thread.start()
    for thread in clicks:
        thread.join(60)
    winner = next(name for name, outcome in outcomes.items() if outcome == "won")
    loser = ({"alice", "carol"} - {winner}).pop()
    assert f"{winner} put chest v{2 if winner == 'alice' else 3} in service" in outcomes[loser]
    assert Activation.objects.count() == 2


# -- Two people


@pytest.fixture
def hers(chest, alice):
    return make_version(chest, by=alice)


def test_with_the_two_person_rule_nobody_activates_what_they_trained(chest, hers, alice, carol, client, settings):
    settings.TWO_PERSON_RULE = True
    client.force_login(alice)
    page = text(client.get(hers.get_absolute_url()))
    assert "alice started the training of chest v1. Another model manager has to put it in service." in page
    assert "/activate/" not in page
    answer = post(client, "api:version-activate", hers, reason="mine")
    assert answer.status_code == 409
    hers.activate(by=carol, reason="looked through")
    assert in_service(chest) == (1, 1)


def test_a_superuser_is_not_exempt_and_the_command_line_has_to_name_somebody(chest, hers, alice, carol, settings):
    settings.TWO_PERSON_RULE = True
    alice.is_superuser = True
    alice.save()
    with pytest.raises(ActivationError, match="alice started the training"):
        hers.activate(by=alice, reason="mine")
    with pytest.raises(CommandError, match="say who activates, with --user"):
        call_command("activate", "chest", "1", reason="x")
    call_command("activate", "chest", "1", reason="x", user="carol", stdout=StringIO())
    assert Activation.objects.get().by == carol


def test_without_the_rule_one_person_may_do_both(chest, hers, alice):
    hers.activate(by=alice, reason="mine")
    assert in_service(chest) == (1, 1)


@pytest.fixture
def nobodys(chest, settings):
    """A version that the command line made."""
    settings.TWO_PERSON_RULE = True
    return make_version(chest)


def test_what_nobody_is_known_to_have_made_goes_into_service_when_somebody_else_approved_it(
    chest, nobodys, alice, carol, client
):
    client.force_login(alice)
    words = "nobody knows who made chest v1"
    assert words in text(client.get(nobodys.get_absolute_url()))
    with pytest.raises(ActivationError, match=words):
        nobodys.activate(by=alice, reason="mine")
    nobodys.approve(by=alice, reason="looked through")
    with pytest.raises(ActivationError, match="Another model manager than alice has to approve it first"):
        nobodys.activate(by=alice, reason="mine")
    nobodys.activate(by=carol, reason="agreed")
    assert in_service(chest) == (1, 1)


def test_an_approval_that_was_taken_back_or_that_nobody_gave_does_not_count(nobodys, alice, carol, settings):
    nobodys.approve(by=carol, reason="looked through")
    nobodys.reopen(by=carol, reason="not after all")
    with pytest.raises(ActivationError, match="has to approve it first"):
        nobodys.activate(by=alice, reason="mine")
    settings.TWO_PERSON_RULE = False
    nobodys.approve(by=None, reason="on the command line")
    settings.TWO_PERSON_RULE = True
    with pytest.raises(ActivationError, match="has to approve it first"):
        nobodys.activate(by=alice, reason="mine")


def test_the_way_back_to_what_nobody_is_known_to_have_made_is_open(chest, nobodys, hers, alice, carol, settings):
    settings.TWO_PERSON_RULE = False
    nobodys.activate(by=alice, reason="before the rule")
    settings.TWO_PERSON_RULE = True
    hers.activate(by=carol, reason="newer")
    hers.roll_back(by=alice, reason="false alarms")
    assert in_service(chest)[0] == nobodys.number


def test_who_imported_a_version_counts_as_who_made_it(chest, hers, alice, carol, settings):
    settings.TWO_PERSON_RULE = True
    PackageImportFactory(version=hers, condition=chest, created_by=alice)
    hers.refresh_from_db()
    with pytest.raises(ActivationError, match="alice imported chest v1"):
        hers.activate(by=alice, reason="mine")
    hers.activate(by=carol, reason="agreed")
    assert in_service(chest) == (1, 1)


# -- What would change


def test_on_the_same_images_a_version_that_is_worse_is_warned_of(served, alice, client):
    good = make_evaluation(served[0], patients=120, quality=4.0)
    make_evaluation(served[1], patients=120, quality=0.3, seed=1, images_like=good)
    found = outlook(served[0], served[1])
    assert found.same_images
    assert "Both on the same 240 images" in found.basis
    assert any("Its AUC is lower" in words and "by more than chance" in words for words in found.warnings)
    client.force_login(alice)
    page = text(client.get(served[1].get_absolute_url()))
    assert "What would change: v2 instead of v1" in page
    assert "Its AUC is lower" in page
    answer = client.get(reverse("api:version-outlook", args=[served[1].pk])).json()
    assert (answer["in_service"], answer["warnings"]) == (served[0].pk, found.warnings)


def test_a_version_that_is_better_is_not_warned_of(served):
    poor = make_evaluation(served[0], patients=120, quality=0.3)
    make_evaluation(served[1], patients=120, quality=4.0, seed=1, images_like=poor)
    assert outlook(served[0], served[1]).warnings == []


def test_on_other_images_the_figures_stand_side_by_side_and_the_page_says_so(chest, served):
    figures = {"n": 10, "accuracy": 0.8, "auc": 0.97, "recall": 0.9, "f1": 0.9, "warnings": []}
    version = make_version(chest, metrics={"test": figures, "validation": figures})
    found = outlook(served[0], version)
    assert not found.same_images
    assert "not measured on the same images" in found.basis
    assert found.warnings == ["Its accuracy is lower: 80.0 % instead of 90.0 %, on other images."]


def test_there_is_nothing_to_compare_with_what_is_in_service_itself(served, alice, client):
    assert outlook(served[0], served[0]) is None
    assert outlook(None, served[0]) is None
    client.force_login(alice)
    answer = client.get(reverse("api:version-outlook", args=[served[0].pk])).json()
    assert (answer["in_service"], answer["figures"]) == (None, [])


# -- And back


@pytest.fixture
def replaced(served, alice):
    """v1 at a threshold set of its own, then v2."""
    point = ThresholdSet.objects.add(served[0], 0.25, by=alice, reason="fewer misses", criterion="by hand")
    served[0].activate(by=alice, reason="agreed", threshold_set=point)
    served[1].activate(by=alice, reason="newer")
    return served


def test_a_rollback_puts_back_what_was_there_with_its_threshold(chest, replaced, carol):
    deployment = replaced[1].roll_back(by=carol, reason="false alarms")
    assert (deployment.active, deployment.previous, deployment.threshold) == (replaced[0], replaced[1], 0.25)
    newest = Activation.objects.first()
    assert (newest.from_version, newest.to_version, newest.by) == (replaced[1], replaced[0], carol)
    entry = AuditEntry.objects.filter(action="version.rollback").get()
    assert (entry.before["active"], entry.after["active"]) == ("chest v2", "chest v1")
    assert entry.after["reason"] == "false alarms"


def test_a_rollback_is_one_button_of_the_version_in_service(chest, replaced, alice, client):
    client.force_login(alice)
    page = text(client.get(replaced[1].get_absolute_url()))
    assert "Roll back to v1" in page
    assert "25.0\xa0% (threshold set 1)" in page
    assert "Roll back" not in text(client.get(replaced[0].get_absolute_url()))
    data = {"rollback-reason": "false alarms", "rollback-epoch": 3}
    page = text(post(client, "registry:version-rollback", replaced[1], **data))
    assert "chest v2 is out of service; what was in service before answers again." in page
    assert in_service(chest) == (1, 4)


def test_a_rollback_over_the_api_and_by_command(chest, replaced, alice, client):
    client.force_login(alice)
    answer = post(client, "api:version-rollback", replaced[1], reason="false alarms", epoch=3).json()
    assert (answer["active"], answer["threshold_set"]) == (replaced[0].pk, 1)
    out = StringIO()
    call_command("rollback", "chest", reason="forward again", json=True, stdout=out)
    assert json.loads(out.getvalue()) == {
        "condition": "chest",
        "active": 2,
        "previous": 1,
        "threshold": 0.6,
        "threshold_set": None,
    }


def test_two_rollbacks_at_once_do_not_undo_each_other(chest, replaced, alice, carol, client):
    replaced[1].roll_back(by=carol, reason="false alarms", seen_epoch=3)
    client.force_login(alice)
    answer = post(client, "api:version-rollback", replaced[1], reason="false alarms", epoch=3)
    assert answer.status_code == 409
    assert "carol put chest v1 in service" in answer.json()["detail"]
    assert in_service(chest) == (1, 4)


def test_there_is_no_way_back_from_the_first_version(chest, served, alice):
    with pytest.raises(ActivationError, match="Nothing was in service for Chest before"):
        served[0].roll_back(by=alice, reason="x")
    with pytest.raises(ActivationError, match="chest v2 is not in service"):
        served[1].roll_back(by=alice, reason="x")
    with pytest.raises(CommandError, match="Nothing is in service for 'knee'"):
        call_command("rollback", "knee", reason="x")
    refused = AuditEntry.objects.filter(action="version.rollback", outcome="refused").order_by("pk")
    assert [(entry.actor, entry.object_label) for entry in refused] == [(alice, "chest v1"), (alice, "chest v2")]


def test_a_rollback_to_a_damaged_version_is_refused(chest, replaced, alice):
    (replaced[0].folder / "weights.safetensors").unlink()
    with pytest.raises(ActivationError, match="is missing"):
        replaced[1].roll_back(by=alice, reason="x")
    assert in_service(chest) == (2, 3)
    assert AuditEntry.objects.filter(action="version.rollback", outcome="refused").count() == 1
