"""Two versions of a dataset side by side: what was added, removed, relabelled between preparations, and since then."""

import json
import re
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from datasets.models import Dataset
from datasets.versions import compare_versions, newest_version
from tests.datasets.files import save
from tests.datasets.test_prepare import fill, prepare_again
from tests.datasets.test_scan import scan
from tests.factories import ConditionFactory, DatasetFactory, PreparationFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def changed(settings, team, alice):
    """Two preparations; between them one image came, one went, one went to the other class, one got other pixels."""
    folder = settings.DATASET_ROOT / "CHEST/lungs"
    fill(folder, 12)
    scan()
    dataset = Dataset.objects.get()
    dataset.condition.team = team
    dataset.condition.save()
    first = prepare_again(alice)
    save(folder / "NORMAL/new.png", seed=5000)
    (folder / "NORMAL/0.png").unlink()
    (folder / "NORMAL/1.png").rename(folder / "PNEUMONIA/was normal.png")
    save(folder / "NORMAL/2.png", seed=5001)
    (folder / "NORMAL/3.png").rename(folder / "NORMAL/three.png")
    scan()
    second = prepare_again(alice)
    assert (first.state, second.state) == ("succeeded", "succeeded"), (first.error, second.error)
    return dataset, first, second


COUNTS = {"added": 1, "removed": 1, "relabelled": 1, "renamed": 0, "changed": 1, "moved": 1, "unchanged": 20}


# -- The three ways in


def on_the_page(client, dataset, old, new):
    names = {"from": old, "to": new}
    response = client.get(reverse("datasets:version-compare", args=[dataset.pk]), {k: v for k, v in names.items() if v})
    return response.status_code, response.context["comparison"].to_json() if response.status_code == 200 else None


def over_the_api(client, dataset, old, new):
    names = {"from": old, "to": new}
    response = client.get(reverse("api:dataset-compare", args=[dataset.pk]), {k: v for k, v in names.items() if v})
    return response.status_code, response.json()


def by_command(client, dataset, old, new):
    out = StringIO()
    try:
        call_command(
            "compare_dataset", dataset.name, *[str(name) for name in (old, new) if name], json=True, stdout=out
        )
    except SystemExit:
        assert "has no version" in json.loads(out.getvalue())["error"]
        return 404, None
    answer = json.loads(out.getvalue())
    assert {"name", "from", "to"} <= answer.keys()
    return 200, {name: answer[name] for name in ("counts", "classes", "listed", "more", "renamed")}


every_way = pytest.mark.parametrize("compare", [on_the_page, over_the_api, by_command])


@pytest.fixture(autouse=True)
def logged_in(client, alice):
    client.force_login(alice)


@every_way
def test_between_two_preparations_each_image_is_of_one_kind(compare, client, changed):
    dataset, first, second = changed
    status, told = compare(client, dataset, first.pk, second.pk)
    assert (status, told["counts"]) == (200, COUNTS)
    paths = {kind: [(row["old_path"], row["path"]) for row in rows] for kind, rows in told["listed"].items()}
    assert paths == {
        "added": [("", "NORMAL/new.png")],
        "removed": [("NORMAL/0.png", "")],
        "relabelled": [("NORMAL/1.png", "PNEUMONIA/was normal.png")],
        "changed": [("NORMAL/2.png", "NORMAL/2.png")],
        "moved": [("NORMAL/3.png", "NORMAL/three.png")],
    }
    relabelled = told["listed"]["relabelled"][0]
    assert (relabelled["old_class"], relabelled["class_name"]) == ("NORMAL", "PNEUMONIA")
    assert told["classes"]["PNEUMONIA"] == dict.fromkeys(COUNTS, 0) | {"relabelled": 1, "unchanged": 12}


@every_way
def test_the_other_way_round_what_was_added_is_removed(compare, client, changed):
    dataset, first, second = changed
    _, told = compare(client, dataset, second.pk, first.pk)
    assert told["listed"]["removed"][0]["old_path"] == "NORMAL/new.png"
    assert told["listed"]["added"][0]["path"] == "NORMAL/0.png"


@every_way
def test_without_names_the_newest_preparation_is_compared_with_now(compare, client, changed, alice):
    dataset, _, _ = changed
    assert compare(client, dataset, None, None)[1]["counts"] == dict.fromkeys(COUNTS, 0) | {"unchanged": 24}
    save(dataset.folder / "PNEUMONIA/newer.png", seed=6000)
    scan()
    dataset.images.get(path="NORMAL/5.png").decide("by-hand", "exclude", "cut off", by=alice)
    _, told = compare(client, dataset, None, None)
    assert [row["path"] for row in told["listed"]["added"]] == ["PNEUMONIA/newer.png"]
    assert [row["old_path"] for row in told["listed"]["removed"]] == ["NORMAL/5.png"]


@every_way
def test_a_preparation_whose_pixels_were_removed_can_still_be_compared(compare, client, changed, alice):
    dataset, _, second = changed
    save(dataset.folder / "PNEUMONIA/newer.png", seed=6000)
    scan()
    second.remove_pixels(by=alice)
    assert newest_version(dataset) == str(second.pk)
    assert compare(client, dataset, None, None)[1]["counts"]["added"] == 1


@every_way
def test_a_class_that_the_team_renamed_is_renamed_and_its_images_are_not_relabelled(compare, client, changed, alice):
    dataset, _, second = changed
    dataset.refresh_from_db()
    dataset.choose_classes({"PNEUMONIA": "Pneumonia"}, by=alice)
    (dataset.folder / "NORMAL/5.png").rename(dataset.folder / "PNEUMONIA/five.png")
    scan()
    _, told = compare(client, dataset, second.pk, "now")
    assert told["counts"] == dict.fromkeys(COUNTS, 0) | {"renamed": 13, "relabelled": 1, "unchanged": 10}
    assert told["renamed"] == {"PNEUMONIA": "Pneumonia"}
    assert told["listed"]["relabelled"][0]["class_name"] == "Pneumonia"
    _, back = compare(client, dataset, "now", second.pk)
    assert (back["renamed"], back["counts"]["renamed"]) == ({"Pneumonia": "PNEUMONIA"}, 13)


@every_way
def test_merged_classes_are_renamed_and_parted_ones_relabelled(compare, client, changed, alice):
    dataset, _, second = changed
    dataset.refresh_from_db()
    save(dataset.folder / "COVID/a.png", seed=7000)
    scan()
    dataset.refresh_from_db()
    dataset.choose_classes({"PNEUMONIA": "sick", "COVID": "sick"}, by=alice)
    _, told = compare(client, dataset, second.pk, "now")
    assert told["counts"] == dict.fromkeys(COUNTS, 0) | {"added": 1, "renamed": 13, "unchanged": 11}
    merged = prepare_again(alice)
    dataset.choose_classes({}, by=alice)
    _, told = compare(client, dataset, merged.pk, "now")
    assert (told["renamed"], told["counts"]["relabelled"], told["counts"]["unchanged"]) == ({}, 14, 11)


@every_way
def test_a_class_that_was_left_out_is_removed(compare, client, changed, alice):
    dataset, _, second = changed
    save(dataset.folder / "COVID/a.png", seed=7000)
    scan()
    dataset.refresh_from_db()
    dataset.choose_classes({"PNEUMONIA": ""}, by=alice)
    _, told = compare(client, dataset, second.pk, "now")
    assert told["counts"] == dict.fromkeys(COUNTS, 0) | {"added": 1, "removed": 13, "unchanged": 11}


@every_way
def test_a_version_compared_with_itself_is_the_same(compare, client, changed):
    dataset, first, _ = changed
    assert compare(client, dataset, first.pk, first.pk)[1]["counts"]["unchanged"] == 24
    assert compare(client, dataset, "now", "now")[1]["counts"]["unchanged"] == 24


@every_way
@pytest.mark.parametrize("name", ["999999", "9" * 30, "-1", "0", "x", "1.5", "\u00b2", "then", "NOW", "' or 1=1"])
def test_an_unknown_version_is_not_found(compare, name, client, team):
    first = PreparationFactory(dataset=DatasetFactory(condition=ConditionFactory(team=team)))
    dataset = first.dataset
    assert compare(client, dataset, first.pk, "now")[0] == 200
    assert compare(client, dataset, first.pk, name)[0] == 404
    if not name.startswith("-"):
        assert compare(client, dataset, name, "now")[0] == 404


@every_way
def test_a_version_of_another_dataset_or_one_that_is_not_finished_is_not_found(compare, client, team):
    first = PreparationFactory(dataset=DatasetFactory(condition=ConditionFactory(team=team)))
    dataset = first.dataset
    other = PreparationFactory(dataset=DatasetFactory(condition=ConditionFactory(team=team)))
    failed = PreparationFactory(dataset=dataset, state="failed")
    for version in (other, failed):
        assert compare(client, dataset, first.pk, version.pk)[0] == 404


def test_a_dataset_without_preparation_is_compared_with_itself(client, team):
    dataset = DatasetFactory(condition=ConditionFactory(team=team))
    for compare in (on_the_page, over_the_api, by_command):
        status, told = compare(client, dataset, None, None)
        assert (status, set(told["counts"].values())) == (200, {0})


def test_the_page_shows_the_changes_and_what_can_be_chosen(client, changed):
    dataset, first, second = changed
    url = reverse("datasets:version-compare", args=[dataset.pk])
    content = client.get(url, {"from": first.pk, "to": second.pk}).content.decode()
    for text in ("PNEUMONIA/was normal.png", "NORMAL/new.png", "was <code>NORMAL/3.png</code>"):
        assert text in content
    chosen = re.findall(r'<option value="(\w+)" selected>', content)
    assert chosen == [str(first.pk), str(second.pk)]
    assert "Nothing changed." in client.get(url, {"from": first.pk, "to": first.pk}).content.decode()


def test_the_page_names_a_renamed_class_once_and_lists_none_of_its_images(client, changed, alice):
    dataset, _, second = changed
    dataset.refresh_from_db()
    dataset.choose_classes({"PNEUMONIA": "Pneumonia"}, by=alice)
    url = reverse("datasets:version-compare", args=[dataset.pk])
    content = client.get(url, {"from": second.pk, "to": "now"}).content.decode()
    assert "PNEUMONIA is now Pneumonia. The 13 images" in content
    assert "<code>" not in content.split("</header>")[1]


def test_other_teams_find_no_versions(client, changed, bob, charlie):
    dataset, _, _ = changed
    for user, status in ((bob, 200), (charlie, 404)):
        client.force_login(user)
        for name in ("datasets:version-compare", "api:dataset-compare"):
            assert client.get(reverse(name, args=[dataset.pk])).status_code == status
    with pytest.raises(CommandError, match="There is no dataset"):
        call_command("compare_dataset", dataset.name, user="charlie")


def test_a_preparation_stays_as_it_was_whatever_happens_later(changed, alice):
    dataset, first, second = changed
    before = compare_versions(first, second).to_json()
    dataset.refresh_from_db()
    dataset.choose_classes({"NORMAL": "well"}, by=alice)
    dataset.images.all().delete()
    assert compare_versions(first, second).to_json() == before
