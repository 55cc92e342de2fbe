"""Queue tasks: the next training run, and speed tests."""

from xrayplatform.system import WorkerSign
from xrayplatform.watchdog import is_stopping

from .measuring import measure
from .models import SpeedTest, TrainingRun
from .supervisor import supervise


def train_next() -> None:
    """Look at the queue: train the run that is next, if there is one that may start.

    The message names no run, so that it can be lost, repeated or sent in vain without harm; what is next is decided
    when a worker is free and not when somebody pressed a button.
    """
    WorkerSign.leave(TrainingRun.cluster)
    if is_stopping():
        return
    run = TrainingRun.claim_next()
    if run is not None:
        try:
            run.see_through(lambda: supervise(run))
        finally:
            TrainingRun.resend_lost()


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
