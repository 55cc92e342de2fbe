"""Before a training starts: will it start, will it fit, how long will it take, and what could be better."""

from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from datasets.models import Dataset, Preparation
from registry.models import ModelVersion
from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk, Resources, require_disk, resources

from . import estimates, independence, waiting
from .advice import warnings_of
from .configurations import Configuration
from .live import NO_WORKER, limit_words, measured, plan, running_by_team
from .ml.architectures import ARCHITECTURES
from .ml.initial import advice as weights_advice
from .models import NotPrepared, TrainingRun
from .models.run import chosen_weights, preparation_for
from .models.speed import PLENTY_OF_MEMORY, needed_memory, require_memory
from .pretrained import weights_state

GIB = estimates.GIB
Initial = TrainingRun.Initial


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. level: "ok", "warning", or "problem": with that the training is refused."""

    name: str
    level: str
    text: str
    advice: str = ""
    url: str = ""


@dataclass(frozen=True)
class Preflight:
    """All checks, the estimated time, and what a speed test would have to measure for a better one."""

    checks: list[Check]
    duration: estimates.Duration | None = None
    source: str = ""
    exact: bool = False
    measure: dict[str, Any] | None = None

    @property
    def can_start(self) -> bool:
        return all(check.level != "problem" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        duration = asdict(self.duration) if self.duration else None
        return {
            "can_start": self.can_start,
            "checks": [asdict(check) for check in self.checks],
            "seconds": duration and {name: round(value, 1) for name, value in duration.items()},
            "source": self.source,
            "exact": self.exact,
        }


def preflight(
    dataset: Dataset,
    architecture: str,
    configuration: Configuration,
    user: Any,
    *,
    initial: str = Initial.AUTO,
    version: ModelVersion | None = None,
) -> Preflight:
    """What is to be known before the start. user: None is the command line."""
    machine = resources()
    preparation, prepared = prepared_for(dataset, configuration)
    weights, pretrained = _weights(architecture, initial, version, dataset, user)
    checks = [prepared, weights, _processor(machine)]
    checks += [_disk(architecture), _queue(dataset, user)]
    condition = dataset.condition
    checks += [Check("Options", "warning", text) for text in warnings_of(configuration.to_json(), condition)]
    if preparation is None:
        return Preflight(checks)
    checks += [Check("Test part", "warning", text) for text in independence.warnings_of(version, preparation)]
    wanted = plan(preparation, architecture, configuration, pretrained=pretrained)
    checks.insert(3, _memory(wanted, machine))
    key = {
        "architecture": architecture,
        "image_size": wanted.image_size,
        "batch_size": wanted.batch_size,
        "fine_tuning": wanted.head_epochs > 0,
    }
    found = measured(architecture, wanted.image_size, wanted.batch_size, fine_tuning=key["fine_tuning"])
    if found is None:
        return Preflight(checks, measure=key)
    return Preflight(
        checks,
        estimates.duration(wanted, found.speed),
        found.source,
        found.exact,
        measure=None if found.exact else key,
    )


def obstacles(
    dataset: Dataset,
    preparation: Preparation | None,
    architecture: str,
    configuration: Configuration,
    user: Any,
    *,
    initial: str = Initial.AUTO,
    version: ModelVersion | None = None,
) -> tuple[list[Check], bool]:
    """What weights, disk and memory have against one of several trainings, and whether it starts from weights."""
    weights, pretrained = _weights(architecture, initial, version, dataset, user)
    checks = [weights, _disk(architecture)]
    if preparation is not None:
        wanted = plan(preparation, architecture, configuration, pretrained=pretrained)
        checks.append(_memory(wanted, resources()))
        checks += [Check("Test part", "warning", text) for text in independence.warnings_of(version, preparation)]
    return [check for check in checks if check.level != "ok"], pretrained


def prepare_url(dataset: Dataset, missing: NotPrepared) -> str:
    """Where the dataset is prepared, with the choices that are missing filled in."""
    wanted = urlencode(missing.wanted, doseq=True)
    return f"{dataset.get_absolute_url()}{'?' if wanted else ''}{wanted}#prepare"


def prepared_for(dataset: Dataset, configuration: Configuration) -> tuple[Preparation | None, Check]:
    """The preparation that a training would use, and what is to be said about it."""
    try:
        preparation = preparation_for(dataset, configuration)
    except NotPrepared as error:
        return None, Check("Dataset", "problem", str(error), error.hint, prepare_url(dataset, error))
    images = preparation.split_total("train")
    text = f"Prepared: {images:,} training images of {preparation.image_size} pixels."
    return preparation, Check("Dataset", "ok", text)


def _weights(
    architecture: str, initial: str, version: ModelVersion | None, dataset: Dataset, user: Any
) -> tuple[Check, bool]:
    """What the training starts from, and whether that is more than chance."""
    name, entry = "Initial weights", ARCHITECTURES[architecture]
    try:
        chosen = chosen_weights(architecture, initial, version, dataset, user)
    except JobError as error:
        return Check(name, "problem", str(error), error.hint), True
    if chosen is not None:
        return Check(name, "ok", f"Starts from {chosen.words}."), True
    state = weights_state(entry)
    if initial == Initial.SCRATCH or state == "none":
        return Check(name, "ok", "Starts from scratch."), False
    text = f"The ImageNet weights of {entry.name} are {'damaged' if state == 'damaged' else 'not installed'}"
    text += ": it starts from scratch, learns more slowly and needs more images."
    return Check(name, "warning", text, weights_advice(entry)), False


def _processor(machine: Resources) -> Check:
    if machine.gpus:
        return Check("Processor", "ok", f"Trains on {', '.join(gpu.name for gpu in machine.gpus)}.")
    cores = f"{machine.cpu_count} core{'' if machine.cpu_count == 1 else 's'}"
    return Check("Processor", "ok", f"No GPU: trains on {cores} of this machine.")


def _disk(architecture: str) -> Check:
    need = estimates.disk(architecture)
    try:
        require_disk(need)
    except NotEnoughDisk as error:
        advice = "Give back the space of old preparations (Storage), or ask an administrator."
        return Check("Disk", "problem", str(error), advice)
    return Check("Disk", "ok", f"Needs {need / GIB:.2f} GB, which are free.")


def _memory(wanted: estimates.Plan, machine: Resources) -> Check:
    sizes = (wanted.architecture, wanted.image_size, wanted.batch_size)
    need = needed_memory(*sizes)
    words = f"Needs about {need.expected / GIB:.1f} GB"
    if machine.gpus:
        total = max(gpu.memory_total for gpu in machine.gpus)
        if need.expected <= total:
            return Check("Memory", "ok", f"{words} of the GPU's {total / GIB:.1f} GB.")
        return Check(
            "Memory", "warning", f"{words}, more than the GPU's {total / GIB:.1f} GB.",
            "When the memory runs out, the training goes on by itself with half the batch size.",
        )  # fmt: skip
    try:
        require_memory(*sizes, machine)
    except JobError as error:
        return Check("Memory", "problem", str(error), error.hint)
    return _free_memory(wanted, words, need.expected, machine)


def _free_memory(wanted: estimates.Plan, words: str, need: int, machine: Resources) -> Check:
    free = machine.memory_total - machine.memory_used
    if need <= free:
        return Check("Memory", "ok", f"{words}; {free / GIB:.1f} GB are free.")
    fits = estimates.largest_batch(wanted.architecture, wanted.image_size, free)
    smaller = f"Batches of {fits} images would fit." if 0 < fits < wanted.batch_size else PLENTY_OF_MEMORY
    text = (
        f"{words}, and only {free / GIB:.1f} GB are free now. When the memory runs out, the training goes on by itself "
        "with half the batch size."
    )
    return Check("Memory", "warning", text, smaller)


def _queue(dataset: Dataset, user: Any) -> Check:
    state = waiting.overview(user)
    if not state.worker_alive:
        return Check("Queue", "warning", NO_WORKER)
    team = dataset.condition.team
    limit = limit_words(team, running_by_team()[team.pk]) if team else ""
    if limit:
        return Check("Queue", "warning", limit, "The training waits until then.")
    if state.queue.paused:
        return Check("Queue", "warning", state.queue.pause_words, "Waiting runs start when it is open.")
    ahead = state.ahead_of_new()
    if not ahead:
        return Check("Queue", "ok", "Starts at once: nothing is ahead of it.")
    known = [entry.seconds for entry in ahead if entry.seconds is not None]
    time = f", after about {_minutes(sum(known))}" if len(known) == len(ahead) else ""
    return Check("Queue", "ok", f"Starts after {waiting.other_runs(len(ahead))}{time}.")


def _minutes(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
