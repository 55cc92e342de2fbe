"""The quality report: what a real scan suspects, shown with figures and pictures, and what people decide about it."""

import html
import json
import re
import shutil
from io import StringIO

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from datasets import findings, quality
from datasets.models import Dataset, Decision
from tests.datasets.files import encode, save
from tests.datasets.test_duplicates import clouds, resized, turned
from tests.datasets.test_prepare import prepare_again
from tests.datasets.test_quality import blurred, written
from tests.datasets.test_scan import scan
from tests.factories import ConditionFactory, DatasetFactory, DatasetImageFactory, FindingFactory
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

pytestmark = pytest.mark.django_db
EACH = 10
SUSPECTS = {
    "blurred": {"NORMAL/blurred.png"},
    "text": {"NORMAL/text.png"},
    "tiny": {"NORMAL/tiny.png"},
    "exact-duplicate": {"NORMAL/0.png", "NORMAL/twin.jpg.png"},
    "near-duplicate": {"NORMAL/1.png", "NORMAL/quarter.png", "PNEUMONIA/2.png", "PNEUMONIA/tilted.png"},
    "label-conflict": {"NORMAL/4.png", "PNEUMONIA/again.png"},
}
# A picture under two labels is a picture twice, too.
SUSPECTS["exact-duplicate"] |= SUSPECTS["label-conflict"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The folder that every test here gets a copy of."""
    root = tmp_path_factory.mktemp("pictures")
    for offset, label in enumerate(("NORMAL", "PNEUMONIA")):
        for number in range(EACH):
            save(root / label / f"{number}.png", encode(clouds(100 * offset + number), "PNG"))
    odd = {
        "NORMAL/blurred.png": blurred(clouds(50), 4),
        "NORMAL/text.png": written(clouds(51), "MUSTERMANN ERIKA 1950-01-01"),
        "NORMAL/tiny.png": resized(clouds(52), 60, 60),
        "NORMAL/twin.jpg.png": clouds(0),
        "NORMAL/quarter.png": np.rot90(clouds(1)).copy(),
        "PNEUMONIA/tilted.png": turned(clouds(102), 30),
        "PNEUMONIA/again.png": clouds(4),
    }
    for path, picture in odd.items():
        save(root / path, encode(picture, "PNG"))
    return root


@pytest.fixture
def dataset(settings, team, pictures):
    shutil.copytree(pictures, settings.DATASET_ROOT / "CHEST/lungs")
    scan()
    dataset = Dataset.objects.get()
    dataset.condition.team = team
    dataset.condition.save()
    return dataset


@pytest.fixture
def page(client, alice):
    client.force_login(alice)
    return lambda url, **options: client.get(url, **options)


def report_url(dataset):
    return reverse("datasets:quality-report", args=[dataset.pk])


def suspects(dataset):
    found = {}
    for code, path in dataset.findings.values_list("code", "image__path"):
        found.setdefault(code, set()).add(path)
    return found


def counts(dataset, code):
    """(images, open, excluded, kept) as the report tells them."""
    told = findings.report(dataset).to_json()["findings"][code]
    return tuple(told[name] for name in ("images", "open", "excluded", "kept"))


def image_at(dataset, path):
    return dataset.images.get(path=path)


# -- What is found


def test_a_scan_suspects_what_is_odd_and_nothing_else(dataset):
    assert suspects(dataset) == SUSPECTS


def test_turned_pictures_are_one_cluster_with_what_they_were_turned_from(dataset):
    clusters = dict(dataset.images.exclude(cluster=None).values_list("path", "cluster"))
    assert clusters["NORMAL/1.png"] == clusters["NORMAL/quarter.png"]
    assert clusters["PNEUMONIA/2.png"] == clusters["PNEUMONIA/tilted.png"]
    assert clusters["NORMAL/1.png"] != clusters["PNEUMONIA/2.png"]


def test_findings_say_in_words_what_is_wrong(dataset):
    details = dict(dataset.findings.exclude(code="exact-duplicate").values_list("image__path", "detail"))
    assert details["NORMAL/tiny.png"] == "Only 60 pixels wide; suspicious below 100."
    assert details["NORMAL/blurred.png"].startswith("Sharpness 0.")
    assert "strokes side by side" in details["NORMAL/text.png"]
    assert details["NORMAL/quarter.png"].startswith("One of 2 versions of one picture")
    twin = dataset.findings.get(code="exact-duplicate", image__path="NORMAL/twin.jpg.png")
    assert twin.detail == "The same pixels as NORMAL/0.png."


def test_the_next_scan_forgets_a_suspicion_that_is_over(dataset):
    (dataset.folder / "NORMAL/twin.jpg.png").unlink()
    save(dataset.folder / "NORMAL/blurred.png", encode(clouds(50), "PNG"))
    scan()
    expected = SUSPECTS | {"exact-duplicate": SUSPECTS["label-conflict"]}
    del expected["blurred"]
    assert suspects(dataset) == expected


# -- The page and its twins


def test_the_page_counts_every_kind_and_shows_pictures_of_those_that_occur(page, dataset):
    content = page(report_url(dataset)).content.decode()
    for code, kind in quality.CODES.items():
        assert kind.title in content
        assert (f'id="{code}"' in content) == (code in SUSPECTS)
        assert (html.escape(kind.meaning) in content) == (code in SUSPECTS)
    for path in SUSPECTS["near-duplicate"] | SUSPECTS["blurred"]:
        assert reverse("datasets:image-thumbnail", args=[image_at(dataset, path).pk]) in content
    row = re.search(r'<a href="#near-duplicate">.*?</tr>', content, re.DOTALL)[0]
    assert re.findall(r"<td>(\d+)</td>", row) == ["4", "4", "0", "0"]
    assert reverse("api:dataset-quality", args=[dataset.pk]) in content


def test_page_api_and_command_tell_the_same(page, dataset):
    answer = page(reverse("api:dataset-quality", args=[dataset.pk])).json()
    out = StringIO()
    call_command("quality_report", dataset.name, json=True, stdout=out)
    assert json.loads(out.getvalue()) == answer
    assert answer["findings"].keys() == quality.CODES.keys()
    assert {code: told["images"] for code, told in answer["findings"].items() if told["images"]} == {
        code: len(paths) for code, paths in SUSPECTS.items()
    }
    context = page(report_url(dataset)).context["report"]
    assert {group.code: group.count for group in context.kinds} == {
        code: told["images"] for code, told in answer["findings"].items()
    }


def test_hints_tell_of_few_images_and_of_the_classes_in_use(page, dataset):
    hints = {hint["code"]: hint for hint in findings.report(dataset).hints}
    assert hints["few-images"]["level"] == "warning"
    assert "NORMAL (15), PNEUMONIA (12)" in hints["few-images"]["text"]
    assert html.escape(hints["few-images"]["text"]) in page(report_url(dataset)).content.decode()


def test_an_imbalance_is_a_warning(team):
    counts = {"NORMAL": 1000, "PNEUMONIA": 150}
    told = {hint["code"] for hint in findings.report(DatasetFactory(counts=counts)).hints}
    assert told == {"imbalance", "some-images"}


def test_counts_and_hints_of_classes_do_not_count_what_was_left_out_by_hand(page, dataset, alice):
    before = findings.report(dataset).to_json()
    assert (before["images"], before["excluded"], before["classes"]) == (27, 0, {"NORMAL": 15, "PNEUMONIA": 12})
    names = [f"PNEUMONIA/{number}.png" for number in range(9)]
    for name in names:
        image_at(dataset, name).decide("by-hand", "exclude", "wrong body part", by=alice)
    # A second decision about an image does not leave it out twice.
    image_at(dataset, names[0]).decide("blurred", "exclude", "blurred too", by=alice)
    told = page(reverse("api:dataset-quality", args=[dataset.pk])).json()
    assert (told["images"], told["excluded"], told["classes"]) == (27, 9, {"NORMAL": 15, "PNEUMONIA": 3})
    hints = {hint["code"]: hint["text"] for hint in told["hints"]}
    assert "NORMAL (15), PNEUMONIA (3)" in hints["few-images"]
    assert "NORMAL has 5.0 times as many images as PNEUMONIA" in hints["imbalance"]
    assert "9 images were left out by hand" in page(report_url(dataset)).content.decode()
    for name in names:
        image_at(dataset, name).withdraw("by-hand", by=alice)
    image_at(dataset, names[0]).withdraw("blurred", by=alice)
    assert findings.report(dataset).to_json() == before


def test_a_class_of_which_everything_was_left_out_is_empty(team, alice):
    dataset = DatasetFactory(condition=ConditionFactory(team=team), counts={"NORMAL": 1, "PNEUMONIA": 900})
    DatasetImageFactory(dataset=dataset).decide("by-hand", "exclude", "cut off", by=alice)
    hints = {hint["code"]: hint["text"] for hint in findings.report(dataset).hints}
    assert hints.keys() == {"empty-class"} and "NORMAL" in hints["empty-class"]


def test_images_a_patient_count_what_is_in_use_at_once_and_after_the_next_scan(settings, alice):
    folder = settings.DATASET_ROOT / "CHEST/lungs"
    for number in range(8):
        label = ("NORMAL", "PNEUMONIA")[number % 2]
        save(folder / label / f"patient{number if number < 4 else 7}_{number}.png", encode(clouds(number), "PNG"))
    scan()
    dataset = Dataset.objects.get()
    known = {"patients": 5, "images": 8, "median": 1, "largest": 4}
    assert known.items() <= findings.report(dataset).patients.items()
    for number in (4, 5, 6):
        path = f"{('NORMAL', 'PNEUMONIA')[number % 2]}/patient7_{number}.png"
        image_at(dataset, path).decide("by-hand", "exclude", "cut off", by=alice)
    for _ in range(2):
        told = findings.report(dataset)
        assert {"patients": 5, "images": 5, "median": 1, "largest": 1}.items() <= told.patients.items()
        assert not {"images-per-patient", "dominant-patient"} & {hint["code"] for hint in told.hints}
        save(folder / "NORMAL/odd.png", encode(clouds(50), "PNG"))
        scan()
        dataset.refresh_from_db()


def test_each_measure_has_a_histogram_and_the_same_figures_as_a_table(page, dataset):
    content = page(report_url(dataset)).content.decode()
    canvases = re.findall(r"<canvas data-histogram ([^>]*)>", content)
    figures = findings.report(dataset).to_json()["measures"]
    assert len(canvases) == len(figures) >= len(quality.MEASURES)
    for canvas, (name, figure) in zip(canvases, figures.items(), strict=True):
        data = {key: json.loads(html.unescape(value)) for key, value in re.findall(r'data-(\w+)="([^"]*)"', canvas)}
        assert data["counts"] == figure["histogram"] and sum(data["counts"]) == dataset.images_count
        assert data["edges"] == figure["edges"] and len(data["edges"]) == len(data["counts"]) + 1
        assert data["thresholds"] == {"low": figure["low"], "high": figure["high"]}
        table = content.split(f"{quality.LABELS[name]}: quantiles over {dataset.images_count} images")[1]
        cells = re.findall(r"<td>([^<]*)</td>", table.split("</table>")[0])
        assert cells == [f"{value:.3g}" for value in figure["quantiles"].values()]


def test_a_dataset_without_images_has_an_empty_report(page, team):
    dataset = DatasetFactory(condition=ConditionFactory(team=team), counts={}, classes=[], images_count=0)
    response = page(report_url(dataset))
    assert response.status_code == 200
    assert "data-histogram" not in response.content.decode()


def test_the_report_is_for_the_team_and_viewing_it_is_recorded(client, dataset, bob, charlie):
    api = reverse("api:dataset-quality", args=[dataset.pk])
    for user, status in ((bob, 200), (charlie, 404)):
        client.force_login(user)
        assert [client.get(url).status_code for url in (report_url(dataset), api)] == [status, status]
    seen = AuditEntry.objects.filter(action="dataset.view_quality", object_id=str(dataset.pk))
    assert [entry.actor for entry in seen] == [bob, bob], "the page and the API"
    with pytest.raises(CommandError, match=r"There is no dataset 'CHEST/lungs'\. Known datasets: none"):
        call_command("quality_report", dataset.name, user="charlie")


def test_the_report_asks_the_database_as_often_for_many_findings_as_for_few(page, team):
    dataset = DatasetFactory(condition=ConditionFactory(team=team))

    def add(count):
        for image in DatasetImageFactory.create_batch(count, dataset=dataset):
            for code in quality.CODES:
                FindingFactory(dataset=dataset, image=image, code=code)

    def queries(url):
        page(url)
        with CaptureQueriesContext(connection) as captured:
            page(url)
        return len(captured)

    urls = [report_url(dataset), reverse("api:dataset-quality", args=[dataset.pk])]
    add(1)
    few = [queries(url) for url in urls]
    add(20)
    assert [queries(url) for url in urls] == few


# -- Decisions: the three ways in, each answers with a status


def on_the_page(client, user, image, action, code, reason=""):
    client.force_login(user)
    url = reverse("datasets:image-decide", args=[image.pk])
    response = client.post(url, {"action": action, "code": code, "reason": reason})
    return {302: 200}.get(response.status_code, response.status_code)


def over_the_api(client, user, image, action, code, reason=""):
    client.force_login(user)
    url = reverse("api:image-decide", args=[image.pk])
    body = json.dumps({"action": action, "code": code, "reason": reason})
    return client.post(url, body, content_type="application/json").status_code


def by_command(client, user, image, action, code, reason=""):
    options = {action: image.path, "code": code, "reason": reason, "user": user.username}
    try:
        call_command("quality_report", image.dataset.name, stdout=StringIO(), **options)
    except CommandError as error:
        return 404 if "There is no dataset" in str(error) else 403 if "no role" in str(error) else 409
    return 200


every_way = pytest.mark.parametrize("decide", [on_the_page, over_the_api, by_command])


@pytest.fixture
def image(team):
    """A row with a finding; no file is needed to judge it."""
    dataset = DatasetFactory(name="ARM/bones", condition=ConditionFactory(team=team))
    image = DatasetImageFactory(dataset=dataset)
    FindingFactory(dataset=dataset, image=image, code="blurred")
    return image


@every_way
@pytest.mark.parametrize(("action", "counted"), [("exclude", (1, 0, 1, 0)), ("keep", (1, 0, 0, 1))])
def test_a_finding_is_left_out_or_kept_with_a_reason_and_taken_back(decide, action, counted, client, alice, image):
    assert counts(image.dataset, "blurred") == (1, 1, 0, 0)
    assert decide(client, alice, image, action, "blurred", "  the lung  can be seen ") == 200
    decision = Decision.objects.get()
    assert (decision.action, decision.reason, decision.decided_by) == (action, "the lung can be seen", alice)
    assert counts(image.dataset, "blurred") == counted
    entry = AuditEntry.objects.get(action=f"image.{action}")
    assert (entry.actor, entry.object_id, entry.before) == (alice, str(image.pk), None)
    assert entry.after == {"dataset": "ARM/bones", "code": "blurred", "reason": "the lung can be seen"}
    assert decide(client, alice, image, "withdraw", "blurred") == 200
    assert counts(image.dataset, "blurred") == (1, 1, 0, 0)
    assert AuditEntry.objects.get(action="image.withdraw").before["reason"] == "the lung can be seen"


@every_way
@pytest.mark.parametrize("reason", ["", "   ", "\t"])
def test_a_decision_without_a_reason_is_refused(decide, reason, client, alice, image):
    assert (
        decide(client, alice, image, "exclude", "blurred", reason)
        == ({on_the_page: 200, over_the_api: 400, by_command: 409}[decide])
    )
    assert not Decision.objects.exists()
    assert not AuditEntry.objects.filter(action="image.exclude").exists()


@every_way
def test_a_decision_about_no_known_finding_is_refused(decide, client, alice, image):
    for code in ("nonsense", "x" * 10_000, "", "<b>"):
        assert decide(client, alice, image, "exclude", code, "because") in (200, 400, 409)
    assert not Decision.objects.exists()


@every_way
def test_another_decision_replaces_the_first_and_the_log_has_both(decide, client, alice, image):
    decide(client, alice, image, "exclude", "blurred", "too blurred")
    decide(client, alice, image, "keep", "blurred", "good enough after all")
    assert Decision.objects.get().action == "keep"
    assert AuditEntry.objects.get(action="image.keep").before["reason"] == "too blurred"


@every_way
def test_who_may_not_judge_is_refused(decide, client, bob, charlie, image):
    assert decide(client, bob, image, "exclude", "blurred", "because") == 403
    assert decide(client, charlie, image, "exclude", "blurred", "because") == 404
    assert not Decision.objects.exists()


@every_way
@pytest.mark.parametrize("action", ["exclude", "withdraw"])
def test_a_decision_that_cannot_be_recorded_is_not_made(decide, action, client, alice, image, monkeypatch):
    if action == "withdraw":
        image.decide("blurred", "keep", "fine", by=alice)
    before = list(Decision.objects.values())

    def fail(*args, **options):
        raise RuntimeError("the audit log is full")

    client.force_login(alice)
    monkeypatch.setattr("datasets.models.image.audit.record", fail)
    with pytest.raises(RuntimeError):
        decide(client, alice, image, action, "blurred", "because")
    assert list(Decision.objects.values()) == before


@pytest.mark.parametrize("value", ["a\0b", "x" * 10_000, "\u202e", "<script>"])
def test_no_value_whatsoever_is_an_error_of_the_platform(value, client, alice, image):
    client.force_login(alice)
    page, api = (reverse(name, args=[image.pk]) for name in ("datasets:image-decide", "api:image-decide"))
    for sent in ("action", "code", "reason", "next"):
        data = {"action": "exclude", "code": "blurred", "reason": "because"} | {sent: value}
        assert client.post(page, data).status_code == 302
        assert client.post(api, json.dumps(data), content_type="application/json").status_code in (200, 400)
    assert client.get(image.get_absolute_url()).status_code == 200


def test_a_long_reason_is_cut_to_what_the_table_holds_or_refused(alice, image):
    assert len(image.decide("blurred", "keep", "word " * 1000, by=alice).reason) == 300


def test_the_command_names_an_image_that_is_not_there(image):
    with pytest.raises(CommandError, match=r"has no image 'NORMAL/none\.png'"):
        call_command("quality_report", image.dataset.name, exclude="NORMAL/none.png", reason="because")


# -- Where the page goes after a decision


@pytest.mark.parametrize("target", ["/datasets/", "/datasets/?finding=blurred&page=2"])
def test_the_page_comes_back_to_where_the_user_was(target, client, alice, image):
    client.force_login(alice)
    url = reverse("datasets:image-decide", args=[image.pk])
    answer = client.post(url, {"action": "exclude", "code": "blurred", "reason": "because", "next": target})
    assert answer.url == target


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/", "//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example",
        "javascript:alert(1)", "http:evil.example", "evil", "dataset-list", "datasets:dataset-list", "",
        " //evil.example",        "/\t/evil.example", "https:/evil.example", "x" * 10_000, "ftp://evil.example/",
    ],
)  # fmt: skip
def test_but_never_anywhere_else(target, client, alice, image):
    client.force_login(alice)
    url = reverse("datasets:image-decide", args=[image.pk])
    answer = client.post(url, {"action": "exclude", "code": "blurred", "reason": "because", "next": target})
    assert (answer.status_code, answer.url) == (302, image.get_absolute_url())


# -- What a decision means


def test_a_decision_outlives_a_scan_and_ends_with_the_pixels_it_was_about(dataset, alice):
    image = image_at(dataset, "NORMAL/blurred.png")
    image.decide("blurred", "exclude", "nothing to be seen", by=alice)
    save(dataset.folder / "NORMAL/new.png", encode(clouds(77), "PNG"))
    scan()
    assert counts(dataset, "blurred") == (1, 0, 1, 0)
    save(dataset.folder / image.path, encode(blurred(clouds(53), 4), "PNG"))
    scan()
    assert counts(dataset, "blurred") == (1, 1, 0, 0)
    assert not dataset.images.with_exclusion().get(path=image.path).excluded


def test_a_decision_comes_back_with_the_file(dataset, alice):
    image_at(dataset, "NORMAL/blurred.png").decide("blurred", "exclude", "nothing to be seen", by=alice)
    file = dataset.folder / "NORMAL/blurred.png"
    content = file.read_bytes()
    file.unlink()
    scan()
    assert Decision.objects.count() == 1
    file.write_bytes(content)
    scan()
    assert counts(dataset, "blurred") == (1, 0, 1, 0)


def test_the_next_preparation_honours_what_was_decided(dataset, alice):
    image_at(dataset, "NORMAL/blurred.png").decide("blurred", "exclude", "nothing to be seen", by=alice)
    image_at(dataset, "NORMAL/tiny.png").decide("tiny", "keep", "the joint can be seen", by=alice)
    image_at(dataset, "NORMAL/3.png").decide("by-hand", "exclude", "wrong patient", by=alice)
    job = prepare_again(alice)
    assert job.state == "succeeded", job.error
    paths = set(job.manifest.values_list("path", flat=True))
    assert not paths & {"NORMAL/blurred.png", "NORMAL/3.png"}
    assert "NORMAL/tiny.png" in paths
    assert job.left_out == {"excluded": 2, "label-conflict": 2}
    image_at(dataset, "NORMAL/3.png").withdraw("by-hand", by=alice)
    again = prepare_again(alice)
    assert again.manifest.filter(path="NORMAL/3.png").exists()


def test_leaving_one_copy_out_settles_a_label_conflict_at_once_and_taking_it_back_does_not(dataset, alice):
    wrong = image_at(dataset, "PNEUMONIA/again.png")
    wrong.decide("label-conflict", "exclude", "the reader says normal", by=alice)
    assert "label-conflict" not in suspects(dataset)
    job = prepare_again(alice)
    assert job.manifest.filter(path="NORMAL/4.png").exists()
    assert job.left_out == {"excluded": 1}
    wrong.withdraw("label-conflict", by=alice)
    assert suspects(dataset)["label-conflict"] == SUSPECTS["label-conflict"]


def test_keeping_one_copy_settles_a_label_conflict_for_all(dataset, alice):
    """The kept label counts; copies under another label are left out, and both say so."""
    image_at(dataset, "NORMAL/4.png").decide("label-conflict", "keep", "the reader says normal", by=alice)
    job = prepare_again(alice)
    paths = set(job.manifest.values_list("path", flat=True))
    assert "NORMAL/4.png" in paths and "PNEUMONIA/again.png" not in paths
    assert job.left_out == {"label-conflict": 1}
    assert counts(dataset, "label-conflict") == (2, 1, 0, 1)
    for finding in dataset.findings.filter(code="label-conflict"):
        assert finding.detail.endswith("NORMAL was kept, so the images labelled otherwise are left out.")
    image_at(dataset, "NORMAL/4.png").withdraw("label-conflict", by=alice)
    assert prepare_again(alice).left_out == {"label-conflict": 2}


@every_way
def test_copies_with_two_labels_cannot_both_be_kept(decide, client, dataset, alice):
    first, second = image_at(dataset, "NORMAL/4.png"), image_at(dataset, "PNEUMONIA/again.png")
    assert decide(client, alice, first, "keep", "label-conflict", "it is normal") == 200
    assert decide(client, alice, second, "keep", "label-conflict", "it is not") in (200, 409)
    assert [row.path for row in Decision.objects.all()] == ["NORMAL/4.png"]
    with pytest.raises(JobError, match=r"NORMAL/4\.png has the same pixels and was kept under another label"):
        second.decide("label-conflict", "keep", "it is not", by=alice)


def test_copies_that_are_kept_under_two_labels_nevertheless_are_a_conflict(dataset):
    first, second = image_at(dataset, "NORMAL/4.png"), image_at(dataset, "PNEUMONIA/again.png")
    for image in (first, second):
        Decision.objects.create(
            dataset=dataset, path=image.path, digest=image.digest, code="label-conflict", action="keep", reason="x"
        )
    assert dataset.conflicting_images() == {first.pk, second.pk}


def test_a_decision_about_other_pixels_settles_no_conflict(dataset, alice):
    image = image_at(dataset, "NORMAL/4.png")
    image.decide("label-conflict", "keep", "it is normal", by=alice)
    Decision.objects.update(digest="0" * 64)
    assert dataset.conflicting_images() == {image.pk, image_at(dataset, "PNEUMONIA/again.png").pk}


# -- Near-duplicates under two labels

NEAR = "near-label-conflict"


@pytest.fixture
def turned_elsewhere(dataset):
    """A turned copy of a picture of the other class."""
    save(dataset.folder / "PNEUMONIA/turned.png", encode(np.rot90(clouds(6), 3).copy(), "PNG"))
    scan()
    dataset.refresh_from_db()
    return dataset


def test_a_turned_copy_under_another_label_is_told_of_both_and_nothing_is_left_out(turned_elsewhere, alice):
    pair = {"NORMAL/6.png", "PNEUMONIA/turned.png"}
    assert suspects(turned_elsewhere)[NEAR] == pair
    assert suspects(turned_elsewhere)["label-conflict"] == SUSPECTS["label-conflict"]
    finding = turned_elsewhere.findings.get(code=NEAR, image__path="NORMAL/6.png")
    assert finding.detail == (
        "Labelled NORMAL here, and nearly the same picture PNEUMONIA/turned.png is labelled PNEUMONIA."
    )
    assert pair <= set(prepare_again(alice).manifest.values_list("path", flat=True))


def test_near_duplicates_under_two_labels_are_settled_by_leaving_one_out_or_by_merging_the_classes(
    turned_elsewhere, alice
):
    save(turned_elsewhere.folder / "COVID/a.png", encode(clouds(60), "PNG"))
    scan()
    turned_elsewhere.refresh_from_db()
    image_at(turned_elsewhere, "PNEUMONIA/turned.png").decide(NEAR, "exclude", "it is normal", by=alice)
    assert NEAR not in suspects(turned_elsewhere)
    image_at(turned_elsewhere, "PNEUMONIA/turned.png").withdraw(NEAR, by=alice)
    assert len(suspects(turned_elsewhere)[NEAR]) == 2
    turned_elsewhere.choose_classes({"NORMAL": "one", "PNEUMONIA": "one"}, by=alice)
    assert NEAR not in suspects(turned_elsewhere)


def test_an_exact_copy_in_a_cluster_of_two_labels_is_told_of_the_one_that_only_is_like_it(turned_elsewhere):
    """6.png and its exact copy contradict each other by their pixels; the turned one is like the first alone."""
    save(turned_elsewhere.folder / "PNEUMONIA/exact.png", encode(clouds(6), "PNG"))
    (turned_elsewhere.folder / "PNEUMONIA/turned.png").unlink()
    scan()
    assert NEAR not in suspects(turned_elsewhere)
    save(turned_elsewhere.folder / "NORMAL/turned too.png", encode(np.rot90(clouds(6)).copy(), "PNG"))
    scan()
    assert suspects(turned_elsewhere)[NEAR] == {"PNEUMONIA/exact.png", "NORMAL/turned too.png"}


def test_a_decision_about_a_copy_leaves_findings_of_other_clusters_alone(turned_elsewhere, alice):
    save(turned_elsewhere.folder / "NORMAL/turned back.png", encode(np.rot90(clouds(105)).copy(), "PNG"))
    scan()
    assert len(suspects(turned_elsewhere)[NEAR]) == 4
    image_at(turned_elsewhere, "PNEUMONIA/turned.png").decide(NEAR, "exclude", "it is normal", by=alice)
    assert suspects(turned_elsewhere)[NEAR] == {"PNEUMONIA/5.png", "NORMAL/turned back.png"}


def test_a_decision_whose_finding_is_gone_can_be_seen_and_taken_back(page, client, dataset, alice):
    image = image_at(dataset, "PNEUMONIA/again.png")
    image.decide("label-conflict", "exclude", "the reader says normal", by=alice)
    image.decide("by-hand", "exclude", "also cut off", by=alice)
    content = page(image.get_absolute_url()).content.decode()
    assert "the reader says normal" in content and "also cut off" in content
    assert content.count('value="withdraw"') == 2
    for code in ("label-conflict", "by-hand"):
        on_the_page(client, alice, image, "withdraw", code)
    assert not Decision.objects.exists()


def test_what_was_decided_is_shown_where_it_was_suspected(page, dataset, alice):
    image_at(dataset, "NORMAL/blurred.png").decide("blurred", "keep", "sharp enough for me", by=alice)
    content = page(report_url(dataset)).content.decode()
    assert "sharp enough for me" in content
    row = re.search(r'<a href="#blurred">.*?</tr>', content, re.DOTALL)[0]
    assert re.findall(r"<td>(\d+)</td>", row) == ["1", "0", "0", "1"]


def test_undecided_images_come_first(dataset, alice):
    image_at(dataset, "NORMAL/1.png").decide("near-duplicate", "keep", "fine", by=alice)
    group = next(group for group in findings.report(dataset).kinds if group.code == "near-duplicate")
    assert [finding.action for finding in group.examples] == [None, None, None, "keep"]


def test_the_command_lists_the_images_of_one_kind(dataset, alice):
    image_at(dataset, "NORMAL/1.png").decide("near-duplicate", "keep", "fine", by=alice)
    out = StringIO()
    call_command("quality_report", dataset.name, list="near-duplicate", json=True, stdout=out)
    entry = AuditEntry.objects.get(action="dataset.view_quality")
    assert (entry.channel, entry.after) == ("command", {"listed": "near-duplicate"})
    listed = json.loads(out.getvalue())["listed"]
    assert {row["image__path"] for row in listed} == SUSPECTS["near-duplicate"]
    assert [row["reason"] for row in listed if row["action"]] == ["fine"]
