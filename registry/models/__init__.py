"""The registry: immutable model versions, what they were measured on, and which one is in service."""

from .deployment import Activation, Deployment
from .evaluation import Evaluation, EvaluationUnusable, Measured
from .threshold_set import ThresholdSet
from .version import ACTIVATION_CHECKS, ActivationError, ModelVersion, staging_folder

__all__ = [
    "ACTIVATION_CHECKS",
    "Activation",
    "ActivationError",
    "Deployment",
    "Evaluation",
    "EvaluationUnusable",
    "Measured",
    "ModelVersion",
    "ThresholdSet",
    "staging_folder",
]
