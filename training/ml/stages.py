"""The parts of a training, and their shares in its progress. Imports no TensorFlow: estimates are made from it too."""

import math
from dataclasses import dataclass

from training.configurations import Configuration

# Shares of the whole run, for the progress bar: where training starts, where it ends and where evaluation ends.
TRAINING_STARTS, TRAINING_ENDS, EVALUATION_ENDS = 0.02, 0.93, 0.97
HEAD, FINE_TUNING = "head", "fine-tuning"


@dataclass(frozen=True)
class Stage:
    """Epochs first (from 0) to last (not included) with one peak rate. frozen: only the head learns."""

    first: int
    last: int
    rate: float
    frozen: bool = False
    name: str = ""


def steps_per_epoch(images: int, batch_size: int, minimum_steps: int) -> int:
    """Optimizer steps of one epoch: one pass over the images, or several passes when that is fewer than the minimum.

    With 100 images and batches of 32, one pass is 3 steps: five epochs would end before anything was learned.
    """
    return max(math.ceil(images / batch_size), minimum_steps)


def head_epochs(configuration: Configuration) -> int:
    """With initial weights, the epochs in which only the head learns: half of all at most, unless nothing is tuned."""
    if configuration.fine_tuning_depth == 0:
        return configuration.epochs
    return min(configuration.head_epochs, max(1, configuration.epochs // 2))


def stages(configuration: Configuration, rate: float, *, pretrained: bool) -> list[Stage]:
    """The parts of a training with the peak learning rate of each.

    From scratch everything learns at once. With initial weights the new head learns first, alone: its random
    gradients would otherwise spoil the backbone, which is then tuned at a lower rate.
    """
    epochs = configuration.epochs
    if not pretrained:
        return [Stage(0, epochs, rate)]
    head = head_epochs(configuration)
    both = [
        Stage(0, head, rate, frozen=True, name=HEAD),
        Stage(head, epochs, rate * configuration.fine_tuning_factor, name=FINE_TUNING),
    ]
    return [stage for stage in both if stage.first < stage.last]
