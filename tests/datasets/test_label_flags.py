"""A label that somebody calls wrong: told to the curators, taken back by who said it, kept by scans and trainings."""

import pytest
from django.urls import reverse

from datasets import findings
from datasets.models import Dataset, DatasetImage, Finding
from tests.datasets.files import encode, save
from tests.datasets.test_scan import noise, scan
from tests.factories import ConditionFactory, DatasetFactory, DatasetImageFactory, UserFactory
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

pytestmark = pytest.mark.django_db


@pytest.fixture
def dataset(team):
    return DatasetFactory(condition=ConditionFactory(slug="chest", team=team))


@pytest.fixture
def image(dataset):
    return DatasetImageFactory(dataset=dataset, path="NORMAL/1.png")


def flag(client, image, **form):
    return client.post(reverse("datasets:image-flag", args=[image.pk]), {"action": "flag"} | form)


def test_a_clinician_calls_a_label_wrong_and_the_curators_find_it_in_the_quality_report(client, bob, image):
    client.force_login(bob)
    flag(client, image, suggestion="PNEUMONIA", comment="opacity in the left lower lobe")
    finding = Finding.objects.get(code="flagged-label")
    assert finding.detail == "bob says that this is PNEUMONIA, not NORMAL: opacity in the left lower lobe."
    assert (finding.image, finding.suggestion, finding.flagged_by) == (image, "PNEUMONIA", bob)
    told = findings.report(image.dataset).to_json()["findings"]["flagged-label"]
    assert (told["images"], told["open"]) == (1, 1)
    report = client.get(reverse("datasets:quality-report", args=[image.dataset_id])).content.decode()
    assert "Label that a reader calls wrong" in report and "opacity in the left lower lobe" in report
    page = client.get(image.get_absolute_url()).content.decode()
    assert "Called wrong by bob" in page and "Take back" in page
    image.refresh_from_db()
    assert image.label == "NORMAL"


def test_a_label_may_be_just_wrong(client, bob, image):
    client.force_login(bob)
    flag(client, image)
    assert Finding.objects.get().detail == "bob says that the label NORMAL is wrong."


def test_only_another_class_of_the_dataset_is_a_suggestion(client, bob, image):
    client.force_login(bob)
    for wrong in ("NORMAL", "COVID"):
        page = client.post(
            reverse("datasets:image-flag", args=[image.pk]), {"action": "flag", "suggestion": wrong}, follow=True
        )
        assert "none of the other classes" in page.content.decode()
    assert not Finding.objects.exists()


def test_who_comes_second_is_told_that_it_is_known(bob, alice, image):
    image.flag_label("", "", by=bob)
    with pytest.raises(JobError, match="bob has called this label wrong already"):
        image.flag_label("PNEUMONIA", "", by=alice)


def test_who_said_it_takes_it_back_and_so_does_a_curator_but_nobody_else(client, alice, bob, team, image):
    manager = UserFactory(username="mia", roles=["model manager"])
    team.members.add(manager)
    image.flag_label("", "", by=bob)
    client.force_login(manager)
    assert b"Take back" not in client.get(image.get_absolute_url()).content
    page = client.post(reverse("datasets:image-flag", args=[image.pk]), {"action": "withdraw"}, follow=True)
    assert "Only bob, who said so" in page.content.decode() and Finding.objects.exists()
    for user in (bob, alice):
        client.force_login(user)
        client.post(reverse("datasets:image-flag", args=[image.pk]), {"action": "withdraw"})
        assert not Finding.objects.exists()
        image.flag_label("", "", by=bob)


def test_flags_and_their_withdrawal_are_in_the_audit_log(bob, image):
    image.flag_label("PNEUMONIA", "", by=bob)
    image.withdraw_flag(by=bob)
    assert image.withdraw_flag(by=bob) is False
    flagged, withdrawn = AuditEntry.objects.filter(object_type="datasetimage").order_by("seq")
    assert (flagged.action, flagged.actor, flagged.after["suggestion"]) == ("image.flag_label", bob, "PNEUMONIA")
    assert (withdrawn.action, withdrawn.before["detail"]) == ("image.withdraw_flag", flagged.after["detail"])


def test_a_training_that_writes_its_doubts_anew_leaves_what_people_said(bob, image):
    image.flag_label("PNEUMONIA", "", by=bob)
    image.dataset.write_doubts([(image.path, image.digest, 2.0, "read as PNEUMONIA")])
    image.dataset.write_doubts([])
    assert [finding.code for finding in image.findings.all()] == ["flagged-label"]


def test_a_scan_leaves_a_flag_until_the_file_has_other_pixels(settings, bob):
    folder = settings.DATASET_ROOT / "CHEST" / "lungs"
    for number in range(3):
        for offset, label in enumerate(("NORMAL", "PNEUMONIA")):
            save(folder / label / f"{number}.png", encode(noise(10 * offset + number), "PNG"))
    scan()
    DatasetImage.objects.get(path="NORMAL/1.png").flag_label("PNEUMONIA", "", by=bob)
    save(folder / "NORMAL" / "new.png", encode(noise(99), "PNG"))
    scan()
    assert Dataset.objects.get().images.count() == 7
    assert Finding.objects.filter(code="flagged-label").count() == 1
    save(folder / "NORMAL" / "1.png", encode(noise(77), "PNG"))
    scan()
    assert not Finding.objects.filter(code="flagged-label").exists()


def test_a_curators_decision_about_a_flag_is_honoured_like_any_other(alice, bob, image):
    image.flag_label("PNEUMONIA", "", by=bob)
    image.decide("flagged-label", "exclude", "a second reader agrees", by=alice)
    assert not image.dataset.images.included().exists()
    assert findings.report(image.dataset).to_json()["findings"]["flagged-label"]["excluded"] == 1


def test_the_api_flags_and_takes_back(client, bob, image):
    client.force_login(bob)
    address = reverse("api:image-flag", args=[image.pk])
    answer = client.post(address, {"suggestion": "PNEUMONIA", "comment": "look again"}).json()
    (finding,) = answer["findings"]
    assert (finding["code"], finding["suggestion"], finding["flagged_by"]) == ("flagged-label", "PNEUMONIA", "bob")
    assert client.post(address, {}).status_code == 409
    assert client.delete(address).json()["findings"] == []


def test_another_team_flags_nothing(client, charlie, image):
    client.force_login(charlie)
    assert flag(client, image).status_code == 404
    assert client.post(reverse("api:image-flag", args=[image.pk]), {}).status_code == 404
