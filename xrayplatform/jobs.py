"""Long work as a row: claimed once, leased, reported on, cancelled, tried again, and never lost in silence.

The queue only carries `(id, attempt)`. The row is the truth: a message delivered twice claims nothing, a worker that
died stops renewing its lease and is found by `reap`, and every write of a running job names the lease token, so that
a worker that was thought dead cannot overwrite what came after it.
"""

import logging
import multiprocessing
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, ClassVar

from django.apps import apps
from django.conf import settings
from django.db import DatabaseError, models, transaction
from django.db.models.functions import Coalesce
from django.utils import timezone
from django_q.tasks import async_task

from . import audit, system

logger = logging.getLogger(__name__)
LEASE = timedelta(seconds=120)
REPORT_EVERY_SECONDS = 1.0
SIGN_EVERY_SECONDS = 20.0
SEEN_TO_DIE_SECONDS = 10.0
# The clock was set, or the machine slept: leases are believed again after this time, when workers renewed them.
CLOCK_JUMP_SECONDS = 20.0
CLOCK_TRUSTED_AFTER_SECONDS = 30.0


class JobError(Exception):
    """The job cannot go on: what happened and why; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Interrupted(JobError):
    """What ran the job ended before it; with attempts left the job waits again. `fields` are written with that.

    counted: whether this was one of the job's attempts; an orderly stop is not.
    """

    def __init__(self, message: str, hint: str = "", *, counted: bool = True, **fields: Any) -> None:
        super().__init__(message, hint)
        self.counted = counted
        self.fields = fields


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
    # How often a job may be begun when what ran it died.
    max_attempts: ClassVar[int] = 1
    # A job that is to stop and whose worker was silent for so long is ended without it.
    cancel_silence: ClassVar[timedelta] = LEASE
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
        """Seconds since the job was first started, until its end, with those between attempts; None before that."""
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
                # A job that goes on was started before.
                started_at=Coalesce("started_at", models.Value(now)),
                host=socket.gethostname(),
                pid=os.getpid(),
            )
        )
        if claimed:
            self.refresh_from_db()
        return bool(claimed)

    @classmethod
    def resend_lost(cls) -> None:
        """Send a message again if one may be missing; called each minute. For jobs whose message names no row."""

    @classmethod
    def sweep(cls) -> None:
        """Remove files that nobody needs any more of jobs that have ended; called each hour."""

    # -- While it runs: only the holder of the lease writes

    def _held(self) -> models.QuerySet:
        """The row, as long as this object holds its lease."""
        return type(self)._base_manager.filter(pk=self.pk, lease_token=self.lease_token, state=self.State.RUNNING)

    def write(self, **fields: Any) -> None:
        """Update fields of the running job, fenced by the lease token. Raises LeaseLost."""
        if not self._held().update(**fields):
            raise LeaseLost(f"{self.audit_name} {self.pk} is no longer ours.")
        for name, value in fields.items():
            setattr(self, name, value)
        if self.listener and "message" in fields:
            self.listener(self)

    def renew(self, **fields: Any) -> None:
        """Prolong the lease and tell what is going on. Raises LeaseLost or JobCancelled."""
        now = timezone.now()
        self.write(lease_until=now + LEASE, heartbeat_at=now, **fields)
        _leave_sign(self.cluster)
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
            self._on_end()

    def _on_end(self) -> None:
        """What belongs to the end of the job, whichever it is; called inside the transaction that ends it."""

    # -- Ending before the work is done

    def requeue(self, reason: str, *, counted: bool = True, **fields: Any) -> None:
        """Back into the queue, fenced by the lease token; ended instead when somebody asked for that.

        counted: the next attempt has the next number. Raises LeaseLost.
        """
        fields = {
            "state": self.State.QUEUED,
            "attempt": self.attempt + int(counted),
            "lease_until": None,
            "heartbeat_at": None,
            "pid": None,
            "message": f"Waiting to go on: {reason}"[:300],
            **fields,
        }
        with transaction.atomic():
            # A fresh token: whoever still works for this attempt finds that the lease is gone.
            waiting = self._held().filter(cancel_requested=False)
            if not waiting.update(lease_token=uuid.uuid4(), **fields):
                self.end_cancelled()
                return
            for name, value in fields.items():
                setattr(self, name, value)
            outcome = audit.AuditEntry.Outcome.FAILED if counted else audit.AuditEntry.Outcome.SUCCESS
            after = {"reason": reason, "attempt": self.attempt}
            audit.record(f"{self.audit_name}.requeued", self, actor=self.created_by, outcome=outcome, after=after)
            self.enqueue()

    def end_attempt(self, reason: str, hint: str = "", *, counted: bool = True, **fields: Any) -> None:
        """What ran the job ended before it: wait for the next attempt, or fail when this was the last one.

        A job that was asked to stop ends as cancelled. Raises LeaseLost.
        """
        if self._held().filter(cancel_requested=True).exists():
            self.end_cancelled()
        elif counted and self.is_last_attempt:
            self.give_up(reason, hint)
        else:
            self.requeue(reason, counted=counted, **fields)

    @property
    def is_last_attempt(self) -> bool:
        return self.attempt >= self.max_attempts

    def give_up(self, reason: str, hint: str) -> None:
        """Fail, because the last attempt was interrupted too."""
        self.fail(reason, hint)

    def end_remains(self, token: uuid.UUID | None) -> None:
        """Kill what still works, on this host, for the holder of an expired lease."""

    def request_cancel(self, by: Any) -> bool:
        """Cancel a waiting job at once, ask a running one to stop. False when it had ended already.

        A running job whose worker gives no sign of life is ended here.
        """
        jobs = type(self)._base_manager.filter(pk=self.pk)
        with transaction.atomic():
            waited, asked = self._cancel_or_ask(jobs)
            self.refresh_from_db()
            if asked:
                audit.record(f"{self.audit_name}.cancel", self, actor=by)
            if waited:
                audit.record(f"{self.audit_name}.cancelled", self, actor=by)
                self._on_end()
        if asked and not waited and jobs.filter(self.dead()).exists() and _reap(self):
            self.refresh_from_db()
        return bool(asked)

    def _cancel_or_ask(self, jobs: models.QuerySet) -> tuple[bool, bool]:
        """Whether the job waited and has ended by this, and whether it did or was asked to."""
        while jobs.filter(state__in=self.ACTIVE).exists():
            if jobs.filter(state=self.State.QUEUED).update(
                state=self.State.CANCELLED, finished_at=timezone.now(), message="Cancelled before it started"
            ):
                return True, True
            running = jobs.filter(state=self.State.RUNNING)
            if running.update(cancel_requested=True, message="Stopping on request"):
                return False, True
            # It was put back into the queue between the two statements.
        return False, False

    @classmethod
    def dead(cls) -> models.Q:
        """Running by its state, but whoever ran it is gone, or is to stop and does not answer."""
        now = timezone.now()
        silent = models.Q(cancel_requested=True, heartbeat_at__lt=now - cls.cancel_silence)
        return models.Q(state=cls.State.RUNNING) & (models.Q(lease_until__lt=now) | silent)

    def run(self, attempt: int, work: Callable[[], None]) -> bool:
        """Claim and do `work`, turning what goes wrong into the job's own end. False when not claimed."""
        if not self.claim(attempt):
            return False
        self.see_through(work)
        return True

    def see_through(self, work: Callable[[], None]) -> None:
        """Do the `work` of a claimed job, turning what goes wrong into the job's own end or its next attempt."""
        try:
            work()
        except JobCancelled:
            self.end_cancelled()
        except Interrupted as interruption:
            self.end_attempt(str(interruption), interruption.hint, counted=interruption.counted, **interruption.fields)
        except JobError as error:
            self.fail(str(error), error.hint)
        except LeaseLost:
            raise
        except (KeyboardInterrupt, SystemExit):
            self.end_attempt("The job was interrupted where it ran.", "Start it again.")
            raise
        except Exception:
            self.end_attempt(
                "The job stopped on an unexpected error.",
                "Nothing that existed before was changed. The details are in the worker's log; tell an administrator.",
            )
            raise


_signed: dict[str, float] = {}


def _leave_sign(cluster: str) -> None:
    """A queue worker that is busy with one job runs no other task, so that its sign of life comes from the job."""
    in_queue_worker = multiprocessing.parent_process() is not None
    now = time.monotonic()
    if in_queue_worker and now - _signed.get(cluster, -SIGN_EVERY_SECONDS) >= SIGN_EVERY_SECONDS:
        _signed[cluster] = now
        system.WorkerSign.leave(cluster)


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
    """End, or send to the next attempt, running jobs whose worker stopped renewing its lease. Returns how many.

    Called each minute by the queue, every few seconds by its watchdogs, and before a new job is created: a site
    without workers must not be blocked by a job that somebody killed.
    """
    if not _clock.is_trusted():
        return 0
    return sum(_reap_alone(job) for model in job_models() for job in model._base_manager.filter(model.dead()))


def expire(pids: Collection[int]) -> int:
    """These processes of this host are known to be gone: what they ran need not wait until its lease is over."""
    past = timezone.now() - timedelta(seconds=1)
    return sum(running.update(lease_until=past) for running in _run_by(pids))


def any_of(pids: Collection[int]) -> bool:
    """Whether one of these processes of this host runs a job."""
    return any(running.exists() for running in _run_by(pids))


def _run_by(pids: Collection[int]) -> list[models.QuerySet]:
    mine = {"state": Job.State.RUNNING, "host": socket.gethostname(), "pid__in": list(pids)}
    return [model._base_manager.filter(**mine) for model in job_models()] if pids else []


def resend_lost() -> None:
    for model in job_models():
        model.resend_lost()


def sweep() -> None:
    for model in job_models():
        model.sweep()


def _reap_alone(job: Job) -> bool:
    """A job whose end cannot be written must not keep others from theirs."""
    try:
        return _reap(job)
    except DatabaseError:
        raise
    except Exception:
        logger.exception("%s %s could not be ended after its worker died", job.audit_name, job.pk)
        return False


def _reap(job: Job) -> bool:
    # A fresh token: if the worker was only frozen, its next write finds that the lease is gone.
    token, fresh = job.lease_token, uuid.uuid4()
    if not type(job)._base_manager.filter(job.dead(), pk=job.pk, lease_token=token).update(lease_token=fresh):
        return False
    job.refresh_from_db()
    job.end_remains(token)
    silence = (timezone.now() - (job.heartbeat_at or job.started_at or job.created_at)).total_seconds()
    # Where a watchdog saw it die, nobody had to wait for its silence.
    silent = f": no sign of life for {silence:.0f} seconds" if silence > SEEN_TO_DIE_SECONDS else ""
    try:
        job.end_attempt(
            f"The worker died{silent} (host {job.host}, process {job.pid}).",
            "Start it again. If it happens twice, look at System Status for memory and disk.",
        )
    except LeaseLost:
        return False
    return True


class _Clock:
    """Leases are times of the wall clock, and somebody may set it: then every lease looks expired for a moment."""

    def __init__(self) -> None:
        self.offset: float | None = None
        self.jumped_at = -CLOCK_TRUSTED_AFTER_SECONDS

    def is_trusted(self) -> bool:
        """False for a while after the wall clock moved otherwise than time went by, since the last call."""
        now = time.monotonic()
        offset = time.time() - now
        if self.offset is not None and abs(offset - self.offset) > CLOCK_JUMP_SECONDS:
            self.jumped_at = now
        self.offset = offset
        return now - self.jumped_at >= CLOCK_TRUSTED_AFTER_SECONDS


_clock = _Clock()
