"""How a training is to run: the three presets, the advanced options and their JSON form. Imports no Keras."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from datasets.enhancement import IMAGE_SIZES, ordered
from datasets.enhancement import STEPS as PREPROCESSING_STEPS

# Steps that a preparation can apply to the pixels beyond the usual; see datasets.enhancement.
PREPROCESSING = tuple(PREPROCESSING_STEPS)


# Characters of a wrong value that its message repeats.
MAX_SHOWN = 40


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
            raise ConfigurationError(field, f"{_words(field)} must be {self}, not {shortened(value)}.")
        # Not before: what lies far out of the range may be too large for a float.
        return self.kind(number)

    def _number(self, value: object) -> int | float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self.kind is float or isinstance(value, int):
            return value
        return int(value) if value.is_integer() else None

    def allows(self, value: object) -> bool:
        number = self._number(value)
        return number is not None and self._holds(number)

    def _holds(self, number: float) -> bool:
        return (self.low < number if self.above else self.low <= number) and number <= self.high

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        bounds = f"above {self.low} up to {self.high}" if self.above else f"from {self.low} to {self.high}"
        return f"{noun} {bounds}"


GROUPS = ("Optimisation", "Regularisation", "Transfer", "Images", "Augmentation", "Machine")


@dataclass(frozen=True)
class Option:
    """One field of a configuration, as pages, the API and the command line offer it.

    range: of a number; choices: the values of a choice, texts or whole numbers, with their words. Without either it
    is a switch, or the list of preprocessing steps. empty: what a value of None means, where None is allowed.
    """

    name: str
    group: str
    label: str
    help: str
    range: _Range | None = None
    choices: Mapping[Any, str] = field(default_factory=dict)
    empty: str = ""

    @property
    def is_switch(self) -> bool:
        return self.range is None and not self.choices and self.name != "preprocessing"

    def words(self, value: Any) -> str:
        """A value as pages show it."""
        if value is None:
            return self.empty
        if self.name == "preprocessing" and isinstance(value, list | tuple):
            return ", ".join(PREPROCESSING_STEPS.get(step, shortened(step)) for step in map(str, value)) or "none"
        if self.is_switch:
            return "on" if value else "off"
        if self.choices:
            return next((words for choice, words in self.choices.items() if choice == value), shortened(value))
        # What is stored may be of another release, and anything.
        return f"{value:.10g}" if self.range is not None and self.range.allows(value) else shortened(value)

    def check(self, value: Any) -> Any:
        """The value as the configuration keeps it. Raises ConfigurationError, which names the field."""
        if self.empty and value is None:
            return None
        if self.name == "preprocessing":
            return _checked_steps(value)
        if self.range is not None:
            return self.range.check(self.name, value)
        if self.choices:
            return self._choice(value)
        if not isinstance(value, bool):
            raise ConfigurationError(self.name, f"{_words(self.name)} must be true or false, not {shortened(value)}.")
        return value

    def _choice(self, value: Any) -> Any:
        for choice in self.choices:
            if choice == value:
                return choice
        known = ", ".join(map(str, self.choices))
        raise ConfigurationError(self.name, f"{_words(self.name)} must be one of {known}, not {shortened(value)}.")


# Every option, in the order in which pages show them. The words are those of all three ways to start a training.
OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            "epochs", "Optimisation", "Epochs", "How often all training images are gone through.",
            _Range(int, 1, 500),
        ),
        Option(
            "batch_size", "Optimisation", "Batch size",
            "Images in one step. Smaller needs less memory; much smaller learns less steadily.",
            _Range(int, 1, 512), empty="the architecture's own",
        ),
        Option(
            "learning_rate", "Optimisation", "Learning rate",
            "Largest step of the weights. If the loss jumps, take a third of it; if it hardly falls, three times.",
            _Range(float, 0, 1, above=True), empty="the architecture's own",
        ),
        Option(
            "optimizer", "Optimisation", "Optimizer", "How a step follows from the gradients.",
            choices={"adamw": "AdamW", "adam": "Adam", "sgd": "SGD with momentum"},
        ),
        Option(
            "schedule", "Optimisation", "Schedule", "How the learning rate changes in the course of the training.",
            choices={
                "cosine": "Cosine, after a warm-up", "constant": "Constant", "step": "In steps",
                "plateau": "Halved when validation stands still",
            },
        ),
        Option(
            "warmup_fraction", "Optimisation", "Warm-up", "Share of all steps in which the rate rises; cosine only.",
            _Range(float, 0, 0.5),
        ),
        Option(
            "step_epochs", "Optimisation", "Epochs of a step", "Epochs after which the rate falls; in steps only.",
            _Range(int, 1, 200),
        ),
        Option(
            "step_factor", "Optimisation", "Factor of a step", "What is left of the rate then; in steps only.",
            _Range(float, 0.01, 0.9),
        ),
        Option(
            "early_stopping_patience", "Optimisation", "Early stopping patience",
            "Epochs without a better validation after which the training ends.", _Range(int, 1, 100),
        ),
        Option(
            "minimum_steps", "Optimisation", "Least steps of an epoch",
            "A small dataset is gone through several times an epoch until there are so many.",
            _Range(int, 1, 1000), empty="the architecture's own",
        ),
        Option(
            "balance", "Regularisation", "Classes of different size",
            "How a rare class is kept from being overlooked.",
            choices={
                "weights": "Weigh the rare class more", "sampling": "Show all classes equally often",
                "none": "Leave them as they are",
            },
        ),
        Option(
            "weight_decay", "Regularisation", "Weight decay", "Pull of all weights towards zero; AdamW only.",
            _Range(float, 0, 0.5),
        ),
        Option(
            "label_smoothing", "Regularisation", "Label smoothing",
            "Doubt about the labels: keeps the network from being too sure of itself.",
            _Range(float, 0, 0.3),
        ),
        Option(
            "grade_spread", "Regularisation", "Spread of grades",
            "For classes that are grades: how far a label reaches to its neighbours, in grades; 0 smooths evenly.",
            _Range(float, 0, 2),
        ),
        Option(
            "dropout", "Regularisation", "Dropout", "Share of the features that is hidden from the head in each step.",
            _Range(float, 0, 0.8),
        ),
        Option(
            "head_epochs", "Transfer", "Epochs of the head",
            "With pretrained weights: epochs in which only the new last layer learns.", _Range(int, 0, 50),
        ),
        Option(
            "fine_tuning_factor", "Transfer", "Fine-tuning rate",
            "Learning rate of the fine-tuning afterwards, as a share of the learning rate.",
            _Range(float, 0, 1, above=True),
        ),
        Option(
            "fine_tuning_depth", "Transfer", "Fine-tuning depth",
            "Share of the layers, from the last one, that are tuned; the others stay frozen. 0: the head alone learns.",
            _Range(float, 0, 1),
        ),
        Option(
            "layer_decay", "Transfer", "Rate of deeper layers",
            "Rate of each deeper fifth of the tuned layers, as a share of that of the fifth above.",
            _Range(float, 0.1, 1),
        ),
        Option(
            "image_size", "Images", "Image size", "Side in pixels; the newest preparation with this size is used.",
            choices={size: f"{size} by {size} pixels" for size in IMAGE_SIZES}, empty="that of the newest preparation",
        ),
        Option(
            "preprocessing", "Images", "Preprocessing", "Steps that the preparation must have applied to the pixels.",
            empty="that of the newest preparation",
        ),
        Option("flip", "Augmentation", "Flip", "Swap left and right at random. Only for anatomy without a side."),
        Option(
            "shift", "Augmentation", "Shift", "Largest displacement, as a share of the side.",
            _Range(float, 0, 0.3),
        ),
        Option("zoom", "Augmentation", "Zoom", "Largest change of size.", _Range(float, 0, 0.5)),
        Option("rotation", "Augmentation", "Rotation", "Largest angle, in degrees.", _Range(float, 0, 45)),
        Option("contrast", "Augmentation", "Contrast", "Largest change of contrast.", _Range(float, 0, 0.9)),
        Option(
            "brightness", "Augmentation", "Brightness", "Largest change of the grey value, where white is 1.",
            _Range(float, 0, 0.5),
        ),
        Option(
            "gamma", "Augmentation", "Gamma",
            "Largest bend of the grey curve, as other devices have one; 0.3 is strong.",
            _Range(float, 0, 0.9),
        ),
        Option(
            "blur", "Augmentation", "Blur", "Largest blur, in pixels at a size of 224.", _Range(float, 0, 3),
        ),
        Option(
            "noise", "Augmentation", "Noise", "Strongest noise, as a share of the range from black to white.",
            _Range(float, 0, 0.2),
        ),
        Option(
            "erase", "Augmentation", "Erase", "Largest side of a rectangle that is wiped out, as a share of the side.",
            _Range(float, 0, 0.5),
        ),
        Option("seed", "Machine", "Seed", "The same seed draws the same random numbers.", _Range(int, 0, 2**31 - 1)),
        Option(
            "mixed_precision", "Machine", "Half precision",
            "Compute with 16-bit numbers where the graphics processor gains by it; elsewhere this changes nothing.",
        ),
        Option(
            "deterministic", "Machine", "Same result every time",
            "The same bits in every repetition with the same seed, for a slower training.",
        ),
    )
}  # fmt: skip
AUGMENTATION = tuple(name for name, option in OPTIONS.items() if option.group == "Augmentation")


@dataclass(frozen=True)
class Configuration:
    """Every option of one training. Early stopping, best-weights checkpoint and rate reduction are always on.

    batch_size, learning_rate, minimum_steps: None takes the architecture's own. minimum_steps: optimizer steps an
    epoch has at least; a small dataset is gone through several times an epoch, each time augmented differently.
    schedule: "cosine" warms up linearly over `warmup_fraction` of all steps and then falls along a half cosine
    (Loshchilov and Hutter 2017); "plateau" halves the rate when the validation loss stands still; "step" multiplies it
    by `step_factor` every `step_epochs` epochs; "constant" leaves it.
    balance: "weights" lets every class count the same in the loss, "sampling" shows every class equally often.
    grade_spread: of classes that are grades, the standard deviation in grades over which a label is spread, instead of
    `label_smoothing`; 0 smooths evenly.
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
    grade_spread: float = 0.6
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
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.check(getattr(self, name)))

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


def _checked_steps(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        known = ", ".join(PREPROCESSING)
        raise ConfigurationError(
            "preprocessing", f"Preprocessing must be a list of steps ({known}), not {shortened(value)}."
        )
    try:
        return ordered(value)
    except ValueError as error:
        raise ConfigurationError("preprocessing", str(error)) from error


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            known = ", ".join(OPTIONS)
            raise ConfigurationError(name, f"There is no training option {shortened(name)}; there are {known}.")


def complaints(options: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each of some options, by its name; empty if nothing is."""
    found = {}
    for name, value in options.items():
        try:
            _refuse_unknown({name: value})
            OPTIONS[name].check(value)
        except ConfigurationError as error:
            found[name] = str(error)
    return found


def shortened(value: object) -> str:
    """A value as messages repeat it, in at most MAX_SHOWN characters."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no whole number of more than some thousand digits.
        return "a number with thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _words(field: str) -> str:
    return field.replace("_", " ").capitalize()


# What a preset that somebody saved is chosen with, before its number.
SAVED = "saved:"


@dataclass(frozen=True)
class Preset:
    """A configuration with the words a user chooses it by."""

    id: str
    label: str
    description: str
    expectation: str
    configuration: Configuration

    @property
    def recorded(self) -> str:
        """What a run keeps of it: of one that somebody saved the name, since it may be deleted."""
        return self.label if self.id.startswith(SAVED) else self.id


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
