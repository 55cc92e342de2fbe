"""The viewer: each picture beside exactly what a network sees of it, lists with filters, and nobody's name anywhere."""

import base64
import html
import json
import re
from datetime import timedelta
from io import BytesIO

import numpy as np
import pytest
from django.apps import apps
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from PIL import Image

from datasets import imaging
from datasets.models import Dataset, DatasetImage
from tests.datasets.files import dicom, encode, gradient, save
from tests.datasets.test_scan import scan
from tests.factories import ConditionFactory, DatasetFactory, DatasetImageFactory, FindingFactory, PreparationFactory
from xrayplatform import immutability
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db
SECRETS = ("Mustermann", "HOSP-4711", "Secretville")
STEPS = {
    "NORMAL/plain.jpg": ["JPEG, 8 bit grey"],
    "NORMAL/fine.png": ["PNG, 16 bit grey", "12 of its 16 bits used"],
    "PNEUMONIA/film.dcm": ["DICOM", "inverted"],
}


@pytest.fixture
def dataset(settings, team):
    """One file of each kind, wider than high, and a few more so that both classes have some."""
    root = settings.DATASET_ROOT / "CHEST/lungs"
    save(root / "NORMAL/plain.jpg", encode(gradient(40, 60, seed=1), "JPEG"))
    save(root / "NORMAL/fine.png", encode(gradient(40, 60, seed=2).astype(np.uint16) * 16, "PNG"))
    film = dicom(
        gradient(40, 60, seed=3).astype(np.uint16) * 16,
        PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11,
        PatientName="Mustermann^Erika", PatientID="HOSP-4711", InstitutionName="Secretville",
    )  # fmt: skip
    save(root / "PNEUMONIA/film.dcm", film)
    scan()
    dataset = Dataset.objects.get()
    dataset.condition.team = team
    dataset.condition.save()
    return dataset


@pytest.fixture
def page(client, alice):
    client.force_login(alice)
    return lambda url, **options: client.get(url, **options)


def image_of(dataset, path):
    return dataset.images.get(path=path)


def pictures(response):
    """The embedded pictures of a page as arrays, in their order."""
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", response.content.decode())
    return [np.asarray(Image.open(BytesIO(base64.b64decode(text)))) for text in found]


# -- One image


@pytest.mark.parametrize("fit", imaging.FITS)
@pytest.mark.parametrize("path", STEPS)
def test_the_page_shows_the_picture_and_byte_for_byte_the_networks_input(path, fit, page, dataset):
    PreparationFactory(dataset=dataset, image_size=128, pipeline={"id": "x", "version": 1, "fit": "pad"})
    PreparationFactory(dataset=dataset, image_size=64, pipeline={"id": "x", "version": 1, "fit": fit})
    PreparationFactory(dataset=dataset, image_size=299, state="failed", pipeline={})
    radiograph = imaging.read(dataset.folder / path)
    response = page(image_of(dataset, path).get_absolute_url())
    picture, model_input = pictures(response)
    assert np.array_equal(picture, radiograph.grey)
    assert np.array_equal(model_input, imaging.model_input(radiograph, 64, fit))
    assert model_input.shape == (64, 64)


@pytest.mark.parametrize(("path", "expected"), STEPS.items())
def test_the_steps_are_told_in_words(path, expected, page, dataset):
    content = html.unescape(page(image_of(dataset, path).get_absolute_url()).content.decode())
    steps = re.findall(r"<li>([^<]+)</li>", content.split("steps-list")[1])
    for words, step in zip(expected, steps, strict=False):
        assert words.lower() in " ".join(steps).lower(), step
    assert steps[-1].startswith("60 x 40 pixels brought to 224 x 224")
    assert "black bars added" in steps[-1]


def test_without_a_preparation_the_input_is_what_one_would_choose(page, settings, team):
    root = settings.DATASET_ROOT / "d"
    for seed, path in enumerate(("a/1.png", "b/1.png")):
        save(root / path, encode(gradient(50, 50, seed=seed), "PNG"))
    scan()
    image = Dataset.objects.get().images.get(path="a/1.png")
    _, model_input = pictures(page(image.get_absolute_url()))
    assert np.array_equal(model_input, imaging.model_input(imaging.read(root / "a/1.png"), 224, "stretch"))


def test_a_picture_larger_than_a_screen_is_shown_smaller(page, settings):
    for label in "ab":
        save(settings.DATASET_ROOT / "d" / label / "1.png", encode(gradient(800, 3000, seed=ord(label)), "PNG"))
    scan()
    picture, _ = pictures(page(DatasetImage.objects.first().get_absolute_url()))
    assert picture.shape == (373, 1400)


@pytest.mark.parametrize("damage", ["gone", "cut", "text", "folder"])
def test_a_file_that_cannot_be_read_any_more_is_explained(damage, page, dataset, client):
    image = image_of(dataset, "NORMAL/plain.jpg")
    file = dataset.folder / image.path
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        file.write_text("Dear colleague")
    elif damage == "folder":
        file.mkdir()
    response = page(image.get_absolute_url())
    assert response.status_code == 200
    text = response.content.decode()
    assert "The file cannot be shown now" in text and "Scan again" in text
    assert pictures(response) == []
    assert str(dataset.folder) not in text
    assert page(reverse("datasets:image-thumbnail", args=[image.pk])).status_code == 404
    answer = page(reverse("api:image-picture", args=[image.pk]))
    assert answer.status_code == 404
    assert str(dataset.folder) not in answer.content.decode()


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_link_that_was_put_in_place_of_a_file_is_not_followed(whole_folder, page, dataset, tmp_path):
    image = image_of(dataset, "NORMAL/plain.jpg")
    replaced = dataset.folder / ("NORMAL" if whole_folder else image.path)
    elsewhere = tmp_path / "elsewhere"
    replaced.rename(elsewhere)
    replaced.symlink_to(elsewhere)
    response = page(image.get_absolute_url())
    assert "links are not followed" in response.content.decode()
    assert pictures(response) == []
    assert page(reverse("datasets:image-thumbnail", args=[image.pk])).status_code == 404
    assert page(reverse("api:image-picture", args=[image.pk])).status_code == 404


def test_links_in_a_circle_are_explained_too(page, dataset):
    image = image_of(dataset, "NORMAL/plain.jpg")
    file = dataset.folder / image.path
    file.unlink()
    file.symlink_to(file)
    assert "links are not followed" in page(image.get_absolute_url()).content.decode()


def test_the_dataset_folder_itself_may_be_a_link(page, dataset, settings, tmp_path):
    """IT may mount it anywhere."""
    link = tmp_path / "mounted"
    link.symlink_to(settings.DATASET_ROOT)
    settings.DATASET_ROOT = link
    assert len(pictures(page(image_of(dataset, "NORMAL/plain.jpg").get_absolute_url()))) == 2


def test_a_dataset_that_is_the_root_itself_has_pictures_too(page, settings):
    for seed, label in enumerate(("NORMAL", "SICK")):
        save(settings.DATASET_ROOT / label / "1.png", seed=seed)
    scan()
    image = Dataset.objects.get(name=".").images.first()
    assert len(pictures(page(image.get_absolute_url()))) == 2


def test_a_file_with_other_pixels_than_at_the_scan_says_so(page, dataset):
    image = image_of(dataset, "NORMAL/plain.jpg")
    assert "other pixels than at the last scan" not in page(image.get_absolute_url()).content.decode()
    save(dataset.folder / image.path, encode(gradient(40, 60, seed=9), "JPEG"))
    response = page(image.get_absolute_url())
    assert "other pixels than at the last scan" in response.content.decode()
    assert len(pictures(response)) == 2


def test_pictures_are_png_that_no_cache_keeps(page, dataset):
    image = image_of(dataset, "PNEUMONIA/film.dcm")
    thumbnail = page(reverse("datasets:image-thumbnail", args=[image.pk]))
    whole = page(reverse("api:image-picture", args=[image.pk]))
    for response in (thumbnail, whole):
        assert (response["Content-Type"], response["Cache-Control"]) == ("image/png", "no-store")
        picture = Image.open(BytesIO(response.content))
        assert (picture.format, picture.info) == ("PNG", {})
    assert np.array_equal(
        np.asarray(Image.open(BytesIO(whole.content))), imaging.read(dataset.folder / image.path).grey
    )


def test_near_duplicates_are_linked(page, dataset):
    first, second = dataset.images.all()[:2]
    dataset.images.filter(pk__in=[first.pk, second.pk]).update(cluster=first.pk)
    content = page(first.get_absolute_url()).content.decode()
    assert second.get_absolute_url() in content
    assert f"?cluster={first.pk}" in content


# -- Who sees, and what is recorded


def addresses(dataset):
    image = image_of(dataset, "PNEUMONIA/film.dcm")
    return [
        image.get_absolute_url(),
        reverse("datasets:image-thumbnail", args=[image.pk]),
        reverse("datasets:image-list", args=[dataset.pk]),
        reverse("api:image-detail", args=[image.pk]),
        reverse("api:image-picture", args=[image.pk]),
    ]


def test_the_own_team_sees_the_images_and_no_other(client, dataset, bob, charlie):
    for user, status in ((bob, 200), (charlie, 404)):
        client.force_login(user)
        assert {client.get(url).status_code for url in addresses(dataset)} == {status}
    client.force_login(charlie)
    for name in ("api:image-list", "api:finding-list"):
        assert client.get(reverse(name), {"dataset": dataset.pk}).json()["results"] == []


def test_a_clinician_sees_no_button_to_judge(client, dataset, bob):
    client.force_login(bob)
    for url in (addresses(dataset)[0], addresses(dataset)[2]):
        assert "/decide/" not in client.get(url).content.decode()


def test_views_of_images_are_in_the_audit_log(client, dataset, bob, charlie):
    client.force_login(bob)
    page, _, images, _, picture = addresses(dataset)
    image = image_of(dataset, "PNEUMONIA/film.dcm")
    for url in (page, picture, images):
        client.get(url, {"path": "film"})
    entries = AuditEntry.objects.filter(actor=bob)
    assert [(entry.action, entry.object_id) for entry in entries.order_by("seq")] == [
        ("image.view", str(image.pk)), ("image.view", str(image.pk)), ("dataset.view_images", str(dataset.pk)),
    ]  # fmt: skip
    assert entries.get(action="dataset.view_images").after["path"] == "film"
    client.force_login(charlie)
    for url in (page, picture, images):
        client.get(url)
    assert not AuditEntry.objects.filter(actor=charlie, action__contains="view").exists()


def test_thumbnails_are_in_the_audit_log_once_for_all_that_are_fetched_within_minutes(page, dataset, alice):
    def fetch():
        for image in dataset.images.all():
            assert page(reverse("datasets:image-thumbnail", args=[image.pk])).status_code == 200
        return AuditEntry.objects.filter(action="dataset.view_images", actor=alice).order_by("seq")

    assert [(entry.object_id, entry.after) for entry in fetch()] == [(str(dataset.pk), {"thumbnails": True})]
    assert fetch().count() == 1
    with immutability.suspended():
        AuditEntry.objects.update(at=timezone.now() - timedelta(minutes=6))
    assert fetch().count() == 2


def test_lists_over_the_api_are_in_the_audit_log(page, dataset, alice):
    number = str(dataset.pk)
    page(reverse("api:image-list"), data={"dataset": dataset.pk, "class_name": "NORMAL"})
    page(reverse("api:finding-list"), data={"dataset": dataset.pk})
    page(reverse("api:image-list"))
    told = AuditEntry.objects.filter(actor=alice, action__startswith="dataset.view_").order_by("seq")
    assert [(entry.action, entry.object_id, entry.after["rows"]) for entry in told] == [
        ("dataset.view_images", number, 2),
        ("dataset.view_quality", number, dataset.findings.count()),
        ("dataset.view_images", "", 3),
    ]
    assert told[0].after["class_name"] == "NORMAL"


def test_a_view_that_cannot_be_recorded_shows_nothing(page, dataset, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("the audit log is full")

    monkeypatch.setattr("xrayplatform.audit.record", fail)
    image, thumbnail, images, _, picture = addresses(dataset)
    lists = [reverse("api:image-list"), reverse("api:finding-list"), reverse("api:dataset-quality", args=[dataset.pk])]
    for url in (image, thumbnail, images, picture, *lists):
        with pytest.raises(RuntimeError):
            page(url)


def test_sex_age_band_and_site_are_among_the_facts_where_they_are_known(page, dataset):
    known, unknown = image_of(dataset, "PNEUMONIA/film.dcm"), image_of(dataset, "NORMAL/plain.jpg")
    assert re.fullmatch("site [0-9a-f]{6}", known.attributes["site"])
    known.attributes |= {"sex": "F", "age": "40-59"}
    known.save()
    content = page(known.get_absolute_url()).content.decode()
    for label, value in (("Sex", "female"), ("Age", "40-59"), ("Site", known.attributes["site"])):
        assert f"<dt>{label}</dt><dd>{value}</dd>" in content
    assert page(reverse("api:image-detail", args=[known.pk])).json()["attributes"] == known.attributes
    content = page(unknown.get_absolute_url()).content.decode()
    assert not re.search("<dt>(Sex|Age|Site)</dt>", content)
    assert page(reverse("api:image-detail", args=[unknown.pk])).json()["attributes"] == {}


def test_no_name_of_a_patient_is_anywhere(page, dataset, alice):
    image = image_of(dataset, "PNEUMONIA/film.dcm")
    image.decide("by-hand", "exclude", "test", by=alice)
    urls = [*addresses(dataset), reverse("datasets:quality-report", args=[dataset.pk]), dataset.get_absolute_url()]
    urls += [reverse("api:image-list"), reverse("api:finding-list"), reverse("api:dataset-quality", args=[dataset.pk])]
    shown = b"".join(page(url).content for url in urls).decode("latin-1")
    stored = [
        str(row) for model in apps.get_app_config("datasets").get_models() for row in model._base_manager.values()
    ]
    logged = json.dumps(list(AuditEntry.objects.values("object_label", "before", "after")))
    for secret in SECRETS:
        assert secret.encode() in (dataset.folder / image.path).read_bytes()
        for text in (shown, "".join(stored), logged):
            assert secret.casefold() not in text.casefold()
    assert image.patient_key and image.patient_key not in shown


# -- The list and its filters


@pytest.fixture
def filled(team):
    """Rows alone: four images that differ in what can be filtered by."""
    dataset = DatasetFactory(
        condition=ConditionFactory(team=team),
        class_choices={"VIRUS": "PNEUMONIA", "BACTERIA": "PNEUMONIA"},
        source_classes=["BACTERIA", "NORMAL", "VIRUS"],
    )

    def image(path, **values):
        return DatasetImageFactory(dataset=dataset, path=path, class_name=path.split("/")[0], **values)

    first = image("NORMAL/a 100%.png", source_split="train")
    image("BACTERIA/b.png", source_split="test", cluster=first.pk)
    image("VIRUS/c.png", cluster=first.pk)
    blurred = image("NORMAL/d_1.png")
    FindingFactory(dataset=dataset, image=blurred, code="blurred")
    FindingFactory(dataset=dataset, image=blurred, code="tiny")
    return dataset


def listed(page, dataset, **filters):
    response = page(reverse("datasets:image-list", args=[dataset.pk]), data=filters)
    assert response.status_code == 200
    return [image.path for image in response.context["page"]]


@pytest.mark.parametrize(
    ("filters", "paths"),
    [
        ({}, ["BACTERIA/b.png", "NORMAL/a 100%.png", "NORMAL/d_1.png", "VIRUS/c.png"]),
        ({"class": "NORMAL"}, ["NORMAL/a 100%.png", "NORMAL/d_1.png"]),
        ({"class": "PNEUMONIA"}, ["BACTERIA/b.png", "VIRUS/c.png"]),
        ({"class": "VIRUS"}, ["VIRUS/c.png"]),
        ({"class": "nothing"}, []),
        ({"split": "test"}, ["BACTERIA/b.png"]),
        ({"finding": "tiny"}, ["NORMAL/d_1.png"]),
        ({"finding": "tiny", "class": "VIRUS"}, []),
        ({"path": "D_"}, ["NORMAL/d_1.png"]),
        ({"path": "100%"}, ["NORMAL/a 100%.png"]),
        ({"path": "_"}, ["NORMAL/d_1.png"]),
        ({"excluded": "yes"}, []),
        ({"excluded": "no", "class": "VIRUS"}, ["VIRUS/c.png"]),
    ],
)
def test_the_list_shows_what_was_asked_for(filters, paths, page, filled):
    assert sorted(listed(page, filled, **filters)) == paths


def test_a_cluster_lists_the_pictures_that_belong_together(page, filled):
    number = filled.images.get(path="VIRUS/c.png").cluster
    assert listed(page, filled, cluster=number) == ["BACTERIA/b.png", "VIRUS/c.png"]


def test_what_was_left_out_can_be_listed(page, filled, alice):
    filled.images.get(path="VIRUS/c.png").decide("by-hand", "exclude", "wrong patient", by=alice)
    assert listed(page, filled, excluded="yes") == ["VIRUS/c.png"]
    assert len(listed(page, filled, excluded="no")) == 3


def test_the_list_of_a_finding_tells_what_was_decided_about_it_and_offers_to_take_it_back(page, filled, alice):
    kept, left_out = filled.images.get(path="NORMAL/d_1.png"), filled.images.get(path="VIRUS/c.png")
    FindingFactory(dataset=filled, image=left_out, code="blurred")
    kept.decide("blurred", "keep", "sharp enough", by=alice)
    left_out.decide("blurred", "exclude", "nothing to be seen", by=alice)
    url = reverse("datasets:image-list", args=[filled.pk])
    content = page(url, data={"finding": "blurred"}).content.decode()
    assert content.count('value="withdraw"') == 2 and 'value="exclude"' not in content
    assert "sharp enough" in content and "nothing to be seen" in content
    other = page(url, data={"finding": "tiny"}).content.decode()
    assert 'value="withdraw"' not in other and other.count('value="exclude"') == 1


@pytest.mark.parametrize("name", ["page", "class", "split", "finding", "cluster", "excluded", "path"])
@pytest.mark.parametrize(
    "value",
    ["9" * 21, "9" * 18, "-1", "0", "x" * 60_000, "\u00b2", "\u0663", "'; --", "<script>", "%", "\ud7ff", "1e9"],
)
def test_no_filter_is_an_error_of_the_platform(name, value, page, filled):
    response = page(reverse("datasets:image-list", args=[filled.pk]), data={name: value})
    assert response.status_code == 200
    assert 'value="<script>' not in response.content.decode()


def test_a_path_with_a_nul_is_a_bad_address(page, filled):
    for name in ("path", "class", "cluster"):
        assert page(reverse("datasets:image-list", args=[filled.pk]), data={name: "a\0b"}).status_code == 400


@pytest.mark.parametrize("name", ["dataset", "cluster", "excluded", "finding", "class_name", "source_split"])
@pytest.mark.parametrize("value", ["9" * 30, "1e999999999", "-1", "x" * 10_000, "NaN", "\u0663", "'; --"])
def test_no_filter_of_the_api_is_either(name, value, page, filled):
    assert page(reverse("api:image-list"), data={name: value}).status_code in (200, 400)
    assert page(reverse("api:finding-list"), data={name: value}).status_code in (200, 400)


def test_the_api_filters_by_the_same_things(page, filled, alice):
    filled.images.get(path="VIRUS/c.png").decide("by-hand", "exclude", "wrong patient", by=alice)

    def found(**filters):
        results = page(reverse("api:image-list"), data={"dataset": filled.pk, **filters}).json()["results"]
        return sorted(row["path"] for row in results)

    assert len(found()) == 4
    assert found(excluded=True) == ["VIRUS/c.png"]
    assert found(finding="blurred") == ["NORMAL/d_1.png"]
    assert found(class_name="NORMAL") == ["NORMAL/a 100%.png", "NORMAL/d_1.png"]
    assert found(source_split="test") == ["BACTERIA/b.png"]


def test_the_api_tells_an_image_with_its_findings_and_decisions_but_no_pseudonym(page, filled, alice):
    image = filled.images.get(path="NORMAL/d_1.png")
    image.decide("blurred", "keep", "sharp enough", by=alice)
    answer = page(reverse("api:image-detail", args=[image.pk])).json()
    assert [(row["code"], row["action"], row["reason"]) for row in answer["findings"]] == [
        ("blurred", "keep", "sharp enough"),
        ("tiny", None, None),
    ]
    assert [(row["code"], row["action"], row["decided_by"]) for row in answer["decisions"]] == [
        ("blurred", "keep", "alice")
    ]
    assert (answer["excluded"], answer["label"]) == (False, "NORMAL")
    assert not [name for name in answer if "patient" in name or "fingerprint" in name]


def test_pages_follow_each_other_and_keep_the_filter(page, filled):
    DatasetImageFactory.create_batch(30, dataset=filled)
    response = page(reverse("datasets:image-list", args=[filled.pk]), data={"class": "NORMAL"})
    assert "Page 1 of 2" in response.content.decode()
    assert "class=NORMAL&amp;page=2" in response.content.decode()
    response = page(reverse("datasets:image-list", args=[filled.pk]), data={"class": "NORMAL", "page": 2})
    assert len(response.context["page"]) == 32 - 24


def test_a_list_asks_the_database_as_often_for_many_images_as_for_few(page, filled):
    def queries(url):
        page(url)
        with CaptureQueriesContext(connection) as captured:
            page(url)
        return len(captured)

    urls = [reverse("datasets:image-list", args=[filled.pk]), reverse("api:image-list"), reverse("api:finding-list")]
    few = [queries(url) for url in urls]
    for image in DatasetImageFactory.create_batch(15, dataset=filled):
        FindingFactory(dataset=filled, image=image)
    assert [queries(url) for url in urls] == few
