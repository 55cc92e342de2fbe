"""Answers of versions about radiographs, what readers say about them, and evaluations of versions on labelled ones."""

from .batch import Batch, BatchItem
from .dicom import DicomDelivery, DicomDestination, DicomRoute, ReceivedObject
from .evaluation_run import EvaluationRun
from .experiment import Experiment, ExperimentError
from .prediction import (
    ENGINE,
    Analysis,
    NoActiveModel,
    Prediction,
    PredictionQuerySet,
    model_in_service,
    prove,
)
from .serving import LowerPrecision, MonitoringAlert, Response, ServingPolicy, ServingProcess, ServingReference
from .unanswered import Unanswered
from .verdict import Verdict, VerdictError

__all__ = [
    "ENGINE",
    "Analysis",
    "Batch",
    "BatchItem",
    "DicomDelivery",
    "DicomDestination",
    "DicomRoute",
    "EvaluationRun",
    "Experiment",
    "ExperimentError",
    "LowerPrecision",
    "MonitoringAlert",
    "NoActiveModel",
    "Prediction",
    "PredictionQuerySet",
    "ReceivedObject",
    "Response",
    "ServingPolicy",
    "ServingProcess",
    "ServingReference",
    "Unanswered",
    "Verdict",
    "VerdictError",
    "model_in_service",
    "prove",
]
