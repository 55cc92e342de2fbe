"""The tables of the datasets app; each is defined beside the behaviour it belongs to."""

from ..enhancement import IMAGE_SIZES
from .dataset import (
    ABOUT_LABELS,
    COPIES,
    DECIDED_AT_ONCE,
    FLAGGED_LABEL,
    Dataset,
    patient_key,
    patient_key_fingerprint,
    site_pseudonym,
)
from .image import COMMENT_LENGTH, SEXES, DatasetImage, Decision, FileProblem, Finding, ScannedFolder
from .preparation import FIELD_LIMITS, MAX_SEED, Preparation, PreparedImage
from .scan import Scan
from .upload import Upload

__all__ = [
    "ABOUT_LABELS",
    "COMMENT_LENGTH",
    "COPIES",
    "DECIDED_AT_ONCE",
    "FIELD_LIMITS",
    "FLAGGED_LABEL",
    "IMAGE_SIZES",
    "MAX_SEED",
    "SEXES",
    "Dataset",
    "DatasetImage",
    "Decision",
    "FileProblem",
    "Finding",
    "Preparation",
    "PreparedImage",
    "Scan",
    "ScannedFolder",
    "Upload",
    "patient_key",
    "patient_key_fingerprint",
    "site_pseudonym",
]
