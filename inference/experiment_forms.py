"""Forms with which experiments begin and end."""

from typing import Any

from django import forms

from registry.models import Deployment, ModelVersion
from registry.service_forms import NO_REASON, TOO_LONG, SwitchForm

from .models import Experiment


class VersionField(forms.ModelChoiceField):
    def label_from_instance(self, version: ModelVersion) -> str:
        auc = "" if version.auc is None else f", test AUC {version.auc:.3f}"
        return f"v{version.number}: {version.architecture}{auc}, {version.get_state_display().lower()}"


class ExperimentForm(SwitchForm):
    """What to try beside the version in service, how, and when it stops by itself."""

    challenger = VersionField(
        ModelVersion.objects.none(), label="Challenger", help_text="The version to try.", empty_label=None
    )
    kind = forms.ChoiceField(
        choices=[
            (Experiment.Kind.SHADOW, "Shadow: both read every radiograph, only the champion's answer is shown"),
            (Experiment.Kind.AB, "A/B: the challenger answers a share of the studies"),
        ],
        widget=forms.RadioSelect,
        initial=Experiment.Kind.SHADOW,
        label="How",
    )
    share = forms.IntegerField(
        min_value=1,
        max_value=99,
        initial=10,
        label="Share of the studies in per cent",
        help_text="For A/B. All images of one study get the same version; which, is drawn by lot.",
    )
    max_error_rate = forms.FloatField(
        min_value=0,
        max_value=0.99,
        initial=0.05,
        label="Stop when more than this share of its requests fail",
        help_text="0.05 are 5 %. Who asked gets the champion's answer then.",
    )
    max_latency_ratio = forms.FloatField(
        min_value=1, initial=3, label="Stop when it takes more than so many times as long", help_text="By the medians."
    )
    min_requests = forms.IntegerField(
        min_value=1, max_value=100_000, initial=20, label="Requests before it may be stopped for that"
    )
    field_order = ["challenger", "kind", "share", "reason", "max_error_rate", "max_latency_ratio", "min_requests"]

    def __init__(self, deployment: Deployment, challengers: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(deployment, *args, **kwargs)
        self.fields["challenger"].queryset = challengers

    def wish(self) -> dict[str, Any]:
        """The arguments of `Experiment.objects.start` but for the condition, the challenger and who asks."""
        names = ("kind", "share", "reason", "max_error_rate", "max_latency_ratio", "min_requests")
        return {name: self.cleaned_data[name] for name in names} | {"seen_epoch": self.cleaned_data["epoch"]}


class EndForm(forms.Form):
    """Why an experiment ends. `prefix` tells the two forms of one page apart."""

    reason = forms.CharField(
        max_length=500,
        help_text="Why; it is kept in the history.",
        error_messages={"max_length": TOO_LONG, "required": NO_REASON},
    )

    @property
    def problems(self) -> str:
        return " ".join(error for errors in self.errors.values() for error in errors)
