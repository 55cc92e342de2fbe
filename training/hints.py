"""What the figures of a training's epochs mean, in words, and what to do about it. Imports neither Django nor Keras.

The rules look at curves the way a practitioner does: the validation loss that rises while the training loss falls is
over-fitting (Goodfellow, Bengio and Courville 2016, section 5.2), a loss that stays at that of guessing is no
learning. A network that gives every one of C classes the same probability has the loss ln(C), whatever the labels are.
Training and validation loss are never compared with each other: label smoothing, class weights and augmentation
are in the first one only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

# Epochs before which the figures say little.
EPOCHS_TO_JUDGE = 4
GUESSING_AUC = 0.6
LOW_AUC = 0.75
# Share of ln(C) above which the training loss is that of guessing.
GUESSING_LOSS = 0.95
# Multiple of ln(C) above which a training loss comes from steps that are too long, whatever the labels are.
FAR_ABOVE_GUESSING = 2.0

PROBLEM, ADVICE, FINE = "problem", "advice", "fine"

# What to do, by the hint's code; docs/user-guide.md says the same words.
WHAT_TO_DO = {
    "not-a-number": "Train again with a learning rate ten times smaller. If that does not help, look for blank or "
    "damaged images in the dataset's quality report.",
    "collapsed": "Balance the classes (class weights or balanced sampling), take a learning rate three times smaller, "
    "and look in the quality report whether one class has far fewer images or wrong labels.",
    "not-learning": "Check the labels in the dataset's quality report first. Then use pretrained weights where they "
    "are installed, another architecture, a learning rate three times smaller, or Standard instead of Quick Test. More "
    "images help when there are fewer than some hundreds of each class.",
    "by-heart": "Check in the quality report whether training and validation images come from different sources or "
    "are labelled differently. Then add images of more patients, or take a smaller architecture or stronger "
    "augmentation.",
    "diverging": "Train again with a learning rate ten times smaller.",
    "jumping": "Train again with a learning rate three times smaller, or with a larger batch size.",
    "over-fitting": "The weights of the best epoch are kept, so the later epochs do no harm. To get further, add "
    "images of more patients, use stronger augmentation (Intensive), more dropout or a smaller architecture.",
    "still-improving": "Train again with more epochs: Standard instead of Quick Test, Intensive instead of Standard.",
    "stopped-early": "Nothing: this saves time. The weights of the best epoch are kept.",
    "low-figures": "Look at the dataset's quality report: are the labels right, are there some hundreds of images of "
    "each class? Then train longer (Standard), with pretrained weights, or with another architecture.",
    "no-validation": "Prepare the dataset again with a validation part, so that the best epoch can be chosen and "
    "over-fitting be seen.",
}

# What one sees, by the hint's code, for the guide.
SIGNS = {
    "not-learning": "Not learning: the loss stays at that of guessing, the AUC near 0.5",
    "collapsed": "Every image gets the same class",
    "by-heart": "Good on training images, guessing on validation images",
    "over-fitting": "Over-fitting: validation gets worse while training gets better",
    "low-figures": "Low accuracy: a test AUC below 0.75",
    "jumping": "The loss jumps",
    "diverging": "The training loss rises, or stays far above that of guessing",
    "not-a-number": "The loss is no longer a number",
    "still-improving": "Still improving at the last epoch",
    "stopped-early": "Stopped before the last epoch",
    "no-validation": "No validation figures",
}

Row = Mapping[str, float | str | None]


@dataclass(frozen=True)
class Hint:
    """One observation. level: "problem", "advice" or "fine"; text: what is seen; advice: what to do."""

    code: str
    level: str
    text: str

    @property
    def advice(self) -> str:
        return WHAT_TO_DO[self.code]

    def to_json(self) -> dict[str, str]:
        return {**asdict(self), "advice": self.advice}


@dataclass(frozen=True)
class _Curves:
    """The figures of the finished epochs as lists of equal length; a figure that is undefined is None."""

    epoch: list[int]
    loss: list[float | None]
    auc: list[float | None]
    val_loss: list[float | None]
    val_accuracy: list[float | None]
    val_auc: list[float | None]
    stage: list[str]
    chance: float

    @property
    def can_be_judged(self) -> bool:
        return len(self.epoch) >= EPOCHS_TO_JUDGE

    def of_this_stage(self, values: list[float | None]) -> list[float]:
        """Values of the last epochs that trained the same layers: where others begin to learn, a jump is natural."""
        start = len(self.stage)
        while start and self.stage[start - 1] == self.stage[-1]:
            start -= 1
        return _known(values[start:])

    @property
    def has_validation(self) -> bool:
        return bool(_known(self.val_loss))

    @property
    def best(self) -> int:
        """Index of the epoch with the lowest validation loss, or without it training loss: the one that is kept."""
        losses = self.val_loss if self.has_validation else self.loss
        known = [(loss, index) for index, loss in enumerate(losses) if loss is not None]
        return min(known)[1] if known else len(self.epoch) - 1


def hints(
    history: Sequence[Row],
    *,
    classes: int,
    epochs: int,
    succeeded: bool = False,
    shares: Sequence[float] = (),
    test_auc: float | None = None,
) -> list[Hint]:
    """What is to be said about a training after the epochs in `history` (rows as EpochMetric has them), worst first.

    epochs: how many there are to be. succeeded: whether the training has come to its end, early or not. shares: of
    each class among the validation images; by them a network is recognised that gives everything the same class.
    test_auc: the finished version's area under the ROC curve.
    """
    if not history:
        return []
    curves = _curves(history, classes)
    broken = _not_a_number(history)
    if broken:
        return [broken]
    stuck = _far_above_guessing(curves) or _collapsed(curves, shares) or _by_heart(curves)
    stuck = stuck or _not_learning(curves) or _diverging(curves)
    jumping = _jumping(curves)
    # Where steps are too long, the gap to validation says nothing yet.
    found = [stuck, jumping, None if stuck or jumping else _over_fitting(curves), _no_validation(curves)]
    if succeeded:
        found += [None if stuck else _low_figures(test_auc), _end(curves, epochs, stuck)]
    return [hint for hint in found if hint is not None]


def _curves(history: Sequence[Row], classes: int) -> _Curves:
    def column(name: str) -> list[float | None]:
        values = [row.get(name) for row in history]
        return [float(value) if isinstance(value, int | float) else None for value in values]

    return _Curves(
        epoch=[int(value or index) for index, value in enumerate(column("epoch"), start=1)],
        loss=column("loss"),
        auc=column("auc"),
        val_loss=column("val_loss"),
        val_accuracy=column("val_accuracy"),
        val_auc=column("val_auc"),
        stage=[str(row.get("stage") or "") for row in history],
        chance=math.log(max(classes, 2)),
    )


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _not_a_number(history: Sequence[Row]) -> Hint | None:
    for index, row in enumerate(history, start=1):
        for name in ("loss", "val_loss"):
            value = row.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                text = f"In epoch {row.get('epoch') or index} the loss was no longer a number: it overflowed."
                return Hint("not-a-number", PROBLEM, text)
    return None


def _guesses(curves: _Curves) -> bool:
    """Whether validation, as far as it is known, is no better than guessing in every epoch that can be judged."""
    known = _known(curves.val_auc)
    return curves.can_be_judged and bool(known) and max(known) < GUESSING_AUC


def _collapsed(curves: _Curves, shares: Sequence[float]) -> Hint | None:
    last = _known(curves.val_accuracy)[-3:]
    if not _guesses(curves) or len(last) < 3 or max(last) - min(last) > 1e-6:
        return None
    if shares and not any(abs(last[-1] - share) < 1e-3 for share in shares):
        return None
    text = (
        f"The network gives every validation image the same class: the accuracy has stood at {last[-1]:.1%} for three "
        "epochs, which is that class's share."
    )
    return Hint("collapsed", PROBLEM, text)


def _by_heart(curves: _Curves) -> Hint | None:
    loss = _known(curves.loss)
    learned = max(_known(curves.auc), default=0.0) >= 0.8 or (bool(loss) and min(loss) < 0.7 * curves.chance)
    known = _known(curves.val_auc)
    if not (known and learned and _guesses(curves)):
        return None
    text = (
        "The network learns the training images by heart and nothing that holds for others: the training loss falls, "
        f"but the validation AUC stays at {max(known):.3f} (0.5 is guessing)."
    )
    return Hint("by-heart", PROBLEM, text)


def _not_learning(curves: _Curves) -> Hint | None:
    loss = _known(curves.loss)
    # Without validation the AUC of the training images tells.
    ranked = _known(curves.val_auc) or _known(curves.auc)
    guesses = curves.can_be_judged and bool(ranked) and max(ranked) < GUESSING_AUC
    if not (loss and guesses) or min(loss) < GUESSING_LOSS * curves.chance:
        return None
    known = _known(curves.val_auc)
    seen = f" and a validation AUC of at most {max(known):.3f} (0.5 is guessing)" if known else ""
    text = (
        f"The network is not learning: after {len(curves.epoch)} epochs the training loss is {loss[-1]:.3f}, that of "
        f"guessing ({curves.chance:.3f}){seen}."
    )
    return Hint("not-learning", PROBLEM, text)


def _far_above_guessing(curves: _Curves) -> Hint | None:
    loss = curves.of_this_stage(curves.loss)[-3:]
    if not curves.can_be_judged or len(loss) < 3 or min(loss) < FAR_ABOVE_GUESSING * curves.chance:
        return None
    text = (
        f"The training loss is {loss[-1]:.3f}, far above that of guessing ({curves.chance:.3f}). The learning rate is "
        "too high."
    )
    return Hint("diverging", PROBLEM, text)


def _diverging(curves: _Curves) -> Hint | None:
    loss = curves.of_this_stage(curves.loss)
    if len(loss) < 3:
        return None
    rises = loss[-3] < loss[-2] < loss[-1]
    if not rises or loss[-1] < 1.3 * min(loss):
        return None
    text = f"The training loss rises: from {min(loss):.3f} to {loss[-1]:.3f}. The training diverges."
    return Hint("diverging", PROBLEM, text)


def _jumping(curves: _Curves) -> Hint | None:
    training = _jumps(curves.of_this_stage(curves.loss)[-9:], 1.2)
    validation = _jumps(curves.of_this_stage(curves.val_loss)[-9:], 1.5)
    if training < 2 and validation < 3:
        return None
    name, count = ("training", training) if training >= 2 else ("validation", validation)
    text = f"The {name} loss jumps: it rose sharply {count} times in the last epochs. The learning rate is too high."
    return Hint("jumping", ADVICE, text)


def _jumps(loss: list[float], factor: float) -> int:
    """How often the loss rose by more than `factor` and by an amount that matters, and fell again after it."""
    threes = zip(loss, loss[1:], loss[2:], strict=False)
    return sum(now > factor * before and now - before > 0.05 and after < now for before, now, after in threes)


def _over_fitting(curves: _Curves) -> Hint | None:
    if not curves.can_be_judged:
        return None
    return _rising_validation(curves) or _gap(curves)


def _rising_validation(curves: _Curves) -> Hint | None:
    best, last = curves.best, len(curves.epoch) - 1
    if last - best < 3:
        return None
    # The median of the last three: one bad epoch is no trend.
    now, lowest = median(_known(curves.val_loss[-3:]) or [0.0]), curves.val_loss[best] or 0.0
    before, after = curves.loss[best], curves.loss[last]
    if before is None or after is None or after > 0.97 * before:
        return None
    # Where the images are still ranked better and better, a rise means only that the network grows too sure of itself.
    if now < (1.3 if _ranks_better(curves, best) else 1.1) * lowest or now - lowest < 0.02:
        return None
    text = (
        f"Over-fitting: validation was best in epoch {curves.epoch[best]} (loss {lowest:.3f}). Since then it has risen "
        f"to {now:.3f}, while the training loss has fallen from {before:.3f} to {after:.3f}."
    )
    return Hint("over-fitting", ADVICE, text)


def _ranks_better(curves: _Curves, best: int) -> bool:
    at_best, last = curves.val_auc[best], curves.val_auc[-1]
    return at_best is not None and last is not None and last > at_best + 0.005


def _gap(curves: _Curves) -> Hint | None:
    training, validation = curves.auc[-1], curves.val_auc[-1]
    if training is None or validation is None or training - validation < 0.1:
        return None
    text = (
        f"Over-fitting: the network ranks the images it trains on far better (AUC {training:.3f}) than those of the "
        f"validation part ({validation:.3f})."
    )
    return Hint("over-fitting", ADVICE, text)


def _no_validation(curves: _Curves) -> Hint | None:
    if curves.has_validation:
        return None
    text = "There are no validation images: the training loss alone says which epoch is kept."
    return Hint("no-validation", ADVICE, text)


def _low_figures(test_auc: float | None) -> Hint | None:
    if test_auc is None or test_auc >= LOW_AUC:
        return None
    text = f"The figures are low: on the test part the AUC is {test_auc:.3f}, where 0.5 is guessing and 1 is perfect."
    return Hint("low-figures", PROBLEM, text)


def _end(curves: _Curves, epochs: int, stuck: Hint | None) -> Hint | None:
    done = len(curves.epoch)
    if curves.epoch[-1] < epochs:
        judged = "validation" if curves.has_validation else "the training loss"
        text = (
            f"Stopped early, after epoch {curves.epoch[-1]} of {epochs}: {judged} had not improved since epoch "
            f"{curves.epoch[curves.best]}."
        )
        return Hint("stopped-early", FINE, text)
    early = _known(curves.val_loss[: max(done - max(1, done // 5), 1)])
    lowest = min(_known(curves.val_loss), default=None)
    if stuck or lowest is None or not early or done < EPOCHS_TO_JUDGE or lowest > 0.97 * min(early):
        return None
    text = (
        f"Still improving at the end: the validation loss fell from {min(early):.3f} to {lowest:.3f} in the last "
        f"{_count(done - len(early), 'epoch')}."
    )
    return Hint("still-improving", ADVICE, text)


def _count(number: int, noun: str) -> str:
    return noun if number == 1 else f"{number} {noun}s"
