"""How a training is to run: the three presets, the advanced options and their JSON form. Imports no Keras."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

OPTIMIZERS = ("adamw", "adam", "sgd")
# What people may choose beside a preset.
USER_OPTIONS = ("epochs", "batch_size", "learning_rate", "seed")
SCHEDULES = ("cosine", "constant", "step", "plateau")
BALANCES = ("weights", "sampling", "none")
# Steps that a preparation can apply to the pixels beyond the usual; see datasets.imaging.
PREPROCESSING = ("crop_borders", "clahe", "equalise")


class ConfigurationError(ValueError):
    """A training option cannot be used. `field` names it; the message gives the allowed range."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class _Range:
    """Allowed values of a number: the bounds belong to the range; `above` is a lower bound that does not."""

    kind: type[int] | type[float]
    low: float
    high: float
    above: bool = False

    def check(self, field: str, value: object) -> int | float:
        number = self._number(value)
        if number is None or not self._holds(number):
            raise ConfigurationError(field, f"{_words(field)} must be {self}, not {value!r}.")
        return number

    def _number(self, value: object) -> int | float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self.kind is float:
            return float(value)
        return int(value) if math.isfinite(value) and value == int(value) else None

    def _holds(self, number: float) -> bool:
        return (self.low < number if self.above else self.low <= number) and number <= self.high

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        bounds = f"above {self.low} up to {self.high}" if self.above else f"from {self.low} to {self.high}"
        return f"{noun} {bounds}"


_RANGES = {
    "epochs": _Range(int, 1, 500),
    "batch_size": _Range(int, 1, 512),
    "learning_rate": _Range(float, 0, 1, above=True),
    "weight_decay": _Range(float, 0, 0.5),
    "warmup_fraction": _Range(float, 0, 0.5),
    "label_smoothing": _Range(float, 0, 0.3),
    "dropout": _Range(float, 0, 0.8),
    "early_stopping_patience": _Range(int, 1, 100),
    "minimum_steps": _Range(int, 1, 1000),
    "head_epochs": _Range(int, 0, 50),
    "fine_tuning_factor": _Range(float, 0, 1, above=True),
    "fine_tuning_depth": _Range(float, 0, 1),
    "layer_decay": _Range(float, 0.1, 1),
    "step_epochs": _Range(int, 1, 200),
    "step_factor": _Range(float, 0.01, 0.9),
    "image_size": _Range(int, 32, 1024),
    "seed": _Range(int, 0, 2**31 - 1),
    "shift": _Range(float, 0, 0.3),
    "zoom": _Range(float, 0, 0.5),
    "rotation": _Range(float, 0, 45),
    "contrast": _Range(float, 0, 0.9),
    "brightness": _Range(float, 0, 0.5),
    "gamma": _Range(float, 0, 0.9),
    "blur": _Range(float, 0, 3),
    "noise": _Range(float, 0, 0.2),
    "erase": _Range(float, 0, 0.5),
}
_CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "balance": BALANCES}
_OPTIONAL = ("batch_size", "learning_rate", "minimum_steps", "image_size", "preprocessing")
_FLAGS = ("flip", "mixed_precision", "deterministic")


@dataclass(frozen=True)
class Configuration:
    """Every option of one training. Early stopping, best-weights checkpoint and rate reduction are always on.

    batch_size, learning_rate, minimum_steps: None takes the architecture's own. minimum_steps: optimizer steps an
    epoch has at least; a small dataset is gone through several times an epoch, each time augmented differently.
    schedule: "cosine" warms up linearly over `warmup_fraction` of all steps and then falls along a half cosine
    (Loshchilov and Hutter 2017); "plateau" halves the rate when the validation loss stands still; "step" multiplies it
    by `step_factor` every `step_epochs` epochs; "constant" leaves it.
    balance: "weights" lets every class count the same in the loss, "sampling" shows every class equally often.
    head_epochs, fine_tuning_factor: with pretrained weights, the epochs in which only the new head learns, and the
    learning rate afterwards relative to `learning_rate`. fine_tuning_depth: share of the backbone's layers, from the
    output, that are tuned then (0: the head alone learns). layer_decay: the rate of each deeper fifth of them
    relative to the fifth above (Howard and Ruder 2018).
    image_size, preprocessing: what the preparation must have; None takes the newest preparation as it is.
    mixed_precision: half precision where the GPU gains by it. deterministic: the same bits in every repetition, slower.
    flip: mirror left and right at random, for anatomy without a side only.
    shift, zoom: largest displacement and scaling, as fractions of the side. rotation: degrees.
    contrast, brightness: largest relative change of contrast, and of the grey value where white is 1.
    gamma: largest change of the exponent of the grey curve, as the natural logarithm. blur: largest standard
    deviation in pixels at 224 pixels. noise: largest standard deviation of the grey value. erase: largest side of a
    rectangle that is wiped out, as a fraction of the side.
    """

    epochs: int = 25
    batch_size: int | None = None
    learning_rate: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    label_smoothing: float = 0.05
    dropout: float = 0.2
    early_stopping_patience: int = 8
    minimum_steps: int | None = None
    head_epochs: int = 5
    fine_tuning_factor: float = 0.1
    fine_tuning_depth: float = 1.0
    layer_decay: float = 0.7
    step_epochs: int = 10
    step_factor: float = 0.3
    balance: str = "weights"
    seed: int = 0
    image_size: int | None = None
    preprocessing: tuple[str, ...] | None = None
    mixed_precision: bool = False
    deterministic: bool = False
    flip: bool = False
    shift: float = 0.05
    zoom: float = 0.1
    rotation: float = 0.0
    contrast: float = 0.2
    brightness: float = 0.05
    gamma: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return values if self.preprocessing is None else {**values, "preprocessing": list(self.preprocessing)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The configuration stored by `to_json`. Options that are absent take their default.

        Raises ConfigurationError for an unknown option or a value out of range.
        """
        options = dict(data)
        # Until version 0.2 there was only the choice whether classes are weighted.
        if "class_weights" in options:
            options["balance"] = "weights" if options.pop("class_weights") else "none"
        _refuse_unknown(options)
        return cls(**options)

    def with_options(self, **options: Any) -> Self:
        """A copy with some options changed. Raises ConfigurationError for an unknown or unusable one."""
        return self.from_json({**asdict(self), **options})


def _checked(field: str, value: Any) -> Any:
    if field in _OPTIONAL and value is None:
        return None
    if field in _RANGES:
        return _RANGES[field].check(field, value)
    if field in _CHOICES and value not in _CHOICES[field]:
        raise ConfigurationError(field, f"{_words(field)} must be one of {', '.join(_CHOICES[field])}, not {value!r}.")
    if field == "preprocessing":
        return _checked_steps(value)
    if field in _FLAGS and not isinstance(value, bool):
        raise ConfigurationError(field, f"{_words(field)} must be true or false, not {value!r}.")
    return value


def _checked_steps(value: Any) -> tuple[str, ...]:
    known = ", ".join(PREPROCESSING)
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise ConfigurationError("preprocessing", f"Preprocessing must be a list of steps ({known}), not {value!r}.")
    for step in value:
        if step not in PREPROCESSING:
            raise ConfigurationError("preprocessing", f"There is no preprocessing step {step!r}; there are {known}.")
    # The order is that of the pipeline, not that of the choice.
    return tuple(step for step in PREPROCESSING if step in value)


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(Configuration)]
    for name in options:
        if name not in known:
            raise ConfigurationError(name, f"There is no training option {name!r}; there are {', '.join(known)}.")


def _words(field: str) -> str:
    return field.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Preset:
    """A configuration with the words a user chooses it by."""

    id: str
    label: str
    description: str
    expectation: str
    configuration: Configuration


PRESETS: dict[str, Preset] = {
    preset.id: preset
    for preset in (
        Preset(
            "quick",
            "Quick Test",
            "5 epochs: does this dataset teach a model anything at all?",
            "Custom_CNN takes a minute or two for 2,500 images on a small server without a GPU; the large networks "
            "take far longer there. A first figure to judge the data by, not a model to put in service.",
            Configuration(epochs=5, early_stopping_patience=4),
        ),
        Preset(
            "standard",
            "Standard",
            "25 epochs: the usual choice for a model that is meant to be used.",
            "About five times the time of Quick Test, less when training stops early because validation no longer "
            "improves. Usually within a point or two of the best this architecture can do.",
            Configuration(epochs=25, early_stopping_patience=8),
        ),
        Preset(
            "intensive",
            "Intensive",
            "50 epochs with stronger augmentation: the last bit of accuracy.",
            "Up to ten times the time of Quick Test: plan it for the night. Pays off with large datasets or several "
            "classes; with a few hundred images it seldom beats Standard.",
            Configuration(
                epochs=50, early_stopping_patience=12, shift=0.08, zoom=0.15, rotation=5.0, contrast=0.3, dropout=0.3
            ),
        ),
    )
}
