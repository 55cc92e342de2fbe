"""Real queue workers: the main job over the API, cancelling, and what happens when a process dies."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import requests

from tests.journey.conftest import own_database
from tests.journey.instance import PASSWORD, Instance

pytestmark = pytest.mark.slow
CHEST = "CHEST/synthetic_chest_pneumonia"


class Client:
    """A program that uses the API with a token."""

    def __init__(self, instance: Instance, name: str) -> None:
        self.base = f"{instance.url}/api/v1"
        answer = requests.post(f"{self.base}/tokens/", json={"username": name, "password": PASSWORD}, timeout=10)
        assert answer.status_code == 201, answer.text
        self.headers = {"Authorization": f"Token {answer.json()['token']}"}

    def get(self, path: str, **parameters: Any) -> Any:
        answer = requests.get(f"{self.base}/{path}", params=parameters, headers=self.headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, status: int, **arguments: Any) -> Any:
        answer = requests.post(f"{self.base}/{path}", headers=self.headers, timeout=60, **arguments)
        assert answer.status_code == status, answer.text
        return answer.json()

    def follow(self, path: str, until: Callable[[Any], bool], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.get(path)
            if until(job):
                return job
            time.sleep(0.5)
        raise AssertionError(f"{path} took too long: {job}")

    def ended(self, path: str, seconds: float = 180) -> Any:
        return self.follow(path, lambda job: job["state"] not in ("queued", "running"), seconds)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One platform for all tests of this file, with samples and its workers running."""
    folder = tmp_path_factory.mktemp("queue")
    with own_database() as database_url:
        instance = Instance(folder, database_url)
        instance.set_up()
        instance.manage("make_samples", "--per-class", "16")
        instance.add_user("alice", "clinician", "data scientist", "model manager")
        instance.start()
        yield instance
        instance.stop()


@pytest.fixture(scope="module")
def client(instance: Instance) -> Client:
    return Client(instance, "alice")


@pytest.fixture(scope="module")
def dataset(client: Client) -> Any:
    """Scanned and prepared by the workers."""
    scan = client.post("datasets/scan/", 202)
    assert client.ended(f"scans/{scan['id']}/")["state"] == "succeeded"
    dataset = client.get("datasets/", name=CHEST)["results"][0]
    preparation = client.post(f"datasets/{dataset['id']}/prepare/", 202, json={"image_size": 64})
    preparation = client.ended(f"preparations/{preparation['id']}/")
    assert (preparation["state"], preparation["shared_patients"]) == ("succeeded", 0)
    return dataset


def start_run(client: Client, dataset: Any, **options: Any) -> str:
    wanted = {"dataset": dataset["id"], "architecture": "Custom_CNN", "configuration": "quick", **options}
    return f"runs/{client.post('runs/', 202, json=wanted)['id']}/"


@pytest.mark.postgres
def test_the_main_job_over_the_api_with_real_workers(instance: Instance, client: Client, dataset: Any) -> None:
    cancelled = start_run(client, dataset, epochs=200, batch_size=8)
    client.follow(cancelled, lambda run: run["phase"] == "training")
    asked = time.monotonic()
    client.post(f"{cancelled}cancel/", 200)
    assert client.ended(cancelled)["state"] == "cancelled"
    assert time.monotonic() - asked < 30

    run_path = start_run(client, dataset, epochs=2, batch_size=8)
    run = client.ended(run_path)
    assert run["state"] == "succeeded", run
    assert len(client.get(f"{run_path}metrics/")) == 2
    assert "epoch 2" in client.get(f"{run_path}log/")["log"]

    version = client.get(f"versions/{run['version']}/")
    assert (version["number"], version["synthetic"], version["is_active"]) == (1, True, False)
    assert set(version["metrics"]) >= {"accuracy", "precision", "recall", "f1", "auc", "confusion_matrix"}
    client.post(f"versions/{version['id']}/activate/", 200, json={"reason": "journey"})

    image = next((instance.datasets / CHEST / "test/PNEUMONIA").iterdir())
    files = {"image": (image.name, image.read_bytes())}
    answer = client.post("predictions/", 201, data={"condition": version["condition"]}, files=files)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert (answer["version_number"], answer["synthetic"]) == (1, True)
    from_command = instance.command("predict", version["condition"], image)["predictions"][0]
    assert from_command["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-6)


def child_pid(instance: Instance, number: str) -> int:
    code = f"from training.models import TrainingRun; print(TrainingRun.objects.get(pk={number}).child_pid)"
    return int(instance.python(code))


def test_a_training_whose_process_is_killed_goes_on(instance: Instance, client: Client, dataset: Any) -> None:
    run_path = start_run(client, dataset, epochs=8, batch_size=8)
    client.follow(run_path, lambda run: run["epoch"] >= 1 or run["state"] == "succeeded")
    number = run_path.split("/")[1]
    os.kill(child_pid(instance, number), signal.SIGKILL)
    run = client.ended(run_path)
    assert run["state"] == "succeeded", run
    assert len(run["interruptions"]) == 1
    assert run["version"]


def test_a_training_that_is_killed_three_times_is_explained(instance: Instance, client: Client, dataset: Any) -> None:
    run_path = start_run(client, dataset, epochs=200, batch_size=8)
    number = run_path.split("/")[1]
    for attempt in (1, 2, 3):
        # Before it gets any further, which would make it an attempt that is not counted.
        client.follow(run_path, lambda run: run["state"] == "running" and run["phase"] == "loading", 200)
        os.kill(child_pid(instance, number), signal.SIGKILL)
        client.follow(run_path, lambda run, attempt=attempt: run["attempt"] > attempt or run["state"] == "failed")
    run = client.ended(run_path)
    assert run["state"] == "failed"
    assert "(3) The training process was killed." in run["error"]
    assert "memory" in run["hint"]
    assert run["version"] is None
    assert not list((instance.models / "registry/.staging").glob(f"run-{number}*"))


def test_a_training_whose_whole_queue_died_goes_on_when_it_is_back(
    instance: Instance, client: Client, dataset: Any
) -> None:
    run_path = start_run(client, dataset, epochs=200, batch_size=8)
    client.follow(run_path, lambda run: run["phase"] == "training")
    number = run_path.split("/")[1]
    child = child_pid(instance, number)
    # As with a power cut of its host: the watchdog dies, and with it everything below; no child goes on unseen.
    trainer = instance.processes.pop()
    trainer.kill()
    trainer.wait()
    client.follow(run_path, lambda run: not psutil.pid_exists(child), seconds=10)
    instance.python(
        "from datetime import timedelta; from django.utils import timezone; from training.models import TrainingRun\n"
        f"TrainingRun.objects.filter(pk={number}).update(lease_until=timezone.now() - timedelta(seconds=1))"
    )
    run = client.follow(run_path, lambda run: run["interruptions"])
    assert "worker died" in run["message"]
    instance.start(web=False, worker=False)
    client.follow(run_path, lambda run: run["state"] == "running")
    client.post(f"{run_path}cancel/", 200)
    assert client.ended(run_path, seconds=30)["state"] == "cancelled"


def test_an_update_of_the_platform_costs_no_training(instance: Instance, client: Client, dataset: Any) -> None:
    run_path = start_run(client, dataset, epochs=12, batch_size=8)
    number = int(run_path.split("/")[1])
    client.follow(run_path, lambda run: run["phase"] == "training")
    drained = instance.command("drain", "--wait", "60")
    assert drained["stopped"] == [number] and drained["running"] == []
    run = client.get(run_path)
    assert (run["state"], run["attempt"]) == ("queued", 1)
    assert instance.command("drain", "--end")["waiting"] == 1
    run = client.ended(run_path)
    assert (run["state"], run["attempt"]) == ("succeeded", 1)
