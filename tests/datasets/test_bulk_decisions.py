"""One decision about all images with a finding: through page, API and command, with one audit entry."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from datasets.models import Dataset, Decision
from tests.datasets.files import encode, save
from tests.datasets.test_scan import noise, scan
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

pytestmark = pytest.mark.django_db


@pytest.fixture
def dataset(settings, team):
    """Six pictures, of which the first lies there three times and the second twice."""
    folder = settings.DATASET_ROOT / "lungs"
    for number in range(6):
        for label in ("ill", "well"):
            save(folder / label / f"{number}.png", encode(noise(10 * number + (label == "ill")), "PNG"))
    for name, number in (("copy1", 0), ("copy2", 0), ("copy3", 1)):
        save(folder / "ill" / f"{name}.png", encode(noise(10 * number + 1), "PNG"))
    scan()
    dataset = Dataset.objects.get()
    dataset.condition.team = team
    dataset.condition.save()
    return dataset


def decided(dataset):
    return dict(dataset.decisions.filter(code="exact-duplicate").values_list("path", "action"))


SPARED = {
    "ill/0.png": "keep",
    "ill/copy1.png": "exclude",
    "ill/copy2.png": "exclude",
    "ill/1.png": "keep",
    "ill/copy3.png": "exclude",
}


def test_one_of_each_copy_is_kept_and_the_others_are_left_out(dataset, alice, client):
    client.force_login(alice)
    data = {"code": "exact-duplicate", "action": "spare-one", "reason": "copies"}
    page = client.post(reverse("datasets:finding-decide", args=[dataset.pk]), data, follow=True)
    assert "3 images left out, 2 kept." in page.content.decode()
    assert decided(dataset) == SPARED
    assert dataset.images.included().count() == 12
    entry = AuditEntry.objects.get(action="dataset.decide_all")
    assert (entry.actor, entry.after["exclude"], entry.after["keep"], entry.after["reason"]) == (alice, 3, 2, "copies")
    assert set(Decision.objects.values_list("decided_by__username", flat=True)) == {"alice"}


def test_the_api_does_the_same(dataset, alice, api):
    api.force_authenticate(alice)
    data = {"code": "exact-duplicate", "action": "exclude", "reason": "copies", "spare_one": True}
    answer = api.post(reverse("api:dataset-decide", args=[dataset.pk]), data)
    assert (answer.status_code, answer.json()) == (200, {"exclude": 3, "keep": 2})
    assert decided(dataset) == SPARED


def test_the_command_does_the_same(dataset):
    out = StringIO()
    options = {"exclude_all": "exact-duplicate", "spare_one": True, "reason": "copies", "json": True}
    call_command("quality_report", "lungs", **options, stdout=out, stderr=StringIO())
    assert json.loads(out.getvalue())["findings"]["exact-duplicate"] == {
        "title": "Same picture twice", "images": 5, "open": 0, "excluded": 3, "kept": 2,
    }  # fmt: skip
    assert decided(dataset) == SPARED


def test_copies_under_different_labels_are_left_to_a_person(dataset, settings):
    """Otherwise the alphabet would decide which label is right, and the conflict would be gone."""
    save(settings.DATASET_ROOT / "lungs/well/copy.png", encode(noise(1), "PNG"))
    scan()
    counts = Dataset.objects.get().decide_all("exact-duplicate", "exclude", "copies", spare_one=True, by=None)
    assert counts == {"exclude": 1, "keep": 1, "contested": 4}
    assert set(decided(dataset)) == {"ill/1.png", "ill/copy3.png"}
    assert dataset.findings.filter(code="label-conflict").count() == 4


def test_what_somebody_has_judged_stays_as_it_is(dataset, alice):
    dataset.images.get(path="ill/copy1.png").decide("exact-duplicate", "keep", "it is another", by=alice)
    assert dataset.decide_all("exact-duplicate", "exclude", "copies", by=None) == {
        "exclude": 4,
        "keep": 0,
    }
    assert decided(dataset)["ill/copy1.png"] == "keep"


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        ("exact-duplicate", {"reason": " "}, "needs a reason"),
        ("no-such", {}, "no finding no-such"),
        ("by-hand", {}, "no finding by-hand"),
        ("blurred", {"spare_one": True}, "makes sense for copies only"),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(dataset, code, options, message):
    with pytest.raises(JobError, match=message):
        dataset.decide_all(code, "exclude", **{"reason": "why", "by": None} | options)
    with pytest.raises(CommandError, match=message):
        given = {"exclude_all": code, "reason": "why"} | options
        call_command("quality_report", "lungs", **given, stdout=StringIO(), stderr=StringIO())
    assert not Decision.objects.exists()


def test_only_who_may_curate_decides_and_other_teams_see_nothing(dataset, bob, charlie, client):
    data = {"code": "exact-duplicate", "action": "exclude", "reason": "copies"}
    for user, status in ((bob, 403), (charlie, 404)):
        client.force_login(user)
        assert client.post(reverse("datasets:finding-decide", args=[dataset.pk]), data).status_code == status
    assert not Decision.objects.exists()


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        ("exact-duplicate", {"spare_one": True}, "leaves the others out"),
        ("label-conflict", {}, "cannot be kept under two labels"),
    ],
)
def test_not_all_can_be_kept_where_that_makes_no_sense(dataset, code, options, message):
    with pytest.raises(JobError, match=message):
        dataset.decide_all(code, "keep", "why", by=None, **options)
    assert not Decision.objects.exists()


@pytest.mark.parametrize("options", [{}, {"keep_all": "exact-duplicate"}, {"exclude": "ill/0.png"}])
def test_sparing_one_goes_with_leaving_out_all_only(dataset, options):
    with pytest.raises(CommandError, match="--spare-one goes with --exclude-all only"):
        call_command("quality_report", "lungs", spare_one=True, reason="why", stdout=StringIO(), **options)
    assert not Decision.objects.exists()


@pytest.mark.parametrize("reason", [{}, {"reason": ""}, {"reason": "  "}])
def test_over_the_api_a_missing_reason_is_a_wrong_value(dataset, alice, api, reason):
    api.force_authenticate(alice)
    data = {"code": "exact-duplicate", "action": "exclude", **reason}
    assert api.post(reverse("api:dataset-decide", args=[dataset.pk]), data).status_code == 400
    image = dataset.images.first()
    assert api.post(reverse("api:image-decide", args=[image.pk]), data).status_code == 400
    assert not Decision.objects.exists()


def test_many_are_decided_a_batch_at_a_time(dataset, monkeypatch):
    monkeypatch.setattr("datasets.models.dataset.BATCH", 2)
    assert dataset.decide_all("exact-duplicate", "exclude", "copies", spare_one=True, by=None) == {
        "exclude": 3,
        "keep": 2,
    }
    assert decided(dataset) == SPARED


def test_too_many_for_a_request_are_left_to_the_command(dataset, alice, api, client, monkeypatch):
    monkeypatch.setattr("datasets.views.quality.DECIDED_AT_ONCE", 4)
    monkeypatch.setattr("datasets.api.datasets.DECIDED_AT_ONCE", 4)
    data = {"code": "exact-duplicate", "action": "exclude", "reason": "copies"}
    client.force_login(alice)
    page = client.post(reverse("datasets:finding-decide", args=[dataset.pk]), data, follow=True)
    assert "quality_report" in page.content.decode()
    api.force_authenticate(alice)
    answer = api.post(reverse("api:dataset-decide", args=[dataset.pk]), data)
    assert answer.status_code == 409
    assert "manage.py quality_report 'lungs' --exclude-all exact-duplicate" in answer.json()["detail"]
    assert not Decision.objects.exists()
    call_command("quality_report", "lungs", exclude_all="exact-duplicate", reason="copies", stdout=StringIO())
    assert len(decided(dataset)) == 5
