"""System Status says which process answers with which version, what waits, what is kept, and what is missing."""

import os
import socket

import pytest
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from inference import radiographs
from inference.engine import Engine
from inference.models import ReceivedObject, ServingProcess, prediction, serving_process
from tests.factories import ConditionFactory
from tests.inference.test_gate_in_use import limb, png
from tests.inference.versions import make_version

pytestmark = pytest.mark.django_db
API = "/api/v1/system/"


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    serving_process._told.clear()
    cache.clear()
    yield
    serving_process._told.clear()
    cache.clear()


@pytest.fixture
def chest(team, alice):
    condition = ConditionFactory(slug="chest", name="Chest", team=team)
    make_version(condition).activate(by=alice, reason="agreed")
    return condition


def analyse(client):
    data = {"condition": "chest", "image": SimpleUploadedFile("x.png", png(limb()))}
    assert client.post("/api/v1/predictions/", data).status_code == 201


def page(client):
    return " ".join(client.get(reverse("xrayplatform:system-status")).content.decode().split())


def serving(client):
    return client.get(API).json()["serving"]


def test_before_the_first_radiograph_no_process_has_loaded_the_version(chest, logged_in):
    assert "No process has been asked yet" in page(logged_in)
    (row,) = serving(logged_in)["conditions"]
    assert (row["condition"], row["version"], row["processes"], row["all_switched"]) == ("chest", 1, [], True)


def test_a_process_that_answered_is_named_and_after_an_activation_it_has_not_switched_until_it_is_asked(
    chest, logged_in, alice
):
    analyse(logged_in)
    assert "Up to date" in page(logged_in)
    make_version(chest).activate(by=alice, reason="agreed")
    shown = page(logged_in)
    assert "One process has not taken up the last activation." in shown and "It switches with the next" in shown
    (row,) = serving(logged_in)["conditions"]
    (process,) = row["processes"]
    assert (process["host"], process["process"]) == (socket.gethostname(), os.getpid())
    assert (process["version"], row["version"], row["all_switched"]) == (1, 2, False)
    analyse(logged_in)
    assert serving(logged_in)["conditions"][0]["all_switched"] and "Up to date" in page(logged_in)


def test_a_process_that_could_not_switch_says_why(chest, logged_in, alice):
    analyse(logged_in)
    broken = make_version(chest)
    broken.activate(by=alice, reason="agreed")
    (broken.folder / "openvino" / "model.bin").write_bytes(b"spoilt")
    analyse(logged_in)
    assert "Could not switch" in page(logged_in)


def test_of_several_processes_each_has_a_row_and_dead_ones_have_none(chest, logged_in):
    analyse(logged_in)
    version = chest.versions.get()
    ServingProcess.objects.create(host="web-2", pid=7, condition=chest, version=version, epoch=0)
    ServingProcess.objects.create(host=socket.gethostname(), pid=2**22 + 1, condition=chest, version=version, epoch=1)
    (row,) = serving(logged_in)["conditions"]
    assert [(one["process"], one["has_switched"]) for one in row["processes"]] in (
        [(7, False), (os.getpid(), True)],
        [(os.getpid(), True), (7, False)],
    )


def test_kept_radiographs_and_who_waits_are_counted(chest, logged_in, settings):
    settings.KEEP_RADIOGRAPHS_DAYS = 30
    analyse(logged_in)
    size = sum(path.stat().st_size for path in radiographs.root().rglob("*.bin"))
    found = serving(logged_in)
    assert found["radiographs"] == {"files": 1, "bytes": size, "days": 30}
    assert found["turns"] == {"answering": 0, "waiting": 0, "most_waiting": settings.ENGINE_WAITING}
    assert "each for 30 days" in page(logged_in)
    settings.KEEP_RADIOGRAPHS_DAYS = 0
    assert "keeping is switched off" in page(logged_in)


def test_the_dicom_receiver_is_told_of_where_there_is_one(chest, logged_in, settings):
    assert serving(logged_in)["dicom_receiver"] is None and "DICOM receiver" not in page(logged_in)
    settings.DICOM_CALLERS = ["DEVICE@10.0.0.1"]
    assert "nothing received yet" in page(logged_in)
    ReceivedObject.objects.create(sop_uid="2.25.1", digest="d" * 64, study_uid="2.25.2", source="DEVICE")
    assert serving(logged_in)["dicom_receiver"]["waiting"] == 1 and "last received" in page(logged_in)


def test_versions_without_a_reference_are_named_with_the_reason(chest, logged_in):
    assert "It has not been computed yet" in page(logged_in)
    (row,) = serving(logged_in)["without_reference"]
    assert row["name"] == "chest v1"


def test_another_team_sees_none_of_it(chest, client, charlie, logged_in):
    analyse(logged_in)
    client.force_login(charlie)
    found = serving(client)
    assert found["conditions"] == found["without_reference"] == []
    assert "Chest" not in page(client)
