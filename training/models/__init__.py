"""The tables of training: runs and what they report, saved presets, searches, the queue, speed tests."""

from .queue import TrainingQueue
from .run import EpochMetric, NotPrepared, RunNote, TrainingRun, TrainingRunQuerySet
from .saved_preset import SavedPreset
from .search import Search
from .speed import SpeedTest

__all__ = [
    "EpochMetric",
    "NotPrepared",
    "RunNote",
    "SavedPreset",
    "Search",
    "SpeedTest",
    "TrainingQueue",
    "TrainingRun",
    "TrainingRunQuerySet",
]
