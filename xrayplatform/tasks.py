"""Queue tasks of the platform itself."""

from django_q.models import OrmQ
from django_q.tasks import async_task

from . import jobs, system


def every_minute() -> None:
    """Leave a sign of life, end jobs whose worker died, and ask the training queue for a sign when it is idle."""
    system.WorkerSign.leave("xray")
    jobs.reap()
    if not OrmQ.objects.filter(key="train").exists():
        async_task("xrayplatform.tasks.leave_sign", "train", cluster="train", task_name="sign-of-life")


def leave_sign(cluster: str) -> None:
    system.WorkerSign.leave(cluster)
