"""The commands, as a script uses them: one JSON object on standard output, exit status 0 only on success."""

import shutil
from pathlib import Path

import pytest

from tests.journey.instance import Instance

pytestmark = pytest.mark.slow
CHEST = "CHEST/chest_xray Pneumonia"
CONDITION = "chest-xray-pneumonia"


@pytest.fixture
def on_real_images(real_images: Path, tmp_path: Path) -> Instance:
    instance = Instance(tmp_path / "platform", dataset_root=real_images / "Dataset")
    instance.set_up()
    return instance


def test_the_main_job_on_real_radiographs(on_real_images: Instance, real_images: Path) -> None:
    instance = on_real_images
    datasets = {dataset["name"]: dataset for dataset in instance.command("scan_dataset")["datasets"]}
    assert datasets[CHEST]["classes"] == {"NORMAL": 1341, "PNEUMONIA": 1300}
    assert datasets["KNEE/Osteoarthritis Knee X-ray"]["images"] == 800
    unreadable = [problem["path"] for problem in datasets["ARM/FracAtlas"]["problems"]]
    assert sum("IMG0004" in path for path in unreadable) == 3

    prepared = instance.command("prepare_dataset", CHEST)
    assert prepared["train"] + prepared["validation"] + prepared["test"] == 2641
    assert prepared["shared_patients"] == 0

    trained = instance.command(
        "train", CHEST, "--architecture", "Custom_CNN", "--configuration", "quick", "--wait", "--seed", 1
    )
    assert (trained["state"], trained["condition"], trained["version"]) == ("succeeded", CONDITION, 1)
    assert trained["metrics"]["auc"] >= 0.985

    assert instance.command("activate", CONDITION, 1, "--reason", "journey")["active"] == 1
    originals = real_images / "Dataset/CHEST/full_size_originals"
    external = instance.command("evaluate", CONDITION, 1, originals)
    # Most of them are training images at another size.
    assert 5 <= external["n"] < 40
    assert external["errors"] == []
    assert f"{40 - external['n']} of 40 images were left out" in " ".join(external["warnings"])
    # The originals are not squeezed to squares as the training images are: a wrong shape shows here, not in the test.
    assert external["accuracy"] >= 0.8

    answers = instance.command(
        "predict", CONDITION, next((originals / "PNEUMONIA").iterdir()), real_images / "dicom/CR_tiny_korean_name.dcm"
    )["predictions"]
    assert answers[0]["error"] is None
    assert answers[0]["probabilities"].keys() == {"NORMAL", "PNEUMONIA"}
    assert "pixel" in answers[1]["error"]


def test_failures_are_json_with_a_reason_and_a_status(instance: Instance) -> None:
    for arguments in (
        ["prepare_dataset", "CHEST/none"],
        ["train", "CHEST/none", "--wait"],
        ["activate", "none", 1, "--reason", "journey"],
        ["predict", "none", "file.png"],
        ["evaluate", "none", 1, instance.folder],
    ):
        done = instance.manage(*arguments, "--json", check=False)
        assert done.returncode == 1
        assert "none" in instance.command(*arguments, check=False)["error"].lower()
    shutil.rmtree(instance.datasets)
    assert "not there" in instance.command("scan_dataset", check=False)["error"]


def test_training_an_unprepared_dataset_says_so(instance: Instance) -> None:
    instance.manage("make_samples", "--per-class", "10")
    instance.manage("scan_dataset")
    answer = instance.command("train", "KNEE/synthetic_osteoarthritis", "--wait", check=False)
    assert "Dataset not prepared" in answer["error"]


def test_the_demo_runs_the_main_job_once(instance: Instance) -> None:
    first = instance.manage("demo").stdout
    assert "synthetic" in first
    assert "The main job is done" in first
    again = instance.manage("demo").stdout
    assert "exists already" in again
    assert "The main job is done" in again
    counts = instance.python(
        "from training.models import TrainingRun; from datasets.models import Preparation, Scan\n"
        "print(TrainingRun.objects.count(), Preparation.objects.count(), Scan.objects.count())"
    )
    assert counts.split() == ["1", "1", "1"]
