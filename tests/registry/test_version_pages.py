"""Model Management: the list and the page of one version. How versions are found is in `test_version_filters`."""

import pytest
from django.urls import reverse

from registry.models import Deployment
from tests.factories import ConditionFactory, ModelVersionFactory, TeamFactory

LIST = "/models/"


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest-pneumonia", name="Chest pneumonia", team=team)


@pytest.fixture
def versions(chest):
    knee = ConditionFactory(slug="knee", name="Knee")
    return {
        "chest": ModelVersionFactory(condition=chest, number=1, dataset_name="CHEST/alpha", sha256="a" * 64),
        "knee": ModelVersionFactory(
            condition=knee, number=1, architecture="ResNet50", metrics={"auc": 0.7, "accuracy": 0.6}, sha256="b" * 64
        ),
        "old": ModelVersionFactory(condition=chest, number=2, state="archived", sha256="c" * 64),
    }


def test_versions_of_another_team_are_not_listed_nor_offered_as_a_filter(client, charlie, versions):
    client.force_login(charlie)
    page = client.get(LIST).content.decode()
    assert "Knee v1" in page
    assert "Chest pneumonia" not in page
    answer = client.get(reverse("api:version-list")).json()
    assert [row["condition"] for row in answer["results"]] == ["knee"]


def test_a_user_in_two_teams_sees_a_version_once(client, bob, versions):
    TeamFactory().members.add(bob)
    client.force_login(bob)
    assert len(client.get(LIST, {"state": "all"}).context["page"].object_list) == 3


def test_the_version_in_service_is_marked_on_the_page_and_in_the_api(client, bob, versions):
    Deployment.objects.create(condition=versions["chest"].condition, active=versions["chest"], epoch=1)
    client.force_login(bob)
    assert client.get(LIST).content.decode().count("badge badge-service") == 1
    answer = client.get(reverse("api:version-list")).json()
    assert [row["id"] for row in answer["results"] if row["is_active"]] == [versions["chest"].pk]


def test_htmx_gets_the_table_alone(client, bob, versions):
    client.force_login(bob)
    fragment = client.get(LIST, {"q": "knee"}, headers={"HX-Request": "true"}).content.decode()
    assert "Knee v1" in fragment
    assert "<html" not in fragment


def test_many_versions_come_in_pages_that_keep_the_filter(client, bob, chest):
    for number in range(1, 28):
        ModelVersionFactory(condition=chest, number=number)
    client.force_login(bob)
    page = client.get(LIST, {"q": "pneumonia"})
    assert len(page.context["page"].object_list) == 25
    assert "?q=pneumonia&amp;page=2" in page.content.decode()
    assert len(client.get(LIST, {"q": "pneumonia", "page": 2}).context["page"].object_list) == 2


def test_an_empty_page_says_what_to_do_next(client, bob):
    client.force_login(bob)
    assert "No version yet. Each successful training makes one" in client.get(LIST).content.decode()
    assert "No version fits. Clear the filter" in client.get(LIST, {"q": "x"}).content.decode()


def test_the_page_of_a_version_shows_figures_matrix_and_origin(client, bob, versions):
    client.force_login(bob)
    page = client.get(versions["chest"].get_absolute_url()).content.decode()
    for text in ("Chest pneumonia v1", "0.950", "90.0", "Called PNEUMONIA", "CHEST/alpha", "a" * 64, "made in a test"):
        assert text in page


def test_warnings_and_synthetic_origin_are_shown(client, bob, chest):
    version = ModelVersionFactory(
        condition=chest, synthetic=True, metrics={"warnings": ["The model did not learn."], "classes": []}
    )
    client.force_login(bob)
    page = client.get(version.get_absolute_url()).content.decode()
    assert "The model did not learn." in page
    assert "Trained on synthetic sample images" in page


def test_only_who_may_activate_sees_the_button(client, alice, bob, versions):
    url = reverse("registry:version-activate", args=[versions["chest"].pk])
    for user, sees in ((alice, True), (bob, False)):
        client.force_login(user)
        assert (f'action="{url}"' in client.get(versions["chest"].get_absolute_url()).content.decode()) == sees


def test_an_archived_version_offers_no_activation(client, alice, versions):
    client.force_login(alice)
    page = client.get(versions["old"].get_absolute_url()).content.decode()
    assert "It is archived and cannot be put in service." in page
    assert "/activate/" not in page
