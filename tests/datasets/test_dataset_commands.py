"""The dataset commands: what they print, whom they obey, and that --user is no way around a team."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command, load_command_class

from datasets.models import Preparation, Scan
from tests.datasets.files import save
from tests.factories import ConditionFactory, DatasetFactory, PreparationFactory, TeamFactory
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db
# With what each needs beside the name of a dataset, and the right that a user named by --user must have.
OF_A_DATASET = {
    "curate_dataset": (["--grades=no"], "datasets.curate_dataset"),
    "quality_report": ([], "datasets.view_finding"),
    "compare_dataset": ([], "datasets.view_preparation"),
    "prepare_dataset": ([], "datasets.prepare_dataset"),
}


@pytest.fixture
def dataset(team):
    return DatasetFactory(name="CHEST/lungs", condition=ConditionFactory(slug="lungs", team=team))


def run(name, *arguments, **options):
    """The JSON object of a command, which must end with status 0."""
    out = StringIO()
    call_command(name, *arguments, json=True, stdout=out, stderr=StringIO(), **options)
    assert out.getvalue().count("\n") == 1
    return json.loads(out.getvalue())


def fails(name, *arguments, **options):
    """What a command says that must end with status 1."""
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        call_command(name, *arguments, json=True, stdout=out, stderr=StringIO(), **options)
    assert end.value.code == 1
    return json.loads(out.getvalue())["error"]


@pytest.mark.parametrize("name", OF_A_DATASET)
def test_a_dataset_of_another_team_does_not_exist_for_a_user(name, dataset, charlie):
    extra, _ = OF_A_DATASET[name]
    error = fails(name, dataset.name, *extra, user="charlie")
    assert "There is no dataset 'CHEST/lungs'. Known datasets: none." in error
    assert not Preparation.objects.exists()


@pytest.mark.parametrize("name", OF_A_DATASET)
def test_a_name_that_is_not_known_is_answered_with_those_the_user_may_know(name, dataset, alice):
    DatasetFactory(name="KNEE/theirs", condition=ConditionFactory(team=TeamFactory()))
    extra, _ = OF_A_DATASET[name]
    error = fails(name, "CHEST/none", *extra, user="alice")
    assert "Known datasets: CHEST/lungs." in error
    assert "KNEE/theirs" in fails(name, "CHEST/none", *extra)


@pytest.mark.parametrize("name", [*OF_A_DATASET, "scan_dataset", "prune_pixels"])
def test_each_command_names_the_right_it_needs_and_refuses_who_lacks_it(name, dataset, administrator):
    administrator.groups.clear()
    extra, right = OF_A_DATASET.get(name, ([], load_command_class("datasets", name).permission))
    assert load_command_class("datasets", name).permission == right != ""
    arguments = [dataset.name, *extra] if name in OF_A_DATASET else []
    assert right in fails(name, *arguments, user="ada")


@pytest.mark.parametrize("name", [*OF_A_DATASET, "scan_dataset", "prune_pixels"])
def test_an_unknown_or_inactive_user_is_refused(name, dataset, alice):
    alice.is_active = False
    alice.save()
    extra, _ = OF_A_DATASET.get(name, ([], ""))
    arguments = [dataset.name, *extra] if name in OF_A_DATASET else []
    for user in ("alice", "nobody"):
        assert f"There is no active user {user}." in fails(name, *arguments, user=user)


def test_a_scan_tells_a_user_only_of_datasets_that_he_sees(settings, alice, charlie):
    for label in ("a", "b"):
        save(settings.DATASET_ROOT / "CHEST/lungs" / label / "1.png", seed=ord(label))
    run("scan_dataset")
    condition = ConditionFactory(team=alice.teams.get())
    condition.datasets.set([])
    dataset = DatasetFactory._meta.model.objects.get()
    dataset.condition = condition
    dataset.save()
    assert run("scan_dataset", user="charlie")["datasets"] == []
    assert [row["name"] for row in run("scan_dataset", user="alice")["datasets"]] == ["CHEST/lungs"]
    assert [scan.created_by for scan in Scan.objects.all()] == [alice, charlie, None]


def test_quality_report_needs_the_right_to_curate_for_a_judgement(dataset, bob):
    error = fails("quality_report", dataset.name, exclude="NORMAL/0.png", reason="because", user="bob")
    assert "datasets.curate_dataset" in error


def test_only_one_judgement_at_a_time(dataset):
    with pytest.raises(CommandError, match="not allowed with"):
        call_command("quality_report", dataset.name, "--exclude=a", "--keep=b")


@pytest.mark.parametrize("name", ["curate_dataset", "quality_report", "compare_dataset"])
def test_without_json_a_person_reads_words(name, dataset):
    out = StringIO()
    extra, _ = OF_A_DATASET[name]
    call_command(name, dataset.name, *extra, stdout=out)
    assert out.getvalue().startswith("CHEST/lungs")
    assert "{" not in out.getvalue()


# -- Space


@pytest.fixture
def with_pixels(dataset):
    """Two preparations with files; the second is the newest."""
    made = [PreparationFactory(dataset=dataset, cache_bytes=1000) for _ in range(2)]
    for preparation in made:
        preparation.cache_folder.mkdir(parents=True)
        (preparation.cache_folder / "cache.json").write_bytes(b"x" * 1000)
    return made


def test_old_pixels_are_removed_but_not_the_newest(with_pixels, alice):
    old, newest = with_pixels
    answer = run("prune_pixels", days=0, user="alice")
    assert (answer["preparations"], answer["bytes"]) == (1, 1000)
    assert not old.cache_folder.exists() and newest.cache_folder.exists()
    old.refresh_from_db()
    assert old.removed_at and AuditEntry.objects.get(action="preparation.remove_pixels").actor == alice
    assert AuditEntry.objects.get(action="storage.prune").after == {"preparations": 1, "bytes": 1000, "days": 0}


def test_what_is_younger_stays(with_pixels):
    assert run("prune_pixels", days=30)["preparations"] == 0
    assert run("prune_pixels", days=10**9)["preparations"] == 0


def test_one_preparation_is_removed_whatever_its_age(with_pixels):
    newest = with_pixels[1]
    assert run("prune_pixels", preparation=newest.pk)["bytes"] == 1000
    assert not newest.cache_folder.exists()
    assert "has no decoded pixels" in fails("prune_pixels", preparation=newest.pk)


def test_another_teams_preparation_is_neither_removed_nor_named(with_pixels, charlie):
    assert run("prune_pixels", days=0, user="charlie")["preparations"] == 0
    assert fails("prune_pixels", preparation=with_pixels[0].pk, user="charlie").startswith("There is no preparation")
    assert all(preparation.cache_folder.exists() for preparation in with_pixels)


@pytest.mark.parametrize("days", ["-1", "-99999999999"])
def test_a_negative_age_is_refused(days, with_pixels):
    assert "0 or more" in fails("prune_pixels", f"--days={days}")
