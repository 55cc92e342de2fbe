"""A batch over the API with a real queue whose worker is killed in the middle."""

import io
import os
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.inference.test_batch import DARK_PNG
from tests.journey.conftest import own_database
from tests.journey.instance import ROOT, Instance
from tests.journey.test_queue import Client

pytestmark = pytest.mark.slow
FILES = 400
A_MODEL = """
from tests.factories import ConditionFactory
from tests.inference.versions import make_version
make_version(ConditionFactory(slug="chest")).activate(by=None, reason="agreed")
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with own_database() as database_url:
        platform = Instance(tmp_path, database_url, program=ROOT / "tests" / "journey" / "impatient.py")
        platform.set_up()
        platform.add_user("alice", "clinician")
        platform.python(A_MODEL)
        platform.start(trainer=False)
        yield platform
        platform.stop()


def test_a_batch_whose_worker_is_killed_goes_on_and_answers_each_file_once(instance: Instance) -> None:
    client = Client(instance, "alice")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(FILES):
            archive.writestr(f"film-{number:03d}.png", DARK_PNG)
    files = {"files": ("films.zip", packed.getvalue())}
    number = client.post("batches/", 202, data={"condition": "chest"}, files=files)["id"]
    client.follow(f"batches/{number}/", lambda job: job["answered"] > 0)
    os.kill(_worker_of(instance, number), signal.SIGKILL)
    batch = client.ended(f"batches/{number}/")
    assert (batch["state"], batch["attempt"], batch["answered"]) == ("succeeded", 2, FILES), batch
    told = client.get(f"batches/{number}/results/")["results"]
    assert len({row["prediction"] for row in told}) == FILES
    predictions = instance.python("from inference.models import Prediction; print(Prediction.objects.count())")
    assert int(predictions) == FILES
    assert not any((instance.models / "batches").iterdir())


def _worker_of(instance: Instance, number: int) -> int:
    code = f"from inference.models import Batch; job = Batch.objects.get(pk={number}); print(job.state, job.pid)"
    state, pid = instance.python(code).split()
    assert state == "running", "it was over before anybody could kill its worker"
    assert psutil.pid_exists(int(pid))
    return int(pid)
