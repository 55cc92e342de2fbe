"""Results on their way back: real archives on the loopback interface, retries, and what somebody does by hand."""

import json
from datetime import timedelta
from io import BytesIO

import pydicom
import pytest
from django.utils import timezone
from django_q.models import OrmQ
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from inference import deliveries, receiving, reporting
from inference.deliveries import deliver
from inference.engine import Engine
from inference.models import DicomDelivery, DicomRoute, Prediction, ReceivedObject, ServingPolicy, prediction
from inference.models.dicom import inbox
from inference.receiving import analyse_received
from tests.factories import ConditionFactory
from tests.inference.dicom_network import (
    archive,
    arrive,
    destination,
    in_service,
    only_row,
    radiograph,
    states,
    web_archive,
)
from tests.inference.dicom_standard import problems
from tests.inference.results import TAGS
from tests.tampering import tampered
from xrayplatform.audit import AuditEntry

LOOPBACK = ["127.0.0.0/8"]


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Each test is a process that has no model loaded yet."""
    monkeypatch.setattr(prediction, "ENGINE", Engine())


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest, alice):
    return in_service(chest, alice)


def deliver_all():
    """Every delivery that waits makes a try, as if its time had come."""
    DicomDelivery.objects.filter(state="waiting").update(next_at=timezone.now())
    for number in DicomDelivery.objects.order_by("pk").values_list("pk", flat=True):
        deliver(number)


def dead_port():
    with archive() as (port, _):
        return port


# -- What is planned


def test_only_active_destinations_of_the_condition_get_what_they_want(version):
    destination(version.condition, name="Both")
    destination(version.condition, name="Report", capture=False)
    destination(version.condition, name="Off", active=False)
    destination(None, name="Of no condition")
    destination(ConditionFactory(), name="Of another condition")
    analyse_received(arrive())
    planned = DicomDelivery.objects.order_by("pk").values_list("destination__name", "what")
    assert list(planned) == [("Both", "report"), ("Both", "capture"), ("Report", "report")]


def test_a_version_without_maps_has_no_picture_to_send(version, alice):
    analyse_received(arrive())
    answer = Prediction.objects.get()
    wanted = destination(version.condition)
    assert deliveries._wanted(wanted, answer) == ["report", "capture"]
    tampered(answer, activation_frame=None)
    answer.refresh_from_db()
    assert deliveries._wanted(wanted, answer) == ["report"]


# -- Over the network


def test_report_and_picture_arrive_in_the_study_of_the_image_and_the_file_is_deleted(version, settings):
    settings.SITE_NAME, settings.TIME_ZONE = "St. Example", "Europe/Berlin"
    with archive() as (port, taken):
        destination(version.condition, port=port)
        analyse_received(arrive())
        assert len(inbox().waiting()) == 1
        deliver_all()
    assert states() == [("capture", "done"), ("report", "done")]
    assert {found.SOPClassUID for found in taken} == {ComprehensiveSRStorage, SecondaryCaptureImageStorage}
    for found in taken:
        assert found.StudyInstanceUID == TAGS["StudyInstanceUID"]
        assert (str(found.PatientName), found.AccessionNumber) == (TAGS["PatientName"], TAGS["AccessionNumber"])
        assert found.InstitutionName == "St. Example"
    assert (inbox().waiting(), only_row().file) == ([], "")
    assert AuditEntry.objects.filter(action="dicom.deliver", outcome="success").count() == 2


def test_the_picture_shows_the_radiograph_with_the_map_and_the_caption(version):
    analyse_received(arrive())
    answer = Prediction.objects.get()
    picture = reporting.capture(answer, radiograph())
    assert picture.Rows > picture.Columns == 640
    pixels = picture.pixel_array
    # Coloured in the middle, where the evidence for a bright class is; grey where there is none.
    assert pixels[320, 320].std() > 5
    assert "PNEUMONIA" in picture.DerivationDescription


def test_an_archive_that_speaks_http_gets_the_same(version, settings):
    settings.WEBHOOK_PRIVATE_NETWORKS = LOOPBACK
    with web_archive() as (url, taken):
        destination(version.condition, kind="stow", url=url, authorization="Bearer secret", capture=False)
        analyse_received(arrive())
        deliver_all()
    ((path, headers, body),) = taken
    assert (path, headers["Authorization"]) == ("/dicom-web/studies", "Bearer secret")
    assert headers["Content-Type"].startswith("multipart/related")
    start = body.index(b"\r\n\r\n") + 4
    assert pydicom.dcmread(BytesIO(body[start:])).StudyInstanceUID == TAGS["StudyInstanceUID"]
    assert states() == [("report", "done")]


def test_without_encryption_nothing_leaves_the_listed_networks(version):
    with web_archive() as (url, taken):
        destination(version.condition, kind="stow", url=url)
        analyse_received(arrive())
        deliver_all()
    assert taken == []
    assert "WEBHOOK_PRIVATE_NETWORKS" in DicomDelivery.objects.first().message


# -- What fails


def test_an_archive_that_is_away_is_tried_again_after_growing_pauses_and_then_given_up(version):
    destination(version.condition, port=dead_port(), capture=False)
    analyse_received(arrive())
    pauses = []
    for _ in range(8):
        deliver_all()
        delivery = DicomDelivery.objects.get()
        if delivery.state == "waiting":
            pauses.append(round((delivery.next_at - timezone.now()) / timedelta(seconds=1)))
    assert pauses == [60, 600, 3600, 21600]
    assert (delivery.state, delivery.tries) == ("failed", 5)
    assert "cannot be reached" in delivery.message
    assert AuditEntry.objects.get(action="dicom.deliver").outcome == "failed"
    assert len(inbox().waiting()) == 1


def test_before_its_time_nothing_is_sent_and_two_workers_do_not_send_twice(version):
    with archive(status=0xA700) as (port, taken):
        destination(version.condition, port=port, capture=False)
        analyse_received(arrive())
        for _ in range(3):
            deliver(DicomDelivery.objects.get().pk)
    assert (len(taken), DicomDelivery.objects.get().tries) == (1, 1)


def test_what_the_archive_refuses_for_good_is_not_tried_again(version):
    with archive(status=0xC000) as (port, taken):
        destination(version.condition, port=port, capture=False)
        analyse_received(arrive())
        deliver_all()
        deliver_all()
    assert (len(taken), states()) == (1, [("report", "failed")])
    assert "0xC000" in DicomDelivery.objects.get().message


def test_one_failure_keeps_the_file_and_the_other_result_arrives(version):
    with archive() as (port, _):
        destination(version.condition, port=port, capture=False)
        destination(version.condition, name="Away", port=dead_port(), capture=False)
        analyse_received(arrive())
        deliver_all()
    assert sorted(state for _, state in states()) == ["done", "waiting"]
    assert len(inbox().waiting()) == 1


def test_a_destination_that_was_switched_off_gets_nothing(version):
    with archive() as (port, taken):
        made = destination(version.condition, port=port, capture=False)
        analyse_received(arrive())
        made.active = False
        made.save()
        deliver_all()
    assert (taken, states()) == ([], [("report", "failed")])


def test_a_result_whose_image_is_gone_says_what_to_do(version):
    destination(version.condition, capture=False)
    analyse_received(arrive())
    inbox().done(only_row().file)
    deliver_all()
    assert "Send it to the platform again" in DicomDelivery.objects.get().message


def test_the_results_of_an_image_that_is_sent_again_are_sent_again_where_they_failed(version):
    with archive() as (port, taken):
        destination(version.condition, port=port, capture=False)
        analyse_received(arrive())
        only_row().drop_file()
        deliver_all()
        assert states() == [("report", "failed")]
        analyse_received(arrive())
        deliver_all()
    assert (len(taken), states(), Prediction.objects.count()) == (1, [("report", "done")], 1)
    assert inbox().waiting() == []


def test_somebody_has_a_failed_result_sent_again(version, administrator):
    with archive() as (port, taken):
        made = destination(version.condition, port=dead_port(), capture=False)
        analyse_received(arrive())
        DicomDelivery.objects.update(state="failed", tries=5)
        made.port = port
        made.save()
        assert deliveries.send_again(DicomDelivery.objects.get(), administrator)
        deliver_all()
    assert (len(taken), states()) == (1, [("report", "done")])
    assert AuditEntry.objects.get(action="dicom.send_again").actor == administrator


def test_without_its_image_nothing_is_sent_again(version, administrator):
    destination(version.condition, capture=False)
    analyse_received(arrive())
    only_row().drop_file()
    assert not deliveries.send_again(DicomDelivery.objects.get(), administrator)


def test_the_look_of_each_minute_sends_messages_about_what_is_due(version):
    destination(version.condition)
    analyse_received(arrive())
    OrmQ.objects.all().delete()
    DicomDelivery.objects.filter(what="report").update(next_at=timezone.now() + timedelta(hours=1))
    receiving.sweep()
    due = DicomDelivery.objects.get(what="capture")
    assert [row.task["args"] for row in OrmQ.objects.all()] == [(due.pk,)]


def test_a_delivery_of_a_row_that_is_gone_is_nothing_to_do(db):
    deliver(10**6)


# -- The result itself


def test_a_result_tells_what_was_stored_and_what_the_checks_did_not_pass(version, settings):
    settings.TIME_ZONE = "Europe/Berlin"
    analyse_received(arrive(radiograph(BodyPartExamined="CHEST")))
    answer = Prediction.objects.get()
    told = reporting.result_of(answer)
    assert (told.decision, told.probabilities) == (answer.decision, answer.probabilities)
    assert (told.version, told.sha256, told.threshold) == (str(version), version.sha256, 0.5)
    assert told.intended_use == version.condition.intended_use
    assert told.time.utcoffset() is not None
    assert told.software
    assert set(told.cautions) == {verdict["text"] for verdict in answer.gate if verdict["outcome"] != "pass"}
    assert told.cautions


def test_the_fhir_report_names_no_patient(version):
    analyse_received(arrive())
    answer = Prediction.objects.get()
    report = json.dumps(reporting.fhir(answer, "https://xray.example/x"), ensure_ascii=False)
    assert answer.study_uid in report
    for secret in ("Müller", "subject", "A-17"):
        assert secret not in report
    assert ReceivedObject.objects.count() == 1


@pytest.mark.parametrize("file", ["RG1_chest_mono1_J2K.dcm", "RG3_extremity_mono1_RLE.dcm"])
def test_the_results_of_real_images_are_as_the_standard_has_them(version, real_images, file):
    DicomRoute.objects.create(condition=version.condition)
    ServingPolicy.objects.create(condition=version.condition, on_picture="warn")
    source = (real_images / "dicom" / file).read_bytes()
    analyse_received(arrive(source))
    answer = Prediction.objects.get()
    for written in (reporting.report(answer, source), reporting.capture(answer, source)):
        assert problems(written) == []
        assert written.StudyInstanceUID == answer.study_uid
