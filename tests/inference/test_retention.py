"""Kept radiographs go when their time is over, but for those that unfinished work needs."""

import os
import time
from datetime import UTC, datetime

import pytest
from django.utils import timezone
from django_q.models import OrmQ

from inference import radiographs, retention, tasks
from inference.models import Batch, DicomDelivery, DicomDestination, ReceivedObject
from tests.factories import ModelVersionFactory, PredictionFactory
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db


def kept(digest, days):
    path = radiographs.file_of(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"pixels")
    os.utime(path, (time.time() - 86_400 * days,) * 2)
    return path


def test_what_was_kept_long_enough_goes_and_the_audit_log_says_how_many(settings):
    settings.KEEP_RADIOGRAPHS_DAYS = 90
    old, new = kept("a" * 64, 91), kept("b" * 64, 89)
    assert retention.expire() == 1
    assert not old.exists() and new.exists()
    assert AuditEntry.objects.get(action="radiographs.expire").after == {"removed": 1}
    assert retention.expire() == 0 and AuditEntry.objects.filter(action="radiographs.expire").count() == 1


def test_where_keeping_is_switched_off_everything_goes(settings):
    settings.KEEP_RADIOGRAPHS_DAYS = 0
    path = kept("a" * 64, 0.01)
    assert retention.expire() == 1 and not path.exists()


@pytest.mark.parametrize(("state", "stays"), [("running", True), ("queued", True), ("succeeded", False)])
def test_a_batch_that_has_not_ended_keeps_its_radiographs(settings, state, stays):
    settings.KEEP_RADIOGRAPHS_DAYS = 1
    version = ModelVersionFactory()
    batch = Batch.objects.create(condition=version.condition, state=state)
    PredictionFactory(version=version, batch=batch, image_digest="a" * 64)
    path = kept("a" * 64, 5)
    retention.expire()
    assert path.exists() == stays


@pytest.mark.parametrize(("state", "stays"), [("waiting", True), ("done", False), ("failed", False)])
def test_a_result_that_is_still_to_be_sent_keeps_its_radiograph(settings, state, stays):
    settings.KEEP_RADIOGRAPHS_DAYS = 1
    answer = PredictionFactory(image_digest="a" * 64)
    received = ReceivedObject.objects.create(
        sop_uid="2.25.1", digest="d" * 64, study_uid="2.25.2", source="DEVICE", prediction=answer, state="answered"
    )
    destination = DicomDestination.objects.create(name="archive", kind="stow", url="https://pacs.example/studies")
    DicomDelivery.objects.create(
        received=received, destination=destination, what="capture", state=state, next_at=timezone.now()
    )
    path = kept("a" * 64, 5)
    retention.expire()
    assert path.exists() == stays


def test_the_queue_looks_once_an_hour(monkeypatch):
    for minute in (36, 37, 38):
        monkeypatch.setattr(tasks.timezone, "now", lambda minute=minute: datetime(2026, 1, 1, 10, minute, tzinfo=UTC))
        tasks.expire_when_due()
    assert [message.task["func"] for message in OrmQ.objects.all()] == ["inference.tasks.expire_radiographs"]
