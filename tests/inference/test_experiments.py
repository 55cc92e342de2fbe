"""Experiments: who may try what, which version answers a study, and how an experiment ends, also by itself."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, IntegrityError, transaction

from inference import analysing, experiments, gate
from inference.assignment import is_challenger
from inference.engine import Engine, EngineError
from inference.models import Experiment, ExperimentError, Prediction, ServingPolicy, Unanswered, prediction
from registry.models import ActivationError, Deployment
from registry.models.deployment import ActivationConflict
from registry.models.state_change import StateError
from tests.factories import ConditionFactory, UserFactory
from tests.inference.trials import CHALLENGER, CHAMPION, answer, radiograph, start
from tests.inference.versions import make_version
from xrayplatform.audit import AuditEntry
from xrayplatform.notifications import Notification
from xrayplatform.tasks import EACH_MINUTE

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(prediction, "ENGINE", engine)
    return engine


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def champion(chest, alice):
    version = make_version(chest)
    version.activate(by=alice, reason="agreed")
    return version


@pytest.fixture
def challenger(chest, champion):
    """It says the opposite, so that every answer tells whose it is."""
    return make_version(chest, slope=-8.0)


@pytest.fixture
def running(chest, challenger, alice):
    return start(chest, challenger, alice, min_requests=4)


def ask(condition, number, by=None, **options):
    return Prediction.objects.analyse(condition, radiograph(number, **options), by=by).prediction


def refusal(condition, challenger, by, **options):
    """Why it cannot begin; nothing has begun then, and the audit log has the refusal."""
    with pytest.raises(ActivationError) as error:
        start(condition, challenger, by, **options)
    assert not Experiment.objects.exists()
    entry = AuditEntry.objects.filter(action="experiment.start").first()
    assert (entry.outcome, entry.after["reason"]) == ("refused", str(error.value)[:500])
    return str(error.value)


# -- Beginning


def test_an_experiment_begins_with_an_audit_entry_and_the_other_managers_are_told(chest, champion, challenger, alice):
    carol = UserFactory(username="carol", roles=["model manager"])
    chest.team.members.add(carol)
    experiment = start(chest, challenger, alice, share=20)
    (message,) = Notification.objects.filter(user__in=[alice, carol], text__contains="has begun, by alice")
    assert message.user == carol
    assert (experiment.champion, experiment.challenger, experiment.share) == (champion, challenger, 20)
    assert (experiment.epoch, experiment.state, len(experiment.salt)) == (1, "running", 64)
    entry = AuditEntry.objects.get(action="experiment.start")
    assert (entry.actor, entry.object_id, entry.outcome) == (alice, str(experiment.pk), "success")
    assert entry.after["challenger"] == "chest v2" and entry.after["share"] == 20


def test_nothing_to_compare_with_nothing_to_try(chest, alice):
    assert "Nothing is in service for Chest" in refusal(chest, make_version(chest), alice)


def test_the_challenger_is_another_version_of_the_same_condition(chest, champion, challenger, alice):
    assert "is in service itself" in refusal(chest, champion, alice)
    assert "does not belong to Chest" in refusal(chest, make_version(ConditionFactory()), alice)


def test_both_tell_apart_the_same_classes_and_the_same_finding(chest, champion, alice):
    others = make_version(chest, classes=["NORMAL", "COVID"], positive_class="COVID")
    assert "tells apart NORMAL, COVID" in refusal(chest, others, alice, kind="shadow")
    turned = make_version(chest, positive_class="NORMAL")
    assert "takes NORMAL for the finding" in refusal(chest, turned, alice, kind="shadow")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"share": 0}, "1 to 99 per cent"),
        ({"share": 100}, "1 to 99 per cent"),
        ({"reason": "  "}, "Give the reason"),
        ({"reason": "x" * 501}, "too long"),
        ({"kind": "c/d"}, "no experiment of kind"),
        ({"max_error_rate": 1.0}, "would never stop it"),
        ({"max_error_rate": float("nan")}, "would never stop it"),
        ({"max_latency_ratio": 0.5}, "1 or more times"),
        ({"min_requests": 0}, "at least one request"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(chest, challenger, alice, wish, words):
    assert words in refusal(chest, challenger, alice, **wish)


def test_a_damaged_version_is_not_tried_not_even_unseen(chest, challenger, alice):
    (challenger.folder / "weights.safetensors").write_bytes(b"other")
    assert "cannot be tried" in refusal(chest, challenger, alice, kind="shadow")


def test_an_archived_version_is_not_tried(chest, challenger, alice):
    challenger.archive(by=alice, reason="old")
    assert "archived" in refusal(chest, challenger, alice, kind="shadow")


def test_whoever_trained_a_version_may_not_let_it_answer_but_may_watch_it_unseen(chest, champion, alice, settings):
    settings.TWO_PERSON_RULE = True
    own = make_version(chest, slope=-8.0, by=alice)
    assert "two-person rule" in refusal(chest, own, alice)
    assert start(chest, own, alice, kind="shadow").share == 100


def test_where_versions_need_approval_so_does_a_challenger_that_answers(chest, challenger, alice, settings):
    settings.REQUIRE_APPROVAL = True
    assert "not approved" in refusal(chest, challenger, alice)
    assert start(chest, challenger, alice, kind="shadow").is_running


def test_who_decided_on_what_is_no_longer_in_service_is_told(chest, champion, challenger, alice):
    with pytest.raises(ActivationConflict, match="after what you looked at"):
        start(chest, challenger, alice, seen_epoch=0)


def test_a_condition_has_one_experiment_at_a_time(chest, running, alice):
    with pytest.raises(ExperimentError, match=r"is running. A condition has one experiment at a time"):
        start(chest, make_version(chest), alice)
    with pytest.raises(IntegrityError), transaction.atomic():
        Experiment.objects.create(
            condition=chest, kind="ab", champion=running.champion, challenger=running.challenger, share=1, epoch=1
        )


def test_of_two_who_begin_at_once_the_second_is_told_by_the_database(chest, running, alice, monkeypatch):
    other = make_version(chest)
    monkeypatch.setattr(type(Experiment.objects.all()), "_require_no_other", lambda self, condition: None)
    with pytest.raises(ExperimentError, match="one experiment at a time"):
        start(chest, other, alice)


# -- Who answers


def test_without_an_experiment_nothing_changes_and_one_query_is_asked(chest, champion, django_assert_num_queries):
    deployment = Deployment.objects.get()
    with django_assert_num_queries(1):
        assert experiments.running(chest, deployment) is None
    given = ask(chest, 1)
    assert (given.version, given.experiment, given.variant) == (champion, None, "")


def test_a_request_in_an_experiment_asks_for_the_challenger_too(chest, running, django_assert_num_queries):
    deployment = Deployment.objects.get()
    with django_assert_num_queries(2):
        routed = experiments.route(experiments.running(chest, deployment), "1.2")
        assert str(routed.challenger) == "chest v2"
    assert routed.experiment == running


def test_a_study_is_answered_by_one_version_and_the_challenger_answers_its_share(chest, challenger, alice):
    # On a busy machine tiny latencies differ by any factor, which would stop it.
    running = start(chest, challenger, alice, max_latency_ratio=100)
    given = {number: ask(chest, number) for number in range(24)}
    assert {answer.variant for answer in given.values()} == {CHAMPION, CHALLENGER}
    for number, first in given.items():
        version = running.challenger if first.variant == CHALLENGER else running.champion
        assert (first.version, first.experiment, first.shown) == (version, running, True)
        assert (first.decision == "NORMAL") == (first.variant == CHALLENGER)
        # Another image of the same study.
        second = ask(chest, 1000 + number, study=first.study_uid)
        assert second.variant == first.variant


def test_the_challenger_decides_at_the_threshold_of_its_training(chest, champion, alice):
    low = make_version(chest, slope=-8.0, threshold=0.001)
    start(chest, low, alice, share=99)
    by_challenger = next(one for one in (ask(chest, number) for number in range(20)) if one.variant == CHALLENGER)
    assert (by_challenger.threshold, by_challenger.decision) == (0.001, "PNEUMONIA")


def test_a_stop_counts_from_the_next_request_on(chest, running, alice):
    running.stop(by=alice, reason="enough")
    assert {ask(chest, number).variant for number in range(6)} == {""}


# -- A challenger that fails


@pytest.fixture
def broken(monkeypatch, running):
    """The challenger cannot be loaded in this process."""

    def fail(version):
        raise EngineError("There is no memory for it.")

    monkeypatch.setattr("inference.analysing.model_of", fail)
    return running


def test_a_challenger_that_cannot_be_loaded_costs_nobody_an_answer(chest, broken, alice):
    given = [ask(chest, number) for number in range(12)]
    assert {one.version for one in given} == {broken.champion}
    failed = Unanswered.objects.all()
    assert {(row.kind, row.variant, row.experiment, row.version) for row in failed} == {
        ("failed", CHALLENGER, broken, broken.challenger)
    }
    assert failed[0].text == "There is no memory for it."
    # A study that was the challenger's by lot does not become the champion's.
    assert sum(one.experiment is None for one in given) >= len(failed)


def test_any_error_of_the_challenger_leaves_the_answer_to_the_champion(chest, running, monkeypatch):
    class Odd:
        def read(self, pixels):
            raise RuntimeError("infer request failed")

    monkeypatch.setattr("inference.analysing.model_of", lambda version: Odd())
    assert {ask(chest, number).version for number in range(12)} == {running.champion}
    assert Unanswered.objects.filter(text="infer request failed").exists()


def test_a_challenger_that_fails_too_often_is_stopped_and_people_are_told(chest, broken, alice):
    Notification.objects.all().delete()
    for number in range(30):
        ask(chest, number)
    broken.refresh_from_db()
    assert (broken.state, broken.ended_by) == ("stopped", None)
    assert "failed 4 of the newest 4 requests, more than the 5 %" in broken.ended_reason
    assert Unanswered.objects.count() == 4
    entry = AuditEntry.objects.get(action="experiment.stop")
    assert (entry.actor, entry.after["by_itself"]) == (None, True)
    (message,) = Notification.objects.all()
    assert message.user == alice and "stopped by itself" in message.text
    assert message.url == broken.get_absolute_url()


def fail(experiment, count):
    for _ in range(count):
        Unanswered.objects.create(
            condition=experiment.condition,
            version=experiment.challenger,
            experiment=experiment,
            variant=CHALLENGER,
            kind="failed",
            text="x",
            channel="web",
        )


def answers(experiment, variant, latencies):
    for latency in latencies:
        answer(experiment, variant, latency_ms=latency)


def test_few_failures_among_many_answers_are_allowed(running):
    answers(running, CHALLENGER, [10] * 39)
    fail(running, 2)
    assert experiments.rails(running).error_rate == pytest.approx(2 / 41)
    assert not experiments.guard(running)
    fail(running, 1)
    assert experiments.guard(running)


def test_below_the_least_number_of_requests_nothing_is_stopped(running):
    fail(running, 3)
    answers(running, CHAMPION, [1])
    assert not experiments.guard(running)
    assert experiments.rails(running).error_rate is None


def test_a_challenger_that_breaks_late_is_stopped_as_soon(running, monkeypatch):
    """The newest requests count; thousands of good answers before do not hide what happens now."""
    monkeypatch.setattr(experiments, "NEWEST", 10)
    answers(running, CHALLENGER, [10] * 40)
    fail(running, 1)
    assert experiments.rails(running).error_rate == 0.1
    assert experiments.guard(running)


def test_what_was_left_out_for_lack_of_time_is_no_failure(running):
    fail(running, 6)
    Unanswered.objects.update(kind="busy")
    assert experiments.rails(running).requests == 0
    assert not experiments.guard(running)


def test_a_challenger_that_is_too_slow_is_stopped_by_the_medians(running):
    answers(running, CHAMPION, [10, 10, 12, 500])
    answers(running, CHALLENGER, [30, 31, 33])
    assert not experiments.guard(running)
    answers(running, CHALLENGER, [900])
    # Medians 11 and 32: 2.9 times, which is allowed; then 33: exactly three times.
    assert not experiments.guard(running)
    answers(running, CHALLENGER, [34, 35, 36])
    assert experiments.guard(running)
    running.refresh_from_db()
    assert "takes 34 ms and chest v1 11 ms" in running.ended_reason


def test_only_one_of_two_processes_stops_it(running):
    fail(running, 4)
    here, there = (Experiment.objects.with_names().get(pk=running.pk) for _ in range(2))
    assert [experiments.guard(here), experiments.guard(there)] == [True, False]
    assert AuditEntry.objects.filter(action="experiment.stop").count() == 1


# -- Ending


def test_stopping_needs_a_reason_and_happens_once(running, alice, bob):
    with pytest.raises(ExperimentError, match="Give the reason"):
        running.stop(by=alice, reason=" ")
    running.stop(by=alice, reason="enough seen")
    assert (running.state, running.ended_by, running.ended_reason) == ("stopped", alice, "enough seen")
    with pytest.raises(ExperimentError, match=r"alice stopped it at .*“enough seen”"):
        Experiment.objects.get(pk=running.pk).stop(by=bob, reason="me too")
    assert [entry.outcome for entry in AuditEntry.objects.filter(action="experiment.stop").order_by("seq")] == [
        "refused", "success", "refused",
    ]  # fmt: skip


def test_promoting_puts_the_challenger_in_service_and_ends_the_experiment(chest, running, champion, challenger, alice):
    deployment = running.promote(by=alice, reason="right more often")
    assert (deployment.active, deployment.previous, deployment.epoch) == (challenger, champion, 2)
    running.refresh_from_db()
    assert (running.state, running.ended_by) == ("promoted", alice)
    assert AuditEntry.objects.get(action="experiment.promote").actor == alice
    given = ask(chest, 1)
    assert (given.version, given.experiment) == (challenger, None)


def test_of_two_who_promote_at_once_the_second_is_told(running, alice):
    there = Experiment.objects.with_names().get(pk=running.pk)
    running.promote(by=alice, reason="first")
    # The other page had been loaded before, and its process still takes the experiment for running.
    with pytest.raises(ActivationError, match="alice promoted its challenger"):
        there.promote(by=alice, reason="second")
    assert Deployment.objects.get().epoch == 2
    assert AuditEntry.objects.filter(action="experiment.promote").first().outcome == "refused"


def test_nothing_is_promoted_over_an_activation_by_somebody_else(chest, running, alice):
    other = make_version(chest)
    other.activate(by=alice, reason="urgent")
    with pytest.raises(ActivationConflict, match=r"alice put chest v3 in service .*urgent"):
        running.promote(by=alice, reason="better")
    assert Deployment.objects.get().active == other
    assert Experiment.objects.get(pk=running.pk).is_running


def test_a_shadow_of_ones_own_training_is_not_promoted_by_oneself(chest, champion, alice, settings):
    settings.TWO_PERSON_RULE = True
    own = make_version(chest, slope=-8.0, by=alice)
    shadow = start(chest, own, alice, kind="shadow")
    with pytest.raises(ActivationError, match="two-person rule"):
        shadow.promote(by=alice, reason="mine")
    assert (Deployment.objects.get().active, Experiment.objects.get().state) == (champion, "running")


def test_an_activation_ends_the_experiment_at_the_next_request(chest, running, champion, alice):
    make_version(chest).activate(by=alice, reason="urgent")
    assert ask(chest, 1).experiment is None
    running.refresh_from_db()
    assert running.state == "stopped" and "was changed to chest v3" in running.ended_reason


def test_an_activation_ends_the_experiment_within_a_minute(chest, running, champion, alice):
    assert Experiment.objects.end_outdated() == 0
    make_version(chest).activate(by=alice, reason="urgent")
    (work,) = [work for work in EACH_MINUTE if work.__name__ == "end_outdated"]
    work()
    assert not Experiment.objects.running().exists()
    assert Experiment.objects.end_outdated() == 0


def test_after_an_activation_the_next_experiment_can_begin_at_once(chest, running, alice):
    third = make_version(chest)
    third.activate(by=alice, reason="urgent")
    assert start(chest, running.challenger, alice).champion == third
    running.refresh_from_db()
    assert running.state == "stopped"


@pytest.mark.parametrize("side", ["champion", "challenger"])
def test_a_version_in_an_experiment_is_not_archived(running, alice, side):
    version = getattr(running, side)
    assert f"it takes part in experiment {running.pk}; stop that first" in version.uses
    with pytest.raises(StateError, match="takes part in experiment"):
        running.challenger.archive(by=alice, reason="tidy up")
    running.stop(by=alice, reason="enough")
    running.challenger.archive(by=alice, reason="tidy up")


# -- By command


def run(*arguments):
    out = StringIO()
    call_command("experiment", *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_the_command_starts_reports_and_ends(chest, champion, challenger, alice):
    begun = run("start", "chest", "2", "--kind", "ab", "--share", "30", "--reason", "try", "--user", "alice")
    assert (begun["state"], begun["share"], begun["created_by"]) == ("running", 30, "alice")
    number = str(begun["id"])
    assert run("report", number)["report"]["conclusion"].startswith("Not enough data to decide.")
    assert run("stop", number, "--reason", "enough")["state"] == "stopped"
    again = run("start", "chest", "2", "--reason", "unseen")
    assert again["kind"] == "shadow"
    assert run("promote", str(again["id"]), "--reason", "better")["state"] == "promoted"
    assert Deployment.objects.get().active == challenger


def test_the_command_tells_people_in_words_and_refuses_who_may_not(running, bob):
    out = StringIO()
    call_command("experiment", "report", str(running.pk), stdout=out)
    assert "Not enough data to decide." in out.getvalue()
    with pytest.raises(CommandError, match="no role that allows this"):
        call_command("experiment", "stop", str(running.pk), "--reason", "x", "--user", "bob")
    with pytest.raises(CommandError, match="There is no experiment 999"):
        call_command("experiment", "report", "999")


def test_another_teams_experiment_is_not_found_by_the_command(running, charlie):
    with pytest.raises(CommandError, match="There is no experiment"):
        call_command("experiment", "stop", str(running.pk), "--reason", "x", "--user", "charlie")
    assert Experiment.objects.get().is_running


# -- Seams with the checks before the model and with the database


def drawn_for_the_challenger(running):
    return next(n for n in range(100) if is_challenger(running.salt, f"1.2.826.0.1.{n}", running.share))


def test_a_refusal_of_the_checks_counts_for_the_side_that_would_have_answered(chest, running, monkeypatch):
    verdict = gate.Verdict("size", "fail", 1.0, 2.0, "Too small.")
    monkeypatch.setattr(ServingPolicy, "refusals", lambda self, verdicts: [verdict])
    with pytest.raises(analysing.GateRefused):
        ask(chest, drawn_for_the_challenger(running))
    refused = Unanswered.objects.get()
    assert (refused.version, refused.variant) == (running.challenger, "")


def test_a_failure_of_the_challenger_that_cannot_be_written_down_costs_nobody_an_answer(chest, running, monkeypatch):
    def fail(*args, **fields):
        raise DatabaseError("locked")

    monkeypatch.setattr(analysing, "challenger", fail)
    monkeypatch.setattr(analysing.Asked, "unanswered", fail)
    assert ask(chest, drawn_for_the_challenger(running)).version == running.champion
