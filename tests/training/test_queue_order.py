"""Which run is next: by priority and age, within the limits of teams, while the queue is open; no run is forgotten."""

import json
from io import StringIO

import pytest
from django.core.management import call_command
from django_q.models import OrmQ

from tests.factories import ConditionFactory, DatasetFactory, PreparationFactory, TeamFactory, TrainingRunFactory
from training.models import Search, TrainingQueue, TrainingRun
from training.tasks import train_here, train_next
from xrayplatform import jobs
from xrayplatform.audit import AuditEntry
from xrayplatform.system import queue_is_alive

pytestmark = pytest.mark.django_db


def run_of(team=None, **fields):
    condition = ConditionFactory(team=team)
    return TrainingRunFactory(preparation=PreparationFactory(dataset=DatasetFactory(condition=condition)), **fields)


def startable():
    return list(TrainingRun.objects.startable())


def messages():
    return OrmQ.objects.filter(key="train").count()


@pytest.fixture
def supervised(monkeypatch):
    """The runs that a worker would train, which here succeed at once."""
    seen = []

    def supervise(run):
        seen.append(run.pk)
        run.succeed()

    monkeypatch.setattr("training.tasks.supervise", supervise)
    return seen


# -- The order


def test_the_oldest_run_of_the_highest_priority_is_next():
    low, old, new, high = (run_of(priority=priority) for priority in (-1, 0, 0, 1))
    assert startable() == [high, old, new, low]
    assert TrainingRun.claim_next() == high
    assert TrainingRun.claim_next() == old


def test_a_run_that_waits_for_others_of_its_search_is_passed_over():
    run_of(held=True)
    free = run_of()
    assert startable() == [free]


@pytest.mark.parametrize("state", ["running", "succeeded", "failed", "cancelled"])
def test_only_waiting_runs_start(state):
    run_of(state=state)
    assert startable() == []
    assert TrainingRun.claim_next() is None


def test_the_run_that_is_taken_is_claimed_for_this_process():
    run = run_of()
    taken = TrainingRun.claim_next()
    assert (taken, taken.state, taken.attempt) == (run, "running", 1)
    assert taken.lease_token
    assert TrainingRun.claim_next() is None


# -- Teams


def test_a_team_at_its_limit_waits_and_others_do_not():
    limited, other = TeamFactory(training_limit=1), TeamFactory()
    run_of(limited, state="running")
    waiting, of_other, of_nobody = run_of(limited, priority=1), run_of(other), run_of()
    assert startable() == [of_other, of_nobody]
    TrainingRun.objects.filter(state="running").update(state="succeeded")
    assert startable()[0] == waiting


def test_a_team_below_its_limit_goes_on_up_to_it():
    team = TeamFactory(training_limit=2)
    runs = [run_of(team) for _ in range(3)]
    assert [TrainingRun.claim_next() for _ in range(3)] == [runs[0], runs[1], None]


def test_a_team_whose_limit_is_none_at_all_trains_nothing():
    run_of(TeamFactory(training_limit=0))
    assert startable() == []


# -- Pausing


def test_while_the_queue_is_paused_nothing_starts(alice, supervised):
    run_of()
    assert TrainingQueue.pause(alice, "Night shift needs the machine")
    train_next()
    assert supervised == []
    assert TrainingQueue.open(alice)
    train_next()
    assert len(supervised) == 1


def test_who_paused_the_queue_and_why_is_kept(alice):
    TrainingQueue.pause(alice, "Update")
    queue = TrainingQueue.current()
    assert (queue.paused, queue.reason, queue.changed_by) == (True, "Update", alice)
    entry = AuditEntry.objects.get(action="trainingqueue.pause")
    assert (entry.actor, entry.after) == (alice, {"reason": "Update"})
    TrainingQueue.open(alice)
    assert AuditEntry.objects.get(action="trainingqueue.open").before == {"reason": "Update"}


def test_pausing_twice_is_pausing_once_unless_the_reason_changes(alice):
    assert TrainingQueue.pause(alice, "first")
    assert not TrainingQueue.pause(alice, "first")
    assert AuditEntry.objects.filter(action="trainingqueue.pause").count() == 1
    assert TrainingQueue.pause(alice, "second")
    assert TrainingQueue.current().reason == "second"
    TrainingQueue.open(alice)
    assert not TrainingQueue.open(alice)


def test_opening_the_queue_sends_the_message_that_was_used_up_meanwhile(alice):
    run_of()
    TrainingQueue.pause(alice)
    assert messages() == 0
    TrainingQueue.open(alice)
    assert messages() == 1


# -- Messages


def test_the_message_names_no_run():
    run_of().enqueue()
    message = OrmQ.objects.get()
    assert message.key == "train"
    assert (message.task["func"], message.task["args"]) == ("training.tasks.train_next", ())
    assert message.task["timeout"] == 7 * 86_400


def test_a_message_without_a_run_does_nothing(supervised):
    train_next()
    assert supervised == []


def test_messages_delivered_twice_train_each_run_once(supervised):
    runs = [run_of(), run_of()]
    for _ in range(5):
        train_next()
    assert supervised == [run.pk for run in runs]
    assert AuditEntry.objects.filter(action="trainingrun.succeeded").count() == 2


def test_a_lost_message_is_sent_again_once():
    run_of()
    jobs.resend_lost()
    jobs.resend_lost()
    assert messages() == 1


def test_no_message_is_sent_for_runs_that_cannot_start(alice):
    run_of(held=True)
    run_of(TeamFactory(training_limit=0))
    jobs.resend_lost()
    run_of()
    TrainingQueue.pause(alice)
    jobs.resend_lost()
    assert messages() == 0


def test_a_message_that_a_dead_worker_took_does_not_count_as_waiting(supervised):
    """The queue hides it for eight days."""
    run_of().enqueue()
    OrmQ.objects.update(lock="2126-01-01T00:00:00Z")
    jobs.resend_lost()
    assert messages() == 2


def test_the_end_of_a_run_wakes_the_next_that_its_team_held_back(supervised):
    team = TeamFactory(training_limit=1)
    runs = [run_of(team), run_of(team)]
    train_next()
    assert supervised == [runs[0].pk]
    assert messages() == 1


def test_training_leaves_a_sign_of_life(supervised):
    train_next()
    assert queue_is_alive("train")


# -- Without a worker


def test_a_command_does_the_work_of_a_worker_for_its_own_run(supervised):
    run_of(priority=1)
    mine = run_of()
    assert train_here(mine)
    assert supervised == [mine.pk]
    assert not train_here(mine)


def test_a_command_trains_again_after_an_interruption(monkeypatch):
    attempts = []

    def supervise(run):
        attempts.append(run.attempt)
        if len(attempts) == 2:
            run.succeed()
        else:
            raise jobs.Interrupted("killed")

    monkeypatch.setattr("training.tasks.supervise", supervise)
    run = run_of()
    assert train_here(run)
    assert (attempts, run.state) == ([1], "queued"), "it waits before the next attempt"
    TrainingRun.objects.update(not_before=None)
    assert train_here(run)
    assert (attempts, run.state) == ([1, 2], "succeeded")


def test_a_command_does_not_start_what_a_pause_or_a_limit_forbids(alice, supervised):
    assert not train_here(run_of(TeamFactory(training_limit=0)))
    TrainingQueue.pause(alice)
    assert not train_here(run_of())
    assert supervised == []


# -- Draining


def drain(*arguments):
    out = StringIO()
    try:
        call_command("drain", *arguments, "--json", stdout=out)
    except SystemExit as exit:
        return {**json.loads(out.getvalue()), "status": exit.code}
    return {**json.loads(out.getvalue()), "status": 0}


def test_draining_pauses_the_queue_and_asks_what_runs_to_stop_at_a_checkpoint(monkeypatch):
    waiting, running = run_of(), run_of()
    running.claim(1)

    def stop_when_asked(seconds):
        if TrainingRun.objects.get(pk=running.pk).drain_requested:
            running.pause(3)

    monkeypatch.setattr("training.management.commands.drain.time.sleep", stop_when_asked)
    assert drain() == {"paused": True, "stopped": [running.pk], "running": [], "waiting": 2, "status": 0}
    running.refresh_from_db()
    assert (running.state, running.attempt, running.drain_requested) == ("queued", 1, False)
    assert TrainingQueue.current().paused
    assert TrainingRun.claim_next() is None
    assert drain("--end") == {"paused": False, "changed": True, "waiting": 2, "status": 0}
    assert TrainingRun.claim_next() == waiting
    actions = AuditEntry.objects.order_by("seq").values_list("action", flat=True)
    assert list(actions) == [
        "trainingqueue.pause",
        "trainingrun.drain",
        "trainingrun.requeued",
        "trainingqueue.open",
    ]


def test_a_training_that_does_not_stop_in_time_makes_draining_fail():
    run = run_of()
    run.claim(1)
    answer = drain("--wait", "0")
    assert (answer["running"], answer["stopped"], answer["status"]) == ([run.pk], [], 1)
    assert TrainingQueue.current().paused


def test_draining_twice_is_draining_once():
    run_of()
    assert drain()["status"] == drain()["status"] == 0
    assert AuditEntry.objects.filter(action="trainingqueue.pause").count() == 1


def test_draining_needs_the_right_to_pause_the_queue(bob):
    with pytest.raises(SystemExit):
        call_command("drain", "--user", "bob", "--json", stdout=StringIO())
    assert not TrainingQueue.current().paused


# -- At the limit that a search set


@pytest.fixture
def racing():
    """A run of a search that compares its runs after three epochs."""
    run = run_of(epoch_limit=3)
    run.search = Search.objects.create(name="Race", preparation=run.preparation, mode="halving", parameters={})
    run.save()
    run.claim(1)
    return run


@pytest.fixture
def decisions(monkeypatch):
    made = []
    monkeypatch.setattr(Search, "decide", lambda search: made.append(search.pk))
    return made


@pytest.mark.parametrize(("epoch", "held"), [(3, True), (2, False)])
def test_a_run_at_the_limit_is_held_for_the_search_to_decide_and_a_drained_one_is_not(
    racing, decisions, django_capture_on_commit_callbacks, epoch, held
):
    with django_capture_on_commit_callbacks(execute=True):
        racing.pause(epoch)
    racing.refresh_from_db()
    assert (racing.state, racing.held, racing.attempt) == ("queued", held, 1)
    assert decisions == ([racing.search_id] if held else [])
