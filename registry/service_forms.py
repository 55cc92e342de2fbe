"""Forms with which versions go into service and out of it."""

from typing import Any

from django import forms

from .models import Deployment, ModelVersion, ThresholdSet, epoch_of

TOO_LONG = "The reason is too long; 500 characters at most."
NO_REASON = "Give the reason; it is kept in the history."
NOT_SEEN = "The form does not say what was in service when you looked. Load the page again."


class ThresholdSetField(forms.ModelChoiceField):
    def label_from_instance(self, point: ThresholdSet) -> str:
        return f"Set {point.number}: {100 * point.threshold:.1f} %, {point.reason}"


class SwitchForm(forms.Form):
    """A change of what is in service: why, and which state of the deployment was looked at."""

    reason = forms.CharField(
        max_length=500,
        help_text="Why; it is kept in the history.",
        error_messages={"max_length": TOO_LONG, "required": NO_REASON},
    )
    epoch = forms.IntegerField(
        min_value=0, widget=forms.HiddenInput, error_messages={"required": NOT_SEEN, "invalid": NOT_SEEN}
    )

    def __init__(self, deployment: Deployment | None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["epoch"].initial = epoch_of(deployment)

    @property
    def problems(self) -> str:
        return " ".join(error for errors in self.errors.values() for error in errors)


class RollbackForm(SwitchForm):
    """Beside the form of the same page that activates."""

    prefix = "rollback"


class ActivateForm(SwitchForm):
    threshold_set = ThresholdSetField(ThresholdSet.objects.none(), required=False, label="Threshold")
    at = forms.DateTimeField(
        required=False,
        label="Not before",
        widget=forms.DateTimeInput({"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text="Leave empty to activate now.",
        error_messages={"invalid": "Give day and time, or leave the time empty to activate now."},
    )
    field_order = ["threshold_set", "reason", "at", "epoch"]

    def __init__(self, version: ModelVersion, deployment: Deployment | None, *args: Any, **kwargs: Any) -> None:
        super().__init__(deployment, *args, **kwargs)
        field = self.fields["threshold_set"]
        field.queryset = version.threshold_sets.all()
        if not field.queryset:
            del self.fields["threshold_set"]
            return
        field.empty_label = f"As trained: {100 * version.threshold:.1f} %"
        if deployment and deployment.active_id == version.pk:
            field.initial = deployment.threshold_set_id
