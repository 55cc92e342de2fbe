"""A scanner was faulty: which versions learned from its images, were they in service, and how often did they answer?"""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from registry.models import Activation
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    ModelVersionFactory,
    PredictionFactory,
    PreparationFactory,
    TrainingRunFactory,
)
from tests.registry.evaluations import make_evaluation

DIGEST = "5" * 64


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def dataset(chest):
    return DatasetFactory(name="CHEST/scanner 3", condition=chest, digest=DIGEST)


@pytest.fixture
def preparation(dataset, alice):
    return PreparationFactory(dataset=dataset, dataset_digest=DIGEST, split_digest="6" * 64, created_by=alice)


def learn(preparation, number, **fields):
    version = ModelVersionFactory(condition=preparation.dataset.condition, number=number, **fields)
    TrainingRunFactory(preparation=preparation, version=version, state="succeeded")
    return version


@pytest.fixture
def first(preparation):
    return learn(preparation, 1)


@pytest.fixture
def told(client):
    def ask(user, dataset):
        client.force_login(user)
        answer = client.get(f"/api/v1/datasets/{dataset.pk}/lineage/")
        assert answer.status_code == 200
        return answer.json()

    return ask


@pytest.fixture
def page(client):
    def ask(user, dataset, **query):
        client.force_login(user)
        return client.get(reverse("training:dataset-lineage", args=[dataset.pk]), query).content.decode()

    return ask


def found(lineage):
    return {one["version"]["label"]: one["through"] for one in lineage["versions"]}


def test_versions_that_learned_from_it_are_found_also_through_versions_before_them(told, bob, chest, first):
    other = learn(PreparationFactory(dataset=DatasetFactory(condition=chest)), 2, parent=first)
    ModelVersionFactory(condition=ConditionFactory(slug="lung"), number=7, parent=other)
    learn(PreparationFactory(dataset=DatasetFactory(condition=chest)), 3)
    run = first.run
    assert found(told(bob, run.preparation.dataset)) == {
        "lung v7": "started from chest v2",
        "chest v2": "started from chest v1",
        "chest v1": f"trained on it: run {run.pk}, preparation {run.preparation_id}",
    }


def test_a_version_that_started_from_one_of_them_and_learned_from_it_too_is_found_once(told, bob, preparation, first):
    again = learn(preparation, 2, parent=first)
    assert found(told(bob, preparation.dataset))["chest v2"].startswith(f"trained on it: run {again.run.pk}")
    assert len(told(bob, preparation.dataset)["versions"]) == 2


@pytest.mark.parametrize("moment", ["now", "when it was prepared"])
def test_an_imported_version_of_the_same_content_is_found_by_its_digest(told, bob, chest, preparation, moment):
    if moment != "now":
        type(preparation.dataset).objects.filter(pk=preparation.dataset_id).update(digest="7" * 64)
    ModelVersionFactory(condition=chest, number=4, dataset_name="not told", dataset_digest=DIGEST)
    through = {"chest v4": "made elsewhere or of a copy, of images with the same digest"}
    assert found(told(bob, preparation.dataset)) == through


def test_datasets_without_a_digest_do_not_claim_versions_without_one(told, bob, chest):
    ModelVersionFactory(condition=chest, number=4, dataset_digest="")
    assert found(told(bob, DatasetFactory(condition=chest, digest=""))) == {}


def test_activations_evaluations_and_predictions_of_all_of_them_are_told_and_counted(told, bob, chest, first):
    second = ModelVersionFactory(condition=chest, number=2, parent=first)
    for version in (first, second):
        make_evaluation(version, patients=10)
        Activation.objects.create(condition=chest, to_version=version, reason="agreed")
        for _ in range(2):
            PredictionFactory(version=version)
    PredictionFactory(version=ModelVersionFactory(condition=chest, number=9))
    lineage = told(bob, first.run.preparation.dataset)
    assert lineage["totals"] == {"version": 2, "evaluation": 2, "activation": 2, "predictions": 4}
    assert lineage["in_service"] == ["chest v2"]
    assert [step["kind"] for step in lineage["versions"][0]["downstream"]] == [
        "evaluation",
        "activation",
        "predictions",
    ]


def test_evaluations_on_its_images_of_versions_that_did_not_learn_from_it_stand_apart(told, bob, chest, first):
    dataset = first.run.preparation.dataset
    stranger = ModelVersionFactory(condition=chest, number=8, dataset_name=dataset.name)
    make_evaluation(first, patients=10)
    evaluation = make_evaluation(stranger, patients=10)
    (step,) = told(bob, dataset)["measured"]
    assert (step["id"], step["facts"]["Version"]) == (evaluation.pk, "chest v8")


def test_that_the_images_have_changed_since_is_told_with_the_digest_of_then(client, bob, first):
    dataset = first.run.preparation.dataset
    dataset.digest = "8" * 64
    dataset.save()
    client.force_login(bob)
    before = client.get(reverse("api:version-lineage", args=[first.pk])).json()["upstream"][0]
    assert before["digest"] == DIGEST
    assert "has changed since" in before["facts"]["Note"]


def test_versions_of_other_teams_are_neither_named_nor_counted(told, page, charlie, chest):
    dataset = DatasetFactory(name="OPEN/all", condition=ConditionFactory(slug="open"), digest=DIGEST)
    known = learn(PreparationFactory(dataset=dataset, dataset_digest=DIGEST), 1)
    before, seen = told(charlie, dataset), page(charlie, dataset)
    secret = ModelVersionFactory(condition=chest, number=71, parent=known, dataset_name=dataset.name)
    ModelVersionFactory(condition=chest, number=72, dataset_digest=DIGEST)
    make_evaluation(secret, patients=10)
    PredictionFactory(version=secret)
    assert told(charlie, dataset) == before
    assert page(charlie, dataset).split("<main")[1] == seen.split("<main")[1]


def test_what_learned_through_a_version_of_another_team_is_still_found(told, charlie, chest):
    dataset = DatasetFactory(condition=ConditionFactory(slug="open"))
    known = learn(PreparationFactory(dataset=dataset), 1)
    secret = ModelVersionFactory(condition=chest, number=71, parent=known)
    ModelVersionFactory(condition=dataset.condition, number=2, parent=secret)
    assert found(told(charlie, dataset))["open v2"] == "started from a version that is not shown"


def test_the_page_shows_the_way_and_links_to_the_answers_and_to_each_lineage(page, bob, chest, first):
    Activation.objects.create(condition=chest, to_version=first, reason="agreed")
    PredictionFactory(version=first)
    content = page(bob, first.run.preparation.dataset)
    way = [content.index(word) for word in ("This dataset", "Preparations: 1", "Versions: 1")]
    assert way == sorted(way)
    assert DIGEST + "</code>" in content
    assert f'href="{reverse("registry:version-lineage", args=[first.pk])}"' in content
    assert f'href="{reverse("inference:prediction-list")}?version={first.pk}">1 prediction<' in content
    assert "until now, by the command line" in content


def test_many_versions_come_in_pages_and_the_totals_are_of_all(page, bob, preparation):
    for number in range(1, 28):
        learn(preparation, number)
    assert "Versions: 27" in page(bob, preparation.dataset)
    assert "chest v1<" not in page(bob, preparation.dataset)
    assert "chest v1<" in page(bob, preparation.dataset, page=2)


def test_a_dataset_of_which_nothing_came_says_so(page, bob, dataset):
    assert "No version has learned from this dataset." in page(bob, dataset)


def test_the_page_of_the_dataset_links_to_it(client, bob, dataset):
    client.force_login(bob)
    content = client.get(dataset.get_absolute_url()).content.decode()
    assert reverse("training:dataset-lineage", args=[dataset.pk]) in content


@pytest.mark.parametrize("name", ["training:dataset-lineage", "api:traineddataset-lineage"])
def test_the_number_of_queries_does_not_grow_with_what_came_of_it(client, bob, alice, preparation, name):
    client.force_login(bob)

    def queries():
        with CaptureQueriesContext(connection) as captured:
            assert client.get(reverse(name, args=[preparation.dataset_id])).status_code == 200
        return len(captured)

    def live(number):
        version = learn(preparation, number, created_by=alice)
        make_evaluation(version, patients=10, seed=number, by=alice)
        Activation.objects.create(condition=version.condition, to_version=version, by=alice, reason="agreed")
        PredictionFactory(version=version)
        ModelVersionFactory(condition=version.condition, number=100 + number, parent=version, created_by=bob)
        stranger = ModelVersionFactory(condition=version.condition, number=200 + number, dataset_name="CHEST/scanner 3")
        make_evaluation(stranger, patients=10, seed=number)

    live(1)
    queries()
    few = queries()
    for number in range(2, 9):
        live(number)
    assert queries() == few


def command(*arguments):
    out = StringIO()
    call_command("lineage", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_tells_what_the_api_tells(told, bob, first):
    PredictionFactory(version=first)
    answer = json.loads(command("--dataset", "CHEST/scanner 3", "--json", "--user", "bob"))
    assert answer == told(bob, first.run.preparation.dataset)


def test_the_command_sums_up_in_words(first):
    lines = command("--dataset", "CHEST/scanner 3").splitlines()
    assert lines[0] == f"dataset: CHEST/scanner 3, {DIGEST}"
    assert "1 versions learned from it, with 0 activations, 0 evaluations and 0 predictions." in lines
    assert "In service now: none of them" in lines


def test_the_command_does_not_know_datasets_of_another_team(dataset, charlie):
    with pytest.raises(CommandError, match="There is no dataset"):
        command("--dataset", "CHEST/scanner 3", "--user", "charlie")
