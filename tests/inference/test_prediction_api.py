"""The API of predictions: bodies of every kind, refusals for programs, maps, and requests that are sent twice."""

import base64
from io import BytesIO
from unittest.mock import patch

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from PIL import Image

from inference import gate
from inference.analysing import GateRefused
from inference.engine import Engine
from inference.models import Prediction, Verdict, prediction
from inference.turns import Busy
from tests.datasets.files import dicom, encode
from tests.factories import ConditionFactory, ExperimentFactory, PredictionFactory
from tests.inference.test_batch import BRIGHT, BRIGHT_PNG, DARK_PNG, LETTER
from tests.inference.versions import make_version
from xrayplatform.audit import AuditEntry

API = "/api/v1/predictions/"
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())


@pytest.fixture
def version(team, alice):
    version = make_version(ConditionFactory(slug="chest", name="Chest", team=team))
    version.activate(by=alice, reason="agreed")
    return version


@pytest.fixture
def as_bob(client, bob):
    client.force_login(bob)
    return client


@pytest.fixture
def send(version, as_bob):
    def upload(content=BRIGHT_PNG, query="", **headers):
        form = {"condition": "chest", "image": SimpleUploadedFile("a.png", content)}
        return as_bob.post(f"{API}{query}", form, headers=headers)

    return upload


# -- The image as the body


@pytest.mark.parametrize(
    ("media_type", "content"),
    [
        ("application/dicom", dicom(BRIGHT.astype(np.uint16), WindowCenter=128, WindowWidth=256)),
        ("image/jpeg", encode(BRIGHT, "JPEG", quality=100)),
        ("image/png", BRIGHT_PNG),
    ],
)
def test_an_image_may_be_the_body_itself(version, as_bob, media_type, content):
    answer = as_bob.post(f"{API}?condition=chest", content, content_type=media_type)
    assert answer.status_code == 201, answer.content
    assert (answer.json()["decision"], answer.json()["channel"]) == ("PNEUMONIA", "api")


def test_of_a_body_without_a_condition_the_field_is_named(version, as_bob):
    answer = as_bob.post(API, BRIGHT_PNG, content_type="image/png")
    assert answer.status_code == 400 and list(answer.json()["errors"]) == ["condition"]


def test_a_body_that_is_no_radiograph_is_refused_whatever_it_is_called(version, as_bob):
    answer = as_bob.post(f"{API}?condition=chest", LETTER, content_type="application/dicom")
    assert answer.status_code == 400 and "a text file" in answer.json()["errors"]["image"][0]
    assert as_bob.post(f"{API}?condition=chest", b"", content_type="image/png").status_code == 400


@pytest.mark.parametrize("media_type", ["image/gif", "application/json", "text/plain"])
def test_other_kinds_of_bodies_are_415(version, as_bob, media_type):
    answer = as_bob.post(f"{API}?condition=chest", b"{}", content_type=media_type)
    assert (answer.status_code, answer["Content-Type"]) == (415, "application/problem+json")


def test_a_body_above_the_limit_is_413_before_it_is_read(version, as_bob, settings):
    settings.MAX_UPLOAD_MB = 0
    assert as_bob.post(f"{API}?condition=chest", BRIGHT_PNG, content_type="image/png").status_code == 413


def test_a_body_larger_than_what_django_keeps_in_memory_is_taken(version, as_bob, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    assert as_bob.post(f"{API}?condition=chest", BRIGHT_PNG, content_type="image/png").status_code == 201


# -- What the answer says


def test_the_answer_has_the_checks_the_warnings_in_words_and_the_addresses_of_the_maps(send, as_bob):
    body = send().json()
    assert {check["check"] for check in body["gate"]} and all(check["text"] for check in body["gate"])
    assert body["warnings"] == []
    assert set(body["maps"]) == {"NORMAL", "PNEUMONIA"}
    picture = as_bob.get(body["maps"]["PNEUMONIA"])
    assert (picture["Content-Type"], picture["Cache-Control"]) == ("image/png", "no-store")
    assert picture.content.startswith(PNG)


def test_warnings_are_sentences(version, as_bob):
    checks = [
        {"check": "colour", "outcome": "warn", "value": 0.4, "limit": 0.1, "text": "It is in colour."},
        {"check": "size", "outcome": "pass", "value": 64.0, "limit": 32.0, "text": "Large enough."},
    ]
    stored = PredictionFactory(version=version, gate=checks)
    body = as_bob.get(f"{API}{stored.pk}/").json()
    assert body["warnings"] == ["It is in colour."] and body["gate"] == checks
    assert as_bob.get(API).json()["results"][0]["warnings"] == ["It is in colour."]


def test_how_many_readers_agree_is_told_and_of_each_the_newest_verdict_counts(send, as_bob, bob, alice):
    body = send().json()
    assert body["readers"] == {"agree": 0, "disagree": 0}
    answer = Prediction.objects.get()
    for reader, agrees in ((bob, True), (alice, True), (bob, False)):
        Verdict.objects.give(answer, reader, agrees, "" if agrees else "NORMAL")
    told = {"agree": 1, "disagree": 1}
    assert as_bob.get(f"{API}{body['id']}/").json()["readers"] == told
    assert as_bob.get(API).json()["results"][0]["readers"] == told


def test_a_list_costs_the_same_number_of_queries_whatever_its_length(version, as_bob):
    def queries(more):
        for _ in range(more):
            PredictionFactory(version=version)
        with CaptureQueriesContext(connection) as captured:
            as_bob.get(API)
        return len(captured)

    queries(2)
    assert queries(0) == queries(28)


def test_who_lists_predictions_is_in_the_audit_log_with_what_was_looked_for(version, as_bob, bob):
    as_bob.get(API, {"version": version.pk, "page_size": 5})
    entry = AuditEntry.objects.get(action="prediction.list")
    assert (entry.actor, entry.after) == (bob, {"version": str(version.pk)})


def test_nothing_tells_which_side_of_an_experiment_answered_and_shadows_are_not_there(version, as_bob):
    experiment = ExperimentFactory(challenger=version)
    shown = PredictionFactory(version=version, experiment=experiment, variant="champion")
    shadow = PredictionFactory(version=version, shown=False, paired_with=shown)
    listed = as_bob.get(API).json()["results"]
    assert [row["id"] for row in listed] == [str(shown.pk)]
    assert not {"variant", "experiment", "shown", "paired_with"} & set(listed[0])
    for address in (f"{API}{shadow.pk}/", f"{API}{shadow.pk}/map/"):
        assert as_bob.get(address).status_code == 404


def test_a_refusal_of_the_checks_is_a_problem_that_programs_understand(send):
    passed = gate.Verdict("size", "pass", 64, 32, "Large enough.")
    refused = gate.Verdict("inverted", "fail", 0.9, 0.5, "It looks like a negative.")
    with patch("inference.analysing._analyse", side_effect=GateRefused([refused], [passed, refused])):
        answer = send()
    assert (answer.status_code, answer["Content-Type"]) == (422, "application/problem+json")
    body = answer.json()
    assert (body["status"], body["code"], body["detail"]) == (422, "inverted", "It looks like a negative.")
    assert [(one["check"], one["outcome"]) for one in body["verdicts"]] == [("size", "pass"), ("inverted", "fail")]


# -- Maps


def test_a_map_comes_with_the_answer_where_it_is_asked_for(send):
    assert "map" not in send().json()
    for asked, name in (("decision", "PNEUMONIA"), ("NORMAL", "NORMAL")):
        body = send(query=f"?map={asked}").json()
        assert (body["map"]["of"], body["map"]["problem"]) == (name, "")
        with Image.open(BytesIO(base64.b64decode(body["map"]["png"]))) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGBA")


def test_a_class_that_there_is_not_costs_nobody_the_answer(send, as_bob):
    answer = send(query="?map=FLU")
    assert answer.status_code == 201
    assert answer.json()["map"]["png"] is None and "only NORMAL, PNEUMONIA" in answer.json()["map"]["problem"]
    address = f"{API}{answer.json()['id']}/map/"
    refused = as_bob.get(address, {"class": "FLU"})
    assert refused.status_code == 404 and "only NORMAL, PNEUMONIA" in refused.json()["detail"]


def test_a_client_that_accepts_pictures_only_gets_one_and_the_look_is_audited(
    version, as_bob, bob, send, client, alice
):
    address = f"{API}{send().json()['id']}/map/"
    client.force_login(alice)
    assert client.get(address, headers={"Accept": "image/png"}).content.startswith(PNG)
    assert AuditEntry.objects.filter(action="prediction.view", actor=alice).count() == 1


# -- Sent twice


def test_a_prediction_that_is_sent_again_with_its_key_is_made_once(send, as_bob):
    first, again = (send(**{"Idempotency-Key": "1"}) for _ in range(2))
    assert (first.status_code, again.status_code, again["Idempotency-Replayed"]) == (201, 201, "true")
    assert again.json() == first.json()
    assert send(DARK_PNG, **{"Idempotency-Key": "1"}).status_code == 422
    assert Prediction.objects.count() == 1
    raw = {"content_type": "image/png", "headers": {"Idempotency-Key": "2"}}
    answers = [as_bob.post(f"{API}?condition=chest", BRIGHT_PNG, **raw).json()["id"] for _ in range(2)]
    assert answers[0] == answers[1] and Prediction.objects.count() == 2


def test_a_request_that_found_no_room_is_tried_again_under_its_key(send):
    with patch("inference.analysing._analyse", side_effect=Busy(3)):
        refused = send(**{"Idempotency-Key": "1"})
    assert (refused.status_code, refused["Retry-After"]) == (503, "3")
    assert send(**{"Idempotency-Key": "1"}).status_code == 201
