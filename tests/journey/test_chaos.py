"""Processes are killed, frozen and stopped at random points; every training comes to its end, once and unharmed.

The points come from CHAOS_SEED; another number is another story.
"""

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from tests.journey.instance import ROOT, Instance

pytestmark = pytest.mark.slow
CHEST = "CHEST/synthetic_chest_pneumonia"
SEED = int(os.environ.get("CHAOS_SEED", "4"))
EPOCHS = 6
# Custom_CNN on a few pictures: a training of seconds, most of which go into loading TensorFlow.
ENQUEUE = f"""
from datasets.models import Dataset
from training.configurations import PRESETS
from training.models import TrainingRun
configuration = PRESETS["quick"].configuration.with_options(
    epochs={EPOCHS}, batch_size=8, minimum_steps=20, early_stopping_patience=100, seed=3)
run = TrainingRun.create(Dataset.objects.get(name="{CHEST}"), "Custom_CNN", configuration, None, preset="quick")
run.enqueue()
print(run.pk)
"""


class Site:
    """A platform with one training queue, and what may happen to it."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.database = instance.folder / "db.sqlite3"

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=20)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, values)]

    def run(self, number: int) -> dict[str, Any]:
        return self.rows("SELECT * FROM training_trainingrun WHERE id = ?", number)[0]

    def enqueue(self) -> int:
        return int(self.instance.python(ENQUEUE))

    def until(self, what: str, is_so: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, f"{what}: waited {seconds} s\n{self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        return (self.instance.folder / "trainer.log").read_text()[-3000:]

    # -- The processes

    @property
    def watchdog(self) -> psutil.Process:
        return psutil.Process(self.instance.processes[-1].pid)

    @property
    def main(self) -> psutil.Process:
        return self.watchdog.children()[0]

    @property
    def sentinel(self) -> psutil.Process:
        return self.main.children()[0]

    def start(self) -> None:
        self.instance.start(web=False, worker=False)

    # -- What may happen

    def kill_child(self, run: dict[str, Any]) -> None:
        psutil.Process(run["child_pid"]).kill()

    def kill_worker(self, run: dict[str, Any]) -> None:
        psutil.Process(run["pid"]).kill()

    def kill_sentinel(self, run: dict[str, Any]) -> None:
        self.sentinel.kill()

    def kill_main(self, run: dict[str, Any]) -> None:
        self.main.kill()

    def kill_watchdog(self, run: dict[str, Any]) -> None:
        """As a power cut; then the service manager starts it again."""
        family = self.watchdog.children(recursive=True)
        trainer = self.instance.processes.pop()
        trainer.kill()
        trainer.wait()
        _gone, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, "the queue went on without its watchdog"
        self.start()

    def restart_service(self, run: dict[str, Any]) -> None:
        trainer = self.instance.processes.pop()
        trainer.terminate()
        assert trainer.wait(60) == 0
        self.start()

    def freeze_worker(self, run: dict[str, Any]) -> None:
        """Until its lease is over and beyond, then it goes on as if nothing had been."""
        worker = psutil.Process(run["pid"])
        worker.suspend()
        token = run["lease_token"]
        self.until("the frozen worker loses its lease", lambda: self.run(run["id"])["lease_token"] != token)
        if worker.is_running():
            worker.resume()

    def freeze_child(self, run: dict[str, Any]) -> None:
        child = psutil.Process(run["child_pid"])
        child.suspend()
        time.sleep(3)
        child.resume()


Happening = Callable[[Site, dict[str, Any]], None]
# Each costs an attempt, and a run has three; of the others it survives as many as there are.
COUNTED: list[Happening] = [
    Site.kill_child, Site.kill_worker, Site.kill_sentinel, Site.kill_main, Site.kill_watchdog, Site.freeze_worker,
]  # fmt: skip
HARMLESS: list[Happening] = [Site.restart_service, Site.freeze_child]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    instance = Instance(tmp_path_factory.mktemp("chaos"), program=ROOT / "tests/journey/impatient.py")
    instance.environment |= {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    instance.set_up()
    instance.manage("make_samples", "--per-class", "16")
    instance.manage("scan_dataset")
    instance.manage("prepare_dataset", CHEST, "--image-size", "64")
    site = Site(instance)
    site.start()
    yield site
    instance.stop()


def test_whatever_happens_every_training_ends_well_and_as_if_nothing_had_happened(site: Site) -> None:
    story = random.Random(SEED)
    undisturbed, *runs = [site.enqueue() for _ in range(3)]
    for number, first in zip(runs, [story.choice(COUNTED), story.choice(HARMLESS)], strict=True):
        points = sorted(story.randint(0, EPOCHS + 1) for _ in range(2))
        disturb(site, number, first, points[0])
        disturb(site, number, story.choice(COUNTED), points[1])
    for number in [undisturbed, *runs]:
        site.until(f"run {number} ends", lambda number=number: ended(site, number), 180)
        assert_whole(site, number)
    expected = weights(site, undisturbed)
    for number in runs:
        found = weights(site, number)
        assert found.keys() == expected.keys()
        worst = max(float(np.abs(found[name] - expected[name]).max()) for name in expected)
        assert worst < 1e-3, f"run {number}: {worst}, {site.run(number)['interruptions']}"


def disturb(site: Site, number: int, happens: Happening, point: int) -> None:
    """Once the run has got so far: 0 while it loads, then so many epochs, and one more when it evaluates or saves."""

    def is_there() -> bool:
        run = site.run(number)
        return ended(site, number) or (run["state"] == "running" and run["child_pid"] and reached(run) >= point)

    site.until(f"run {number} reaches point {point} for {happens.__name__}", is_there, 180)
    run = site.run(number)
    if run["state"] != "running" or not run["child_pid"]:
        return
    try:
        happens(site, run)
    except psutil.NoSuchProcess:
        return
    if happens in COUNTED:
        noticed = lambda: site.run(number)["lease_token"] != run["lease_token"] or ended(site, number)  # noqa: E731
        site.until(f"{happens.__name__} is noticed", noticed)


def reached(run: dict[str, Any]) -> int:
    if run["phase"] in ("", "starting", "loading"):
        return 0
    return run["epoch"] if run["phase"] == "training" else EPOCHS + 1


def ended(site: Site, number: int) -> bool:
    return site.run(number)["state"] not in ("queued", "running")


def assert_whole(site: Site, number: int) -> None:
    run = site.run(number)
    assert run["state"] == "succeeded", (run["error"], run["interruptions"])
    assert run["version_id"]
    assert run["attempt"] <= 3
    epochs = site.rows("SELECT epoch FROM training_epochmetric WHERE run_id = ? ORDER BY epoch", number)
    assert [row["epoch"] for row in epochs] == list(range(1, EPOCHS + 1))
    ends = site.rows(
        "SELECT action FROM xrayplatform_auditentry WHERE object_type = 'trainingrun' AND object_id = ? AND action IN "
        "('trainingrun.succeeded', 'trainingrun.failed', 'trainingrun.cancelled')",
        str(number),
    )
    assert [row["action"] for row in ends] == ["trainingrun.succeeded"]
    versions = site.rows("SELECT id FROM registry_modelversion WHERE origin LIKE ?", f"%, run {number}")
    assert [row["id"] for row in versions] == [run["version_id"]]
    for folder in ("checkpoints", "registry/.staging"):
        # They are removed right after the commit that ended the run.
        left = lambda folder=folder: list((site.instance.models / folder).glob(f"run-{number}*"))  # noqa: E731
        site.until(f"{folder} is tidied up", lambda left=left: not left(), 10)


def weights(site: Site, number: int) -> dict[str, Any]:
    version = site.rows("SELECT * FROM registry_modelversion WHERE id = ?", site.run(number)["version_id"])[0]
    folder = next((site.instance.models / "registry").glob(f"*/{version['number']}"))
    return load_file(folder / "weights.safetensors")


def test_a_queue_that_froze_is_started_again(site: Site) -> None:
    """Killing an idle worker that waits for a task leaves the queue of tasks locked for good."""

    def restarts() -> int:
        return len(site.rows("SELECT 1 FROM xrayplatform_auditentry WHERE action = 'queue.restarted'"))

    def signs() -> list[dict[str, Any]]:
        return site.rows("SELECT at FROM xrayplatform_workersign WHERE cluster = 'train'")

    before, first = restarts(), signs()
    site.until("the queue is idle and gives signs", lambda: signs() != first, 30)
    for _ in range(10):
        last = signs()
        # The worker, renewed after every task, is the youngest of the sentinel's children.
        max(site.sentinel.children(), key=lambda process: process.create_time()).kill()
        site.until("a sign or a restart", lambda last=last: restarts() > before or signs() != last, 60)
        if restarts() > before:
            break
        # The worker was just about to wait and had not locked the queue yet.
        time.sleep(0.5)
    assert restarts() > before, "no killed worker froze the queue"
    frozen = signs()
    site.until("the queue gives signs again", lambda: signs() != frozen, 30)
    run = site.enqueue()
    site.until("a training runs in it", lambda: ended(site, run), 60)
    assert_whole(site, run)


def test_when_the_service_stops_nothing_is_left_running(site: Site) -> None:
    run = site.enqueue()
    site.until("the training has begun", lambda: site.run(run)["phase"] == "training" or ended(site, run), 60)
    family = [site.watchdog, *site.watchdog.children(recursive=True)]
    trainer = site.instance.processes.pop()
    started = time.monotonic()
    trainer.terminate()
    assert trainer.wait(60) == 0
    assert time.monotonic() - started < 50
    assert not psutil.wait_procs(family, timeout=2)[1]
    row = site.run(run)
    assert (row["state"], row["attempt"]) == ("queued", 1) or row["state"] == "succeeded"
