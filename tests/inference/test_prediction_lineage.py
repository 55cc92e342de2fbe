"""From an answer back to the images: its page tells the way, and the history can be narrowed to one version."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from registry.lineage import activation_at
from registry.models import Activation
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    ModelVersionFactory,
    PredictionFactory,
    PreparationFactory,
    TrainingRunFactory,
    UserFactory,
)
from xrayplatform.audit import AuditEntry

LIST = "/analysis/history/"


def trained(condition, number, dataset_name, **fields):
    dataset = DatasetFactory(name=dataset_name, condition=condition)
    preparation = PreparationFactory(dataset=dataset, dataset_digest=f"{number:064d}")
    version = ModelVersionFactory(condition=condition, number=number, **fields)
    TrainingRunFactory(preparation=preparation, version=version, state="succeeded")
    return version


@pytest.fixture
def version(team):
    chest = ConditionFactory(slug="chest", team=team)
    return trained(chest, 2, "CHEST/beta", parent=trained(chest, 1, "CHEST/alpha"))


@pytest.fixture
def prediction(version, alice):
    Activation.objects.create(condition=version.condition, to_version=version, by=alice, reason="fewer misses")
    return PredictionFactory(version=version)


def test_the_page_of_an_answer_leads_back_to_version_run_preparation_dataset_and_parents(client, bob, prediction):
    client.force_login(bob)
    content = client.get(prediction.get_absolute_url()).content.decode()
    run = prediction.version.run
    way = [
        "CHEST/alpha",
        "CHEST/beta",
        f"Preparation {run.preparation_id}",
        f"Run {run.pk}:",
        "chest v2",
        "fewer misses",
    ]
    start = content.index("Where this answer comes from")
    places = [content.index(word, start) for word in [*way, "This answer"]]
    assert places == sorted(places)
    assert f'title="{2:064d}"' in content
    assert reverse("registry:version-lineage", args=[prediction.version_id]) in content
    assert AuditEntry.objects.filter(action="prediction.view").count() == 1


def test_the_activation_shown_is_the_one_of_that_time(version, alice):
    early = Activation.objects.create(condition=version.condition, to_version=version, by=alice, reason="first")
    between = early.at + timedelta(microseconds=1)
    Activation.objects.create(condition=version.condition, to_version=version, from_version=version, reason="later")
    assert activation_at(version, between, alice).facts["Reason"] == "first"
    assert activation_at(version, timezone.now(), alice).facts["Reason"] == "later"
    assert activation_at(version, early.at - timedelta(days=1), alice) is None


def test_who_may_not_see_versions_sees_the_answer_alone(client, team, prediction):
    user = UserFactory()
    team.members.add(user)
    user.user_permissions.add(Permission.objects.get(codename="view_prediction"))
    client.force_login(user)
    response = client.get(prediction.get_absolute_url())
    assert response.status_code == 200
    assert "CHEST/alpha" not in response.content.decode()


def test_the_page_of_an_answer_needs_no_more_queries_for_a_longer_line(client, bob, prediction):
    client.force_login(bob)

    def queries(answer):
        with CaptureQueriesContext(connection) as captured:
            assert client.get(answer.get_absolute_url()).status_code == 200
        return len(captured)

    # Another answer about the same picture, as the one below will have.
    PredictionFactory(version=prediction.version)
    queries(prediction)
    few = queries(prediction)
    latest = prediction.version
    for number in range(3, 12):
        latest = trained(latest.condition, number, f"CHEST/{number}", parent=latest)
    Activation.objects.create(condition=latest.condition, to_version=latest, reason="agreed")
    assert queries(PredictionFactory(version=latest)) == few


def test_the_history_can_be_that_of_one_version(client, bob, prediction):
    PredictionFactory(version=ModelVersionFactory(condition=prediction.version.condition, number=9))
    client.force_login(bob)
    response = client.get(LIST, {"version": prediction.version_id})
    assert [row.pk for row in response.context["page"]] == [prediction.pk]
    assert AuditEntry.objects.get(action="prediction.list").after == {"page": 1, "version": "chest v2"}
    assert len(client.get(LIST).context["page"].object_list) == 2


@pytest.mark.parametrize("asked", ["abc", "-1", "99999999999999999999", "0"])
def test_the_history_of_no_version_says_so(client, bob, prediction, asked):
    client.force_login(bob)
    response = client.get(LIST, {"version": asked})
    assert "version" in response.context["form"].errors


def test_the_history_of_another_teams_version_is_that_of_no_version(client, charlie, prediction):
    client.force_login(charlie)
    response = client.get(LIST, {"version": prediction.version_id})
    assert "version" in response.context["form"].errors
    assert not response.context["page"].object_list
