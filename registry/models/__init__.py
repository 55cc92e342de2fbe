"""The registry: immutable model versions, what they were measured on, and which one is in service."""

from .condition_export import ConditionExport
from .deleted import DeletedVersion
from .deployment import Activation, ActivationConflict, ActivationError, Deployment, epoch_of
from .evaluation import Evaluation, EvaluationUnusable, Measured
from .integrity import IntegrityCheck, VerificationRun, models_are_missing
from .label import LabelError, VersionNote, VersionTag
from .package import PackageImport, ReceivedPackage, TrustedOrigin
from .scheduled import ScheduledActivation
from .state_change import StateChange, StateError
from .threshold_set import ThresholdSet
from .version import ACTIVATION_CHECKS, USES, ModelVersion, staging_folder
from .webhook import Event, Webhook, WebhookDelivery

__all__ = [
    "ACTIVATION_CHECKS",
    "USES",
    "Activation",
    "ActivationConflict",
    "ActivationError",
    "ConditionExport",
    "DeletedVersion",
    "Deployment",
    "Evaluation",
    "EvaluationUnusable",
    "Event",
    "IntegrityCheck",
    "LabelError",
    "Measured",
    "ModelVersion",
    "PackageImport",
    "ReceivedPackage",
    "ScheduledActivation",
    "StateChange",
    "StateError",
    "ThresholdSet",
    "TrustedOrigin",
    "VerificationRun",
    "VersionNote",
    "VersionTag",
    "Webhook",
    "WebhookDelivery",
    "epoch_of",
    "models_are_missing",
    "staging_folder",
]
