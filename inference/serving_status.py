"""What serves radiographs at the moment, for System Status: processes, who waits, the DICOM receiver, what is kept."""

import os
import socket
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.core.cache import cache
from django.db.models import Max

from registry.models import Deployment, ModelVersion
from xrayplatform.conditions import Condition

from . import radiographs
from .models import Experiment, ReceivedObject, ServingProcess, ServingReference, prediction

# To count the files of a year takes a second, and the page renews itself.
COUNTED_SECONDS: Final = 300
_KEPT: Final = "radiographs-kept"


@dataclass(frozen=True)
class Process:
    """has_switched: whether it answers with the last activation. own_failure: why not, known of this process alone."""

    row: ServingProcess
    has_switched: bool
    own_failure: str = ""


@dataclass(frozen=True)
class Served:
    """One condition in service, and the processes that have answered for it."""

    deployment: Deployment
    processes: list[Process]

    @property
    def behind(self) -> int:
        """Processes that answer with what was in service before."""
        return sum(not process.has_switched for process in self.processes)


@dataclass(frozen=True)
class Missing:
    """A version in service or in an experiment that cannot be compared with its own images, or only in part."""

    version: ModelVersion
    why: str


@dataclass(frozen=True)
class Status:
    """answering, waiting: radiographs in the process that was asked. received_at: None where nothing ever was."""

    served: list[Served]
    missing: list[Missing]
    answering: int
    waiting: int
    most_waiting: int
    kept_files: int
    kept_bytes: int
    kept_days: int
    has_receiver: bool
    received_at: datetime | None
    received_waiting: int

    @property
    def behind(self) -> int:
        return sum(one.behind for one in self.served)

    def to_json(self) -> dict[str, Any]:
        return {
            "conditions": [_condition_to_json(one) for one in self.served],
            "without_reference": [
                {"version": one.version.pk, "name": str(one.version), "reason": one.why} for one in self.missing
            ],
            "turns": {"answering": self.answering, "waiting": self.waiting, "most_waiting": self.most_waiting},
            "radiographs": {"files": self.kept_files, "bytes": self.kept_bytes, "days": self.kept_days},
            "dicom_receiver": (
                {"last_received": self.received_at, "waiting": self.received_waiting} if self.has_receiver else None
            ),
        }


def status(user: Any) -> Status:
    """What `user` may see of it."""
    conditions = Condition.objects.visible_to(user)
    deployments = Deployment.objects.filter(condition__in=conditions, active__isnull=False)
    in_service = list(deployments.select_related("condition", "active__condition").order_by("condition__name"))
    files, size = _kept()
    received = ReceivedObject.objects
    return Status(
        served=_served(in_service),
        missing=_missing(conditions, in_service),
        answering=prediction.TURNS.working,
        waiting=prediction.TURNS.waiting,
        most_waiting=settings.ENGINE_WAITING,
        kept_files=files,
        kept_bytes=size,
        kept_days=settings.KEEP_RADIOGRAPHS_DAYS,
        has_receiver=bool(settings.DICOM_CALLERS),
        received_at=received.aggregate(last=Max("received_at"))["last"],
        received_waiting=received.filter(state=ReceivedObject.State.WAITING).count(),
    )


def _served(deployments: list[Deployment]) -> list[Served]:
    rows = defaultdict(list)
    for row in ServingProcess.objects.alive():
        rows[row.condition_id].append(row)
    return [Served(one, [_process(row, one) for row in rows[one.condition_id]]) for one in deployments]


def _process(row: ServingProcess, deployment: Deployment) -> Process:
    has_switched = row.version_id == deployment.active_id and row.epoch == deployment.epoch
    is_own = row.host == socket.gethostname() and row.pid == os.getpid()
    return Process(row, has_switched, _own_failure(deployment) if is_own and not has_switched else "")


def _own_failure(deployment: Deployment) -> str:
    key = deployment.condition.slug
    return next((one.failure or "" for one in prediction.ENGINE.state().serving if one.key == key), "")


def _missing(conditions: Any, deployments: list[Deployment]) -> list[Missing]:
    tried = Experiment.objects.running().filter(condition__in=conditions).select_related("challenger__condition")
    versions = {one.active_id: one.active for one in deployments} | {one.challenger_id: one.challenger for one in tried}
    rows = {row.version_id: row for row in ServingReference.objects.filter(version__in=versions).defer("reference")}
    whys = ((version, _why(rows.get(key))) for key, version in versions.items())
    return [Missing(version, why) for version, why in whys if why]


def _why(row: ServingReference | None) -> str:
    if row is None:
        return "It has not been computed yet; the queue does that within minutes."
    if row.problem or row.images_count:
        return row.problem
    return f"It is being computed since {row.created_at:%Y-%m-%d %H:%M} UTC."


def _kept() -> tuple[int, int]:
    """Number and bytes of the radiographs that are kept, as of the last minutes."""
    found = cache.get(_KEPT)
    if found is None:
        found = radiographs.kept()
        cache.set(_KEPT, found, COUNTED_SECONDS)
    return tuple(found)


def _condition_to_json(one: Served) -> dict[str, Any]:
    return {
        "condition": one.deployment.condition.slug,
        "version": one.deployment.active.number,
        "epoch": one.deployment.epoch,
        "processes": [
            {
                "host": process.row.host,
                "process": process.row.pid,
                "version": process.row.version.number,
                "epoch": process.row.epoch,
                "since": process.row.at,
                "has_switched": process.has_switched,
            }
            for process in one.processes
        ],
        "all_switched": not one.behind,
    }
