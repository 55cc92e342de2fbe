"""`manage.py benchmark evaluate`: the report of one evaluation and the comparison of ten versions, first and again.

Labels and answers are made up; what is measured is what comes after the network has answered.
"""

import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.db import transaction
from django.test import Client
from django.urls import reverse
from numpy.typing import NDArray

from xrayplatform.benchmarks import register
from xrayplatform.conditions import Condition

# Registers itself.
from . import list_benchmark as list_benchmark
from .comparisons import ANSWERS
from .models import Evaluation, Measured, ModelVersion
from .reports import EvaluatedImages, make

REPEATS = 5
CLASSES = (2, 5)
EPOCHS = 30
# Two images a patient.
IMAGES_OF_A_PATIENT = 2


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=10_000, help="of the test set (default 10,000)")
    parser.add_argument("--versions", type=int, default=10, help="to compare, two to ten (default 10)")


@register("evaluate", "the report of a large test set, and the comparison of ten versions on it", _arguments)
def evaluate(options: dict[str, Any]) -> dict[str, Any]:
    client = Client(SERVER_NAME=settings.ALLOWED_HOSTS[0].lstrip("*.") or "localhost")
    client.force_login(get_user_model().objects.create_superuser("benchmark"))
    return {
        "images": options["images"],
        "versions": options["versions"],
        "classes": {str(classes): _measure(client, classes, options) for classes in CLASSES},
    }


def _measure(client: Client, classes: int, options: dict[str, Any]) -> dict[str, Any]:
    images = _images(options["images"], classes)
    versions = _versions(classes, options["versions"])
    report = [_seconds(lambda: make(images, versions[0].question)) for _ in range(REPEATS)]
    for number, version in enumerate(versions):
        measured = Measured.of(
            "test", _answered(images, classes, number), version.question, dataset_name=version.dataset_name
        )
        with transaction.atomic():
            Evaluation.objects.store(version, measured, by=None)
    address = reverse("registry:version-compare")
    query = {"version": [version.pk for version in versions]}
    return {
        "report_seconds": _summary(report),
        "comparison_page_seconds": _pages(client, address, query),
    }


def _pages(client: Client, address: str, query: dict[str, Any]) -> dict[str, Any]:
    """cold: nothing was read before. answers_known: the files were, by another comparison. warm: compared before."""

    def page() -> None:
        answer = client.get(address, query, secure=settings.HTTPS)
        if answer.status_code != 200:
            raise RuntimeError(f"The page answered {answer.status_code}.")

    page()
    cold, known, warm = [], [], []
    for _ in range(REPEATS):
        _forget_all()
        cold.append(_seconds(page))
        cache.clear()
        known.append(_seconds(page))
        warm.append(_seconds(page))
    return {"cold": _summary(cold), "answers_known": _summary(known), "warm": _summary(warm)}


def _forget_all() -> None:
    cache.clear()
    ANSWERS.forget()


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    """The best is what the machine can do; the others had to share it."""
    return {
        "best": round(min(seconds), 3),
        "median": round(statistics.median(seconds), 3),
        "all": [round(value, 3) for value in seconds],
    }


def _images(count: int, classes: int) -> EvaluatedImages:
    """With subgroups as a preparation has them."""
    random = np.random.default_rng(0)
    groups = np.arange(count) // IMAGES_OF_A_PATIENT
    return EvaluatedImages(
        labels=random.integers(0, classes, count),
        probabilities=np.full((count, classes), 1 / classes),
        groups=groups,
        digests=np.array([f"{value:064x}" for value in random.permutation(count)]),
        rows=np.arange(count),
        subgroups={
            "sex": np.where(groups % 2, "female", "male"),
            "age": np.array(["0-17", "18-39", "40-64", "65+"])[groups % 4],
            "format": np.where(groups % 3, "DICOM", "PNG"),
        },
    )


def _answered(images: EvaluatedImages, classes: int, number: int) -> EvaluatedImages:
    random = np.random.default_rng(number)
    logits = (1 + 0.1 * number) * np.eye(classes)[images.labels] + random.normal(size=(len(images.labels), classes))
    return EvaluatedImages(**{**vars(images), "probabilities": _softmax(logits)})


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def _versions(classes: int, count: int) -> list[ModelVersion]:
    condition = Condition.objects.create(slug=f"benchmark-{classes}", name=f"Benchmark of {classes} classes")
    names = [f"class {index}" for index in range(classes)]
    return [
        ModelVersion.objects.create(
            condition=condition,
            number=number + 1,
            architecture="Custom_CNN",
            image_size=224,
            classes=names,
            positive_class=names[1] if classes == 2 else "",
            preprocessing={"id": "grey", "version": 1, "fit": "pad"},
            threshold=0.5 if classes == 2 else None,
            metrics={},
            configuration={"epochs": EPOCHS, "learning_rate": 0.001 * (number + 1)},
            history=[
                {"epoch": epoch + 1, "val_loss": 1 / (epoch + 1 + number), "val_auc": 0.9} for epoch in range(EPOCHS)
            ],
            initial_weights="scratch",
            environment={},
            sha256=f"{number:064x}",
            size=0,
            dataset_name="Benchmark",
            dataset_digest="",
            split_digest="",
            origin="benchmark",
        )
        for number in range(count)
    ]
