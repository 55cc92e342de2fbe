"""The registry: immutable model versions, what they were measured on, and which one is in service."""

from .deployment import Activation, ActivationConflict, ActivationError, Deployment, epoch_of
from .evaluation import Evaluation, EvaluationUnusable, Measured
from .integrity import IntegrityCheck, VerificationRun
from .package import PackageImport, ReceivedPackage, TrustedOrigin
from .scheduled import ScheduledActivation
from .threshold_set import ThresholdSet
from .version import ACTIVATION_CHECKS, ModelVersion, staging_folder
from .webhook import Event, Webhook, WebhookDelivery

__all__ = [
    "ACTIVATION_CHECKS",
    "Activation",
    "ActivationConflict",
    "ActivationError",
    "Deployment",
    "Evaluation",
    "EvaluationUnusable",
    "Event",
    "IntegrityCheck",
    "Measured",
    "ModelVersion",
    "PackageImport",
    "ReceivedPackage",
    "ScheduledActivation",
    "ThresholdSet",
    "TrustedOrigin",
    "VerificationRun",
    "Webhook",
    "WebhookDelivery",
    "epoch_of",
    "staging_folder",
]
