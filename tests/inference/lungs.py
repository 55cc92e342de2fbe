"""A small dataset with real files, which the version of `versions.py` reads by their brightness."""

from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from numpy.typing import NDArray

from datasets.models import Dataset, Preparation
from datasets.tasks import run_preparation
from inference.models import EvaluationRun
from inference.tasks import run_evaluation
from registry.models import ModelVersion
from tests.datasets.files import dicom, encode, save
from tests.datasets.test_scan import noise, scan
from tests.inference.versions import IMAGE_SIZE, make_version
from tests.tampering import tampered
from xrayplatform.conditions import Condition

NAME = "CHEST/lungs"
DARK, BRIGHT = (10, 90), (160, 245)
# (class, brightness) of the images; the version misreads one NORMAL and two PNEUMONIA of each dozen.
KINDS = {"NORMAL": [BRIGHT] + [DARK] * 11, "PNEUMONIA": [DARK] * 2 + [BRIGHT] * 10}


def film(seed: int, brightness: tuple[int, int], side: int = 40) -> NDArray[np.uint8]:
    """A square picture like no other, with grey values in that range."""
    low, high = brightness
    picture = noise(seed, side, side).astype(np.float64) / 255
    return np.asarray(low + (high - low) * picture, np.uint8)


def fill(folder: Path, times: int = 1, side: int = 40, first: int = 0) -> None:
    """`times` a dozen pictures of each class, in class folders."""
    for number in range(12 * times):
        for offset, (label, kinds) in enumerate(KINDS.items()):
            pixels = film(first + 1000 * offset + number, kinds[number % 12], side)
            save(folder / label / f"{number:02d}.png", encode(pixels, "PNG"))


def patient_film(path: Path, seed: int, brightness: tuple[int, int], patient: str) -> None:
    """A DICOM file of a patient."""
    save(path, dicom(film(seed, brightness).astype(np.uint16) * 16, PatientID=patient, BitsStored=12, HighBit=11))


def scanned(name: str = NAME, condition: Condition | None = None, **options: Any) -> Dataset:
    """The dataset of that name, with files, after a scan; it belongs to the condition."""
    fill(Path(settings.DATASET_ROOT) / name, **options)
    return rescanned(name, condition)


def rescanned(name: str = NAME, condition: Condition | None = None) -> Dataset:
    scan()
    if condition is not None:
        Dataset.objects.filter(name=name).update(condition=condition)
    return Dataset.objects.get(name=name)


def prepared(dataset: Dataset, **options: Any) -> Preparation:
    job = Preparation.create(dataset, None, image_size=IMAGE_SIZE, test_share=0.3, validation_share=0.2, **options)
    run_preparation(job, 1)
    job.refresh_from_db()
    assert job.state == "succeeded", job.error
    return job


def version_of(preparation: Preparation, **changes: Any) -> ModelVersion:
    """A version as a training on the preparation makes it."""
    version = make_version(preparation.dataset.condition, preprocessing=preparation.pipeline, **changes)
    digests = {"split_digest": preparation.split_digest, "dataset_digest": preparation.dataset_digest}
    tampered(version, **digests, dataset_name=preparation.dataset.name)
    version.refresh_from_db()
    return version


def evaluated(version: ModelVersion, dataset: Dataset, by: Any = None, **options: Any) -> EvaluationRun:
    """The run after its work, however it ended."""
    run = EvaluationRun.create(version, dataset, by, **options)
    run_evaluation(run, 1)
    run.refresh_from_db()
    return run
