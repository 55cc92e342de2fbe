"""Many trainings at once: the settings of a grid, and which runs a race lets go on. Imports neither Django nor Keras.

The race is successive halving: all runs train a few epochs, the best of them go on to `eta` times as many, and so on
(Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization").
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from .configurations import OPTIONS, Configuration, ConfigurationError
from .ml.stages import head_epochs

MAX_RUNS = 60
MAX_VARIED = 3
# One run in three goes on: fewer comparisons than with halves, and still room for a slow starter.
ETA = 3
ETAS = (2, 3, 4)
# After a single epoch the order of runs says little.
SMALLEST_RUNG = 2
# Losses that differ by less than rounding does are equal.
TIE = 1e-6
# With fewer validation images in a class no ranking of runs can be trusted.
LEAST_OF_A_CLASS = 20
# They choose the preparation, and a search has one.
_OF_PREPARATION = ("image_size", "preprocessing")
VARIABLE = tuple(name for name in OPTIONS if name not in _OF_PREPARATION)
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "default": None}


@dataclass(frozen=True)
class Candidate:
    """One run of a search. varied: the options that the search varies, with this run's values."""

    architecture: str
    configuration: Configuration
    varied: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a search is to train. preset: the name of `base`. values: of each option that varies.

    eta: one run in `eta` goes on after each comparison; None trains all to the end. pretrained: the architectures
    whose runs start from weights.
    """

    architectures: tuple[str, ...]
    preset: str
    base: Configuration
    values: dict[str, list[Any]]
    eta: int | None
    candidates: tuple[Candidate, ...]
    pretrained: frozenset[str] = frozenset()

    def starting_from_weights(self, architectures: Iterable[str]) -> "Plan":
        """The same plan where the runs of these architectures start from weights, which moves the comparisons."""
        return replace(self, pretrained=frozenset(architectures))

    @property
    def rungs(self) -> tuple[int, ...] | None:
        """The epochs after which runs are compared; None where all train to the end."""
        if self.eta is None:
            return None
        return rungs(self.base.epochs, len(self.candidates), eta=self.eta, first=self.first_rung)

    @property
    def head_epochs(self) -> list[int]:
        """Of each run, the epochs in which only its head learns."""
        return [
            head_epochs(item.configuration) if item.architecture in self.pretrained else 0 for item in self.candidates
        ]

    @property
    def first_rung(self) -> int:
        """The epochs that a run must have trained before it may be compared.

        While only the heads learn, what concerns fine-tuning and augmentation has had no influence yet: runs that
        start from weights are compared when all that are fine-tuned at all have been so for a while.
        """
        tuned = [item.configuration.fine_tuning_depth > 0 for item in self.candidates]
        heads = [epochs for epochs, later in zip(self.head_epochs, tuned, strict=True) if later]
        return max(heads, default=0) + SMALLEST_RUNG

    @property
    def epochs(self) -> int:
        """Epochs that are trained in all, early stopping left aside."""
        return planned_epochs([item.configuration.epochs for item in self.candidates], self.rungs, eta=self.eta or ETA)

    @property
    def starts(self) -> list[int]:
        """How many runs set out for each rung; of a grid, all of them once."""
        return starts(len(self.candidates), self.rungs or (self.base.epochs,), eta=self.eta or ETA)

    def to_json(self) -> dict[str, Any]:
        return {
            "architectures": list(self.architectures),
            "configuration": self.preset,
            "base": self.base.to_json(),
            "values": self.values,
            "eta": self.eta,
            "rungs": self.rungs and list(self.rungs),
        }


def plan(
    architectures: Sequence[str],
    base: Configuration,
    values: Mapping[str, Sequence[Any]],
    *,
    preset: str,
    eta: int | None = None,
) -> Plan:
    """Every combination of architecture and values, each checked.

    A value that is given twice counts once; an option with one value has it in all runs. Raises ConfigurationError,
    whose `field` is the option ("architectures", "values" or "eta" where no single option is to blame), for an option
    that cannot vary, a value that is not allowed, or a number of runs beyond MAX_RUNS or below two.
    """
    if eta is not None and eta not in ETAS:
        raise ConfigurationError("eta", f"One run in {' or '.join(map(str, ETAS))} can go on, not one in {eta!r}.")
    names = tuple(dict.fromkeys(architectures))
    # Before each value is looked at: somebody may send a million of them.
    _refuse_too_many(names, values)
    checked = {option: _checked(option, given, base, eta is not None) for option, given in values.items()}
    _refuse_too_few(names, checked)
    base = base.with_options(**{option: given[0] for option, given in checked.items() if len(given) == 1})
    varied = {option: given for option, given in checked.items() if len(given) > 1}
    choices = [dict(zip(varied, choice, strict=True)) for choice in product(*varied.values())]
    candidates = (Candidate(name, base.with_options(**choice), choice) for name in names for choice in choices)
    return Plan(names, preset, base, varied, eta, tuple(candidates))


def parse_values(option: str, text: str) -> list[Any]:
    """The values of a comma-separated list, such as "0.001, 0.0003", "adamw, sgd", "yes, no" or "default, 16".

    Raises ConfigurationError naming the option when the list is empty.
    """
    values = [_parsed(word.strip()) for word in text.split(",") if word.strip()]
    if not values:
        raise ConfigurationError(option, f"Give the values of {_words(option)}, separated by commas.")
    return values


def _parsed(word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _checked(option: str, given: Sequence[Any], base: Configuration, halving: bool) -> list[Any]:
    if option not in VARIABLE:
        raise ConfigurationError(option, _why_not(option))
    if not given:
        raise ConfigurationError(option, f"Give at least one value of {_words(option)}.")
    if any(isinstance(value, list | dict) for value in given):
        raise ConfigurationError(option, f"Each value of {_words(option)} must be a single one, not a list.")
    # As the configuration holds them: 1 and 1.0 are one learning rate.
    values = list(dict.fromkeys(getattr(base.with_options(**{option: value}), option) for value in given))
    if halving and option == "epochs" and len(values) > 1:
        raise ConfigurationError(
            option, "Epochs cannot vary where hopeless runs are stopped early: all are compared after equally many."
        )
    return values


def _why_not(option: str) -> str:
    if option in _OF_PREPARATION:
        return f"{_words(option).capitalize()} cannot vary: it is chosen with the preparation, and a search has one."
    return f"There is no training option {option!r}; there are {', '.join(VARIABLE)}."


def _refuse_too_many(architectures: Sequence[str], values: Mapping[str, Sequence[Any]]) -> None:
    if len(values) > MAX_VARIED:
        raise ConfigurationError("values", f"At most {MAX_VARIED} options can vary at once, not {len(values)}.")
    count = max(len(architectures), 1) * math.prod(len(set(map(_key, given))) for given in values.values())
    if count > MAX_RUNS:
        raise ConfigurationError("values", f"These are {count} runs; at most {MAX_RUNS} are allowed. Vary less.")


def _key(value: Any) -> Any:
    """What tells two values apart, also those that cannot be used: 1 and 1.0 are the same, 1 and true are not."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def _refuse_too_few(architectures: Sequence[str], values: Mapping[str, Sequence[Any]]) -> None:
    if not architectures:
        raise ConfigurationError("architectures", "Choose at least one architecture.")
    if len(architectures) * math.prod(len(given) for given in values.values()) < 2:
        raise ConfigurationError(
            "values", "This is one run only. Choose several architectures, or give an option several values."
        )


def _words(option: str) -> str:
    return option.replace("_", " ")


# -- Successive halving


def rungs(epochs: int, runs: int, *, eta: int = ETA, first: int = SMALLEST_RUNG) -> tuple[int, ...]:
    """The epochs after which runs are compared, each about `eta` times the one before; the last is `epochs`.

    As many as it takes to go from `runs` to one, and no more than leave the first at `first` epochs or above:
    9 runs of 25 epochs are compared after 3 and 8 epochs, and the last one trains all 25. With `first` at 7 they are
    compared after 8 epochs alone, and three of them train to the end.
    """
    steps = 0
    while runs > 1 and epochs / eta ** (steps + 1) >= first:
        runs = places(runs, eta=eta)
        steps += 1
    return tuple(round(epochs / eta ** (steps - step)) for step in range(steps + 1))


def places(entered: int, *, eta: int = ETA) -> int:
    """How many of the runs that entered a rung go on to the next."""
    return max(1, entered // eta)


def ranking(losses: Mapping[int, float | None]) -> list[int]:
    """Runs by their best validation loss, the lowest first; of equals the one that was created first.

    A run whose loss is missing or not a number comes last.
    """

    def key(run: int) -> tuple[float, int]:
        loss = losses[run]
        return (math.inf if loss is None or math.isnan(loss) else loss, run)

    return sorted(losses, key=key)


def going_on(losses: Mapping[int, float | None], number: int) -> list[int]:
    """The best `number` runs by `ranking`, and those that tie with the last of them: a draw stops nobody.

    A run without a loss ties with nobody.
    """
    order = ranking(losses)
    best, others = order[:number], order[number:]
    last = losses[best[-1]] if best else None
    if last is None:
        return best
    return best + [run for run in others if _equal(losses[run], last)]


def _equal(loss: float | None, other: float) -> bool:
    return loss is not None and math.isclose(loss, other, rel_tol=TIE, abs_tol=TIE)


def next_rung(ladder: Sequence[int], rung: int) -> int | None:
    """The epochs of the rung after `rung`; None when that is the last one, where nobody is stopped any more."""
    later = [step for step in ladder[:-1] if step > rung]
    return later[0] if later else None


def starts(runs: int, ladder: Sequence[int], *, eta: int = ETA) -> list[int]:
    """How many runs set out for each rung."""
    counts = [runs]
    for _ in ladder[1:]:
        counts.append(places(counts[-1], eta=eta))
    return counts


def planned_epochs(epochs: Sequence[int], ladder: Sequence[int] | None = None, *, eta: int = ETA) -> int:
    """Epochs that a search trains in all, early stopping left aside. ladder: the rungs of a race, None for a grid."""
    if ladder is None:
        return sum(epochs)
    steps = zip(starts(len(epochs), ladder, eta=eta), ladder, (0, *ladder), strict=False)
    return sum(runs * (rung - before) for runs, rung, before in steps)


def auc_margin(auc: float, positives: int, negatives: int) -> float | None:
    """Half of the 95 % interval of an area under the ROC curve, 0.5 at most; None without both classes.

    The standard error of Hanley and McNeil (Radiology 1982;143:29-36) is 0 at an area of 1, however few the images
    are. It is therefore taken at the area moved towards chance by one more image of the smaller class, which counts
    half, and the margin is never below the rule of three (Hanley and Lippman-Hand, JAMA 1983;249:1743-5): where none
    of n images went wrong, up to 3/n of them may.
    """
    fewer = min(positives, negatives)
    if fewer <= 0:
        return None
    moved = (auc * fewer + 0.5) / (fewer + 1)
    q1, q2 = moved / (2 - moved), 2 * moved * moved / (1 + moved)
    spread = moved * (1 - moved) + (positives - 1) * (q1 - moved * moved) + (negatives - 1) * (q2 - moved * moved)
    return min(max(1.96 * math.sqrt(max(spread, 0.0) / (positives * negatives)), 3 / fewer), 0.5)
