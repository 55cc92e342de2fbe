"""`manage.py benchmark train`: what it measures and how, never how fast anything is."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
from django.conf import settings as platform_settings

from training import benchmarks
from training.configurations import Configuration
from xrayplatform.benchmarks import SANDBOX, BenchmarkFailed, known

# Computes for a tenth of a second, tells of an epoch, five times, and then waits.
COUNTS = """
import json, sys, time
print("Found 2 files.", flush=True)
for epoch in range(1, 6):
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    print(json.dumps({"event": "epoch", "epoch": epoch, "val_auc": epoch / 5}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stand_in(monkeypatch):
    """Run a script instead of the programs that train."""

    def use(script):
        monkeypatch.setattr(benchmarks, "_command", lambda *_: [sys.executable, "-c", script])
        monkeypatch.setattr(benchmarks, "POLL_SECONDS", 0.01)
        return partial(benchmarks._Bare, "arrays", {})

    return use


def test_trainings_are_one_of_the_measurements():
    assert "model.fit" in known()["train"].help


def test_fewer_than_three_epochs_say_too_little():
    with pytest.raises(BenchmarkFailed, match="--epochs must be 3 or more"):
        benchmarks.train({"epochs": 2})


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(BenchmarkFailed, match="There is no folder /nowhere"):
        benchmarks.train({"epochs": 3, "images": "/nowhere", "architecture": "Custom_CNN"})


def test_a_training_is_halted_between_its_turns_and_that_time_does_not_count(stand_in):
    with ExitStack() as stack:
        turns = benchmarks._Turns(stand_in(COUNTS), 100, stack)
        began = time.perf_counter()
        for _ in range(2):
            before = turns.training.epochs_done()
            time.sleep(0.5)
            assert turns.training.epochs_done() == before
            assert turns.go_on()
            assert turns.training.epochs_done() == before + 1
        paused = time.perf_counter() - began - sum(turns.epochs)
    assert paused > 0.95
    assert turns.rates == [100 / seconds for seconds in turns.epochs]


def test_an_epoch_may_take_several_turns(stand_in, monkeypatch):
    monkeypatch.setattr(benchmarks, "TURN_SECONDS", 0.02)
    with ExitStack() as stack:
        turns = benchmarks._Turns(stand_in(COUNTS), 100, stack)
        began, turned = time.perf_counter(), 1
        while not turns.go_on():
            turned += 1
            time.sleep(0.1)
        paused = time.perf_counter() - began - turns.epochs[0]
    assert turned >= 3
    assert paused > 0.1 * (turned - 1) - 0.05


def test_the_time_to_a_target_is_that_of_the_epochs_so_far(stand_in):
    with ExitStack() as stack:
        turns = benchmarks._Turns(stand_in(COUNTS), 100, stack)
        turns.go_on()
        turns.first, turns.epochs = 10.0, [2.0]
        assert turns.figures(0.2)["seconds_to_target_auc"] == 10.0
        assert turns.figures(0.4)["seconds_to_target_auc"] == 12.0
        assert turns.figures(0.9)["seconds_to_target_auc"] is None


def test_a_training_that_breaks_off_says_why(stand_in):
    with pytest.raises(BenchmarkFailed, match=r"ended with status 1.*no such network"), ExitStack() as stack:
        benchmarks._Turns(stand_in("import sys; sys.exit('no such network')"), 100, stack)


def test_no_process_is_left_behind(stand_in):
    with ExitStack() as stack:
        training = benchmarks._Turns(stand_in(COUNTS), 100, stack).training
        assert training.process() is not None
    assert training.process() is None
    assert training.child.returncode == -9


def test_the_platforms_rate_is_compared_with_the_others_epoch_by_epoch(stand_in):
    with ExitStack() as stack:
        ours, theirs = (benchmarks._Turns(stand_in(COUNTS), 100, stack) for _ in range(2))
    ours.epochs, ours.busy = [1.0, 1.0, 2.0], [2.0, 2.0, 2.0]
    theirs.epochs, theirs.busy = [2.0, 1.0, 2.0], [1.0, 1.0, 1.0]
    assert benchmarks._ratio(ours, theirs) == {"speed": 1.0, "speeds": [2.0, 1.0, 1.0], "by_cpu_time": 0.5}


def test_the_network_that_augments_by_itself_sees_changed_images_only_in_training():
    from training.ml.baselines import _Augmentation

    images = np.random.default_rng(0).random((4, 32, 32, 1), np.float32)
    layer = _Augmentation(Configuration(), 32)
    np.testing.assert_array_equal(layer(images, training=False), images)
    changed = np.asarray(layer(images, training=True))
    assert changed.shape == images.shape
    assert all(abs(changed[number] - images[number]).max() > 0.05 for number in range(4))


def benchmark(tmp_path, *arguments):
    """The command on a site with a database and data of its own, which it leaves alone."""
    for name in ("Dataset", "models", "tmp"):
        (tmp_path / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if name != SANDBOX} | {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
        "DATASET_ROOT": str(tmp_path / "Dataset"),
        "MODEL_ROOT": str(tmp_path / "models"),
        "TMPDIR": str(tmp_path / "tmp"),
        "SECRET_KEY": "the site's key",
        "ENV_FILE": "/nonexistent",
        "LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, str(platform_settings.BASE_DIR / "manage.py"), "benchmark", "train", "--json"]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=1200)
    assert not (tmp_path / "db.sqlite3").exists()
    assert all(not list((tmp_path / name).iterdir()) for name in ("Dataset", "models", "tmp"))
    return done


@pytest.mark.slow
def test_one_command_measures_speed_time_to_an_auc_the_start_and_the_feed(tmp_path):
    done = benchmark(tmp_path, "--files=24", "--epochs=3", "--image-size=32", "--starts=1", "--target-auc=0.0")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert sum(figures["images"].values()) == 48
    assert figures["image_size"] == 32 and figures["architecture"] == "Custom_CNN"
    assert figures["trainings"].keys() == {"platform", "arrays", "arrays_augmented", "files"}
    for training in figures["trainings"].values():
        assert training["images_per_second"] > 0
        assert len(training["epoch_seconds"]) == 1
        assert len(training["val_auc"]) >= 2
        assert training["seconds_to_target_auc"] == training["seconds_to_first_epoch"]
    assert figures["ratios"].keys() == {"platform_to_arrays", "platform_to_arrays_augmented", "platform_to_files"}
    start = figures["start"]
    difference = start["platform_seconds"][0] - start["bare_seconds"][0]
    assert start["overhead_seconds"] == pytest.approx(difference, abs=0.02)
    assert {"step_alone", "both_in_graph", "both_uint8_in_threads", "share_of_step_alone"} <= figures["feed"].keys()
    assert figures["feed"]["faster"] in ("in_graph", "uint8_in_threads")
