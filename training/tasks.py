"""Queue task: one training run."""

from .models import TrainingRun
from .supervisor import supervise


def train(run_id: int, attempt: int) -> None:
    run = TrainingRun.objects.select_related("preparation__dataset").get(pk=run_id)
    run.run(attempt, lambda: supervise(run))
