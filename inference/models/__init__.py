"""Answers of versions about radiographs, and evaluations of versions on labelled ones."""

from .evaluation_run import EvaluationRun
from .prediction import (
    ENGINE,
    Analysis,
    NoActiveModel,
    Prediction,
    PredictionQuerySet,
    model_in_service,
    prove,
)

__all__ = [
    "ENGINE",
    "Analysis",
    "EvaluationRun",
    "NoActiveModel",
    "Prediction",
    "PredictionQuerySet",
    "model_in_service",
    "prove",
]
