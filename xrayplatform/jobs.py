"""Long work as a row: claimed once, leased, reported on, cancelled, and never lost in silence.

The queue only carries `(id, attempt)`. The row is the truth: a message delivered twice claims nothing, a worker that
died stops renewing its lease and is found by `reap`, and every write of a running job names the lease token, so that
a worker that was thought dead cannot overwrite what came after it.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

from django.apps import apps
from django.conf import settings
from django.db import models, transaction
from django.utils import timezone
from django_q.tasks import async_task

from . import audit

LEASE = timedelta(seconds=120)
REPORT_EVERY_SECONDS = 1.0


class JobError(Exception):
    """The job cannot go on: what happened and why; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class JobCancelled(Exception):
    """A user asked for the job to stop."""


class LeaseLost(Exception):
    """This process no longer owns the job; it must stop without writing anything."""


class JobQuerySet(models.QuerySet):
    def active(self) -> "JobQuerySet":
        return self.filter(state__in=Job.ACTIVE)

    def alive(self) -> "JobQuerySet":
        """Running, and whoever runs them renewed the lease."""
        return self.filter(state=Job.State.RUNNING, lease_until__gt=timezone.now())


class Job(models.Model):
    """A unit of queue work. Subclasses name their task (`task`, dotted path) and queue (`cluster`)."""

    class State(models.TextChoices):
        QUEUED = "queued", "Waiting"
        RUNNING = "running", "Running"
        SUCCEEDED = "succeeded", "Finished"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    ACTIVE = (State.QUEUED, State.RUNNING)
    task: ClassVar[str]
    cluster: ClassVar[str] = "xray"
    # The queue's own limit is for short tasks; what a job may take is watched through its lease.
    time_limit_seconds: ClassVar[int] = 86_400
    # Told of every new message; set by a command that does the work itself and shows it to a person.
    listener: "Callable[[Job], None] | None" = None

    state = models.CharField(max_length=10, choices=State, default=State.QUEUED, editable=False, db_index=True)
    attempt = models.PositiveSmallIntegerField(default=1, editable=False)
    lease_token = models.UUIDField(null=True, editable=False)
    lease_until = models.DateTimeField(null=True, editable=False)
    heartbeat_at = models.DateTimeField(null=True, editable=False)
    host = models.CharField(max_length=200, blank=True, editable=False)
    pid = models.PositiveIntegerField(null=True, editable=False)
    cancel_requested = models.BooleanField(default=False, editable=False)
    progress = models.FloatField(default=0.0, editable=False, help_text="0 to 1")
    message = models.CharField(max_length=300, blank=True, editable=False)
    error = models.TextField(blank=True, editable=False)
    hint = models.TextField(blank=True, editable=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, editable=False, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, editable=False)
    finished_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        abstract = True

    @property
    def is_active(self) -> bool:
        return self.state in self.ACTIVE

    @property
    def audit_name(self) -> str:
        return str(self._meta.model_name)

    @property
    def seconds(self) -> float | None:
        """Seconds the job has run or ran; None before it started."""
        if not self.started_at:
            return None
        return ((self.finished_at or timezone.now()) - self.started_at).total_seconds()

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left by the progress so far; None while there is too little to tell."""
        if self.state != self.State.RUNNING or self.progress < 0.02 or not self.seconds:
            return None
        return self.seconds * (1 - self.progress) / self.progress

    # -- Starting

    def enqueue(self) -> None:
        """Send the message. Call it inside the transaction that creates the row: both appear or neither."""
        async_task(
            self.task,
            self.pk,
            self.attempt,
            cluster=self.cluster,
            timeout=self.time_limit_seconds,
            task_name=f"{self.audit_name}-{self.pk}",
        )

    def claim(self, attempt: int) -> bool:
        """Take the job if it still waits for this attempt. Exactly one caller gets True."""
        now = timezone.now()
        claimed = (
            type(self)
            ._base_manager.filter(pk=self.pk, attempt=attempt, state=self.State.QUEUED)
            .update(
                state=self.State.RUNNING,
                lease_token=uuid.uuid4(),
                lease_until=now + LEASE,
                heartbeat_at=now,
                started_at=now,
                host=socket.gethostname(),
                pid=os.getpid(),
            )
        )
        if claimed:
            self.refresh_from_db()
        return bool(claimed)

    # -- While it runs: only the holder of the lease writes

    def write(self, **fields: Any) -> None:
        """Update fields of the running job, fenced by the lease token. Raises LeaseLost."""
        held = type(self)._base_manager.filter(pk=self.pk, lease_token=self.lease_token, state=self.State.RUNNING)
        if not held.update(**fields):
            raise LeaseLost(f"{self.audit_name} {self.pk} is no longer ours.")
        for name, value in fields.items():
            setattr(self, name, value)
        if self.listener and "message" in fields:
            self.listener(self)

    def renew(self, **fields: Any) -> None:
        """Prolong the lease and tell what is going on. Raises LeaseLost or JobCancelled."""
        now = timezone.now()
        self.write(lease_until=now + LEASE, heartbeat_at=now, **fields)
        if type(self)._base_manager.filter(pk=self.pk, cancel_requested=True).exists():
            raise JobCancelled

    def reporter(self) -> Callable[..., None]:
        """A `report(done, total, message)` for loops: writes at most once a second, and stops on cancel."""
        last = 0.0

        def report(done: int, total: int, message: str) -> None:
            nonlocal last
            if time.monotonic() - last < REPORT_EVERY_SECONDS:
                return
            last = time.monotonic()
            share = done / total if total else 0.0
            self.renew(progress=min(share, 1.0), message=message[:300])

        return report

    # -- Ending: one terminal state, written once, with its audit entry

    def succeed(self, message: str = "", after: dict[str, Any] | None = None) -> None:
        self._end(self.State.SUCCEEDED, audit.AuditEntry.Outcome.SUCCESS, after, progress=1.0, message=message[:300])

    def fail(self, error: str, hint: str = "") -> None:
        self._end(self.State.FAILED, audit.AuditEntry.Outcome.FAILED, {"error": error}, error=error, hint=hint)

    def end_cancelled(self) -> None:
        self._end(self.State.CANCELLED, audit.AuditEntry.Outcome.SUCCESS, None, message="Cancelled on request")

    def _end(self, state: str, outcome: str, after: dict[str, Any] | None, **fields: Any) -> None:
        with transaction.atomic():
            self.write(state=state, finished_at=timezone.now(), lease_until=None, **fields)
            audit.record(f"{self.audit_name}.{state}", self, actor=self.created_by, outcome=outcome, after=after)

    def request_cancel(self, by: Any) -> bool:
        """Cancel a waiting job at once, ask a running one to stop. False when it had ended already."""
        jobs = type(self)._base_manager.filter(pk=self.pk)
        with transaction.atomic():
            asked = jobs.filter(state=self.State.QUEUED).update(
                state=self.State.CANCELLED, finished_at=timezone.now(), message="Cancelled before it started"
            ) or jobs.filter(state=self.State.RUNNING).update(cancel_requested=True, message="Stopping on request")
            if asked:
                audit.record(f"{self.audit_name}.cancel", self, actor=by)
        self.refresh_from_db()
        return bool(asked)

    def run(self, attempt: int, work: Callable[[], None]) -> bool:
        """Claim and do `work`, turning what goes wrong into the job's own end. False when not claimed."""
        if not self.claim(attempt):
            return False
        try:
            work()
        except JobCancelled:
            self.end_cancelled()
        except JobError as error:
            self.fail(str(error), error.hint)
        except LeaseLost:
            raise
        except (KeyboardInterrupt, SystemExit):
            self.fail("The job was interrupted where it ran.", "Start it again.")
            raise
        except Exception:
            self.fail(
                "The job stopped on an unexpected error.",
                "Nothing that existed before was changed. The details are in the worker's log; tell an administrator.",
            )
            raise
        return True


def job_models() -> list[type[Job]]:
    return [model for model in apps.get_models() if issubclass(model, Job)]


def active_jobs_of(obj: models.Model) -> list[Job]:
    """Waiting and running jobs, of whatever app, that refer to the object."""
    relations = [field for field in obj._meta.related_objects if issubclass(field.related_model, Job)]
    return [
        job
        for relation in relations
        for job in relation.related_model._base_manager.filter(**{relation.field.name: obj}, state__in=Job.ACTIVE)
    ]


def reap() -> int:
    """End running jobs whose worker stopped renewing its lease. Returns how many.

    Called each minute by the queue, and before a new job is created: a site without workers must not be blocked by a
    job that somebody killed.
    """
    return sum(_reap(job) for model in job_models() for job in model._base_manager.filter(_expired()))


def _expired() -> models.Q:
    return models.Q(state=Job.State.RUNNING, lease_until__lt=timezone.now())


def _reap(job: Job) -> bool:
    # A fresh token: if the worker was only frozen, its next write finds that the lease is gone.
    expired = type(job)._base_manager.filter(_expired(), pk=job.pk, lease_token=job.lease_token)
    if not expired.update(lease_token=uuid.uuid4()):
        return False
    job.refresh_from_db()
    silence = (timezone.now() - (job.heartbeat_at or job.started_at or job.created_at)).total_seconds()
    try:
        job.fail(
            f"The worker died: no sign of life for {silence:.0f} seconds (host {job.host}, process {job.pid}).",
            "Start it again. If it happens twice, look at System Status for memory and disk.",
        )
    except LeaseLost:
        return False
    return True
