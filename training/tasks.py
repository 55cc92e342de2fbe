"""Queue task: one training run."""

from xrayplatform.system import WorkerSign

from .models import TrainingRun
from .supervisor import supervise


def train(run_id: int, attempt: int) -> None:
    run = TrainingRun.objects.select_related("preparation__dataset").get(pk=run_id)
    # A busy training worker runs no other task, so that its sign of life comes from here.
    run.run(attempt, lambda: supervise(run, on_beat=lambda: WorkerSign.leave(run.cluster)))


def train_here(run: TrainingRun) -> bool:
    """Do a worker's work in this process, where there is none. False when somebody else has claimed the run."""
    return run.run(run.attempt, lambda: supervise(run))
