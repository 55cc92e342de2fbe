"""A race with real workers and real training: three set out, one trains to the end, and the page says which."""

import re
import time
from typing import Any

import pytest

from tests.journey.instance import Instance

pytestmark = pytest.mark.slow
CHEST = "CHEST/synthetic_chest_pneumonia"


def ended(instance: Instance, number: int, seconds: float = 400) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        search = instance.command("search", "show", number)
        if not search["active"]:
            return search
        time.sleep(3)
    raise AssertionError(f"The search took too long: {search}")


def test_of_three_runs_the_best_after_two_epochs_trains_to_the_end(instance: Instance) -> None:
    instance.manage("make_samples", "--per-class", "16")
    instance.manage("scan_dataset")
    instance.manage("prepare_dataset", CHEST, "--image-size", 64)
    options = ["--vary", "learning_rate=0.002,0.001,0.0003", "--vary", "epochs=4", "--vary", "minimum_steps=8"]
    made = instance.command(
        "search", "create", CHEST, "--configuration", "quick", "--mode", "halving", "--eta", 2, *options
    )
    assert made["rungs"] == [2, 4]
    instance.start(web=False)
    search = ended(instance, made["search"])
    assert sorted(run["state"] for run in search["runs"]) == ["cancelled", "cancelled", "succeeded"]
    stopped = sorted(run["message"] for run in search["runs"] if run["state"] == "cancelled")
    assert stopped == [f"Stopped by the search after 2 epochs: {place} of 3" for place in ("2nd", "3rd")]
    best = next(run for run in search["runs"] if run["state"] == "succeeded")
    assert (best["best"], best["epoch"], best["epochs"]) == (True, 4, 4)
    assert f"run {best['run']} (Custom_CNN" in search["conclusion"][0]
    rival, winner = re.search(
        r"with a loss of (\d+\.\d+), where the best had (\d+\.\d+)", search["conclusion"][0]
    ).groups()
    assert float(winner) <= float(rival)
    assert "looked at once" in search["conclusion"][-1]
    checkpoints = instance.models / "checkpoints"
    assert not checkpoints.exists() or not list(checkpoints.iterdir())
