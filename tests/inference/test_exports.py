"""A prediction for other systems: FHIR JSON, structured report and secondary capture, on the page and over the API."""

import json
from io import BytesIO, StringIO

import pydicom
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.test import Client
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from inference.engine import Engine
from inference.models import Prediction, prediction
from inference.receiving import analyse_received
from tests.datasets.files import encode
from tests.factories import ConditionFactory, UserFactory
from tests.inference.dicom_network import arrive, destination, film, in_service, only_row, radiograph
from tests.inference.results import TAGS
from xrayplatform.audit import AuditEntry

PAGES = {"sr": "report", "sc": "capture", "fhir": "fhir"}
CLASSES = {"sr": ComprehensiveSRStorage, "sc": SecondaryCaptureImageStorage}


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Each test is a process that has no model loaded yet."""
    monkeypatch.setattr(prediction, "ENGINE", Engine())


@pytest.fixture
def version(alice, team):
    return in_service(ConditionFactory(slug="chest", name="Chest", team=team), alice)


@pytest.fixture
def kept(version):
    """An answer whose received image still waits for a delivery."""
    destination(version.condition)
    analyse_received(arrive())
    return Prediction.objects.get()


@pytest.fixture
def uploaded(version, bob):
    """An answer about a DICOM file that bob uploaded by hand."""
    return Prediction.objects.analyse(version.condition, radiograph(), by=bob).prediction


@pytest.fixture
def browser(client, bob):
    client.force_login(bob)
    return client


def page(answer, kind):
    return f"/analysis/{answer.pk}/{PAGES[kind]}/"


def address(answer, kind):
    return f"/api/v1/predictions/{answer.pk}/{kind}/"


def file(content):
    return {"image": SimpleUploadedFile("image.dcm", content)}


def said(browser, response):
    """What the page that one is sent back to says."""
    return [str(message) for message in browser.get(response.url).context["messages"]]


@pytest.mark.parametrize("where", [page, address])
def test_the_fhir_report_is_there_for_every_answer_and_recorded(browser, uploaded, bob, where):
    answer = browser.get(where(uploaded, "fhir"))
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/fhir+json")
    assert answer.json()["resourceType"] == "DiagnosticReport"
    assert answer.json()["presentedForm"][0]["url"] == f"http://testserver/analysis/{uploaded.pk}/"
    entry = AuditEntry.objects.get(action="prediction.export")
    assert (entry.actor, entry.object_id, entry.after) == (bob, str(uploaded.pk), {"as": "fhir"})


@pytest.mark.parametrize("accept", ["application/fhir+json", "application/json", "*/*"])
def test_programs_may_ask_for_fhir(browser, uploaded, accept):
    assert browser.get(address(uploaded, "fhir"), headers={"Accept": accept}).status_code == 200


@pytest.mark.parametrize("where", [page, address])
@pytest.mark.parametrize("kind", ["sr", "sc"])
def test_while_the_received_image_is_kept_its_results_are_a_click_away(browser, kept, where, kind):
    answer = browser.get(where(kept, kind), headers={"Accept": "application/dicom"})
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/dicom")
    assert answer["Cache-Control"] == "no-store"
    found = pydicom.dcmread(BytesIO(answer.content))
    assert (found.SOPClassUID, found.StudyInstanceUID) == (CLASSES[kind], TAGS["StudyInstanceUID"])
    assert AuditEntry.objects.get(action="prediction.export").after == {"as": kind}


@pytest.mark.parametrize("where", [page, address])
@pytest.mark.parametrize("kind", ["sr", "sc"])
def test_of_an_image_that_was_uploaded_the_results_are_written_when_it_is_sent_again(browser, uploaded, where, kind):
    answer = browser.post(where(uploaded, kind), file(radiograph()), headers={"X-CSRFToken": "x"})
    assert answer.status_code == 200
    found = pydicom.dcmread(BytesIO(answer.content))
    assert str(found.PatientName) == TAGS["PatientName"]
    assert found.SOPClassUID == CLASSES[kind]


def test_a_copy_whose_head_differs_is_the_same_image(browser, uploaded):
    """As it is in an archive that has corrected a name."""
    answer = browser.post(address(uploaded, "sr"), file(radiograph(PatientName="Right^Name")))
    assert str(pydicom.dcmread(BytesIO(answer.content)).PatientName) == "Right^Name"


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (radiograph(StudyInstanceUID="1.2.3"), 409, "not the one that was analysed"),
        (radiograph(dark=True), 409, "pixels differ"),
        (encode(film().astype("uint8"), "PNG"), 409, "no DICOM file"),
        (b"\0" * 128 + b"DICM" + b"rest", 400, ""),
    ],
)
def test_another_file_gets_no_result(browser, uploaded, content, status, words):
    answer = browser.post(address(uploaded, "sr"), file(content))
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert not AuditEntry.objects.filter(action="prediction.export").exists()
    back = browser.post(page(uploaded, "sr"), file(content))
    assert back.status_code == 302
    assert words in " ".join(said(browser, back))


def test_without_the_image_there_is_a_reason(browser, uploaded):
    answer = browser.get(address(uploaded, "sr"))
    assert answer.status_code == 409
    assert "Send the DICOM file" in answer.json()["detail"]
    assert browser.post(address(uploaded, "sr")).status_code == 400
    assert said(browser, browser.post(page(uploaded, "sr"))) == ["Choose the DICOM file that was analysed."]


def test_of_a_picture_there_is_no_dicom_result(browser, version, bob):
    source = encode((film() // 16).astype("uint8"), "PNG")
    answer = Prediction.objects.analyse(version.condition, source, by=bob).prediction
    refused = browser.get(address(answer, "sr"))
    assert refused.status_code == 409
    assert "FHIR" in refused.json()["detail"]
    assert browser.post(address(answer, "sr"), file(source)).status_code == 409


def test_who_the_patient_is_is_told_to_readers_only(kept, team):
    scientist = UserFactory(roles=["data scientist"])
    team.members.add(scientist)
    client = Client()
    client.force_login(scientist)
    assert client.get(address(kept, "sr")).status_code == 409
    assert client.post(address(kept, "sr"), file(radiograph())).status_code == 200


def test_the_panel_offers_what_there_is(browser, kept, uploaded):
    shown = browser.get(f"/analysis/{kept.pk}/").content.decode()
    assert f'href="{page(kept, "sr")}"' in shown
    assert f'href="{page(kept, "sc")}"' in shown
    again = browser.get(f"/analysis/{uploaded.pk}/").content.decode()
    assert f'action="{page(uploaded, "sr")}"' in again
    assert f'formaction="{page(uploaded, "sc")}"' in again
    only_row().drop_file()
    assert f'action="{page(kept, "sr")}"' in browser.get(f"/analysis/{kept.pk}/").content.decode()


def test_the_report_is_of_the_answer(browser, kept):
    found = pydicom.dcmread(BytesIO(browser.get(address(kept, "sr")).content))
    text = found.to_json()
    for value in (str(kept.pk), str(kept.version), kept.version.sha256):
        assert value in text
    assert found.CompletionFlag == "PARTIAL"


# -- The command


def export(answer, out, *arguments):
    printed = StringIO()
    call_command("export_prediction", str(answer.pk), str(out), *arguments, "--json", stdout=printed)
    return json.loads(printed.getvalue())


def test_the_command_writes_each_form(kept, tmp_path):
    out = tmp_path / "result"
    for form in ("fhir", "sr", "sc"):
        told = export(kept, out, "--as", form)
        assert told == {"prediction": str(kept.pk), "form": form, "file": str(out), "size": out.stat().st_size}
    assert pydicom.dcmread(out).SOPClassUID == SecondaryCaptureImageStorage
    assert AuditEntry.objects.filter(action="prediction.export").count() == 3


def test_the_command_takes_the_image_where_it_is_not_kept(uploaded, bob, tmp_path):
    image, out = tmp_path / "image.dcm", tmp_path / "result.dcm"
    with pytest.raises(SystemExit):
        export(uploaded, out, "--as", "sr")
    image.write_bytes(radiograph())
    export(uploaded, out, "--as", "sr", "--image", str(image), "--user", "bob")
    assert str(pydicom.dcmread(out).PatientName) == TAGS["PatientName"]
    assert AuditEntry.objects.get(action="prediction.export").actor == bob


@pytest.mark.parametrize("who", ["charlie", "nobody"])
def test_the_command_shows_nothing_of_other_teams(uploaded, charlie, tmp_path, who):
    with pytest.raises(CommandError, match="There is no"):
        call_command("export_prediction", str(uploaded.pk), str(tmp_path / "x"), "--user", who)
