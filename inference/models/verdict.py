"""What readers say about answers."""

from typing import Any

from django.conf import settings
from django.db import models, transaction

from xrayplatform import audit
from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

from .prediction import Prediction

LONGEST_COMMENT = 1000


class VerdictError(Exception):
    """The verdict was not taken. The message says why and what to do."""


class VerdictQuerySet(TeamScopedQuerySet):
    team_path = "prediction__version__condition__team"

    def counting(self) -> "VerdictQuerySet":
        """Without those that their reader has replaced: the newest of each reader about each answer."""
        newer = Verdict.objects.filter(
            prediction=models.OuterRef("prediction"), by=models.OuterRef("by"), pk__gt=models.OuterRef("pk")
        )
        return self.filter(~models.Exists(newer))

    def give(self, prediction: Prediction, by: Any, agrees: bool, label: str = "", comment: str = "") -> "Verdict":
        """Store what a reader says about an answer, with its audit entry; the same said again is stored once.

        label: the class that the reader sees; needed of who disagrees, unless there is only one other. Raises
        VerdictError.
        """
        if not prediction.shown:
            raise VerdictError("This is the answer of a shadow, which nobody is shown. It takes no verdict.")
        wanted = {"agrees": agrees, "label": _label(prediction, agrees, label), "comment": _comment(comment)}
        with transaction.atomic():
            before = self.filter(prediction=prediction, by=by).first()
            if before is not None and all(getattr(before, name) == value for name, value in wanted.items()):
                return before
            verdict = self.create(prediction=prediction, by=by, **wanted)
            said = {"prediction": str(prediction.pk), "agrees": agrees, "label": verdict.label}
            replaced = {"agrees": before.agrees, "label": before.label} if before else None
            audit.record("verdict.give", verdict, actor=by, before=replaced, after=said)
        return verdict


def _label(prediction: Prediction, agrees: bool, label: str) -> str:
    """The class that the reader sees. Raises VerdictError."""
    others = [name for name in prediction.version.classes if name != prediction.decision]
    if agrees:
        if label not in ("", prediction.decision):
            raise VerdictError(f"Who agrees sees what was decided, {prediction.decision}. To name another, disagree.")
        return prediction.decision
    if label in others:
        return label
    known = ", ".join(others)
    if label == prediction.decision:
        raise VerdictError(f"{label} is what was decided. Agree, or name another class: {known}.")
    if label:
        raise VerdictError(f"The version knows no such class. Name one that it knows: {known}.")
    if len(others) != 1:
        raise VerdictError(f"Say which class you see: {known}.")
    return str(others[0])


def _comment(comment: str) -> str:
    """Without white space around it. Raises VerdictError."""
    tidy = comment.strip()
    if len(tidy) > LONGEST_COMMENT or "\0" in tidy:
        raise VerdictError(f"A comment has at most {LONGEST_COMMENT:,} characters, and only those that can be printed.")
    return tidy


class Verdict(Immutable):
    """One reader's word about one answer. A reader who changes their mind adds another; the newest counts.

    label: the class that the reader sees; for one who agrees it is the decision.
    """

    prediction = models.ForeignKey(Prediction, models.PROTECT, related_name="verdicts")
    agrees = models.BooleanField()
    label = models.CharField(max_length=200)
    comment = models.CharField(max_length=LONGEST_COMMENT, blank=True)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    at = models.DateTimeField(auto_now_add=True, db_index=True)

    objects = VerdictQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.label} by {self.by}"
