"""What a condition's serving policy means in words, which values make sense, and how it is changed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.db import transaction

from xrayplatform import audit
from xrayplatform.conditions import Condition

from . import gate
from .models import Response, ServingPolicy

# By the check's name: what it looks at, and what is lost by refusing.
EXPLANATIONS: Final = {
    "size": "The picture is much smaller than what the model looks at, or a strip many times as long as wide. Small "
    "exports of the right radiograph are common: refusing makes people export it again.",
    "contrast": "The picture is empty: all of it has one grey value. There is nothing to read.",
    "picture": "The picture is a drawing, a document, a screenshot or noise. The model knows radiographs alone.",
    "colour": "The picture is as colourful as a photograph. Tinted scans of film do not fail this check.",
    "modality": "The file says that it comes from another kind of examination, such as computed tomography.",
    "body-part": "The file says that it shows another body part than the one the model was made for. Devices are "
    "sometimes set to the wrong one: refusing makes people correct it.",
    "inverted": "Bones are dark on a bright background, and the negative is like the training images. Needs a "
    "reference of the version.",
    "unlike": "What the network sees is far from all that it learned from. A rare disease or an implant can be far "
    "away, too: refusing keeps the model from answering for them. Needs a reference of the version.",
}
RESPONSES: Final = {
    Response.WARN: "Warn: the answer is given, with the warning beside it.",
    Response.REFUSE: "Refuse: no answer is given, and the reason is shown instead.",
}


@dataclass(frozen=True)
class Limit:
    """A figure of a week in use beyond which people are told. unit: in words; highest: None where there is none."""

    label: str
    unit: str
    lowest: float
    highest: float | None
    text: str

    @property
    def range(self) -> str:
        if self.highest is None:
            return f"above {self.lowest:g}"
        return f"{self.lowest:g} to {self.highest:g}"


LIMITS: Final = {
    "max_refusal_share": Limit(
        "Refused by the gate, at most", "share of the requests", 0, 1, "0.2 are 20 %. 1 never tells."
    ),
    "max_error_share": Limit(
        "Failed on our side, at most", "share of the requests", 0, 1, "0.02 are 2 %. 1 never tells."
    ),
    "max_latency_ms": Limit(
        "Time to an answer, at most", "milliseconds", 0, None, "95th percentile: one answer in twenty takes longer."
    ),
    "max_psi": Limit(
        "Drift, at most",
        "population stability index",
        0,
        None,
        "Of a measure of the images or of the probabilities, against validation. Usually below 0.1 is called stable "
        "and above 0.25 a shift.",
    ),
    "min_agreement": Limit(
        "Agreement of readers, at least", "share of the judged answers", 0, 1, "0.8 are 80 %. 0 never tells."
    ),
}
# A limit of nothing would tell about every week; a share of 0 is meant: not one request.
_POSITIVE: Final = ("max_latency_ms", "max_psi")
LARGEST: Final = 1e9
CHECK_FIELDS: Final = {f"on_{check.replace('-', '_')}": check for check in gate.CHECKS}
FIELDS: Final = (*CHECK_FIELDS, *LIMITS)


class PolicyError(Exception):
    """A value makes no sense. problems: by field, in words; nothing was changed."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__(" ".join(problems.values()))
        self.problems = dict(problems)


class PolicyConflict(Exception):
    """Somebody else changed the policy since it was looked at. Nothing was changed."""

    def __init__(self) -> None:
        super().__init__(
            "Somebody else has changed this policy since you looked at it. Nothing was changed: look at it again."
        )


def values_of(policy: ServingPolicy) -> dict[str, Any]:
    return {name: getattr(policy, name) for name in FIELDS}


def problems_of(changes: Mapping[str, Any]) -> dict[str, str]:
    """By field why its value makes no sense; empty when all do."""
    found = {name: _problem(name, value) for name, value in changes.items()}
    return {name: problem for name, problem in found.items() if problem}


def _problem(name: str, value: Any) -> str:
    if name in CHECK_FIELDS:
        known = ", ".join(Response.values)
        return "" if value in Response.values else f"{name} is one of {known}."
    if name not in LIMITS:
        return f"There is no {name}; there are {', '.join(FIELDS)}."
    limit = LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{name} is a number."
    highest = LARGEST if limit.highest is None else limit.highest
    if not limit.lowest <= value <= highest or (name in _POSITIVE and value == 0):
        return f"{name} is {limit.range}, in {limit.unit}."
    return ""


def change(
    condition: Condition, changes: Mapping[str, Any], *, by: Any, seen: Mapping[str, Any] | None = None
) -> ServingPolicy:
    """Change the named fields, with an audit entry of what they were; no entry where nothing changes.

    seen: the values that whoever decides looked at, of the fields that they want to change or of more. Raises
    PolicyError, and PolicyConflict when one of these is another now.
    """
    problems = problems_of(changes)
    if problems:
        raise PolicyError(problems)
    with transaction.atomic():
        # The row may not be there yet: the condition's stands for it.
        Condition.objects.select_for_update().get(pk=condition.pk)
        policy = ServingPolicy.objects.of(condition)
        now = values_of(policy)
        if seen is not None and any(now[name] != value for name, value in seen.items()):
            raise PolicyConflict
        different = {name: value for name, value in changes.items() if now[name] != value}
        if different:
            for name, value in different.items():
                setattr(policy, name, value)
            policy.save()
            before = {name: now[name] for name in different}
            audit.record("servingpolicy.change", policy, actor=by, before=before, after=different)
    return policy
