"""The lineage of a version: back to the images and people, on to the answers, and never what another team keeps."""

import json
from io import StringIO

import pytest
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from registry.models import Activation
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    EvaluationRunFactory,
    ModelVersionFactory,
    PackageImportFactory,
    PredictionFactory,
    PreparationFactory,
    ReceivedPackageFactory,
    TrainingRunFactory,
    UserFactory,
)
from tests.registry.evaluations import make_evaluation

DATA = {
    "title": "Data",
    "paragraphs": [],
    "facts": [["Digest of the dataset", "e" * 64]],
    "tables": [{"caption": "", "header": ["Part", "NORMAL", "Patients"], "rows": [["Test", "5", "7"]]}],
}


def trained(condition, number, dataset_name, by=None, **fields):
    """A version with the run, the preparation and the dataset that it came from."""
    dataset = DatasetFactory(name=dataset_name, condition=condition, digest=f"{number:064d}")
    preparation = PreparationFactory(
        dataset=dataset, dataset_digest=dataset.digest, split_digest=f"{number:063d}s", created_by=by
    )
    version = ModelVersionFactory(
        condition=condition, number=number, dataset_name=dataset_name, dataset_digest=dataset.digest, **fields
    )
    TrainingRunFactory(preparation=preparation, version=version, created_by=by, state="succeeded", epoch=5)
    return version


def activate(version, before=None, by=None, reason="agreed"):
    return Activation.objects.create(
        condition=version.condition, from_version=before, to_version=version, by=by, reason=reason
    )


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def family(chest, alice):
    """Three generations, each trained on a dataset of its own."""
    first = trained(chest, 1, "CHEST/alpha", alice, created_by=alice)
    second = trained(chest, 2, "CHEST/beta", alice, parent=first)
    third = trained(chest, 3, "CHEST/gamma", alice, parent=second)
    return [first, second, third]


@pytest.fixture
def told(client):
    """What the API tells a user of a version."""

    def ask(user, version):
        client.force_login(user)
        answer = client.get(reverse("api:version-lineage", args=[version.pk]))
        assert answer.status_code == 200
        return answer.json()

    return ask


@pytest.fixture
def page(client):
    def ask(user, version):
        client.force_login(user)
        return client.get(reverse("registry:version-lineage", args=[version.pk])).content.decode()

    return ask


def labels(steps):
    return [step["label"] for step in steps]


def kinds(steps):
    return [step["kind"] for step in steps]


def test_a_version_leads_back_to_dataset_preparation_and_run_with_digests_and_people(told, bob, family):
    back = told(bob, family[0])["upstream"]
    assert kinds(back) == ["dataset", "preparation", "run"]
    dataset, preparation, run = back
    assert (dataset["label"], dataset["digest"]) == ("CHEST/alpha", f"{1:064d}")
    assert (preparation["digest"], preparation["by"]) == (f"{1:063d}s", "alice")
    assert preparation["facts"]["Images"] == "train 10, validation 10, test 10"
    assert (run["id"], run["by"], run["facts"]["Epochs"]) == (family[0].run.pk, "alice", "5 of 5")


def test_the_ancestors_come_with_their_own_datasets_the_earliest_first(told, bob, family):
    ancestors = told(bob, family[2])["ancestors"]
    assert [one["version"]["label"] for one in ancestors] == ["chest v1", "chest v2"]
    assert [one["upstream"][0]["label"] for one in ancestors] == ["CHEST/alpha", "CHEST/beta"]


def test_all_later_versions_are_descendants_also_those_of_other_conditions(told, bob, family, team):
    elsewhere = ModelVersionFactory(condition=ConditionFactory(slug="lung", team=team), number=1, parent=family[2])
    ModelVersionFactory(condition=family[0].condition, number=9)
    descendants = told(bob, family[0])["descendants"]
    assert [(one["version"]["label"], one["through"]) for one in descendants] == [
        (str(elsewhere), "started from chest v3"),
        ("chest v3", "started from chest v2"),
        ("chest v2", "started from chest v1"),
    ]


def test_evaluations_activations_and_the_number_of_predictions_came_of_it(told, bob, alice, family):
    first, second, _ = family
    evaluation = make_evaluation(first, patients=10, by=alice)
    before = activate(first, by=alice, reason="fewer misses")
    after = activate(second, first, by=alice)
    answers = [PredictionFactory(version=first) for _ in range(3)]
    PredictionFactory(version=second)
    came = {step["kind"]: step for step in told(bob, first)["downstream"]}
    assert came["evaluation"]["url"] == evaluation.get_absolute_url()
    assert came["activation"]["when"] == before.at.isoformat()
    assert came["activation"]["facts"]["Until"] == f"{after.at:%Y-%m-%d %H:%M} UTC"
    assert came["activation"]["facts"]["Reason"] == "fewer misses"
    assert (came["predictions"]["count"], came["predictions"]["label"]) == (3, "3 predictions")
    assert came["predictions"]["when"] == answers[-1].created_at.isoformat()
    (now,) = [step for step in told(bob, second)["downstream"] if step["kind"] == "activation"]
    assert (now["facts"]["Until"], now["facts"]["Instead of"]) == ("now", "chest v1")


def test_another_threshold_of_the_version_in_service_is_an_activation_of_its_own(told, bob, family):
    activate(family[0])
    activate(family[0], family[0], reason="too many alarms")
    came = [step for step in told(bob, family[0])["downstream"] if step["kind"] == "activation"]
    assert labels(came) == ["Given another threshold", "Put in service"]


def test_an_evaluation_under_way_is_told_until_it_has_ended(told, bob, family):
    run = EvaluationRunFactory(version=family[0], dataset=family[0].run.preparation.dataset, state="running")
    assert kinds(told(bob, family[0])["downstream"]) == ["evaluation-run"]
    type(run).objects.filter(pk=run.pk).update(state="failed")
    assert told(bob, family[0])["downstream"] == []


def test_an_imported_version_leads_back_to_what_its_origin_told(told, bob, chest):
    version = ModelVersionFactory(condition=chest, number=1, dataset_name="not told by St. Example", split_digest="")
    package = ReceivedPackageFactory()
    package.description["lineage"] = {"version": "a" * 64, "parent": "b" * 64, "dataset": "c" * 64}
    package.save()
    PackageImportFactory(condition=chest, package=package, version=version, documents={"card": {"sections": [DATA]}})
    dataset, came_as = told(bob, version)["upstream"]
    assert (dataset["label"], dataset["digest"]) == ("not told by St. Example", "d" * 64)
    assert came_as["facts"] == {
        "Site": "St. Example",
        "Number there": "3",
        "Digest of the version there": "a" * 64,
        "Digest of the version that it started from there": "b" * 64,
        "Data, as its card tells": f"Digest of the dataset: {'e' * 64}; Test: NORMAL 5, Patients 7",
    }


def test_of_an_ancestor_of_another_team_it_is_only_said_that_there_is_one(told, page, charlie, chest):
    """The version before it is not skipped in silence, and what lies before that one is shown again."""
    everybody = ConditionFactory(slug="open")
    known = ModelVersionFactory(condition=everybody, number=1)
    secret = trained(chest, 71, "CHEST/secret", parent=known)
    secret = trained(chest, 72, "CHEST/secret too", parent=secret)
    version = ModelVersionFactory(condition=everybody, number=2, parent=secret)
    ancestors = told(charlie, version)["ancestors"]
    assert [one["version"]["label"] for one in ancestors] == [
        "open v1",
        "A version that is not shown: you may not see it",
    ]
    hidden = ancestors[1]
    assert (hidden["version"]["id"], hidden["version"]["digest"], hidden["upstream"]) == (None, "", [])
    content = json.dumps(told(charlie, version)) + page(charlie, version)
    for word in ("chest", "v71", "v72", "secret", secret.sha256, secret.run.get_absolute_url()):
        assert word not in content
    assert told(charlie, known)["descendants"][0]["through"] == "started from a version that is not shown"


def test_a_dataset_that_moved_to_another_team_keeps_its_name_and_number_to_itself(told, page, charlie, chest):
    version = trained(ConditionFactory(slug="open"), 1, "CHEST/secret")
    dataset = version.run.preparation.dataset
    assert labels(told(charlie, version)["upstream"])[0] == "CHEST/secret"
    dataset.condition = chest
    dataset.save()
    assert labels(told(charlie, version)["upstream"]) == ["A dataset that is not shown: you may not see it"]
    content = json.dumps(told(charlie, version)) + page(charlie, version)
    for word in ("CHEST/secret", dataset.digest, dataset.get_absolute_url(), version.run.get_absolute_url()):
        assert word not in content


def test_nothing_tells_that_versions_of_another_team_go_back_to_it(told, page, charlie, chest):
    version = ModelVersionFactory(condition=ConditionFactory(slug="open"), number=1)
    before, seen = told(charlie, version), page(charlie, version)
    ModelVersionFactory(condition=chest, number=1, parent=version)
    assert told(charlie, version) == before
    assert page(charlie, version).split("<main")[1] == seen.split("<main")[1]


def test_who_may_only_see_versions_learns_of_nothing_else(told, family, team):
    make_evaluation(family[0], patients=10)
    activate(family[0])
    PredictionFactory(version=family[0])
    user = UserFactory()
    team.members.add(user)
    user.user_permissions.add(Permission.objects.get(codename="view_modelversion"))
    lineage = told(user, family[0])
    assert lineage["downstream"] == []
    assert labels(lineage["upstream"]) == ["A dataset that is not shown: you may not see it"]


def test_the_page_is_an_ordered_way_with_the_version_marked_and_whole_digests_at_hand(page, bob, family):
    content = page(bob, family[2])
    links = [family[0].get_absolute_url(), family[1].get_absolute_url()]
    way = ("CHEST/alpha", f'"{links[0]}">chest v1', "CHEST/beta", f'"{links[1]}">chest v2', "CHEST/gamma")
    places = [content.index(word) for word in way]
    assert places == sorted(places)
    assert content.count('aria-current="true"><span class="lineage-kind">This version') == 1
    assert f'title="{family[0].sha256}">{family[0].sha256[:12]}…' in content
    assert family[2].sha256 + "</code>" in content


def test_the_page_of_a_version_links_to_its_lineage(client, bob, family):
    client.force_login(bob)
    content = client.get(family[0].get_absolute_url()).content.decode()
    assert reverse("registry:version-lineage", args=[family[0].pk]) in content


def test_names_are_escaped(page, bob, chest):
    hostile = "<script>alert(1)</script>"
    version = trained(chest, 1, f"CHEST/{hostile}")
    activate(version, reason=hostile)
    assert hostile not in page(bob, version)


@pytest.mark.parametrize("name", ["registry:version-lineage", "api:version-lineage"])
def test_the_number_of_queries_does_not_grow_with_generations_children_or_what_came_of_it(
    client, bob, alice, chest, family, name
):
    client.force_login(bob)

    def queries(version):
        with CaptureQueriesContext(connection) as captured:
            assert client.get(reverse(name, args=[version.pk])).status_code == 200
        return len(captured)

    def live(version, times):
        for seed in range(times):
            make_evaluation(version, patients=10, seed=seed, by=alice)
            activate(version, family[0], by=alice)
            PredictionFactory(version=version)
            ModelVersionFactory(condition=chest, number=100 * version.number + seed, parent=version, created_by=bob)

    live(family[1], 1)
    queries(family[1])
    few = queries(family[1])
    earlier = family[2]
    for number in range(10, 18):
        earlier = trained(chest, number, f"CHEST/{number}", alice, parent=earlier, created_by=bob)
    live(earlier, 9)
    assert queries(earlier) == few


def lineage(*arguments):
    out = StringIO()
    call_command("lineage", *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_the_command_tells_what_the_api_tells(told, bob, family):
    PredictionFactory(version=family[1])
    activate(family[1])
    assert lineage("chest", "2", "--user", "bob") == told(bob, family[1])


def test_the_command_line_itself_sees_every_team(family):
    assert [one["version"]["label"] for one in lineage("chest", "3")["ancestors"]] == ["chest v1", "chest v2"]


def test_the_command_writes_a_line_for_each_step(family):
    PredictionFactory(version=family[1])
    out = StringIO()
    call_command("lineage", "chest", "2", stdout=out)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith(f"  dataset: CHEST/alpha, {1:064d}")
    assert any(line.startswith("  predictions: 1 prediction,") for line in lines)
    assert lines[-1].startswith("  version: chest v3, ")
    assert lines[-1].endswith(", started from chest v2")


@pytest.mark.parametrize("arguments", [[], ["chest"], ["chest", "1", "--dataset", "CHEST/alpha"]])
def test_the_command_says_what_to_name(family, arguments):
    with pytest.raises(CommandError, match="Name a condition with the number of a version, or a dataset"):
        call_command("lineage", *arguments)


def test_the_command_does_not_know_versions_of_another_team(family, charlie):
    with pytest.raises(CommandError, match="There is no version 1 of 'chest'"):
        call_command("lineage", "chest", "1", "--user", "charlie")


def test_a_version_from_nowhere_and_without_consequences_has_a_page(page, bob, chest):
    version = ModelVersionFactory(condition=chest, number=1)
    assert "Nothing yet" in page(bob, version)
