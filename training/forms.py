"""The form that starts a training."""

from typing import Any

from django import forms

from datasets.models import Dataset

from .configurations import PRESETS, USER_OPTIONS, Configuration, ConfigurationError
from .ml.architectures import ARCHITECTURES


class RunForm(forms.Form):
    """Dataset, architecture and preset, with a few options that may differ from the preset."""

    dataset = forms.ModelChoiceField(Dataset.objects.none(), empty_label=None)
    architecture = forms.ChoiceField(choices=[(key, item.name) for key, item in ARCHITECTURES.items()])
    configuration = forms.ChoiceField(choices=[(key, preset.label) for key, preset in PRESETS.items()])
    epochs = forms.IntegerField(required=False, min_value=1)
    batch_size = forms.IntegerField(required=False, min_value=1)
    learning_rate = forms.FloatField(required=False)
    seed = forms.IntegerField(required=False, min_value=0)

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        datasets = Dataset.objects.visible_to(user).filter(state=Dataset.State.PRESENT)
        self.fields["dataset"].queryset = datasets
        for name in USER_OPTIONS:
            self.fields[name].widget.attrs["placeholder"] = "as in the configuration"

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        options = {name: cleaned[name] for name in USER_OPTIONS if cleaned.get(name) is not None}
        preset = PRESETS.get(cleaned.get("configuration", ""))
        if preset is None:
            return cleaned
        try:
            self.run_configuration: Configuration = preset.configuration.with_options(**options)
        except ConfigurationError as error:
            self.add_error(error.field if error.field in self.fields else None, str(error))
        return cleaned
