"""Who is told of new versions and of what goes into service: on the page, and by e-mail."""

import pytest
from django.core import mail

from tests.factories import ConditionFactory, UserFactory
from tests.inference.versions import make_version
from tests.mails import send_waiting_mails
from xrayplatform.notifications import Notification


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def carol(team):
    user = UserFactory(username="carol", roles=["model manager"], email="carol@hospital")
    team.members.add(user)
    return user


@pytest.fixture
def dave(team):
    """Trains and may not activate."""
    user = UserFactory(username="dave", roles=["data scientist"])
    team.members.add(user)
    return user


def told(user):
    return list(Notification.objects.of(user).order_by("pk").values_list("text", flat=True))


def test_a_new_version_is_told_to_the_managers_of_the_team_but_not_to_who_made_it(chest, alice, bob, carol, charlie):
    version = make_version(chest, by=alice)
    assert told(carol) == ["New version: chest v1 (Custom_CNN, test AUC 0.950)."]
    assert Notification.objects.get(user=carol).url == version.get_absolute_url()
    assert told(alice) == told(bob) == told(charlie) == []


def test_a_version_of_no_team_is_told_to_every_manager(alice, charlie):
    make_version(ConditionFactory(slug="knee"))
    assert len(told(alice)) == len(told(charlie)) == 1


def test_an_activation_is_told_to_the_other_managers_and_to_who_trained_the_version(chest, alice, carol, dave, bob):
    first, second = make_version(chest, by=dave), make_version(chest, by=dave)
    first.activate(by=alice, reason="first")
    second.activate(by=alice, reason="fewer misses")
    expected = "chest v2 is in service instead of chest v1, by alice: fewer misses"
    assert told(carol)[-1] == told(dave)[-1] == expected
    assert not any("in service" in words for words in told(alice))
    assert told(bob) == []
    second.roll_back(by=carol, reason="false alarms")
    expected = "chest v1 went back into service instead of chest v2, by carol: false alarms"
    assert told(alice)[-1] == told(dave)[-1] == expected


def test_who_trained_a_version_and_left_the_team_is_not_told(chest, team, alice, dave):
    version = make_version(chest, by=dave)
    team.members.remove(dave)
    version.activate(by=alice, reason="first")
    assert told(dave) == []


def test_the_mail_says_why_one_gets_it(chest, alice, carol, settings):
    settings.EMAIL_ON, settings.SITE_URL = True, "https://xray.hospital"
    version = make_version(chest, by=alice)
    send_waiting_mails()
    (message,) = mail.outbox
    assert message.to == ["carol@hospital"]
    assert f"https://xray.hospital{version.get_absolute_url()}" in message.body
    assert "because you may put models in service" in message.body
