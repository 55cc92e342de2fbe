"""The card of a real version: filled from the database and its manifest, the same on every way, and without names."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from markdown_it import MarkdownIt

from registry import artifacts, cards
from registry.models import Activation, Deployment, ThresholdSet
from tests.factories import ConditionFactory, ModelVersionFactory
from tests.registry.evaluations import answered, make_evaluation, make_images
from tests.tampering import tampered
from xrayplatform.audit import AuditEntry

DATA = {
    "counts": {
        "train": {"NORMAL": 700, "PNEUMONIA": 1400},
        "validation": {"NORMAL": 100, "PNEUMONIA": 200},
        "test": {"NORMAL": 111, "PNEUMONIA": 222},
    },
    "groups": {"train": 1500, "validation": 210, "test": 234},
    "group_key": "dicom",
    "shared_patients": 0,
    "left_out": 3,
    "seed": 7,
}
HOSTILE = "<script>alert(1)</script> **b** | [x](javascript:alert(1))"


@pytest.fixture
def version(team, alice):
    chest = ConditionFactory(slug="chest", name="Chest pneumonia", body_part="chest", team=team)
    return ModelVersionFactory(
        condition=chest, number=3, dataset_name="CHEST/Mueller, Hans", created_by=alice, environment={"keras": "3.15"}
    )


def manifest(version, data):
    """A version folder of which only the manifest is there; its digest becomes that of the version."""
    version.folder.mkdir(parents=True)
    content = json.dumps({"format": 1, "members": {}, "data": data})
    (version.folder / artifacts.MANIFEST).write_text(content)
    version.sha256 = artifacts.hashlib.sha256(content.encode()).hexdigest()
    tampered(version, sha256=version.sha256)


def text_of(version):
    return json.dumps(cards.card_of(version), ensure_ascii=False)


def section(version, title):
    (found,) = [one for one in cards.card_of(version)["sections"] if one["title"] == title]
    return found


def address(version, **more):
    return reverse("registry:version-card", args=[version.pk], query=more)


def test_counts_and_splits_come_from_the_manifest(version):
    manifest(version, DATA)
    (table,) = section(version, "Data")["tables"]
    assert table["rows"][0] == ["Training", "700", "1,400", "2,100", "1,500"]
    assert table["rows"][2] == ["Test", "111", "222", "333", "234"]
    facts = dict(section(version, "Splits")["facts"])
    assert facts["Patients were told apart by"] == "the patient number in the DICOM files"
    assert facts["Patients in more than one part"] == "0"
    assert (facts["Seed"], facts["Images left out"]) == ("7", "3")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "All images of a patient are in one part"),
        ({"shared_patients": 2}, "Some patients have images in more than one part"),
        ({"group_key": "image"}, "is not known"),
        ({"group_key": "somebody's own"}, "is not known"),
    ],
)
def test_the_card_claims_that_patients_are_apart_only_where_patients_are_known(version, changed, said):
    manifest(version, DATA | changed)
    assert said in section(version, "Splits")["paragraphs"][1]


def test_without_an_own_test_part_the_limits_are_those_of_other_images(version):
    make_evaluation(version, kind="external", patients=6)
    assert "Too few patients to be sure" in section(version, "Limits")["paragraphs"][0]


def test_a_version_of_an_earlier_release_tells_what_its_evaluations_know(version):
    make_evaluation(version, patients=20)
    make_evaluation(version, kind="validation", patients=10, seed=1)
    (table,) = section(version, "Data")["tables"]
    assert table["rows"] == [["Validation", "10", "10", "20", "10"], ["Test", "20", "20", "40", "20"]]


def test_a_manifest_that_was_changed_is_not_believed(version):
    manifest(version, DATA)
    path = version.folder / artifacts.MANIFEST
    path.write_text(path.read_text().replace("700", "900"))
    assert "900" not in text_of(version)
    assert "How many images it was made from is not known." in section(version, "Data")["paragraphs"]


@pytest.mark.parametrize(
    "data",
    [
        [],
        "x",
        {"counts": []},
        {"counts": {"train": 5, "test": {"NORMAL": "<b>"}}, "groups": 3, "group_key": [1], "seed": {}},
    ],
)
def test_a_manifest_from_elsewhere_may_say_anything(version, data):
    manifest(version, data)
    assert "How many images it was made from is not known." in section(version, "Data")["paragraphs"]
    assert "<b>" not in text_of(version)


def test_figures_are_those_of_the_test_part_and_of_other_images_but_not_of_validation(version):
    test = make_evaluation(version, patients=20)
    make_evaluation(version, kind="validation", patients=15, seed=1)
    captions = [table["caption"] for table in section(version, "Metrics")["tables"]]
    assert captions[0] == "Test part: 40 images of 20 patients, decided at the threshold 0.5"
    assert not any("alidation" in caption for caption in captions)
    assert f"{test.metrics['auc']['value']:.3f}" in text_of(version)
    assert "It has not been evaluated on images from outside" in text_of(version)
    make_evaluation(version, kind="external", seed=2)
    assert "Other images, measured" in text_of(version)
    assert "It has not been evaluated on images from outside" not in text_of(version)


def test_other_images_of_its_own_dataset_are_not_taken_for_images_from_outside(version):
    make_evaluation(version)
    own = make_evaluation(version, kind="external", seed=2)
    tampered(own, dataset_name=version.dataset_name)
    text = text_of(version)
    assert "Other images of its own dataset, measured" in text
    assert "It has not been evaluated on images from outside" in text


def test_only_the_newest_evaluation_of_each_set_of_images_is_told(version):
    first = make_evaluation(version, kind="external", patients=20)
    make_evaluation(version, kind="external", images_like=first, seed=3)
    captions = [table["caption"] for table in section(version, "Metrics")["tables"]]
    assert len([caption for caption in captions if "40 images of 20 patients" in caption]) == 1


def test_no_name_of_a_dataset_or_a_folder_leaves_with_the_card(version):
    images = answered(make_images(2, 40), 2, seed=0)
    folders = {**images.subgroups, "folder": images.subgroups["sex"]}
    folders["folder"] = folders["folder"].astype("<U20")
    folders["folder"][::2] = "Meier, Karl"
    make_evaluation(version, images=type(images)(**{**vars(images), "subgroups": folders}))
    make_evaluation(version, kind="external", seed=4)
    manifest(version, DATA)
    text = text_of(version)
    for name in ("Meier", "Mueller", "Another clinic"):
        assert name not in text
    assert "by sex" in text


def test_the_history_says_who_put_it_in_service_when_and_why(version, alice, bob):
    other = ModelVersionFactory(condition=version.condition, number=4)
    Activation.objects.create(condition=version.condition, to_version=version, by=alice, reason="best so far")
    Activation.objects.create(
        condition=version.condition, from_version=version, to_version=other, by=bob, reason="newer"
    )
    (table,) = section(version, "Approval and activation")["tables"]
    assert [row[1:] for row in table["rows"]] == [
        ["put in service", "alice", "best so far"],
        ["taken out of service, for chest v4", "bob", "newer"],
    ]


def test_the_history_says_who_approved_it_and_what_became_of_that(version, alice, bob):
    assert ["State", "Candidate"] in section(version, "Approval and activation")["facts"]
    version.approve(by=bob, reason="report looked through")
    Activation.objects.create(condition=version.condition, to_version=version, by=alice, reason="best so far")
    part = section(version, "Approval and activation")
    assert [row[1:] for row in part["tables"][0]["rows"]] == [
        ["approved", "bob", "report looked through"],
        ["put in service", "alice", "best so far"],
    ]
    ((_, state),) = part["facts"]
    assert state.startswith("Approved, since ")
    assert state.endswith(" UTC, by bob: report looked through")
    version.reopen(by=None, reason="new device")
    version.archive(by=alice, reason="replaced")
    version.reopen(by=alice, reason="needed again")
    part = section(version, "Approval and activation")
    assert [row[1:3] for row in part["tables"][0]["rows"]][2:] == [
        ["approval withdrawn", "the command line"],
        ["archived", "alice"],
        ["reopened as a candidate", "alice"],
    ]
    assert part["facts"][0][1].startswith("Candidate, since ")


def test_the_operating_point_is_that_in_service_with_its_reason(version, alice):
    assert dict(section(version, "Operating point")["facts"])["Threshold"] == "0.5"
    point = ThresholdSet.objects.add(version, 0.31, by=alice, reason="no miss", criterion="by hand")
    Deployment.objects.create(condition=version.condition, active=version, threshold_set=point)
    facts = dict(section(version, "Operating point")["facts"])
    assert (facts["Threshold"], facts["Reason"], facts["Chosen by"]) == ("0.31", "no miss", "alice")


def test_page_markdown_json_and_api_tell_the_same(logged_in, version):
    make_evaluation(version)
    card = cards.card_of(version)
    assert logged_in.get(reverse("api:version-card", args=[version.pk])).json() == card
    answer = logged_in.get(address(version, **{"as": "json"}))
    assert json.loads(answer.content) == card
    assert answer["Content-Disposition"] == 'attachment; filename="model-card-chest-3.json"'
    markdown = logged_in.get(address(version, **{"as": "markdown"}))
    assert markdown["Content-Type"] == "text/markdown; charset=utf-8"
    page = logged_in.get(address(version)).content.decode()
    for part in card["sections"]:
        assert part["title"] in page
        assert f"## {part['title']}" in markdown.content.decode()
    assert (
        reverse("registry:version-card", args=[version.pk])
        in logged_in.get(version.get_absolute_url()).content.decode()
    )


def test_a_card_that_is_taken_along_is_in_the_audit_log_with_its_format(logged_in, alice, version):
    logged_in.get(address(version))
    assert not AuditEntry.objects.filter(action="version.card").exists()
    for form in ("markdown", "json"):
        logged_in.get(address(version, **{"as": form}))
    logged_in.get(reverse("api:version-card", args=[version.pk]))
    call_command("model_card", "chest", "3", form="html", stdout=StringIO())
    entries = AuditEntry.objects.filter(action="version.card").order_by("seq")
    assert [(entry.actor, entry.after["format"]) for entry in entries] == [
        (alice, "markdown"),
        (alice, "json"),
        (alice, "json"),
        (None, "html"),
    ]
    assert {entry.object_id for entry in entries} == {str(version.pk)}


def test_hostile_words_stay_text_on_the_page_in_markdown_and_in_html(logged_in, version, team, alice):
    hostile = ModelVersionFactory(
        condition=version.condition, number=9, architecture=HOSTILE, initial_weights=HOSTILE, origin=HOSTILE
    )
    Activation.objects.create(condition=version.condition, to_version=hostile, by=alice, reason=HOSTILE)
    page = logged_in.get(address(hostile)).content.decode()
    assert "<script>alert" not in page
    rendered = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(logged_in.get(address(hostile, **{"as": "markdown"})).content.decode())
    )
    assert "<script>" not in rendered
    assert "javascript:" not in "".join(part for part in rendered.split("<a ")[1:])
    out = StringIO()
    call_command("model_card", "chest", "9", form="html", stdout=out)
    assert "<script>" not in out.getvalue()
    assert "<!doctype html>" in out.getvalue()


def test_another_team_does_not_find_it(client, charlie, version):
    client.force_login(charlie)
    assert client.get(address(version)).status_code == 404
    assert client.get(reverse("api:version-card", args=[version.pk])).status_code == 404
    with pytest.raises(CommandError, match="There is no version 3"):
        call_command("model_card", "chest", "3", user="charlie")


def test_the_card_takes_few_queries(logged_in, version, django_assert_max_num_queries):
    make_evaluation(version)
    make_evaluation(version, kind="validation", seed=1)
    for seed in range(2, 6):
        make_evaluation(version, kind="external", seed=seed)
    with django_assert_max_num_queries(15):
        logged_in.get(address(version))


def test_the_command_writes_a_file_once(version, tmp_path):
    path = tmp_path / "card.md"
    out = StringIO()
    call_command("model_card", "chest", "3", out=str(path), stdout=out)
    assert path.read_text().startswith("# Model card: Chest pneumonia, version 3")
    assert str(path) in out.getvalue()
    with pytest.raises(CommandError, match="exists"):
        call_command("model_card", "chest", "3", out=str(path))


def test_the_command_as_one_json_object(version):
    out = StringIO()
    call_command("model_card", "chest", "3", json=True, stdout=out)
    assert json.loads(out.getvalue())["card"] == cards.card_of(version)
