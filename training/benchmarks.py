"""`manage.py benchmark train`: the platform's training beside what the machine could do at best, and what users write.

Four trainings of the same network on the same images share the machine in turns of a second. Only one computes at a
time, the others are halted meanwhile, so that whatever else the machine does meets all of them alike.
"""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.db import connection, transaction

from datasets import phantoms
from datasets.cache import PreparedData, open_cache
from datasets.models import Dataset, Preparation, Scan
from datasets.tasks import run_preparation, run_scan
from xrayplatform.benchmarks import BenchmarkFailed, register
from xrayplatform.processes import has_variable

from .configurations import PRESETS, Configuration
from .ml.architectures import ARCHITECTURES, architecture
from .models import EpochMetric, TrainingRun
from .models.run import LEASE_VARIABLE
from .tasks import train_here

POLL_SECONDS = 0.03
TURN_SECONDS = 1.0
# Of one epoch, or of a start. What takes longer has failed.
PATIENCE_SECONDS = 3600.0
NAMES = ("platform", "arrays", "arrays_augmented", "files")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--images", help="an existing folder of class folders to train on instead; it is only read")
    parser.add_argument("--files", type=int, default=600, help="synthetic radiographs a class (default 600)")
    parser.add_argument("--architecture", default="Custom_CNN", choices=list(ARCHITECTURES))
    parser.add_argument("--epochs", type=int, default=8, help="at least 3 (default 8)")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--starts", type=int, default=3, help="how often the start is measured (default 3)")
    parser.add_argument("--target-auc", type=float, default=0.99, help="on the validation part (default 0.99)")


@register("train", "a training beside bare model.fit, and beside image_dataset_from_directory", _arguments)
def train(options: dict[str, Any]) -> dict[str, Any]:
    """Speed, time to a validation AUC, the overhead of the start, and whether the feed keeps up with the network."""
    if options["epochs"] < 3:
        raise BenchmarkFailed("--epochs must be 3 or more: the first epoch does not count, and one alone says little.")
    preparation = _prepared(options)
    # Halted trainings do not move on.
    settings.TRAINING_STALL_MINUTES = PATIENCE_SECONDS
    data = open_cache(preparation.cache_folder)
    entry = architecture(options["architecture"])
    configuration = PRESETS["standard"].configuration.with_options(
        epochs=options["epochs"], early_stopping_patience=100, batch_size=entry.batch_size, minimum_steps=1
    )
    with tempfile.TemporaryDirectory() as folder:
        parts = _class_folders(preparation, Path(folder))
        asked = {
            "cache": str(preparation.cache_folder),
            **parts,
            "architecture": entry.id,
            "configuration": configuration.to_json(),
            "batch_size": entry.batch_size,
            "epochs": options["epochs"],
            "learning_rate": entry.learning_rate,
        }
        start = partial(_Bare, specification=asked)
        platform = partial(_Platform, preparation.dataset, entry.id, configuration)
        return {
            **_what(data, entry.batch_size, entry.id, options["epochs"]),
            **_race(platform, start, len(data.indices("train")), options),
            "start": _starts(platform, start, options["starts"]),
            "feed": _feed(start),
        }


def _what(data: PreparedData, batch_size: int, architecture_id: str, epochs: int) -> dict[str, Any]:
    return {
        "architecture": architecture_id,
        "images": {split: len(data.indices(split)) for split in ("train", "validation", "test")},
        "image_size": data.image_size,
        "batch_size": batch_size,
        "epochs": epochs,
    }


# -- Data


def _prepared(options: dict[str, Any]) -> Preparation:
    if options["images"]:
        folder = Path(options["images"]).resolve()
        if not folder.is_dir():
            raise BenchmarkFailed(f"There is no folder {options['images']}.")
        settings.DATASET_ROOT = folder
    else:
        _draw(Path(settings.DATASET_ROOT), options["files"])
    scan = Scan.create(None)
    run_scan(scan, 1)
    found = Dataset.objects.filter(state=Dataset.State.PRESENT).order_by("-images_count").first()
    if found is None:
        raise BenchmarkFailed(f"No dataset was found there. {scan.error or scan.message}")
    preparation = Preparation.create(found, None, image_size=options["image_size"])
    run_preparation(preparation, 1)
    preparation.refresh_from_db()
    if not preparation.is_ready:
        raise BenchmarkFailed(f"The images could not be prepared: {preparation.error}")
    return preparation


def _draw(root: Path, per_class: int) -> None:
    """The chest phantoms alone: files of this kind every library reads."""
    with tempfile.TemporaryDirectory() as folder:
        samples = phantoms.make_samples(Path(folder), per_class=per_class)
        shutil.copytree(samples[0], root / "Benchmark")


def _class_folders(preparation: Preparation, folder: Path) -> dict[str, str]:
    """Training and validation part as class folders of links, which is what `image_dataset_from_directory` reads."""
    parts = {}
    for split in ("train", "validation"):
        parts[split] = str(folder / split)
        for name in preparation.classes:
            (folder / split / name).mkdir(parents=True)
        images = preparation.manifest.filter(split=split).values_list("row", "path", "class_name")
        for row, path, name in images:
            original = preparation.dataset.folder / path
            (folder / split / name / f"{row}{original.suffix.lower()}").symlink_to(original)
    return parts


# -- Trainings that can be halted


class _Training:
    """A training in a process of its own."""

    def epochs_done(self) -> int:
        raise NotImplementedError

    def has_stepped(self) -> bool:
        raise NotImplementedError

    def failure(self) -> str | None:
        """Why it will not go on; None while it does."""
        raise NotImplementedError

    def val_auc(self) -> list[float | None]:
        """Of each epoch so far."""
        raise NotImplementedError

    def process(self) -> psutil.Process | None:
        """None when it has ended."""
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError


class _Platform(_Training):
    """A run of the platform: created, claimed and supervised as a queue worker does it, its child does the work."""

    def __init__(self, dataset: Dataset, architecture_id: str, configuration: Configuration) -> None:
        with transaction.atomic():
            self.run = TrainingRun.create(dataset, architecture_id, configuration, None, preset="standard")
            self.run.enqueue()
        self.worker = threading.Thread(target=self._work, daemon=True)
        self.worker.start()

    def _work(self) -> None:
        try:
            train_here(TrainingRun.objects.select_related("preparation__dataset").get(pk=self.run.pk))
        finally:
            connection.close()

    def epochs_done(self) -> int:
        return EpochMetric.objects.filter(run=self.run).count()

    def has_stepped(self) -> bool:
        """The child tells of its first step at once, or a second after it told that it loads."""
        return TrainingRun.objects.filter(pk=self.run.pk, phase="training").exists()

    def failure(self) -> str | None:
        self.run.refresh_from_db()
        if self.run.is_active:
            return None
        return f"The training ended as {self.run.state}. {self.run.error} {self.run.log_tail(5)}"

    def val_auc(self) -> list[float | None]:
        return list(self.run.metrics.order_by("epoch").values_list("val_auc", flat=True))

    def process(self) -> psutil.Process | None:
        self.run.refresh_from_db()
        pid = self.run.child_pid
        # Process numbers are used again.
        if pid is None or not has_variable(pid, LEASE_VARIABLE, str(self.run.lease_token)):
            return None
        return psutil.Process(pid)

    def end(self) -> None:
        self.run.request_cancel(None)
        self.worker.join()


class _Bare(_Training):
    """One of the programs of `training.ml.baselines`."""

    def __init__(self, program: str, specification: dict[str, Any]) -> None:
        self.events: list[dict[str, Any]] = []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # Killed, TensorFlow leaves generated source behind.
        self.folder = tempfile.TemporaryDirectory()
        self.child = subprocess.Popen(
            _command(program, specification),
            cwd=settings.BASE_DIR,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TMPDIR": self.folder.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.child.stdout is not None  # noqa: S101
        for line in self.child.stdout:
            if line.startswith("{"):
                self.events.append(json.loads(line))

    def told(self, event: str) -> list[dict[str, Any]]:
        return [told for told in self.events if told["event"] == event]

    def epochs_done(self) -> int:
        return len(self.told("epoch"))

    def has_stepped(self) -> bool:
        return bool(self.told("first step"))

    def failure(self) -> str | None:
        if self.child.poll() is None:
            return None
        self.listener.join()
        self.errors.seek(0)
        return f"A training ended with status {self.child.returncode}. {self.errors.read()[-500:]}"

    def val_auc(self) -> list[float | None]:
        return [told["val_auc"] for told in self.told("epoch")]

    def process(self) -> psutil.Process | None:
        return psutil.Process(self.child.pid) if self.child.poll() is None else None

    def end(self) -> None:
        self.child.kill()
        self.listener.join()
        # Closes the pipes, and waits.
        with self.child:
            self.errors.close()
        self.folder.cleanup()


def _command(program: str, specification: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "training.ml.baselines", program, json.dumps(specification)]


@contextmanager
def _ended(training: _Training) -> Iterator[_Training]:
    """Ends the training, halted or not, whatever happens."""
    try:
        yield training
    finally:
        _signal(training, signal.SIGCONT)
        training.end()


def _signal(training: _Training, number: int) -> None:
    process = training.process()
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _processor_time(training: _Training) -> float:
    """Seconds that it used, all threads together; 0 when it has ended."""
    process = training.process()
    if process is None:
        return 0.0
    used = process.cpu_times()
    return float(used.user + used.system)


def _wait(training: _Training, reached: Callable[[], bool], seconds: float = math.inf) -> bool:
    """Until it has got there, or for so long; whether it got there. Raises BenchmarkFailed when it ends before."""
    start = time.perf_counter()
    while not reached():
        failure = training.failure()
        if failure is not None and not reached():
            raise BenchmarkFailed(failure)
        waited = time.perf_counter() - start
        if waited >= seconds:
            return False
        if waited > PATIENCE_SECONDS:
            raise BenchmarkFailed("A training does not get on.")
        time.sleep(POLL_SECONDS)
    return True


# -- The race


class _Turns:
    """Times the epochs of a training that is halted between them. Seconds while it was halted do not count.

    first: seconds from the start of everything to the end of the first epoch. epochs: of the others. busy: seconds of
    processor time of the others.
    """

    def __init__(self, start: Callable[[], _Training], images: int, stack: ExitStack) -> None:
        """images: in an epoch."""
        begun = time.perf_counter()
        self.images = images
        self.training = stack.enter_context(_ended(start()))
        self.epochs: list[float] = []
        self.busy: list[float] = []
        self.spent = 0.0
        self._reach(1)
        now = time.perf_counter()
        self.first = now - begun
        self.used = _processor_time(self.training)
        self._halt(now)

    @property
    def rates(self) -> list[float]:
        return [self.images / seconds for seconds in self.epochs]

    @property
    def cpu_seconds(self) -> float:
        """Of an image."""
        return statistics.median(self.busy) / self.images

    def go_on(self) -> bool:
        """For one turn, or to the end of the epoch if that comes first; whether it came."""
        resumed = time.perf_counter()
        _signal(self.training, signal.SIGCONT)
        ended = self._reach(len(self.epochs) + 2, TURN_SECONDS)
        now = time.perf_counter()
        self.spent += now - resumed
        if ended:
            used = _processor_time(self.training)
            self.epochs.append(self.spent)
            self.busy.append(used - self.used)
            self.spent, self.used = 0.0, used
        self._halt(now)
        return ended

    def _reach(self, epochs: int, seconds: float = math.inf) -> bool:
        return _wait(self.training, lambda: self.training.epochs_done() >= epochs, seconds)

    def _halt(self, since: float) -> None:
        """What it did since then belongs to what comes next."""
        _signal(self.training, signal.SIGSTOP)
        self.spent += time.perf_counter() - since

    def figures(self, target: float) -> dict[str, Any]:
        return {
            "images_per_second": round(statistics.median(self.rates), 1),
            "epoch_seconds": [round(value, 3) for value in self.epochs],
            "cpu_ms_per_image": round(1000 * self.cpu_seconds, 3),
            "seconds_to_first_epoch": round(self.first, 1),
            "val_auc": [None if value is None else round(value, 4) for value in self.training.val_auc()],
            "seconds_to_target_auc": self._seconds_to(target),
        }

    def _seconds_to(self, target: float) -> float | None:
        """From nothing, import and build included, to the end of the first epoch that reached it."""
        spent = self.first
        for value, seconds in zip(self.training.val_auc(), [*self.epochs, 0.0], strict=False):
            if value is not None and value >= target:
                return round(spent, 1)
            spent += seconds
        return None


def _race(
    platform: Callable[[], _Training], bare: Callable[[str], _Training], images: int, options: dict[str, Any]
) -> dict[str, Any]:
    """All four, in short turns, until each has ended its epoch. The last one is left out: then a process ends."""
    batch_size, epochs = architecture(options["architecture"]).batch_size, options["epochs"]
    with ExitStack() as stack:
        # Only the platform fills its last batch.
        turns = {"platform": _Turns(platform, math.ceil(images / batch_size) * batch_size, stack)}
        turns |= {name: _Turns(partial(bare, name), images, stack) for name in NAMES[1:]}
        for _ in range(epochs - 2):
            waiting = list(turns.values())
            while waiting:
                waiting = [turn for turn in waiting if not turn.go_on()]
        figures = {name: turn.figures(options["target_auc"]) for name, turn in turns.items()}
        ratios = {f"platform_to_{name}": _ratio(turns["platform"], turns[name]) for name in NAMES[1:]}
    return {"target_auc": options["target_auc"], "trainings": figures, "ratios": ratios}


def _ratio(platform: _Turns, other: _Turns) -> dict[str, Any]:
    """Speed relative to the other: by the clock, epoch by epoch, and by processor time, which others do not disturb."""
    ratios = [ours / theirs for ours, theirs in zip(platform.rates, other.rates, strict=True)]
    return {
        "speed": round(statistics.median(ratios), 3),
        "speeds": [round(ratio, 3) for ratio in ratios],
        "by_cpu_time": round(other.cpu_seconds / max(platform.cpu_seconds, 1e-9), 3),
    }


# -- The start, and the feed


def _starts(platform: Callable[[], _Training], bare: Callable[[str], _Training], count: int) -> dict[str, Any]:
    """From creating a run to its first finished step, beside importing, building and one step alone."""
    ours, theirs = [], []
    for _ in range(count):
        ours.append(_first_step(platform))
        theirs.append(_first_step(partial(bare, "first_step")))
    overheads = [[own - other for own, other in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)]
    seconds, busy = (statistics.median(values) for values in zip(*overheads, strict=True))
    return {
        "platform_seconds": [round(value, 2) for value, _ in ours],
        "bare_seconds": [round(value, 2) for value, _ in theirs],
        "overhead_seconds": round(seconds, 2),
        "overhead_cpu_seconds": round(busy, 2),
    }


def _first_step(start: Callable[[], _Training]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time, until its end."""
    begun = time.perf_counter()
    with _ended(start()) as training:
        _wait(training, training.has_stepped)
        seconds = time.perf_counter() - begun
        return seconds, _processor_time(training)


def _feed(bare: Callable[[str], _Training]) -> dict[str, Any]:
    """Whether the network waits for its images, and which way to augment is faster."""
    with _ended(bare("feed")) as training:
        if not isinstance(training, _Bare):
            raise TypeError("Only a bare program measures the feed.")
        _wait(training, lambda: bool(training.told("feed")))
        rates = training.told("feed")[0]["images_per_second"]
    faster = max(("in_graph", "uint8_in_threads"), key=lambda way: rates[f"both_{way}"]["per_second"])
    return {
        **rates,
        "share_of_step_alone": round(rates["both_in_graph"]["per_second"] / rates["step_alone"]["per_second"], 3),
        "faster": faster,
    }
