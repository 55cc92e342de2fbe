"""Shadows: both versions read, one answer is seen, and nobody waits for the other."""

import threading
import time
from types import SimpleNamespace

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.urls import reverse

from inference import analysing, shadowing
from inference.engine import Engine, EngineError
from inference.models import Batch, Prediction, Unanswered, prediction
from inference.shadowing import FULL, NO_QUIET_MOMENT, STOPPED, Background
from inference.templatetags.inference_panels import median_latencies
from inference.turns import Turns
from registry.models import ModelVersion
from tests.factories import ConditionFactory
from tests.inference.trials import CHALLENGER, CHAMPION, radiograph, start
from tests.inference.versions import make_version
from xrayplatform.audit import AuditEntry

COMMAND, WEB = Prediction.Channel.COMMAND, Prediction.Channel.WEB


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(prediction, "ENGINE", engine)
    return engine


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def shadow(chest, alice):
    make_version(chest).activate(by=alice, reason="agreed")
    return start(chest, make_version(chest, slope=-8.0), alice, kind="shadow", min_requests=3)


def ask(condition, number, by=None, channel=COMMAND):
    return Prediction.objects.analyse(condition, radiograph(number), by=by, channel=channel).prediction


# -- What is stored, and what is seen


@pytest.mark.django_db
def test_both_versions_read_and_the_champion_answers(chest, shadow, bob):
    shown = ask(chest, 1, bob)
    unseen = Prediction.objects.get(shown=False)
    assert (shown.version, shown.decision, shown.variant) == (shadow.champion, "PNEUMONIA", CHAMPION)
    assert (unseen.version, unseen.decision, unseen.variant) == (shadow.challenger, "NORMAL", CHALLENGER)
    assert (unseen.paired_with, unseen.experiment) == (shown, shadow)
    for name in ("study_uid", "image_digest", "file_digest", "created_by", "request_id", "channel"):
        assert getattr(unseen, name) == getattr(shown, name), name
    entry = AuditEntry.objects.get(action="prediction.create", object_id=str(unseen.pk))
    assert (entry.actor, entry.after["shadow_of"]) == (bob, str(shown.pk))


@pytest.mark.django_db
def test_nobody_sees_the_answer_of_a_shadow(chest, shadow, bob, client, admin_user):
    shown = ask(chest, 1, bob)
    unseen = Prediction.objects.get(shown=False)
    for user in (bob, admin_user):
        client.force_login(user)
        listed = client.get(reverse("inference:prediction-list")).content.decode()
        assert str(shown.pk) in listed and str(unseen.pk) not in listed
        assert client.get(unseen.get_absolute_url()).status_code == 404
        found = client.get(reverse("api:prediction-list")).json()["results"]
        assert [row["id"] for row in found] == [str(shown.pk)]
        assert client.get(reverse("api:prediction-detail", args=[unseen.pk])).status_code == 404
    assert list(Prediction.objects.shown()) == [shown]
    assert list(Prediction.objects.seen_by(bob)) == [shown]


@pytest.mark.django_db
def test_a_shadow_that_fails_is_counted_and_stopped_in_the_end(chest, shadow, monkeypatch):
    def fail(version):
        raise EngineError("There is no memory for it.")

    monkeypatch.setattr("inference.analysing.model_of", fail)
    given = [ask(chest, number) for number in range(6)]
    assert {one.version for one in given} == {shadow.champion}
    assert set(Unanswered.objects.values_list("kind", "variant", "text")) == {
        ("failed", CHALLENGER, "There is no memory for it.")
    }
    shadow.refresh_from_db()
    assert (shadow.state, Unanswered.objects.count()) == ("stopped", 3)


@pytest.mark.django_db
def test_the_answer_of_an_older_version_that_stepped_in_has_no_shadow(chest, shadow):
    """The champion could not be loaded: what answered instead is not what the experiment is about."""
    older = ModelVersion.objects.get(pk=shadow.challenger.pk)
    routed = SimpleNamespace(experiment=shadow, challenger=shadow.challenger, answers=False)
    shown = SimpleNamespace(variant=CHAMPION, version_id=older.pk)
    shadowing.after(routed, SimpleNamespace(channel=COMMAND), shown, None, 0.0)
    assert not Prediction.objects.exists() and not Unanswered.objects.exists()


@pytest.mark.django_db
def test_what_waited_while_the_experiment_was_stopped_is_not_made(chest, shadow, alice, monkeypatch):
    waiting = []
    monkeypatch.setattr(shadowing, "BACKGROUND", SimpleNamespace(submit=lambda wanted: waiting.append(wanted) or True))
    monkeypatch.setattr(transaction, "on_commit", lambda work, **how: work())
    ask(chest, 1, channel=WEB)
    shadow.stop(by=alice, reason="enough")
    waiting[0].make()
    assert Prediction.objects.count() == 1 and not Unanswered.objects.exists()


@pytest.mark.django_db
def test_where_too_many_wait_already_one_is_left_out_and_counted(chest, shadow, monkeypatch):
    monkeypatch.setattr(shadowing, "BACKGROUND", SimpleNamespace(submit=lambda wanted: False))
    monkeypatch.setattr(transaction, "on_commit", lambda work, **how: work())
    assert ask(chest, 1, channel=WEB).version == shadow.champion
    row = Unanswered.objects.get()
    assert (row.kind, row.variant, row.text, row.experiment) == ("busy", CHALLENGER, FULL, shadow)


@pytest.mark.django_db(transaction=True)
def test_a_web_process_answers_first_and_lets_the_shadow_read_afterwards(chest, shadow, bob, client):
    client.force_login(bob)
    image = SimpleUploadedFile("radiograph.dcm", radiograph(1))
    answer = client.post("/api/v1/predictions/", {"condition": "chest", "image": image})
    assert answer.status_code == 201
    assert shadowing.BACKGROUND.wait_until_idle(20)
    unseen = Prediction.objects.get(shown=False)
    assert str(unseen.paired_with_id) == answer.json()["id"]
    # The audit log's entry belongs to the same request.
    assert unseen.request_id == answer["X-Request-Id"]
    entry = AuditEntry.objects.get(object_id=str(unseen.pk))
    assert (entry.request_id, entry.channel) == (answer["X-Request-Id"], "api")


@pytest.mark.django_db
def test_a_batch_counts_what_is_shown(chest, shadow, bob, monkeypatch):
    batch = Batch.objects.create(condition=chest, created_by=bob)
    channel = Prediction.Channel.BATCH
    shown = Prediction.objects.analyse(chest, radiograph(1), by=bob, channel=channel, batch=batch).prediction
    assert list(batch.predictions.all()) == [shown]
    monkeypatch.setattr("inference.analysing.model_of", lambda version: None)
    Prediction.objects.analyse(chest, radiograph(2), by=bob, channel=channel, batch=batch)
    assert Unanswered.objects.count() == 1 and not batch.unanswered.exists()
    assert not Unanswered.objects.nobody_answered().exists()


@pytest.mark.django_db
def test_both_latencies_count_the_reading_of_the_file_so_that_the_guard_rail_compares_like_with_like(
    chest, shadow, monkeypatch
):
    read = analysing.imaging.read

    def slowly(source):
        time.sleep(0.3)
        return read(source)

    ask(chest, 1)
    monkeypatch.setattr(analysing.imaging, "read", slowly)
    shown = ask(chest, 2)
    assert shown.latency_ms > 300 and shown.shadows.get().latency_ms > 300


@pytest.mark.django_db
def test_the_median_time_of_a_version_is_that_of_answers_that_somebody_waited_for(chest, shadow):
    ask(chest, 1)
    assert set(median_latencies([shadow.champion, shadow.challenger])) == {shadow.champion.pk}


# -- The thread in the background


class Work:
    """What a shadow wants, without a model: it tells when it was made, and can be held up."""

    def __init__(self, size=1, held_up=None):
        self.bytes = size
        self.made = threading.Event()
        self.begun = threading.Event()
        self.left_out = None
        self._held_up = held_up

    def make(self):
        self.begun.set()
        if self._held_up is not None:
            assert self._held_up.wait(10)
        self.made.set()

    def leave_out(self, kind, text):
        self.left_out = (kind, text)


def test_work_is_made_in_the_background_one_after_the_other():
    background = Background(Turns(1, 0))
    work = [Work() for _ in range(5)]
    assert all(background.submit(one) for one in work)
    assert background.wait_until_idle(10)
    assert all(one.made.is_set() for one in work)


def test_submitting_never_waits_and_a_full_queue_refuses():
    gate = threading.Event()
    background = Background(Turns(1, 0), most=2)
    first = Work(held_up=gate)
    assert background.submit(first) and first.begun.wait(10)
    start_time = time.monotonic()
    assert [background.submit(Work()) for _ in range(4)] == [True, True, False, False]
    assert time.monotonic() - start_time < 1
    gate.set()
    assert background.wait_until_idle(10)


def test_memory_is_bounded_but_one_large_radiograph_may_always_wait():
    gate = threading.Event()
    background = Background(Turns(1, 0), most_bytes=100)
    first = Work(held_up=gate)
    assert background.submit(first) and first.begun.wait(10)
    assert [background.submit(Work(size)) for size in (500, 1)] == [True, False]
    gate.set()
    assert background.wait_until_idle(10)


def test_somebody_who_waits_for_an_answer_goes_first():
    turns = Turns(1, 0)
    background = Background(turns)
    work = Work()
    with turns.take():
        background.submit(work)
        assert not work.made.wait(0.2)
    assert work.made.wait(10)


def test_without_a_quiet_moment_it_is_left_out(monkeypatch):
    monkeypatch.setattr(shadowing, "PATIENCE_SECONDS", 0.05)
    turns = Turns(1, 0)
    background = Background(turns)
    work = Work()
    with turns.take():
        background.submit(work)
        assert background.wait_until_idle(10)
    assert work.left_out == ("busy", NO_QUIET_MOMENT) and not work.made.is_set()


def test_a_process_that_ends_counts_what_it_drops():
    gate = threading.Event()
    background = Background(Turns(1, 0))
    first, second = Work(held_up=gate), Work()
    assert background.submit(first) and first.begun.wait(10)
    background.submit(second)
    threading.Timer(0.1, gate.set).start()
    background.stop()
    assert first.made.is_set() and first.left_out is None
    assert second.left_out == ("busy", STOPPED)
    assert not background.submit(Work())


def test_work_that_raises_does_not_end_the_thread():
    class Raising(Work):
        def make(self):
            raise RuntimeError("broken")

    background = Background(Turns(1, 0))
    after = Work()
    assert background.submit(Raising()) and background.submit(after)
    assert after.made.wait(10)
