"""DICOMweb: accounts of devices store images over HTTP; only by token, bounded, and analysed like any other."""

import pytest
from django.test import Client
from django_q.models import OrmQ
from knox.models import AuthToken

from inference import receiving
from inference.engine import Engine
from inference.models import ReceivedObject, prediction
from inference.models.dicom import inbox
from inference.stow import multipart
from tests.factories import ConditionFactory, UserFactory
from tests.inference.dicom_network import in_service, only_row, radiograph
from tests.inference.results import TAGS
from xrayplatform.audit import AuditEntry
from xrayplatform.http import MB

ADDRESS = "/dicomweb/studies"
STUDY = TAGS["StudyInstanceUID"]


@pytest.fixture
def device(roles):
    return UserFactory(username="room1", roles=["imaging device"])


def token(user):
    return {"Authorization": f"Token {AuthToken.objects.create(user)[1]}"}


@pytest.fixture
def store(device):
    """Send files as the device does; the answer."""
    headers = token(device)

    def send(*files, url=ADDRESS, **more):
        content_type, body = multipart(files)
        options = {"headers": headers, "content_type": content_type} | more
        return Client(enforce_csrf_checks=True).post(url, body, **options)

    return send


def test_an_image_is_kept_and_handed_to_the_queue(store, device):
    answer = store(radiograph())
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/dicom+json")
    (reference,) = answer.json()["00081199"]["Value"]
    assert reference["00081155"]["Value"] == [TAGS["SOPInstanceUID"]]
    (name,) = inbox().waiting()
    assert [row.task["args"] for row in OrmQ.objects.all()] == [(name,)]
    assert inbox().read(name)[1].sender == receiving.sender_of(device)


def test_it_is_answered_as_the_device_asked_for_it(store, device, alice, team, monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    in_service(ConditionFactory(slug="chest", team=team), alice)
    store(radiograph())
    receiving.analyse_received(inbox().waiting()[0])
    received = only_row()
    assert (received.state, received.source) == (ReceivedObject.State.ANSWERED, "room1")
    assert received.prediction.created_by == device


def test_images_of_another_study_than_the_address_names_are_not_taken(store):
    assert store(radiograph(), url=f"{ADDRESS}/{STUDY}").status_code == 200
    answer = store(radiograph(), url=f"{ADDRESS}/1.2.3")
    assert answer.status_code == 409
    assert "00081198" in answer.json()
    assert len(inbox().waiting()) == 1


def test_what_cannot_be_taken_is_told_of_beside_what_was(store):
    answer = store(radiograph(), b"\0" * 128 + b"DICM" + b"no image")
    assert answer.status_code == 202
    assert len(answer.json()["00081199"]["Value"]) == len(answer.json()["00081198"]["Value"]) == 1


@pytest.mark.parametrize("accept", ["application/dicom+json", "*/*", "application/json"])
def test_clients_may_ask_for_dicom_json(store, accept, device):
    assert store(radiograph(), headers=token(device) | {"Accept": accept}).status_code == 200


def test_a_body_that_is_not_laid_out_properly_is_refused_with_the_reason(store):
    answer = store(radiograph(), content_type="application/dicom")
    assert (answer.status_code, answer["Content-Type"]) == (415, "application/problem+json")
    assert "multipart/related" in answer.json()["detail"]
    assert inbox().waiting() == []


def test_an_image_that_is_too_long_is_refused(store, settings):
    settings.MAX_UPLOAD_MB = 0
    assert store(radiograph()).status_code == 413
    assert inbox().waiting() == []


def test_a_body_that_is_announced_as_too_long_is_not_read(store, settings):
    settings.MAX_UPLOAD_MB = settings.MAX_ARCHIVE_MB = 1
    answer = store(radiograph(), bytes(2 * MB))
    assert (answer.status_code, answer["Content-Type"]) == (413, "application/problem+json")
    assert "MAX_ARCHIVE_MB" in answer.json()["detail"]


def test_a_full_disk_is_a_refusal_for_now(store, settings):
    settings.MIN_FREE_DISK_GB = 10**9
    answer = store(radiograph())
    assert answer.status_code == 409
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA700]


def test_a_queue_that_takes_no_message_does_not_lose_the_image(store, monkeypatch):
    def fail(*args):
        raise OSError

    monkeypatch.setattr(receiving, "hand_over", fail)
    assert store(radiograph()).status_code == 200
    assert len(inbox().waiting()) == 1


# -- Who may


@pytest.mark.parametrize("url", [ADDRESS, f"{ADDRESS}/{STUDY}"])
def test_without_a_token_nobody_stores(client, admin_user, url, db):
    content_type, body = multipart([radiograph()])
    assert client.post(url, body, content_type=content_type).status_code == 401
    client.force_login(admin_user)
    answer = client.post(url, body, content_type=content_type)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Token")
    assert inbox().waiting() == []


@pytest.mark.parametrize("role", ["clinician", "data scientist", "model manager", "administrator", "auditor"])
@pytest.mark.parametrize("url", [ADDRESS, f"{ADDRESS}/{STUDY}"])
def test_roles_of_people_do_not_store_and_the_refusal_is_recorded(store, roles, role, url):
    user = UserFactory(roles=[role])
    assert store(radiograph(), url=url, headers=token(user)).status_code == 403
    assert AuditEntry.objects.get(action="access.refused").actor == user
    assert inbox().waiting() == []


def test_a_device_sees_nothing(device):
    for url in ("/api/v1/predictions/", "/api/v1/conditions/", "/api/v1/datasets/"):
        assert Client().get(url, headers=token(device)).status_code == 403, url
    client = Client()
    client.force_login(device)
    assert client.get("/analysis/history/").status_code == 403


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_there_is_nothing_to_be_fetched(device, method):
    answer = getattr(Client(), method)(ADDRESS, headers=token(device))
    assert answer.status_code in (403, 405)
