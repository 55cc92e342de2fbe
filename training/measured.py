"""What a finished training learned from and was measured on, in the form in which the registry keeps it."""

from typing import Any

import numpy as np

from datasets import subgroups
from datasets.models import Preparation
from registry.models import Evaluation, Measured
from registry.reports import EvaluatedImages, Question

from .models import TrainingRun


def measured(run: TrainingRun, trained: Any) -> list[Measured]:
    """Validation and test part of the run's preparation with the reports of both; a second or two of work.

    trained: `training.ml.run.Trained`. A part without images gives nothing.
    """
    preparation, evaluation = run.preparation, trained.evaluation
    question = Question(
        classes=tuple(preparation.classes),
        positive_class=preparation.positive_class if evaluation.threshold is not None else "",
        threshold=evaluation.threshold,
        temperature=evaluation.temperature,
        ordinal=preparation.ordinal,
    )
    parts = {Evaluation.Kind.VALIDATION: evaluation.validation, Evaluation.Kind.TEST: evaluation.test}
    return [_measured(str(kind), split, question, preparation) for kind, split in parts.items() if len(split.rows)]


def about_data(preparation: Preparation) -> dict[str, Any]:
    """Counts for the model card, which leaves the hospital: no name of a dataset, a folder, a file or a patient.

    counts: images by split and class. groups: patients, or the next best key, by split. group_key: which key that is.
    """
    return {
        "counts": preparation.counts,
        "groups": preparation.group_counts,
        "group_key": preparation.group_key,
        "shared_patients": preparation.shared_patients,
        "left_out": sum(preparation.left_out.values()),
        "seed": preparation.seed,
    }


def _measured(kind: str, split: Any, question: Question, preparation: Preparation) -> Measured:
    digests = dict(preparation.manifest.filter(split=kind).values_list("row", "digest"))
    images = EvaluatedImages(
        labels=split.labels,
        probabilities=split.probabilities,
        groups=split.groups,
        digests=np.array([digests[row] for row in split.rows.tolist()]),
        rows=split.rows,
        subgroups=subgroups.of_preparation(preparation, split.rows.tolist()),
    )
    return Measured.of(
        kind,
        images,
        question,
        dataset_name=preparation.dataset.name,
        preparation=preparation.pk,
        dataset_digest=preparation.dataset_digest,
        split_digest=preparation.split_digest,
    )
