"""Radiographs that arrive over the DICOM network: one row, one route, one answer each, whatever is repeated."""

import os
import shutil
import time
from datetime import timedelta

import pytest
from django.utils import timezone
from django_q.models import OrmQ

from inference import receiving
from inference.analysing import GateRefused
from inference.engine import Engine, EngineError
from inference.models import DicomRoute, Prediction, ReceivedObject, ServingPolicy, Unanswered, prediction
from inference.models.dicom import TRY_LASTS, inbox
from inference.receiving import analyse_received, sender_of
from inference.turns import Busy
from tests.factories import ConditionFactory, UserFactory
from tests.inference.dicom_network import arrive, destination, in_service, only_row, radiograph
from xrayplatform.audit import AuditEntry
from xrayplatform.tasks import EACH_MINUTE
from xrayplatform.tries import PAUSES

State = ReceivedObject.State


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


@pytest.fixture
def failing(monkeypatch):
    """Analyses that end with an error of the test's choice, and how many there were."""

    def fail(error):
        calls = []

        def analyse(*args, **way):
            calls.append(way)
            raise error

        monkeypatch.setattr(Prediction.objects._queryset_class, "analyse", lambda self, *args, **way: analyse(**way))
        return calls

    return fail


def actions():
    return list(AuditEntry.objects.filter(action__startswith="dicom.").order_by("seq").values_list("action", "outcome"))


def make_due(received):
    ReceivedObject.objects.filter(pk=received.pk).update(next_at=timezone.now())


# -- What an image becomes


def test_an_image_is_answered_for_the_condition_of_its_route_and_not_kept(version):
    name = arrive()
    analyse_received(name)
    received = only_row()
    assert (received.state, received.condition, received.source) == (State.ANSWERED, version.condition, "ROOM1")
    answer = received.prediction
    assert (answer.version, answer.decision, answer.channel) == (version, "PNEUMONIA", "dicom")
    assert (answer.study_uid, answer.sop_uid) == (received.study_uid, received.sop_uid)
    assert answer.created_by is None
    assert (received.file, inbox().waiting()) == ("", [])
    assert actions() == [("dicom.receive", "success"), ("dicom.route", "success")]


def test_nothing_of_the_patient_stands_in_the_rows_or_the_audit_log(version):
    analyse_received(arrive())
    told = str(list(ReceivedObject.objects.values())) + str(list(AuditEntry.objects.values()))
    assert "ROOM1" in told
    for secret in ("Müller", "19510203", "A-17"):
        assert secret not in told


@pytest.mark.parametrize(
    "file", ["RG1_chest_mono1_J2K.dcm", "RG3_extremity_mono1_JPEGLossless.dcm", "CR_modality_LUT_sequence.dcm"]
)
def test_real_files_are_answered_in_whatever_way_they_are_compressed(version, real_images, file):
    DicomRoute.objects.create(condition=version.condition)
    ServingPolicy.objects.create(condition=version.condition, on_picture="warn")
    analyse_received(arrive((real_images / "dicom" / file).read_bytes()))
    received = only_row()
    assert received.state == State.ANSWERED, received.message
    assert received.prediction.sop_uid == received.sop_uid


def test_an_account_that_stored_an_image_is_who_asked(version, bob):
    analyse_received(arrive(sender=sender_of(bob)))
    received = only_row()
    assert (received.source, received.created_by, received.prediction.created_by) == ("bob", bob, bob)


def test_an_ae_title_is_never_taken_for_an_account(version, bob):
    analyse_received(arrive(sender=str(bob.pk)))
    assert only_row().created_by is None


# -- Repeated steps


def test_the_same_instance_sent_twice_is_one_row_and_one_prediction(version):
    first, second = arrive(), arrive(sender="ROOM2")
    for name in (first, second, first, second):
        analyse_received(name)
    assert only_row().source == "ROOM1"
    assert Prediction.objects.count() == 1
    assert inbox().waiting() == []


def test_a_second_copy_is_discarded_while_the_first_still_waits(version, failing):
    failing(Busy(5))
    first, second = arrive(), arrive()
    analyse_received(first)
    analyse_received(second)
    assert (only_row().file, inbox().waiting()) == (first, [first])


def test_the_same_uid_with_other_pixels_is_another_object(version):
    for data in (radiograph(), radiograph(dark=True)):
        analyse_received(arrive(data))
    decisions = ReceivedObject.objects.order_by("pk").values_list("prediction__decision", flat=True)
    assert list(decisions) == ["PNEUMONIA", "NORMAL"]


def test_a_worker_that_died_after_the_answer_was_stored_does_not_answer_twice(version, monkeypatch):
    name = arrive()
    with monkeypatch.context() as broken, pytest.raises(MemoryError):
        broken.setattr(receiving.deliveries, "plan", lambda received: (_ for _ in ()).throw(MemoryError()))
        analyse_received(name)
    assert (only_row().state, Prediction.objects.count()) == (State.WAITING, 1)
    make_due(only_row())
    analyse_received(name)
    assert only_row().prediction == Prediction.objects.get()


def test_a_worker_that_died_is_not_waited_for_longer_than_the_queue_does(settings):
    assert settings.Q_CLUSTER["timeout"] < settings.Q_CLUSTER["retry"] < TRY_LASTS.total_seconds()


def test_who_has_claimed_an_image_is_left_alone(version):
    name = arrive()
    received = receiving._taken_in(name)
    assert received.claim()
    analyse_received(name)
    assert Prediction.objects.count() == 0


def test_an_image_that_always_kills_its_worker_is_given_up(version):
    received = receiving._taken_in(arrive())
    for _ in range(len(PAUSES) + 1):
        make_due(received)
        assert received.claim()
    make_due(received)
    analyse_received(received.file)
    received.refresh_from_db()
    assert (received.state, Prediction.objects.count()) == (State.REFUSED, 0)
    assert "never ended" in received.message


def test_a_name_that_is_done_with_is_nothing_to_do(db):
    name = arrive()
    inbox().done(name)
    analyse_received(name)
    assert not ReceivedObject.objects.exists()


def test_a_file_that_the_disk_damaged_is_deleted_and_recorded(db):
    name = arrive()
    (inbox().folder / name).write_bytes(b"x" * 200)
    analyse_received(name)
    assert (ReceivedObject.objects.count(), inbox().waiting()) == (0, [])
    assert actions() == [("dicom.receive", "failed")]


# -- Without an answer


def test_what_no_route_takes_is_kept_for_an_administrator(version):
    name = arrive(radiograph(BodyPartExamined="KNEE"))
    analyse_received(name)
    received = only_row()
    assert (received.state, received.condition, received.file) == (State.UNROUTED, None, name)
    assert received.message == "No route takes it (DX, KNEE from ROOM1)."
    assert inbox().waiting() == [name]
    assert actions()[-1] == ("dicom.route", "failed")


def test_routes_are_tried_in_their_order_and_only_active_ones(version, alice, team):
    other = ConditionFactory(slug="other", team=team)
    in_service(other, alice)
    DicomRoute.objects.create(position=1, calling_ae="ROOM2", condition=other)
    DicomRoute.objects.create(position=0, condition=other, active=False)
    analyse_received(arrive())
    analyse_received(arrive(radiograph(SOPInstanceUID="1.2.3"), sender="ROOM2"))
    slugs = ReceivedObject.objects.order_by("pk").values_list("condition__slug", flat=True)
    assert list(slugs) == ["chest", "other"]


def test_a_body_part_that_a_device_writes_in_small_letters_is_the_same_for_routes_and_checks(version):
    analyse_received(arrive(radiograph(BodyPartExamined="Chest")))
    received = only_row()
    assert (received.state, received.body_part, received.prediction.body_part) == (State.ANSWERED, "CHEST", "CHEST")


def test_what_cannot_be_read_is_refused_with_the_words_for_it(version):
    analyse_received(arrive(radiograph(PixelData=b"\0\0")))
    received = only_row()
    assert received.state == State.REFUSED
    assert received.message == Unanswered.objects.get().text
    assert actions()[-1] == ("dicom.answer", "failed")


def test_what_the_gate_refuses_is_not_tried_again(version, failing):
    refusal = GateRefused.__new__(GateRefused)
    Exception.__init__(refusal, "The picture is empty.")
    calls = failing(refusal)
    name = arrive()
    analyse_received(name)
    make_due(only_row())
    analyse_received(name)
    assert (only_row().state, only_row().message, len(calls)) == (State.REFUSED, "The picture is empty.", 1)


def test_an_engine_that_fails_is_asked_again_after_growing_pauses_and_then_no_more(version, failing):
    calls = failing(EngineError("The model cannot be loaded."))
    name = arrive()
    pauses = []
    for _ in range(8):
        analyse_received(name)
        received = only_row()
        if received.state == State.WAITING:
            pauses.append(round((received.next_at - timezone.now()) / timedelta(seconds=1)))
            make_due(received)
    assert pauses == [60, 600, 3600, 21600]
    assert (len(calls), received.state, received.message) == (5, State.REFUSED, "The model cannot be loaded.")


def test_before_its_time_nothing_is_tried_again(version, failing):
    calls = failing(Busy(5))
    name = arrive()
    for _ in range(3):
        analyse_received(name)
    assert len(calls) == 1


def test_a_condition_without_a_model_is_tried_again_when_it_may_have_one(chest, alice):
    DicomRoute.objects.create(condition=chest)
    name = arrive()
    analyse_received(name)
    assert only_row().state == State.WAITING
    assert "No model is in service" in only_row().message
    in_service(chest, alice)
    make_due(only_row())
    analyse_received(name)
    assert only_row().state == State.ANSWERED


def test_an_unexpected_failure_is_no_end(version, failing):
    failing(RuntimeError("secret words"))
    analyse_received(arrive())
    received = only_row()
    assert received.state == State.WAITING
    assert "RuntimeError" in received.message
    assert "secret" not in received.message


def test_an_image_sent_again_after_its_file_was_deleted_gets_its_chance(version):
    name = arrive(radiograph(BodyPartExamined="KNEE"))
    analyse_received(name)
    only_row().drop_file()
    DicomRoute.objects.create(body_part="KNEE", condition=version.condition)
    analyse_received(arrive(radiograph(BodyPartExamined="KNEE")))
    assert only_row().state == State.ANSWERED


def test_an_image_sent_again_while_its_file_is_kept_gets_its_chance_too(version):
    first = arrive(radiograph(BodyPartExamined="KNEE"))
    analyse_received(first)
    DicomRoute.objects.create(body_part="KNEE", condition=version.condition)
    second = arrive(radiograph(BodyPartExamined="KNEE"))
    analyse_received(second)
    assert (only_row().state, inbox().waiting()) == (State.WAITING, [first])
    assert [first] in [list(arguments) for arguments in queued()]
    analyse_received(first)
    assert (only_row().state, inbox().waiting()) == (State.ANSWERED, [])


# -- By hand


def test_an_administrator_names_the_condition_of_what_no_route_takes(version, administrator):
    analyse_received(arrive(radiograph(BodyPartExamined="KNEE")))
    assert receiving.analyse_again(only_row(), version.condition, administrator)
    analyse_received(only_row().file)
    assert (only_row().state, only_row().condition) == (State.ANSWERED, version.condition)
    entry = AuditEntry.objects.get(action="dicom.route", outcome="success")
    assert (entry.actor, entry.after) == (administrator, {"condition": "chest", "by_hand": True})


def test_what_has_an_answer_or_no_file_is_not_analysed_again(version, administrator):
    analyse_received(arrive())
    assert not receiving.analyse_again(only_row(), version.condition, administrator)
    analyse_received(arrive(radiograph(SOPInstanceUID="1.2.3", BodyPartExamined="KNEE")))
    unrouted = ReceivedObject.objects.get(state=State.UNROUTED)
    unrouted.drop_file()
    assert not receiving.analyse_again(unrouted, version.condition, administrator)


# -- Each minute


def age(name, seconds):
    moment = time.time() - seconds
    os.utime(inbox().folder / name, (moment, moment))


def queued():
    """Arguments of the messages in the queue."""
    return [row.task["args"] for row in OrmQ.objects.order_by("pk")]


def test_the_look_of_each_minute_is_part_of_the_minutes_work():
    assert receiving.sweep in EACH_MINUTE


def test_a_file_whose_message_was_lost_gets_another_one(version):
    old, new = arrive(), arrive(radiograph(SOPInstanceUID="1.2.3"))
    age(old, 300)
    receiving.sweep()
    assert queued() == [(old,)]
    assert new in inbox().waiting()


def test_what_is_due_gets_a_message_and_what_is_kept_or_waits_gets_none(version, failing):
    kept = arrive(radiograph(BodyPartExamined="KNEE"))
    analyse_received(kept)
    failing(Busy(5))
    waiting = arrive()
    analyse_received(waiting)
    for name in (kept, waiting):
        age(name, 300)
    receiving.sweep()
    assert queued() == []
    make_due(ReceivedObject.objects.get(file=waiting))
    receiving.sweep()
    assert queued() == [(waiting,)]


def test_a_long_queue_is_not_made_longer(version):
    for number in range(receiving.MOST_MESSAGES):
        OrmQ.objects.create(key="xray", payload=str(number))
    age(arrive(), 300)
    receiving.sweep()
    assert OrmQ.objects.count() == receiving.MOST_MESSAGES


def test_what_nobody_helped_is_deleted_after_some_days(version, settings):
    settings.DICOM_KEEP_DAYS = 7
    analyse_received(arrive(radiograph(BodyPartExamined="KNEE")))
    receiving.sweep()
    assert len(inbox().waiting()) == 1
    ReceivedObject.objects.update(ended_at=timezone.now() - timedelta(days=7, minutes=1))
    receiving.sweep()
    assert (inbox().waiting(), only_row().file, only_row().state) == ([], "", State.UNROUTED)


def test_an_image_whose_results_wait_is_kept_however_old(version, settings):
    settings.DICOM_KEEP_DAYS = 0
    destination(version.condition)
    analyse_received(arrive())
    ReceivedObject.objects.update(ended_at=timezone.now() - timedelta(days=1))
    receiving.sweep()
    assert len(inbox().waiting()) == 1


def test_a_row_whose_file_is_gone_says_so(version):
    name = arrive()
    receiving._taken_in(name)
    shutil.rmtree(inbox().folder)
    analyse_received(name)
    assert (only_row().state, only_row().file) == (State.REFUSED, "")
    assert "not in the inbox" in only_row().message


def test_rows_are_seen_by_the_team_and_unrouted_ones_by_all(version, alice, charlie):
    analyse_received(arrive())
    analyse_received(arrive(radiograph(SOPInstanceUID="1.2.3", BodyPartExamined="KNEE")))
    assert ReceivedObject.objects.visible_to(alice).count() == 2
    assert [row.state for row in ReceivedObject.objects.visible_to(charlie)] == [State.UNROUTED]
    assert ReceivedObject.objects.visible_to(UserFactory()).count() == 1
