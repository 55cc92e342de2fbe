"""What the machine and the queue workers are doing: disk, memory, CPU, GPU, signs of life."""

import shutil
import socket
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.db import models
from django.utils import timezone
from django_q.models import OrmQ

from .audit import AuditEntry

GIB = 1024**3
# What is asked later is the use since this first call, which itself has nothing to compare with.
psutil.cpu_percent(interval=None)
STALE_AFTER = timedelta(minutes=3)
CLUSTERS = {"xray": "Scan and prepare", "train": "Training"}


class NotEnoughDisk(Exception):
    """Writing this would leave less than MIN_FREE_DISK_GB."""


class WorkerSign(models.Model):
    """The last sign of life of a queue: a task that a worker really ran."""

    cluster = models.CharField(max_length=20, unique=True)
    at = models.DateTimeField()
    host = models.CharField(max_length=200)

    def __str__(self) -> str:
        return f"{self.cluster} at {self.at:%H:%M:%S}"

    @classmethod
    def leave(cls, cluster: str) -> None:
        cls.objects.update_or_create(cluster=cluster, defaults={"at": timezone.now(), "host": socket.gethostname()})


@dataclass(frozen=True)
class Gpu:
    name: str
    used_percent: int
    memory_used: int
    memory_total: int


@dataclass(frozen=True)
class Resources:
    """A snapshot; sizes in bytes, CPU and GPU use in percent."""

    cpu_percent: float
    cpu_count: int
    memory_used: int
    memory_total: int
    disk_free: int
    disk_total: int
    gpus: tuple[Gpu, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def resources() -> Resources:
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(_existing(settings.MODEL_ROOT))
    return Resources(
        cpu_percent=psutil.cpu_percent(interval=None),
        cpu_count=psutil.cpu_count() or 1,
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        disk_free=disk.free,
        disk_total=disk.total,
        gpus=_gpus(),
    )


def _gpus() -> tuple[Gpu, ...]:
    import pynvml

    try:
        pynvml.nvmlInit()
        return tuple(_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        # No driver, no GPU, or one that does not tell its figures.
        return ()


def _gpu(pynvml: Any, index: int) -> Gpu:
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    used = pynvml.nvmlDeviceGetUtilizationRates(device).gpu
    return Gpu(str(pynvml.nvmlDeviceGetName(device)), int(used), int(memory.used), int(memory.total))


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def require_disk(bytes_needed: int) -> None:
    """Raise NotEnoughDisk unless `bytes_needed` fit below MODEL_ROOT with MIN_FREE_DISK_GB to spare."""
    free = shutil.disk_usage(_existing(settings.MODEL_ROOT)).free
    reserve = settings.MIN_FREE_DISK_GB * GIB
    if free - bytes_needed < reserve:
        raise NotEnoughDisk(
            f"Not enough free disk: this needs {bytes_needed / GIB:.2f} GB and {settings.MIN_FREE_DISK_GB:g} GB must "
            f"stay free, but only {free / GIB:.2f} GB are free where models are kept."
        )


# -- Memory that ran out

# What the kernel counts: of the whole machine, and of the container or service that this process belongs to.
OOM_COUNTERS = (
    Path("/proc/vmstat"),
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, as far as it tells; only differences mean much."""
    return sum(_counter(path, "oom_kill") for path in (*OOM_COUNTERS, *_own_group("memory.events")))


def memory_limit() -> int:
    """Bytes that a process can use here at most: the machine's memory, or less in a container."""
    limits = [_number(path) for path in (*MEMORY_LIMITS, *_own_group("memory.max"))]
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit)])


def _own_group(name: str) -> list[Path]:
    """The file of the control group (version 2) in which this process runs, below the root of all."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return [Path("/sys/fs/cgroup") / group / name for group in groups if group]


def _counter(path: Path, name: str) -> int:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == name)
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int:
    """The number in a file; 0 when it says that there is no limit, or is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


# -- The queues


def queue_is_alive(cluster: str) -> bool:
    """Whether a worker of the queue gave a sign of life within the last minutes."""
    return WorkerSign.objects.filter(cluster=cluster, at__gt=timezone.now() - STALE_AFTER).exists()


def message_waits(cluster: str) -> bool:
    """Whether a message to the queue was not taken by a worker yet."""
    return OrmQ.objects.filter(key=cluster, lock__lte=timezone.now()).exists()


def queue_status() -> list[dict[str, Any]]:
    """One row a queue: name, what it does, the last sign of life, whether it is alive, when it was last restarted."""
    signs = {sign.cluster: sign for sign in WorkerSign.objects.all()}
    return [_queue_row(cluster, label, signs.get(cluster)) for cluster, label in CLUSTERS.items()]


def _queue_row(cluster: str, label: str, sign: WorkerSign | None) -> dict[str, Any]:
    return {
        "cluster": cluster,
        "label": label,
        "last_sign": sign.at if sign else None,
        "host": sign.host if sign else "",
        "alive": bool(sign and timezone.now() - sign.at < STALE_AFTER),
        "restarted": _last_restart(cluster),
    }


def _last_restart(cluster: str) -> dict[str, Any] | None:
    """When and why a watchdog started the queue again."""
    entry = AuditEntry.objects.filter(action="queue.restarted", after__queue=cluster).first()
    return {"at": entry.at, "reason": entry.after["reason"]} if entry else None
