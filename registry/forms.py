"""Forms of Model Management."""

from typing import Any

from django import forms

from .models import ThresholdSet
from .operating_points import COST, SENSITIVITY, SPECIFICITY
from .weighing import BY_HAND, Wish


class OperatingPointForm(forms.Form):
    """What is asked for on the page of operating points. People read and write shares in percent here."""

    criterion = forms.ChoiceField(choices=ThresholdSet.Criterion)
    target = forms.FloatField(
        required=False,
        min_value=0,
        label="Target",
        help_text="A sensitivity or specificity in percent; for the lowest cost, how many false alarms a missed "
        "finding is worth.",
    )
    prevalence = forms.FloatField(
        required=False,
        min_value=0,
        max_value=100,
        label="Prevalence in percent",
        help_text="How many of 100 people who are examined have the finding.",
    )
    threshold = forms.FloatField(required=False, label="Threshold", help_text="A probability between 0 and 1.")

    def clean_threshold(self) -> float | None:
        threshold: float | None = self.cleaned_data["threshold"]
        if threshold is not None and not 0 < threshold < 1:
            raise forms.ValidationError(f"A threshold lies between 0 and 1, and {threshold:g} does not.")
        return threshold

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("target") is None and data.get("criterion") in (SENSITIVITY, SPECIFICITY, COST):
            self.add_error("target", "This criterion needs a target.")
        if data.get("threshold") is None and data.get("criterion") == BY_HAND and "threshold" not in self.errors:
            self.add_error("threshold", "Give the threshold, a probability between 0 and 1.")
        return data

    @property
    def wish(self) -> Wish:
        data = self.cleaned_data
        in_percent = data["criterion"] in (SENSITIVITY, SPECIFICITY)
        return Wish(
            criterion=data["criterion"],
            target=data["target"] / 100 if in_percent else data["target"],
            prevalence=None if data["prevalence"] is None else data["prevalence"] / 100,
            threshold=data["threshold"],
        )


class SaveOperatingPointForm(OperatingPointForm):
    reason = forms.CharField(max_length=500, help_text="Why this threshold is the right one; it is kept.")
