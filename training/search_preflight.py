"""Before a search starts: how many runs and epochs it is, how long it takes, and what speaks against it."""

from dataclasses import asdict, dataclass
from typing import Any

from datasets.models import Dataset
from registry.models import ModelVersion

from .advice import warnings_of
from .ml.architectures import ARCHITECTURES
from .models import TrainingRun
from .preflight import Check, obstacles, prepared_for
from .searching import Candidate, Plan
from .waiting import plan_seconds


@dataclass(frozen=True)
class Outlook:
    """What a search would be. plan: with what its runs start from, so that its comparisons are those of the search.

    checks: only what is a warning or a problem, with the architecture in the name where it is about one.
    seconds: on one worker, early stopping left aside; None where nothing tells.
    """

    plan: Plan
    checks: list[Check]
    seconds: float | None

    @property
    def can_start(self) -> bool:
        return all(check.level != "problem" for check in self.checks)

    @property
    def all_epochs(self) -> int:
        """Of all runs, if each trained to the end."""
        return sum(item.configuration.epochs for item in self.plan.candidates)

    @property
    def to_the_end(self) -> int:
        """The runs that train to the end; with draws it may be more."""
        return self.plan.starts[-1]

    def to_json(self) -> dict[str, Any]:
        return {
            "can_start": self.can_start,
            "runs": len(self.plan.candidates),
            "rungs": self.plan.rungs and list(self.plan.rungs),
            "to_the_end": self.to_the_end,
            "epochs": self.plan.epochs,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "checks": [asdict(check) for check in self.checks],
        }


def outlook(
    dataset: Dataset,
    plan: Plan,
    user: Any,
    *,
    initial: str = TrainingRun.Initial.AUTO,
    version: ModelVersion | None = None,
) -> Outlook:
    """What is to be known before the start; starts nothing. user: None is the command line."""
    preparation, prepared = prepared_for(dataset, plan.base)
    checks = [] if preparation else [prepared]
    pretrained = []
    for architecture in plan.architectures:
        item = _hungriest(plan, architecture)
        found, from_weights = obstacles(
            dataset, preparation, architecture, item.configuration, user, initial=initial, version=version
        )
        name = ARCHITECTURES[architecture].name
        checks += [Check(f"{name}: {check.name.lower()}", check.level, check.text, check.advice) for check in found]
        pretrained += [architecture] if from_weights else []
    checks += [Check("Options", "warning", text) for text in _warnings(dataset, plan)]
    plan = plan.starting_from_weights(pretrained)
    seconds = None if preparation is None else plan_seconds(plan, preparation)
    return Outlook(plan, checks, seconds)


def _hungriest(plan: Plan, architecture: str) -> Candidate:
    """Of the runs of an architecture the one with the largest batches: it needs the most memory."""
    own = ARCHITECTURES[architecture].batch_size
    runs = [item for item in plan.candidates if item.architecture == architecture]
    return max(runs, key=lambda item: item.configuration.batch_size or own)


def _warnings(dataset: Dataset, plan: Plan) -> list[str]:
    """Of all runs, each once."""
    found = (warnings_of(item.configuration.to_json(), dataset.condition) for item in plan.candidates)
    return list(dict.fromkeys(text for texts in found for text in texts))
