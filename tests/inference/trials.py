"""Experiments for tests: two versions that disagree, radiographs of many studies, and answers without a model."""

import uuid
from typing import Any

import numpy as np

from inference.models import Experiment, Prediction, Verdict
from tests.datasets.files import dicom
from tests.factories import PredictionFactory
from tests.inference.lungs import BRIGHT, film
from xrayplatform.conditions import Condition

CHAMPION, CHALLENGER = Prediction.Variant.CHAMPION, Prediction.Variant.CHALLENGER


def radiograph(number: int, study: str = "") -> bytes:
    """A bright DICOM file like no other; without a study named, of a study of its own."""
    pixels = film(number, BRIGHT, 64).astype(np.uint16)
    uid = study or f"1.2.826.0.1.{number}"
    return dicom(pixels, WindowCenter=128, WindowWidth=256, StudyInstanceUID=uid)


def start(condition: Condition, challenger: Any, by: Any, **options: Any) -> Experiment:
    wish = {"kind": "ab", "share": 50, "reason": "see whether it is better"} | options
    return Experiment.objects.start(condition, challenger, by=by, **wish)


def probabilities(decision: str, sure: float = 0.8) -> dict[str, float]:
    positive = sure if decision == "PNEUMONIA" else 1 - sure
    return {"NORMAL": 1 - positive, "PNEUMONIA": positive}


def answer(experiment: Experiment, variant: str, decision: str = "PNEUMONIA", **fields: Any) -> Prediction:
    """One answer of a side, as if its model had been asked."""
    version = experiment.champion if variant == CHAMPION else experiment.challenger
    usual = {
        "version": version,
        "probabilities": probabilities(decision),
        "study_uid": f"1.2.{uuid.uuid4().int % 10**30}",
    }
    return PredictionFactory(experiment=experiment, variant=variant, decision=decision, **usual | fields)


def shadowed(experiment: Experiment, champion: str, challenger: str, **fields: Any) -> Prediction:
    """The champion's answer, with the unseen one of the challenger beside it."""
    shown = answer(experiment, CHAMPION, champion, **fields)
    answer(experiment, CHALLENGER, challenger, shown=False, paired_with=shown, study_uid=shown.study_uid)
    return shown


def judge(prediction: Prediction, label: str, by: Any) -> Verdict:
    return Verdict.objects.create(prediction=prediction, agrees=label == prediction.decision, label=label, by=by)
