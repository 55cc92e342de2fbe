"""Versions of one condition side by side, as the page, the API and the command show them."""

from collections.abc import Sequence
from typing import Any

from django.core.cache import cache

from . import artifacts
from .comparing import METRICS
from .comparisons import KEEP_SECONDS, Document, compared, label_of
from .differences import differences
from .image_sets import ComparisonError, ImageSet, chosen_set, image_sets
from .models import Evaluation, ModelVersion


def side_by_side(
    versions: Sequence[ModelVersion], *, images: str = "", metric: str = "auc", name: str | None = None
) -> Document:
    """All that the page shows, ready for JSON. Raises ComparisonError.

    images: value of an image set. metric: to rank by. name: the class whose curves are shown, see `compared`.
    """
    if metric not in METRICS:
        raise ComparisonError(f"There is no figure {metric!r}. Choose one of {', '.join(METRICS)}.")
    sets = image_sets(versions)
    chosen = chosen_set(sets, images)
    document, curves = compared(versions, chosen, name)
    return {
        "condition": versions[0].condition.slug,
        "versions": _facts(versions),
        "image_sets": [_set(one) for one in sets],
        "images": _set(chosen),
        "evaluations": [_evaluation(row) for row in chosen.evaluations],
        "metric": metric,
        "ranking": document["rankings"].get(metric, []),
        **document,
        "curves": curves,
        "settings": _settings_that_differ(versions),
        "histories": _histories(versions),
    }


def _set(images: ImageSet) -> Document:
    return {"value": images.value, "label": images.label, "shared": images.shared}


def _evaluation(row: Evaluation) -> Document:
    return {
        "label": label_of(row.version),
        "evaluation": row.pk,
        "kind": row.kind,
        "dataset_name": row.dataset_name,
        "images": row.images_count,
        "patients": row.patients_count,
    }


def _settings_that_differ(versions: Sequence[ModelVersion]) -> list[dict[str, Any]]:
    return [
        {
            "key": row.key,
            "name": row.name,
            "cells": [{"value": value, "words": words} for value, words in zip(row.values, row.words, strict=True)],
        }
        for row in differences([_settings(version) for version in versions])
    ]


def _settings(version: ModelVersion) -> dict[str, Any]:
    """What the version is goes before what its configuration asked for, which may have left the choice open."""
    is_what = {
        "architecture": version.architecture,
        "image_size": version.image_size,
        "initial_weights": version.initial_weights,
        "trained_on_from": str(version.parent) if version.parent else None,
        "dataset": version.dataset_name,
        "division_of_the_images": version.split_digest[:12],
        "classes": version.classes,
        "positive_class": version.positive_class,
        "threshold": version.threshold,
        "temperature": version.temperature,
        "pixels": version.preprocessing,
    }
    asked = {name: value for name, value in version.configuration.items() if name not in is_what}
    return {**is_what, **asked, "software": version.environment}


def _histories(versions: Sequence[ModelVersion]) -> list[dict[str, Any]]:
    """Validation loss and AUC by epoch, of the versions whose training kept them."""
    return [
        {
            "label": label_of(version),
            "epochs": [row.get("epoch", index + 1) for index, row in enumerate(version.history)],
            "val_loss": [row.get("val_loss") for row in version.history],
            "val_auc": [row.get("val_auc") for row in version.history],
        }
        for version in versions
        if version.history
    ]


def _weights_of(version: ModelVersion) -> int | None:
    """How many weights it has; None where its files are not there."""
    key = f"weights-{version.sha256}"
    count: int | None = cache.get(key)
    if count is None and (count := artifacts.count_weights(version.folder)) is not None:
        cache.set(key, count, KEEP_SECONDS)
    return count


def _facts(versions: Sequence[ModelVersion]) -> list[dict[str, Any]]:
    return [
        {
            "id": version.pk,
            "number": version.number,
            "label": label_of(version),
            "architecture": version.architecture,
            "image_size": version.image_size,
            "state": version.state,
            "dataset_name": version.dataset_name,
            "synthetic": version.synthetic,
            "size": version.size,
            "weights": _weights_of(version),
        }
        for version in versions
    ]
