"""Queue tasks: the next training run, and speed tests."""

import time
from datetime import timedelta

from xrayplatform.system import WorkerSign
from xrayplatform.watchdog import is_stopping

from .measuring import measure
from .models import SpeedTest, TrainingRun
from .supervisor import supervise

DUE_SOON = timedelta(seconds=15)
POLL_SECONDS = 1.0


def train_next() -> None:
    """Look at the queue: train the run that is next, if there is one that may start.

    The message names no run, so that it can be lost, repeated or sent in vain without harm; what is next is decided
    when a worker is free and not when somebody pressed a button.
    """
    WorkerSign.leave(TrainingRun.cluster)
    if is_stopping():
        return
    run = _next_run()
    if run is not None:
        try:
            run.see_through(lambda: supervise(run))
        finally:
            TrainingRun.resend_lost()


def _next_run() -> TrainingRun | None:
    """The next run, claimed. Where there is none, a worker waits for one whose pause is over in a moment."""
    run = TrainingRun.claim_next()
    until = time.monotonic() + DUE_SOON.total_seconds()
    while run is None and TrainingRun.objects.due_within(DUE_SOON).exists() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        if is_stopping():
            return None
        run = TrainingRun.claim_next()
    # Once more: its pause may have ended between the last try and the look at who waits.
    return run or TrainingRun.claim_next()


def train_here(run: TrainingRun) -> bool:
    """Do a worker's work in this process, where there is none, until the run has ended or may not start now.

    False when somebody else has claimed the run, or the queue is paused or its team's limit is reached.
    """
    worked = False
    while run.claim_now():
        worked = True
        run.see_through(lambda: supervise(run))
        run.refresh_from_db()
    return worked


def measure_speed(test_id: int, attempt: int) -> None:
    test = SpeedTest.objects.get(pk=test_id)
    test.run(attempt, lambda: measure(test))
