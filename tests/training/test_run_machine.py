"""Whatever happens in whatever order: a run has one owner at a time, one end, and is never forgotten."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from django_q.models import OrmQ
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.factories import ConditionFactory, DatasetFactory, PreparationFactory, TeamFactory, TrainingRunFactory
from training.models import TrainingQueue, TrainingRun
from xrayplatform import jobs
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobCancelled, LeaseLost

ENDED = ("succeeded", "failed", "cancelled")
TERMINAL = [f"trainingrun.{state}" for state in ENDED]
RUNS = 3
LIMIT = 1


def renew(owner):
    try:
        owner.renew(progress=0.5)
    except JobCancelled:
        owner.end_cancelled()


# What a worker that claimed a run may do next, whether it still has it or lost it without knowing.
DEEDS = {
    "renew": renew,
    "report": lambda owner: owner.write(epoch=3, message="Training"),
    "child dies": lambda owner: owner.end_attempt("The training process was killed."),
    "memory runs out": lambda owner: owner.end_attempt("Out of memory.", counted=False, batch_size=8),
    "checkpoint": lambda owner: owner.pause(2),
    "succeed": lambda owner: owner.succeed("Version 1"),
    "fail": lambda owner: owner.fail("The loss is not a number."),
}


class RunLife(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.database = transaction.atomic()
        self.database.__enter__()
        team = TeamFactory(training_limit=LIMIT)
        limited = PreparationFactory(dataset=DatasetFactory(condition=ConditionFactory(team=team)))
        self.preparations = {True: limited, False: PreparationFactory()}
        self.owners = []
        self.ends = {}

    def teardown(self):
        try:
            self.everything_comes_to_an_end()
        finally:
            transaction.set_rollback(True)
            self.database.__exit__(None, None, None)

    # -- What people do

    @initialize(limited=st.booleans())
    def somebody_trains(self, limited):
        self.enqueue(limited, 0)
        self.enqueue(True, 0)
        self.deliver(lost=False)

    @rule(limited=st.booleans(), priority=st.sampled_from([0, 1]))
    def enqueue(self, limited, priority):
        if TrainingRun.objects.count() < RUNS:
            TrainingRunFactory(preparation=self.preparations[limited], priority=priority).enqueue()

    @rule(data=st.data())
    def cancel(self, data):
        run = data.draw(st.sampled_from(list(TrainingRun.objects.order_by("pk"))))
        before = run.state
        asked = run.request_cancel(None)
        assert asked == (before not in ENDED)
        assert before != "queued" or run.state == "cancelled"

    @rule(what=st.sampled_from(["pause", "open", "drain"]))
    def change_the_queue(self, what):
        if what == "open":
            TrainingQueue.open(None)
            return
        TrainingQueue.pause(None, what)
        if what == "drain":
            TrainingRun.objects.filter(state="running").update(drain_requested=True)

    # -- What the queue does

    @rule(lost=st.booleans())
    def deliver(self, lost):
        """A message arrives, once more than it was sent if none was; it finds the next run, whichever that is."""
        message = OrmQ.objects.first()
        if message is not None:
            message.delete()
        if lost:
            return
        queue, following = TrainingQueue.current(), TrainingRun.objects.startable().first()
        run = TrainingRun.claim_next()
        assert run == (None if queue.paused else following)
        if run is not None:
            self.owners.append(run)

    @rule()
    def a_minute_passes(self):
        TrainingRun.objects.update(not_before=None)
        jobs.reap()
        jobs.resend_lost()
        waiting = TrainingRun.objects.startable().exists() and not TrainingQueue.current().paused
        assert OrmQ.objects.exists() or not waiting

    # -- What a worker does, alive or thought dead

    @rule(data=st.data(), deed=st.sampled_from(list(DEEDS)))
    def work(self, data, deed):
        """With a lease it is done; without one it must be refused and change nothing."""
        if not self.owners:
            return
        owner = data.draw(st.sampled_from(self.owners))
        if self.is_live(owner):
            DEEDS[deed](owner)
            return
        before = TrainingRun.objects.values().get(pk=owner.pk)
        with pytest.raises(LeaseLost):
            DEEDS[deed](owner)
        assert TrainingRun.objects.values().get(pk=owner.pk) == before

    @rule(times=st.integers(1, 3))
    def crash_again_and_again(self, times):
        for _ in range(times):
            for owner in filter(self.is_live, self.owners):
                owner.end_attempt("The training process was killed.")
            TrainingRun.objects.update(not_before=None)
            self.deliver(lost=False)

    @rule(data=st.data(), seconds=st.sampled_from([10, 60, 200]))
    def fall_silent(self, data, seconds):
        """Killed or frozen, and for how long; a frozen worker may go on after that."""
        if self.owners:
            owner = data.draw(st.sampled_from(self.owners))
            heard = timezone.now() - timedelta(seconds=seconds)
            mine = TrainingRun.objects.filter(pk=owner.pk, lease_token=owner.lease_token, state="running")
            mine.update(heartbeat_at=heard, lease_until=heard + jobs.LEASE)
            jobs.reap()
            assert mine.exists() <= (seconds < 120)

    # -- What always holds

    def is_live(self, owner):
        return TrainingRun.objects.filter(pk=owner.pk, lease_token=owner.lease_token, state="running").exists()

    @invariant()
    def a_run_is_in_one_state_with_one_owner_and_one_end(self):
        runs = list(TrainingRun.objects.all())
        for run in runs:
            self.check_owner(run)
            self.check_attempts(run)
            self.check_end(run)
        limited = [run for run in runs if run.preparation_id == self.preparations[True].pk and run.state == "running"]
        assert len(limited) <= LIMIT

    def check_owner(self, run):
        live = [owner for owner in self.owners if owner.lease_token == run.lease_token and owner.pk == run.pk]
        assert len(live) <= 1
        if run.state == "running":
            assert run.lease_until and run.heartbeat_at
        if run.state == "queued":
            assert not live, "whoever had it last must not be able to write"
            assert not run.cancel_requested and not run.drain_requested

    def check_attempts(self, run):
        counted = sum(item["counted"] for item in run.interruptions)
        given_up = run.state == "failed" and counted == 3
        assert run.attempt <= 3
        assert counted == run.attempt - (0 if given_up else 1)

    def check_end(self, run):
        told = AuditEntry.objects.filter(object_type="trainingrun", object_id=str(run.pk), action__in=TERMINAL)
        actions = list(told.values_list("action", flat=True))
        assert actions == ([f"trainingrun.{run.state}"] if run.state in ENDED else [])
        if run.state in ENDED or run.pk in self.ends:
            assert (run.state, run.finished_at) == self.ends.setdefault(run.pk, (run.state, run.finished_at))

    def everything_comes_to_an_end(self):
        """From wherever the story stopped: with an open queue and a worker, no run waits for ever."""
        TrainingQueue.open(None)
        OrmQ.objects.all().delete()
        for _ in range(4 * RUNS):
            # All owners have died.
            TrainingRun.objects.filter(state="running").update(lease_until=timezone.now() - timedelta(seconds=1))
            jobs.reap()
            TrainingRun.objects.update(not_before=None)
            jobs.resend_lost()
            if not OrmQ.objects.exists():
                break
            OrmQ.objects.all().delete()
            run = TrainingRun.claim_next()
            if run is not None:
                run.succeed()
        assert not TrainingRun.objects.active().exists()
        self.a_run_is_in_one_state_with_one_owner_and_one_end()


@pytest.mark.django_db
def test_a_run_has_one_owner_at_a_time_and_one_end_and_is_never_forgotten():
    run_state_machine_as_test(
        RunLife,
        settings=settings(
            max_examples=50, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
