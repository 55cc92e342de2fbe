"""Forms of Model Management."""

from typing import Any

from django import forms

from .models import Deployment, ModelVersion, ThresholdSet
from .operating_points import COST, SENSITIVITY, SPECIFICITY
from .weighing import BY_HAND, Wish


class ThresholdSetField(forms.ModelChoiceField):
    def label_from_instance(self, point: ThresholdSet) -> str:
        return f"Set {point.number}: {100 * point.threshold:.1f} %, {point.reason}"


class ActivateForm(forms.Form):
    threshold_set = ThresholdSetField(ThresholdSet.objects.none(), required=False, label="Threshold")
    reason = forms.CharField(
        max_length=500,
        required=False,
        help_text="Why this goes into service; it is kept in the history.",
        error_messages={"max_length": "The reason is too long; 500 characters at most."},
    )

    def __init__(self, version: ModelVersion, deployment: Deployment | None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["threshold_set"]
        field.queryset = version.threshold_sets.all()
        if not field.queryset:
            del self.fields["threshold_set"]
            return
        field.empty_label = f"As trained: {100 * version.threshold:.1f} %"
        if deployment and deployment.active_id == version.pk:
            field.initial = deployment.threshold_set_id


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
