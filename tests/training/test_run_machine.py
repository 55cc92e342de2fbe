"""Whatever happens in whatever order: a run has one owner at a time, one end, and is never forgotten."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from django_q.models import OrmQ
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from tests.factories import ConditionFactory, DatasetFactory, PreparationFactory, TeamFactory, TrainingRunFactory
from training.models import TrainingQueue, TrainingRun
from xrayplatform import jobs
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobCancelled, LeaseLost

ENDED = ("succeeded", "failed", "cancelled")
TERMINAL = [f"trainingrun.{state}" for state in ENDED]
LIMIT = 2


class RunLife(RuleBasedStateMachine):
    """An owner is a worker that claimed a run. It may have lost it since, without knowing."""

    owners = Bundle("owners")

    def __init__(self):
        super().__init__()
        self.database = transaction.atomic()
        self.database.__enter__()
        team = TeamFactory(training_limit=LIMIT)
        self.preparations = [
            PreparationFactory(dataset=DatasetFactory(condition=ConditionFactory(team=team))),
            PreparationFactory(),
        ]
        self.team = team
        self.claimed = []
        self.ends = {}

    def teardown(self):
        try:
            self.everything_comes_to_an_end()
        finally:
            transaction.set_rollback(True)
            self.database.__exit__(None, None, None)

    # -- What people do

    @rule(limited=st.booleans(), priority=st.sampled_from([-1, 0, 1]))
    def enqueue(self, limited, priority):
        if TrainingRun.objects.count() < 6:
            TrainingRunFactory(preparation=self.preparations[0 if limited else 1], priority=priority).enqueue()

    @rule(data=st.data())
    def cancel(self, data):
        run = self.any_run(data)
        if run is not None:
            before = run.state
            asked = run.request_cancel(None)
            assert asked == (before not in ENDED)
            assert before != "queued" or run.state == "cancelled"

    @rule()
    def pause(self):
        TrainingQueue.pause(None, "night")

    @rule()
    def open(self):
        TrainingQueue.open(None)

    @rule()
    def ask_for_checkpoints(self):
        TrainingQueue.pause(None, "update")
        TrainingRun.objects.filter(state="running").update(drain_requested=True)

    @rule(data=st.data(), held=st.booleans())
    def hold(self, data, held):
        run = self.any_run(data)
        if run is not None:
            TrainingRun.objects.filter(pk=run.pk, state="queued").update(held=held)

    # -- What the queue does

    @rule(target=owners)
    def deliver(self):
        message = OrmQ.objects.first()
        if message is None:
            return None
        message.delete()
        return self.claim()

    @rule(target=owners)
    def deliver_twice(self):
        return self.claim()

    def claim(self):
        queue, next_run = TrainingQueue.current(), TrainingRun.objects.startable().first()
        run = TrainingRun.claim_next()
        assert run == (None if queue.paused else next_run)
        if run is not None:
            self.claimed.append(run)
        return run

    @rule()
    def lose_messages(self):
        OrmQ.objects.all().delete()

    @rule()
    def a_minute_passes(self):
        jobs.reap()
        jobs.resend_lost()
        waiting = TrainingRun.objects.startable().exists() and not TrainingQueue.current().paused
        assert OrmQ.objects.exists() or not waiting

    # -- What an owner does, alive or thought dead

    def owned(self, owner, act):
        """Acts as the owner: with a lease it works, without one it must be refused and change nothing."""
        if owner is None:
            return
        before = TrainingRun.objects.values().get(pk=owner.pk)
        if self.is_live(owner):
            act(owner)
            return
        with pytest.raises(LeaseLost):
            act(owner)
        assert TrainingRun.objects.values().get(pk=owner.pk) == before

    @rule(owner=owners)
    def renew(self, owner):
        def act(owner):
            try:
                owner.renew(progress=0.5)
            except JobCancelled:
                owner.end_cancelled()

        self.owned(owner, act)

    @rule(owner=owners)
    def report(self, owner):
        self.owned(owner, lambda owner: owner.write(epoch=3, message="Training"))

    @rule(owner=consumes(owners))
    def succeed(self, owner):
        self.owned(owner, lambda owner: owner.succeed("Version 1"))

    @rule(owner=consumes(owners))
    def fail(self, owner):
        self.owned(owner, lambda owner: owner.fail("The loss is not a number."))

    @rule(owner=owners)
    def child_dies(self, owner):
        self.owned(owner, lambda owner: owner.end_attempt("The training process was killed."))

    @rule(owner=owners)
    def memory_runs_out(self, owner):
        self.owned(owner, lambda owner: owner.end_attempt("Out of memory.", counted=False, batch_size=8))

    @rule(owner=owners)
    def reach_a_checkpoint(self, owner):
        self.owned(owner, lambda owner: owner.pause(2))

    @rule(owner=owners)
    def fall_silent(self, owner):
        """Killed or frozen; if frozen, later rules thaw it."""
        if owner is not None and self.is_live(owner):
            past = timezone.now() - timedelta(seconds=200)
            TrainingRun.objects.filter(pk=owner.pk).update(heartbeat_at=past, lease_until=past + jobs.LEASE)

    @rule()
    def reap(self):
        jobs.reap()

    # -- What always holds

    def is_live(self, owner):
        return TrainingRun.objects.filter(pk=owner.pk, lease_token=owner.lease_token, state="running").exists()

    def any_run(self, data):
        runs = list(TrainingRun.objects.order_by("pk"))
        return data.draw(st.sampled_from(runs)) if runs else None

    @invariant()
    def one_owner_at_a_time(self):
        for run in TrainingRun.objects.all():
            # Two objects of one claim would be one worker; each claim has its own token.
            live = {owner.lease_token for owner in self.claimed if owner.pk == run.pk and self.is_live(owner)}
            assert len(live) <= 1
            assert run.state == "running" or not live

    @invariant()
    def an_end_is_final_and_told_once(self):
        for run in TrainingRun.objects.all():
            told = AuditEntry.objects.filter(object_type="trainingrun", object_id=str(run.pk), action__in=TERMINAL)
            actions = list(told.values_list("action", flat=True))
            assert actions == ([f"trainingrun.{run.state}"] if run.state in ENDED else [])
            if run.pk in self.ends:
                assert (run.state, run.finished_at) == self.ends[run.pk]
            elif run.state in ENDED:
                self.ends[run.pk] = (run.state, run.finished_at)

    @invariant()
    def there_are_three_attempts_at_most(self):
        for run in TrainingRun.objects.all():
            counted = sum(item["counted"] for item in run.interruptions)
            given_up = run.state == "failed" and counted == 3
            assert run.attempt <= 3
            assert counted == run.attempt - (0 if given_up else 1)

    @invariant()
    def a_team_stays_below_its_limit(self):
        running = TrainingRun.objects.filter(preparation=self.preparations[0], state="running")
        assert running.count() <= LIMIT

    def everything_comes_to_an_end(self):
        """From wherever the story stopped: with an open queue and a worker, no run waits for ever."""
        TrainingRun.objects.update(held=False)
        TrainingQueue.open(None)
        for _ in range(60):
            past = timezone.now() - timedelta(seconds=1)
            # All owners have died.
            TrainingRun.objects.filter(state="running").update(lease_until=past)
            jobs.reap()
            jobs.resend_lost()
            message = OrmQ.objects.first()
            if message is None:
                break
            message.delete()
            run = TrainingRun.claim_next()
            if run is not None:
                run.succeed()
        assert not TrainingRun.objects.active().exists()
        self.an_end_is_final_and_told_once()


@pytest.mark.django_db
def test_a_run_has_one_owner_at_a_time_and_one_end_and_is_never_forgotten():
    run_state_machine_as_test(
        RunLife,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
