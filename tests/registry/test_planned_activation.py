"""An activation that waits for its time: decided now, verified again then, undone by whatever happens in between."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ

from registry import tasks
from registry.models import ActivationError, Deployment, ModelVersion, ScheduledActivation, ThresholdSet
from tests.factories import ConditionFactory
from tests.inference.versions import make_version
from xrayplatform.audit import AuditEntry
from xrayplatform.notifications import Notification

SOON = timedelta(hours=2)


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def versions(chest, alice):
    versions = [make_version(chest, threshold=threshold) for threshold in (0.4, 0.6, 0.7)]
    versions[0].activate(by=alice, reason="first")
    return versions


@pytest.fixture
def planned(versions, alice):
    return plan(versions[1], alice)


def plan(version, user, **options):
    return ScheduledActivation.objects.plan(
        version, timezone.now() + SOON, by=user, reason="after the audit", **options
    )


def messages():
    waiting = OrmQ.objects.order_by("pk")
    return [message for message in waiting if message.task["func"] == "registry.tasks.activate_planned"]


def work():
    """A worker of the queue, as far as it activates what was planned."""
    for message in messages():
        tasks.activate_planned(*message.task["args"])
        message.delete()


def is_due(*planned):
    numbers = [one.pk for one in planned]
    ScheduledActivation.objects.filter(pk__in=numbers).update(at=timezone.now() - timedelta(seconds=1))


def run_later(planned):
    """The minute task and a worker, when the time has come."""
    is_due(planned)
    tasks.every_minute()
    work()
    planned.refresh_from_db()
    return planned


def in_service(condition):
    return Deployment.objects.get(condition=condition).active.number


def test_before_its_time_nothing_happens(chest, planned):
    tasks.every_minute()
    tasks.activate_planned(planned.pk)
    planned.refresh_from_db()
    assert (in_service(chest), planned.state) == (1, "waiting")


def test_at_its_time_the_version_goes_into_service(chest, planned, alice):
    assert run_later(planned).state == "done"
    assert in_service(chest) == 2
    activation = chest.activations.first()
    assert (activation.by, activation.reason) == (alice, "after the audit")
    tasks.every_minute()
    work()
    assert chest.activations.count() == 2


def test_it_goes_into_service_at_the_threshold_set_that_was_chosen(chest, versions, alice):
    point = ThresholdSet.objects.add(versions[1], 0.25, by=alice, reason="fewer misses", criterion="by hand")
    run_later(plan(versions[1], alice, threshold_set=point))
    assert Deployment.objects.get(condition=chest).threshold == 0.25


def failing(planned, words):
    run_later(planned)
    assert planned.state == "failed"
    assert words in planned.message
    told = Notification.objects.filter(user=planned.by).first().text
    assert "The planned activation of chest v2 did not happen" in told
    assert AuditEntry.objects.filter(action="version.schedule", outcome="failed").count() == 1
    return True


def test_its_files_are_verified_again_at_that_time(chest, planned):
    (planned.version.folder / "weights.safetensors").unlink()
    assert failing(planned, "is missing")
    assert in_service(chest) == 1


def test_what_somebody_put_in_service_meanwhile_stays(chest, versions, planned, alice):
    versions[2].activate(by=alice, reason="urgent")
    assert failing(planned, "put chest v3 in service")
    assert in_service(chest) == 3


def test_who_lost_the_role_meanwhile_activates_nothing(chest, planned, alice):
    alice.groups.clear()
    assert failing(planned, "may not activate any more")
    assert in_service(chest) == 1


def test_who_left_the_team_is_not_told_what_its_versions_do(team, planned, alice):
    team.members.remove(alice)
    Notification.objects.filter(user=alice).delete()
    assert run_later(planned).state == "failed"
    assert not Notification.objects.filter(user=alice).exists()


def test_many_that_are_due_at_once_each_get_a_message_and_nothing_is_verified_in_the_minute_task(
    team, alice, monkeypatch
):
    several = [make_version(ConditionFactory(slug=f"c{number}", team=team)) for number in range(5)]
    planned = [plan(version, alice) for version in several]
    is_due(*planned)
    with monkeypatch.context() as patch:
        patch.setattr(ModelVersion, "verify", lambda *args, **kwargs: 1 / 0)
        tasks.every_minute()
    assert [message.task["args"] for message in messages()] == [(one.pk,) for one in planned]
    work()
    assert Deployment.objects.count() == 5


def test_two_messages_about_one_do_not_do_it_twice(chest, planned, monkeypatch):
    is_due(planned)
    ran = []

    def meanwhile(*versions):
        tasks.every_minute()
        tasks.activate_planned(planned.pk)
        ran.append(len(messages()))

    monkeypatch.setattr("registry.models.version.backups.keep_both", meanwhile)
    tasks.activate_planned(planned.pk)
    planned.refresh_from_db()
    assert (ran, planned.state, in_service(chest)) == ([0], "done", 2)
    assert not AuditEntry.objects.filter(outcome="refused").exists()


def test_one_whose_worker_died_is_tried_again(chest, planned, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*versions):
        raise Killed

    is_due(planned)
    with monkeypatch.context() as patch:
        patch.setattr("registry.models.version.backups.keep_both", die)
        with pytest.raises(Killed):
            tasks.activate_planned(planned.pk)
    tasks.every_minute()
    assert messages() == []
    ScheduledActivation.objects.update(claimed_until=timezone.now() - timedelta(seconds=1))
    assert run_later(planned).state == "done"


def test_one_that_was_cancelled_after_the_list_was_read_is_no_refused_activation(planned, alice):
    (listed,) = ScheduledActivation.objects.waiting()
    planned.cancel(by=alice)
    assert not listed.run()
    assert not AuditEntry.objects.filter(outcome="refused").exists()


def test_the_two_person_rule_counts_at_that_time_as_well(chest, versions, alice, settings):
    planned = plan(make_version(chest, by=alice), alice)
    settings.TWO_PERSON_RULE = True
    run_later(planned)
    assert "started the training" in planned.message
    assert in_service(chest) == 1


def test_an_unexpected_error_ends_it_and_does_not_keep_others_from_theirs(chest, planned, monkeypatch):
    monkeypatch.setattr("registry.models.version.backups.keep_both", lambda *versions: 1 / 0)
    assert failing(planned, "unexpected error")


def test_a_planned_activation_is_cancelled_once(planned, alice):
    planned.cancel(by=alice)
    assert run_later(planned).state == "cancelled"
    with pytest.raises(ActivationError, match="has ended already"):
        planned.cancel(by=alice)
    assert AuditEntry.objects.filter(action="version.unschedule").get().actor == alice


def test_what_cannot_be_activated_cannot_be_planned(versions, alice):
    (versions[1].folder / "weights.safetensors").unlink()
    with pytest.raises(ActivationError, match="is missing"):
        plan(versions[1], alice)
    with pytest.raises(ActivationError, match="lies in the future"):
        ScheduledActivation.objects.plan(versions[2], timezone.now(), by=alice, reason="x")
    with pytest.raises(ActivationError, match="put chest v1 in service"):
        plan(versions[2], alice, seen_epoch=0)


def test_a_plan_that_is_refused_is_audited_like_a_refused_activation(versions, alice):
    (versions[1].folder / "weights.safetensors").unlink()
    with pytest.raises(ActivationError):
        plan(versions[1], alice)
    with pytest.raises(ActivationError):
        plan(versions[2], alice, seen_epoch=0)
    entries = AuditEntry.objects.filter(action="version.schedule", outcome="refused", actor=alice)
    assert [entry.object_id for entry in entries] == [str(version.pk) for version in (versions[2], versions[1])]
    assert "put chest v1 in service" in entries[0].after["reason"]
    assert not ScheduledActivation.objects.exists()


def test_a_condition_has_one_planned_activation_at_a_time(versions, planned, alice):
    with pytest.raises(ActivationError, match=r"chest v2 is to go into service at .* Cancel that first"):
        plan(versions[2], alice)


# -- By page, API and command


def test_it_is_planned_and_cancelled_on_the_page(versions, alice, bob, client):
    client.force_login(alice)
    at = f"{timezone.localtime() + SOON:%Y-%m-%dT%H:%M}"
    url = reverse("registry:version-activate", args=[versions[1].pk])
    page = client.post(url, {"reason": "after the audit", "epoch": 1, "at": at}, follow=True).content.decode()
    assert "chest v2 goes into service at" in page
    planned = ScheduledActivation.objects.get()
    cancel = reverse("registry:scheduled-cancel", args=[planned.pk])
    assert cancel in page
    client.force_login(bob)
    page = client.get(versions[0].get_absolute_url()).content.decode()
    assert "Planned:" in page and cancel not in page
    client.force_login(alice)
    page = client.post(cancel, follow=True).content.decode()
    assert "chest v2 will not go into service by itself." in page


def test_it_is_planned_and_cancelled_over_the_api(versions, alice, charlie, client):
    client.force_login(alice)
    body = {"reason": "after the audit", "epoch": 1, "at": (timezone.now() + SOON).isoformat()}
    answer = client.post(reverse("api:version-schedule", args=[versions[1].pk]), body)
    assert answer.status_code == 201
    assert (answer.json()["state"], answer.json()["by"]) == ("waiting", "alice")
    url = reverse("api:scheduledactivation-detail", args=[answer.json()["id"]])
    assert client.get(url).json()["condition"] == "chest"
    client.force_login(charlie)
    assert client.get(url).status_code == 404
    client.force_login(alice)
    cancel = reverse("api:scheduledactivation-cancel", args=[answer.json()["id"]])
    assert client.post(cancel).json()["state"] == "cancelled"
    assert client.post(cancel).status_code == 409


def test_it_is_planned_and_cancelled_by_command(chest, versions, alice):
    out, at = StringIO(), f"{timezone.localtime() + SOON:%Y-%m-%dT%H:%M}"
    call_command("activate", "chest", "2", reason="x", at=at, json=True, stdout=out)
    number = json.loads(out.getvalue())["planned"]
    out = StringIO()
    call_command("planned", json=True, stdout=out)
    assert [(row["id"], row["version"]) for row in json.loads(out.getvalue())["planned"]] == [(number, 2)]
    out = StringIO()
    call_command("planned", cancel=number, stdout=out)
    assert "No activation is planned." in out.getvalue()
    with pytest.raises(CommandError, match="has ended already"):
        call_command("planned", cancel=number)
    with pytest.raises(CommandError, match="is no time"):
        call_command("activate", "chest", "2", reason="x", at="tomorrow")


def test_another_teams_plans_are_not_theirs_to_cancel(planned, charlie):
    with pytest.raises(CommandError, match="There is no planned activation"):
        call_command("planned", cancel=planned.pk, user=charlie.username)
