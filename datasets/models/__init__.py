"""The tables of the datasets app; each is defined beside the behaviour it belongs to."""

from ..enhancement import IMAGE_SIZES
from .dataset import CHECK_LABEL, COPIES, DECIDED_AT_ONCE, Dataset, patient_key, patient_key_fingerprint
from .image import DatasetImage, Decision, FileProblem, Finding, ScannedFolder
from .preparation import FIELD_LIMITS, MAX_SEED, Preparation, PreparedImage
from .scan import Scan
from .upload import Upload

__all__ = [
    "CHECK_LABEL",
    "COPIES",
    "DECIDED_AT_ONCE",
    "FIELD_LIMITS",
    "IMAGE_SIZES",
    "MAX_SEED",
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
]
