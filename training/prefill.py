"""What the form that starts a training begins with when a link names an earlier run."""

from typing import Any

from .configurations import OPTIONS, PRESETS, Configuration, ConfigurationError
from .forms import shown
from .ml.architectures import ARCHITECTURES
from .models import TrainingRun

# What a hint advises to do with the learning rate, by its code; see hints.WHAT_TO_DO.
RATE_FACTORS = {"not-a-number": 0.1, "diverging": 0.1, "jumping": 1 / 3, "collapsed": 1 / 3}


def as_in(run: TrainingRun, hint: str = "") -> dict[str, Any]:
    """All that `run` was started with. hint: the code of an advice, which is followed where it is about a number.

    Options that are as in its configuration stay empty, so that another configuration can still be chosen.
    """
    configuration = run.preset if run.preset in PRESETS else "standard"
    usual = PRESETS[configuration].configuration.to_json()
    options = _options(run)
    if hint in RATE_FACTORS and run.architecture in ARCHITECTURES:
        options["learning_rate"] = float(f"{_rate(run, options) * RATE_FACTORS[hint]:.2g}")
    return {
        "dataset": run.preparation.dataset_id,
        "architecture": run.architecture,
        "initial": run.initial,
        "initial_version": run.initial_version_id,
        "configuration": configuration,
        **shown({name: value for name, value in options.items() if value != usual[name]}),
    }


def _options(run: TrainingRun) -> dict[str, Any]:
    """As this release has them; of one that does not understand them any more, those there still are."""
    try:
        return Configuration.from_json(run.configuration).to_json()
    except ConfigurationError:
        return {name: value for name, value in run.configuration.items() if name in OPTIONS}


def _rate(run: TrainingRun, options: dict[str, Any]) -> float:
    entry = ARCHITECTURES[run.architecture]
    own = entry.pretrained_learning_rate if run.starts_from_weights else entry.learning_rate
    return options.get("learning_rate") or own
