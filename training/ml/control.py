"""How a training is stopped from outside, and the ways in which it ends early. Imports no TensorFlow."""

from enum import Enum


class Stop(Enum):
    """What a training is asked to do: end for good, or write a checkpoint and leave the rest for later."""

    CANCEL = "cancel"
    DRAIN = "drain"


class Cancelled(Exception):
    """The training was asked to end, and did."""


class Paused(Exception):
    """The training stands at a checkpoint, `epoch` epochs are finished, and it will go on from there when asked to."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"The training paused after epoch {epoch}.")
        self.epoch = epoch


class TrainingFailed(Exception):
    """The training cannot go on. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
