"""A version that goes into service reads its own images in the queue; then its gate tells what is unlike them."""

import json
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_q.models import OrmQ

from datasets import phantoms
from datasets.models import Preparation
from inference import likeness, reference_work, tasks
from inference.engine import Engine
from inference.models import Prediction, ServingReference, prediction
from tests.factories import ConditionFactory, ExperimentFactory, PreparationFactory
from tests.inference.lungs import prepared, rescanned, scanned, version_of
from tests.inference.versions import make_version
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db
NAME = "CHEST/phantoms"


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    likeness.forget()
    yield
    likeness.forget()


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def phantom_version(chest, alice):
    """A version in service whose own images, drawn chests, are here."""
    phantoms._write_chest(Path(settings.DATASET_ROOT) / NAME, 80, 0)
    version = version_of(prepared(rescanned(NAME, chest)))
    version.activate(by=alice, reason="agreed")
    return version


@pytest.fixture
def small_version(chest, alice):
    """The same with two dozen images, too few to tell what is unlike them."""
    version = version_of(prepared(scanned(condition=chest)))
    version.activate(by=alice, reason="agreed")
    return version


def in_service(chest, alice):
    version = make_version(chest)
    version.activate(by=alice, reason="agreed")
    return version


def messages():
    """Version and claim of the queue's messages to compute a reference."""
    sent = [message.task for message in OrmQ.objects.order_by("pk")]
    return [tuple(task["args"]) for task in sent if task["func"] == "inference.tasks.compute_reference"]


def work():
    """What the queue would do with its messages."""
    for message in messages():
        tasks.compute_reference(*message)
    OrmQ.objects.all().delete()


def later(**time):
    """The last try began so long ago."""
    ServingReference.objects.update(created_at=timezone.now() - timedelta(**time))


def test_the_whole_way_from_an_activation_to_a_picture_that_is_called_unlike(phantom_version, chest, bob, tmp_path):
    own = next((Path(settings.DATASET_ROOT) / NAME / "test").rglob("*.*")).read_bytes()
    before = Prediction.objects.analyse(chest, own, by=bob).prediction
    assert {one["check"]: one["outcome"] for one in before.gate}["unlike"] == "unknown"

    reference_work.offer()
    work()
    row = ServingReference.objects.get(version=phantom_version)
    assert row.reference and row.images_count >= 20 and not row.problem
    entry = AuditEntry.objects.get(action="servingreference.compute")
    assert entry.outcome == "success" and entry.after["images"] == row.images_count

    answered = Prediction.objects.analyse(chest, own, by=bob).prediction
    assert {one["check"]: one["outcome"] for one in answered.gate}["unlike"] == "pass"
    assert answered.measures["distance"] < 20

    phantoms._write_arm(tmp_path / "arm", 1, 0)
    forearm = next(path for path in (tmp_path / "arm").rglob("*") if path.suffix in (".png", ".jpg")).read_bytes()
    unlike = Prediction.objects.analyse(chest, forearm, by=bob).prediction
    verdict = {one["check"]: one for one in unlike.gate}["unlike"]
    assert verdict["outcome"] in ("warn", "fail") and "learned from" in verdict["text"]
    assert verdict["value"] > verdict["limit"]

    reference_work.offer()
    assert not messages()


def test_too_few_images_are_said_and_not_tried_again(small_version):
    reference_work.offer()
    work()
    row = ServingReference.objects.get(version=small_version)
    assert row.images_count and row.distributions and not row.reference and "too few images" in row.problem
    later(days=2)
    assert not reference_work.wanted()


def test_of_two_minutes_only_the_first_sends_a_message(chest, alice):
    version = in_service(chest, alice)
    reference_work.offer()
    reference_work.offer()
    assert [number for number, _ in messages()] == [version.pk]


def test_only_what_is_in_service_or_tried_is_computed(chest, alice):
    active, tried = in_service(chest, alice), make_version(chest)
    make_version(chest)
    ExperimentFactory(condition=chest, champion=active, challenger=tried, state="running")
    assert set(reference_work.wanted()) == {active, tried}


def test_a_version_whose_images_are_not_here_says_so_and_is_not_tried_each_minute(chest, alice):
    version = in_service(chest, alice)
    reference_work.offer()
    work()
    row = ServingReference.objects.get(version=version)
    assert "not on this platform" in row.problem and not row.images_count
    assert AuditEntry.objects.get(action="servingreference.compute").outcome == "failed"
    reference_work.offer()
    assert not messages()
    later(days=2)
    reference_work.offer()
    work()
    # The same as yesterday is nothing new.
    assert AuditEntry.objects.filter(action="servingreference.compute").count() == 1


def test_it_is_tried_again_when_a_preparation_with_its_images_has_been_made(chest, alice):
    version = in_service(chest, alice)
    reference_work.offer()
    work()
    ended = timezone.now() + timedelta(seconds=1)
    PreparationFactory(split_digest="another", finished_at=ended)
    assert not reference_work.wanted()
    PreparationFactory(split_digest=version.split_digest, finished_at=ended)
    assert list(reference_work.wanted()) == [version]


def test_what_a_worker_that_died_had_begun_is_begun_again_and_its_old_message_is_void(chest, alice):
    in_service(chest, alice)
    reference_work.offer()
    (old,) = messages()
    OrmQ.objects.all().delete()
    later(hours=2)
    reference_work.offer()
    assert len(messages()) == 1
    tasks.compute_reference(*old)
    assert not ServingReference.objects.get().problem


def test_a_damaged_version_is_a_problem_in_words(small_version):
    reference_work.offer()
    (small_version.folder / "openvino" / "model.bin").write_bytes(b"spoilt")
    work()
    assert small_version.folder.name in ServingReference.objects.get().problem


def run(*args, **options):
    out = StringIO()
    call_command("serving_reference", *map(str, args), json=False, stdout=out, stderr=StringIO(), **options)
    return out.getvalue()


def test_the_command_computes_now(small_version):
    out = StringIO()
    call_command("serving_reference", "chest", "1", json=True, stdout=out, stderr=StringIO())
    answer = json.loads(out.getvalue())
    assert answer["images"] == ServingReference.objects.get().images_count and not answer["tells_likeness"]
    first = ServingReference.objects.get().created_at
    assert "images" in run("chest", 1)
    assert ServingReference.objects.get().created_at > first


def test_the_command_says_why_not(chest, alice, bob):
    in_service(chest, alice)
    reference_work.offer()
    with pytest.raises(CommandError, match="is being computed since"):
        run("chest", 1)
    work()
    with pytest.raises(CommandError, match="not on this platform"):
        run("chest", 1)
    with pytest.raises(CommandError, match="no role that allows this"):
        run("chest", 1, user="bob")
    with pytest.raises(CommandError):
        run("chest", 7)


def test_what_was_computed_stays_when_its_images_are_gone(small_version):
    run("chest", 1)
    Preparation.objects.get().remove_pixels(by=None)
    with pytest.raises(CommandError, match="not on this platform"):
        run("chest", 1)
    assert ServingReference.objects.get().images_count and "too few" in ServingReference.objects.get().problem
