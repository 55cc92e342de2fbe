"""Queue tasks: measure a version on labelled images."""

from .evaluating import evaluate as measure
from .models import EvaluationRun


def evaluate(run_id: int, attempt: int) -> None:
    run_evaluation(
        EvaluationRun.objects.select_related("version__condition", "dataset", "preparation").get(pk=run_id), attempt
    )


def run_evaluation(job: EvaluationRun, attempt: int) -> None:
    job.run(attempt, lambda: measure(job))
