"""Looking inside an evaluation: each cell of the confusion matrix opens its images, with what the model saw in them."""

import json
import re
from io import BytesIO, StringIO

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from PIL import Image

from datasets.models import DatasetImage, Finding, Preparation, PreparedImage
from inference import looking
from inference.looking import Inside, Shelf
from registry.calibration import with_temperature
from registry.models.evaluation import file_of
from registry.reports import EvaluatedImages
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    DatasetImageFactory,
    ModelVersionFactory,
    PreparationFactory,
    TeamFactory,
)
from tests.inference.lungs import evaluated, prepared, scanned, version_of
from tests.registry.evaluations import make_evaluation
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db

CLASSES = ["NORMAL", "PNEUMONIA"]
COUNT = 60
TEMPERATURE = 2.0


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    """Each test is a process that has no model loaded yet."""
    shelf = Shelf()
    monkeypatch.setattr(looking, "SHELF", shelf)
    return shelf


@pytest.fixture
def dataset(team):
    return DatasetFactory(name="CHEST/lungs", condition=ConditionFactory(slug="chest", team=team))


@pytest.fixture
def preparation(dataset):
    """Sixty images in the test part, every other one with pneumonia."""
    preparation = PreparationFactory(dataset=dataset, split_digest="s" * 64)
    for number in range(COUNT):
        label = CLASSES[number % 2]
        image = DatasetImageFactory(dataset=dataset, path=f"{label}/{number}.png", class_name=label)
        PreparedImage.objects.create(
            preparation=preparation, row=number, path=image.path, digest=image.digest, class_name=label, split="test",
            group=number,
        )  # fmt: skip
    return preparation


def answers_about(preparation, seed=0):
    """Made-up answers about the images of the preparation; a threshold of 0.3 misreads some of both classes."""
    rows = list(preparation.manifest.order_by("row"))
    rng = np.random.default_rng(seed)
    labels = np.array([CLASSES.index(row.class_name) for row in rows])
    positive = np.clip(0.1 + 0.2 * labels + rng.normal(0, 0.15, len(rows)), 0.001, 0.999)
    return EvaluatedImages(
        labels=labels,
        probabilities=np.stack([1 - positive, positive], axis=1),
        groups=np.arange(len(rows)),
        digests=np.array([row.digest for row in rows]),
        rows=np.array([row.row for row in rows]),
    )


@pytest.fixture
def evaluation(preparation):
    condition = preparation.dataset.condition
    version = ModelVersionFactory(condition=condition, number=3, threshold=0.3, temperature=TEMPERATURE)
    return make_evaluation(version, preparation=preparation.pk, images=answers_about(preparation))


def images_page(client, evaluation, **query):
    return client.get(reverse("inference:evaluation-images", args=[evaluation.pk]), query)


def paths(response):
    return [item.image.path for item in response.context["seen"]]


# -- Which images


def test_each_cell_has_as_many_images_as_the_confusion_matrix_says(logged_in, evaluation):
    matrix = evaluation.report["confusion_matrix"]
    assert min(min(row) for row in matrix) > 0
    for true, row in zip(CLASSES, matrix, strict=True):
        for predicted, count in zip(CLASSES, row, strict=True):
            page = images_page(logged_in, evaluation, true=true, predicted=predicted)
            assert page.context["page"].paginator.count == count
            assert all((item.true, item.predicted) == (true, predicted) for item in page.context["seen"])
            assert all(path.startswith(true) for path in paths(page))


def test_without_a_cell_all_errors_are_shown_the_most_confident_first(logged_in, evaluation):
    matrix = np.array(evaluation.report["confusion_matrix"])
    page = images_page(logged_in, evaluation)
    assert page.context["page"].paginator.count == matrix.sum() - np.trace(matrix)
    confidence = [dict(item.ranked)[item.predicted] for item in page.context["seen"]]
    assert confidence == sorted(confidence, reverse=True)
    assert all(item.is_misread for item in page.context["seen"])
    only = images_page(logged_in, evaluation, predicted="PNEUMONIA").context["page"].paginator.count
    assert only == matrix[0, 1]


def test_of_rightly_read_images_the_most_doubtful_come_first(logged_in, evaluation):
    page = images_page(logged_in, evaluation, true="NORMAL", predicted="NORMAL")
    confidence = [dict(item.ranked)["NORMAL"] for item in page.context["seen"]]
    assert confidence == sorted(confidence)


def test_probabilities_are_those_after_the_temperature(logged_in, evaluation):
    item = images_page(logged_in, evaluation).context["seen"][0]
    answers = evaluation.images
    raw = answers.probabilities[item.position]
    expected = with_temperature(raw[None], TEMPERATURE)[0]
    assert dict(item.ranked) == pytest.approx(dict(zip(CLASSES, expected, strict=True)))
    assert abs(expected - raw).max() > 0.01
    assert item.image.digest == answers.digests[item.position] == item.digest


def test_a_page_has_24_images_and_few_queries(logged_in, evaluation, django_assert_max_num_queries):
    matrix = evaluation.report["confusion_matrix"]
    count, true, called = max(
        (count, true, called)
        for true, row in zip(CLASSES, matrix, strict=True)
        for called, count in zip(CLASSES, row, strict=True)
    )
    assert 24 < count < 48
    with django_assert_max_num_queries(24):
        page = images_page(logged_in, evaluation, true=true, predicted=called)
    second = images_page(logged_in, evaluation, true=true, predicted=called, page=2)
    assert (len(page.context["seen"]), len(second.context["seen"])) == (24, count - 24)
    assert not set(paths(page)) & set(paths(second))


def test_a_class_that_there_is_not_is_not_found(logged_in, evaluation):
    assert images_page(logged_in, evaluation, true="COVID").status_code == 404


def test_a_label_that_was_corrected_since_is_told(logged_in, evaluation):
    before = images_page(logged_in, evaluation)
    assert b"Labelled" not in before.content
    image = before.context["seen"][0].image
    other = ({*CLASSES} - {image.class_name}).pop()
    DatasetImage.objects.filter(pk=image.pk).update(class_name=other)
    assert f"Labelled {other} now" in images_page(logged_in, evaluation).content.decode()


# -- What is not there any more


def test_an_image_that_left_the_dataset_is_counted_and_its_absence_told(logged_in, evaluation):
    before = images_page(logged_in, evaluation)
    DatasetImage.objects.get(path=paths(before)[0]).delete()
    page = images_page(logged_in, evaluation)
    assert page.context["page"].paginator.count == before.context["page"].paginator.count
    assert page.context["seen"][0].image is None
    assert "not in the dataset any more, or has other pixels now" in page.content.decode()


def test_a_preparation_of_another_place_is_not_taken_for_one_of_the_same_number(logged_in, evaluation, preparation):
    Preparation.objects.filter(pk=preparation.pk).update(split_digest="other")
    page = images_page(logged_in, evaluation)
    assert f"Preparation {preparation.pk}, which these images belong to, is not here any more" in page.content.decode()
    assert page.context["seen"] and not any(item.image for item in page.context["seen"])


def test_images_of_a_folder_outside_are_not_kept_and_the_page_says_so(logged_in, evaluation):
    outside = make_evaluation(evaluation.version, kind="external", preparation=None)
    assert "came from a folder outside of the datasets" in images_page(logged_in, outside).content.decode()


def test_answers_that_are_gone_are_told_in_words(logged_in, evaluation):
    file_of(evaluation.key).unlink()
    page = images_page(logged_in, evaluation)
    assert page.status_code == 200 and "are missing. Evaluate the version again" in page.content.decode()
    assert logged_in.get(reverse("inference:evaluation-map", args=[evaluation.pk, 0])).status_code == 404


def test_a_folder_that_is_not_there_is_told(logged_in, evaluation, dataset):
    type(dataset).objects.update(state="offline")
    assert "was not there at the last scan" in images_page(logged_in, evaluation).content.decode()


# -- Who


def test_another_team_sees_nothing_of_it(client, charlie, evaluation):
    client.force_login(charlie)
    assert images_page(client, evaluation).status_code == 404
    assert client.get(reverse("inference:evaluation-map", args=[evaluation.pk, 0])).status_code == 404
    assert client.post(reverse("inference:evaluation-flag", args=[evaluation.pk, 0])).status_code == 404
    assert client.get(reverse("api:evaluatedimages-detail", args=[evaluation.pk])).status_code == 404


def test_who_may_see_the_version_but_not_the_dataset_sees_no_image(logged_in, evaluation, dataset):
    type(dataset).objects.update(condition=ConditionFactory(team=TeamFactory()))
    page = images_page(logged_in, evaluation)
    assert "not in a dataset that you may see" in page.content.decode()
    assert not re.search(r"(NORMAL|PNEUMONIA)/\d+\.png", page.content.decode())
    assert logged_in.get(reverse("inference:evaluation-map", args=[evaluation.pk, 0])).status_code == 404


def test_looking_is_in_the_audit_log_and_maps_without_the_page_too(logged_in, alice, evaluation):
    logged_in.get(reverse("inference:evaluation-map", args=[evaluation.pk, 0]))
    entry = AuditEntry.objects.get(action="evaluation.view_images")
    assert (entry.actor, entry.object_id, entry.after) == (alice, str(evaluation.pk), {"maps": True})
    images_page(logged_in, evaluation, true="NORMAL", predicted="PNEUMONIA")
    logged_in.get(reverse("inference:evaluation-map", args=[evaluation.pk, 1]))
    entries = AuditEntry.objects.filter(action="evaluation.view_images").order_by("seq")
    assert [entry.after for entry in entries] == [
        {"maps": True},
        {"true": "NORMAL", "predicted": "PNEUMONIA", "page": 1},
    ]


def test_what_shows_paths_of_images_is_kept_by_no_cache(client, bob, evaluation):
    client.force_login(bob)
    assert images_page(client, evaluation)["Cache-Control"] == "private, no-store"
    address = reverse("api:evaluatedimages-detail", args=[evaluation.pk])
    assert client.get(address)["Cache-Control"] == "private, no-store"
    flagged = client.post(reverse("api:evaluatedimages-flag", args=[evaluation.pk]), {"position": 0})
    assert (flagged.status_code, flagged["Cache-Control"]) == (200, "private, no-store")


@pytest.mark.parametrize("missing", ["view_evaluation", "view_datasetimage"])
def test_page_and_api_need_the_right_to_see_evaluations_and_images(client, bob, team, evaluation, missing):
    client.force_login(bob)
    group = bob.groups.get()
    group.permissions.remove(*group.permissions.filter(codename=missing))
    assert images_page(client, evaluation).status_code == 403
    for name in ("detail", "map"):
        address = reverse(f"api:evaluatedimages-{name}", args=[evaluation.pk])
        assert client.get(address, {"position": 0}).status_code == 403
    flagged = client.post(reverse("api:evaluatedimages-flag", args=[evaluation.pk]), {"position": 0})
    assert flagged.status_code == (403 if missing == "view_evaluation" else 200)


# -- Maps


@pytest.fixture
def real(team):
    """An evaluation whose version and files are really there."""
    own = prepared(scanned(condition=ConditionFactory(slug="chest", team=team)))
    return evaluated(version_of(own), own.dataset, preparation=own, part="test").evaluation


def map_of(client, evaluation, position=0, **options):
    return client.get(reverse("inference:evaluation-map", args=[evaluation.pk, position]), **options)


def test_a_map_is_the_networks_input_with_what_spoke_for_the_class(logged_in, real):
    seen = Inside(real, real.version.created_by).answers
    bright = int(np.flatnonzero(seen.probabilities[:, 1] > 0.9)[0])
    answer = map_of(logged_in, real, bright, query_params={"class": "PNEUMONIA"})
    assert (answer.status_code, answer["Content-Type"]) == (200, "image/png")
    picture = np.asarray(Image.open(BytesIO(answer.content), formats=("PNG",)), np.int64)
    assert picture.shape == (64, 64, 3)
    # Where the film is brightest there is most evidence, and colour.
    colour = np.ptp(picture, axis=2)
    against = np.asarray(Image.open(BytesIO(map_of(
        logged_in, real, bright, query_params={"class": "NORMAL"}).content), formats=("PNG",)), np.int64)  # fmt: skip
    assert colour.max() > 40 and not np.array_equal(against, picture)


def test_a_browser_keeps_a_map_for_itself_and_asks_whether_it_still_holds(logged_in, real, monkeypatch):
    first = map_of(logged_in, real)
    assert "private" in first["Cache-Control"]
    assert real.version.sha256 in first["ETag"] and str(real.images.digests[0]) in first["ETag"]
    monkeypatch.setattr("inference.looking_views.draw_map", lambda *args: pytest.fail("drawn again"))
    again = map_of(logged_in, real, headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_model_is_loaded_once_and_few_are_kept(logged_in, real, monkeypatch):
    loaded = []
    real_load = looking.load
    monkeypatch.setattr(looking, "load", lambda *args: loaded.append(args) or real_load(*args))
    assert [map_of(logged_in, real, position).status_code for position in (0, 1, 2)] == [200] * 3
    assert len(loaded) == 1
    shelf = Shelf(kept=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        shelf.get(name, lambda name=name: loaded.append(name))
    assert loaded[1:] == ["a", "b", "c", "b"]


def test_without_files_there_is_no_map_and_the_reason_is_told(logged_in, real, monkeypatch):
    row = real.run.preparation.manifest.get(row=int(real.images.rows[0]))
    (real.run.dataset.folder / row.path).unlink()
    gone = map_of(logged_in, real)
    assert gone.status_code == 404 and gone.content
    monkeypatch.setattr(looking, "SHELF", Shelf())
    (real.version.folder / "manifest.json").unlink()
    assert map_of(logged_in, real, 1).status_code == 404
    assert map_of(logged_in, real, 10_000).status_code == 404


# -- Labels called wrong


def flag(client, evaluation, position, **form):
    address = reverse("inference:evaluation-flag", args=[evaluation.pk, position])
    return client.post(address, {"action": "flag", "next": "/models/"} | form)


def test_a_misread_is_flagged_with_what_the_version_said_and_a_word_of_caution(client, bob, evaluation):
    client.force_login(bob)
    item = images_page(client, evaluation, true="NORMAL", predicted="PNEUMONIA").context["seen"][0]
    answer = flag(client, evaluation, item.position, suggestion="PNEUMONIA", comment="consolidation")
    assert (answer.status_code, answer.url) == (302, "/models/")
    finding = Finding.objects.get()
    probability = dict(item.ranked)["PNEUMONIA"]
    assert finding.image == item.image and finding.code == "flagged-label"
    assert finding.detail == (
        f"bob says that this is PNEUMONIA, not NORMAL: consolidation. chest v3 read PNEUMONIA ({probability:.1%}). The "
        "image was in the test part. Correct what is wrong, but do not tidy up the test part until its figures please."
    )
    page = images_page(client, evaluation, true="NORMAL", predicted="PNEUMONIA").content.decode()
    assert "Called wrong by bob" in page
    flag(client, evaluation, item.position, action="withdraw")
    assert not Finding.objects.exists()


def test_who_may_not_flag_sees_no_form(client, auditor, team, evaluation):
    team.members.add(auditor)
    client.force_login(auditor)
    page = images_page(client, evaluation)
    assert page.status_code == 200 and b"The label is wrong" not in page.content
    assert flag(client, evaluation, 0).status_code == 403


# -- API


def test_the_api_tells_the_same(client, bob, evaluation):
    client.force_login(bob)
    address = reverse("api:evaluatedimages-detail", args=[evaluation.pk])
    answer = client.get(address, {"true": "NORMAL", "predicted": "PNEUMONIA"}).json()
    assert answer["count"] == evaluation.report["confusion_matrix"][0][1]
    first = answer["images"][0]
    assert (first["true"], first["predicted"], first["flag"], first["problem"]) == ("NORMAL", "PNEUMONIA", None, "")
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert DatasetImage.objects.get(pk=first["image"]).path == first["path"]
    told = client.post(
        reverse("api:evaluatedimages-flag", args=[evaluation.pk]), {"position": first["position"], "comment": "no"}
    ).json()
    assert told["flag"].startswith("bob says that the label NORMAL is wrong: no. chest v3 read PNEUMONIA")
    assert client.get(address, {"true": "COVID"}).status_code == 400
    assert client.post(reverse("api:evaluatedimages-flag", args=[evaluation.pk]), {"position": 999}).status_code == 404
    assert AuditEntry.objects.filter(action="evaluation.view_images", actor=bob).count() == 1


def test_the_api_gives_the_map(client, alice, real, monkeypatch):
    client.force_login(alice)
    address = reverse("api:evaluatedimages-map", args=[real.pk])
    answer = client.get(address, {"position": 0})
    assert (answer.status_code, answer["Content-Type"], answer["Cache-Control"]) == (200, "image/png", "no-store")
    assert client.get(address, {"position": 10_000}).status_code == 404
    monkeypatch.setattr(looking, "SHELF", Shelf())
    real.version.folder.rename(real.version.folder.with_name("away"))
    assert "There is no map" in client.get(address, {"position": 0}).json()["detail"]


# -- Command


def misread(**options):
    out = StringIO()
    call_command("misread", "chest", "3", stdout=out, **options)
    return out.getvalue()


def listed(**options):
    return json.loads(misread(json=True, **options))


def test_the_command_lists_what_the_api_lists_in_the_same_order(client, bob, evaluation):
    client.force_login(bob)
    address = reverse("api:evaluatedimages-detail", args=[evaluation.pk])
    for chosen in ({}, {"true": "NORMAL"}, {"true": "NORMAL", "predicted": "NORMAL"}):
        answer, page = listed(**chosen, limit=24), client.get(address, chosen).json()
        assert answer["images"] == page["images"]
        assert (answer["evaluation"], answer["count"], answer["problem"]) == (evaluation.pk, page["count"], "")


def test_the_most_confident_errors_come_first_and_no_more_than_asked_for(evaluation):
    answer = listed(limit=3)
    errors = answer["images"]
    assert len(errors) == 3 < answer["count"]
    confidence = [image["probabilities"][image["predicted"]] for image in errors]
    assert confidence == sorted(confidence, reverse=True)
    assert all(image["true"] != image["predicted"] and image["path"] for image in errors)
    text = misread(limit=3)
    assert f"{answer['count']} images of evaluation {evaluation.pk}, 3 of them below" in text
    first = errors[0]
    assert f"{first['position']:6d} {first['path']}: {first['true']} called {first['predicted']} (" in text


def test_without_a_number_the_newest_test_is_looked_into(evaluation, preparation):
    make_evaluation(evaluation.version, kind="external", preparation=None)
    newer = make_evaluation(evaluation.version, preparation=preparation.pk, images=answers_about(preparation, seed=1))
    assert listed()["evaluation"] == newer.pk
    assert listed(evaluation=evaluation.pk)["evaluation"] == evaluation.pk
    with pytest.raises(CommandError, match=r"chest v3 has no evaluation 999\. Its evaluations: "):
        misread(evaluation=999)


def test_looking_leaves_the_entry_of_the_page(evaluation, bob):
    misread(true="NORMAL", predicted="PNEUMONIA", user="bob")
    entry = AuditEntry.objects.get(action="evaluation.view_images")
    assert (entry.actor, entry.channel, entry.object_id) == (bob, "command", str(evaluation.pk))
    assert entry.after == {"true": "NORMAL", "predicted": "PNEUMONIA", "limit": 20}


def test_a_label_is_flagged_as_on_the_page(evaluation, bob):
    first = listed(true="NORMAL", predicted="PNEUMONIA")["images"][0]
    text = misread(flag=first["position"], label="PNEUMONIA", comment="consolidation", user="bob")
    finding = Finding.objects.get()
    assert text == f"Noted for {first['path']}: {finding.detail}\n"
    assert (finding.image_id, finding.flagged_by, finding.suggestion) == (first["image"], bob, "PNEUMONIA")
    assert finding.detail.startswith("bob says that this is PNEUMONIA, not NORMAL: consolidation. chest v3 read PNEU")
    assert AuditEntry.objects.get(action="image.flag_label").actor == bob
    assert listed(true="NORMAL", predicted="PNEUMONIA")["images"][0]["flag"] == finding.detail
    with pytest.raises(CommandError, match="bob has called this label wrong already"):
        misread(flag=first["position"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"true": "COVID"}, "chest v3 knows no class COVID. There are NORMAL, PNEUMONIA."),
        ({"limit": 0}, "must lie between 1 and 1000"),
        ({"comment": "no"}, "go with --flag"),
        ({"flag": 60}, "no image at position 60"),
        ({"flag": -1}, "no image at position -1"),
        ({"flag": 0, "label": "COVID"}, "COVID is none of the other classes"),
        ({"flag": 0, "comment": "x" * 201}, "200 characters at most"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_flagged(evaluation, options, said):
    with pytest.raises(CommandError, match=said):
        misread(**options)
    assert not Finding.objects.exists()


def test_images_and_answers_that_are_gone_are_told(evaluation):
    first = listed()["images"][0]
    DatasetImage.objects.filter(pk=first["image"]).delete()
    gone = listed()["images"][0]
    assert (gone["position"], gone["path"]) == (first["position"], None)
    assert f"{first['position']:6d} This image is not in the dataset any more" in misread()
    with pytest.raises(CommandError, match="not in the dataset any more"):
        misread(flag=first["position"])
    file_of(evaluation.key).unlink()
    with pytest.raises(CommandError, match=r"are missing\. Evaluate the version again\."):
        misread()


def test_a_user_needs_the_rights_of_the_page_and_a_team_that_has_the_version(evaluation, team, auditor, charlie):
    with pytest.raises(CommandError, match="There is no version 3 of 'chest'"):
        misread(user="charlie")
    team.members.add(auditor)
    assert listed(user=auditor.username)["count"]
    with pytest.raises(CommandError, match=r"no role that allows this \(datasets.flag_datasetimage\)"):
        misread(flag=0, user=auditor.username)
    group = auditor.groups.get()
    for codename in ("view_datasetimage", "view_evaluation"):
        group.permissions.remove(*group.permissions.filter(codename=codename))
        with pytest.raises(CommandError, match=codename):
            misread(user=auditor.username)
    assert not Finding.objects.exists()
