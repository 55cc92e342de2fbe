"""The forms that start a training and that save its options under a name."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from datasets.models import Dataset
from registry.models import ModelVersion
from xrayplatform.teams import Team

from .configurations import (
    GROUPS,
    OPTIONS,
    PREPROCESSING_STEPS,
    PRESETS,
    Configuration,
    Option,
    Preset,
    complaints,
)
from .ml.architectures import ARCHITECTURES
from .models import SavedPreset, TrainingRun


class VersionField(forms.ModelChoiceField):
    """A version to start from, with what decides whether its weights fit."""

    def label_from_instance(self, version: ModelVersion) -> str:
        return f"{version}, {version.architecture}"


class OptionsForm(forms.Form):
    """Every training option; what is left empty is taken from `base`."""

    def __init__(self, *args: Any, base: Configuration, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, option in OPTIONS.items():
            self.fields[name] = _field(option, getattr(base, name))

    @property
    def option_names(self) -> list[str]:
        return list(OPTIONS)

    @property
    def entered(self) -> set[str]:
        """The options whose fields hold something."""
        return {name for name in OPTIONS if self[name].value() not in (None, "")}

    @property
    def groups(self) -> list[tuple[str, list[forms.BoundField]]]:
        """The fields of the options by group, in order."""
        return [(group, [self[name] for name, option in OPTIONS.items() if option.group == group]) for group in GROUPS]

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that somebody set."""
        values = {name: self.cleaned_data.get(name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    def configured(self, base: Configuration) -> Configuration | None:
        """`base` with what somebody set; None, with an error at each field that is wrong, if that cannot be."""
        wrong = complaints(self.chosen)
        for name, complaint in wrong.items():
            self.add_error(name, complaint)
        return None if wrong else base.with_options(**self.chosen)


def _field(option: Option, value: Any) -> forms.Field:
    """What a page asks an option with. value: what it is when nothing is entered.

    The range is told to the browser and checked by the configuration, whose message names the field.
    """
    words = {"label": option.label, "help_text": option.help, "required": False}
    usual = option.words(value)
    nothing = f"{usual[0].upper()}{usual[1:]} (as configured)"
    if option.name == "preprocessing":
        return PreprocessingField(**words)
    if option.is_switch:
        switch = [("", nothing), ("true", "On"), ("false", "Off")]
        return forms.TypedChoiceField(choices=switch, coerce="true".__eq__, empty_value=None, **words)
    if option.range is None:
        choices = [("", nothing), *option.choices.items()]
        kind = type(next(iter(option.choices)))
        return forms.TypedChoiceField(choices=choices, coerce=kind, empty_value=None, **words)
    limits = option.range
    words["help_text"] = f"{option.help} {'Above ' if limits.above else ''}{limits.low:g} to {limits.high:.10g}."
    attrs = {"min": limits.low, "max": limits.high, "placeholder": usual}
    if limits.kind is int:
        return forms.IntegerField(widget=forms.NumberInput(attrs), **words)
    return forms.FloatField(widget=forms.NumberInput(attrs | {"step": "any"}), **words)


def shown(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Stored options as the fields of a form show them."""
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in configuration.items()}


class PreprocessingField(forms.MultipleChoiceField):
    """Steps of the preprocessing as a list; nothing ticked is None, and "none" the empty list."""

    NONE = "none"
    widget = forms.CheckboxSelectMultiple

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=[(self.NONE, "None of them"), *PREPROCESSING_STEPS.items()], **kwargs)

    def bound_data(self, data: Any, initial: Any) -> Any:
        # Nothing ticked is no choice; the empty list, as it is stored, is that of no step.
        return data or None

    def prepare_value(self, value: Any) -> Any:
        return [self.NONE] if value in ([], ()) else value

    def clean(self, value: Any) -> list[str] | None:
        steps = super().clean(value)
        if self.NONE in steps and len(steps) > 1:
            raise ValidationError("Preprocessing is either none of the steps or some of them.")
        return [step for step in steps if step != self.NONE] if steps else None


class InitialWeightsForm(forms.Form):
    """What trainings start from."""

    initial = forms.ChoiceField(label="Initial weights", choices=TrainingRun.Initial.choices, required=False)
    initial_version = VersionField(
        ModelVersion.objects.none(), label="Version to start from", required=False, empty_label="none"
    )

    def offer_versions(self, user: Any) -> None:
        self.fields["initial_version"].queryset = ModelVersion.objects.to_start_from(user)
        self.fields["initial_version"].widget.attrs["class"] = "form-select narrow"

    def clean_initial(self) -> str:
        return self.cleaned_data["initial"] or TrainingRun.Initial.AUTO

    def clean_initial_version(self) -> ModelVersion | None:
        """The version, if one is to be started from; what else the list shows then does not count."""
        if self.cleaned_data.get("initial") != TrainingRun.Initial.VERSION:
            return None
        version = self.cleaned_data["initial_version"]
        if version is None:
            raise forms.ValidationError("Choose the version whose weights the training is to start from.")
        return version


class RunForm(InitialWeightsForm, OptionsForm):
    """Dataset, architecture, initial weights and preset, with the options that are to differ from the preset."""

    dataset = forms.ModelChoiceField(Dataset.objects.none(), empty_label=None)
    architecture = forms.ChoiceField(choices=[(key, item.name) for key, item in ARCHITECTURES.items()])
    configuration = forms.ChoiceField()

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        self.presets: dict[str, Preset] = SavedPreset.objects.offered_to(user)
        given = args[0] if args and args[0] is not None else kwargs.get("initial") or {}
        super().__init__(*args, base=self.preset(given.get("configuration")).configuration, **kwargs)
        datasets = Dataset.objects.visible_to(user).filter(state=Dataset.State.PRESENT)
        self.fields["dataset"].queryset = datasets
        self.offer_versions(user)
        self.fields["configuration"].choices = [(key, preset.label) for key, preset in self.presets.items()]

    def preset(self, key: Any) -> Preset:
        """The chosen preset, or the first of all while none is chosen."""
        return self.presets.get(key) or PRESETS["quick"]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        self.run_preset = self.preset(cleaned.get("configuration"))
        self.run_configuration = self.configured(self.run_preset.configuration)
        return cleaned


class PresetForm(OptionsForm):
    """A name for options, and the options; what is left empty is as in Standard."""

    name = forms.CharField(max_length=60)
    description = forms.CharField(max_length=300, required=False, help_text="What it is good for, in a sentence.")
    team = forms.ModelChoiceField(
        Team.objects.none(), required=False, empty_label="Everybody", help_text="Who sees it and may change it."
    )

    def __init__(self, *args: Any, user: Any, preset: SavedPreset, **kwargs: Any) -> None:
        self.base = PRESETS["standard"].configuration
        super().__init__(*args, base=self.base, **kwargs)
        self.user, self.preset = user, preset
        self.fields["team"].queryset = Team.objects.all() if user.is_superuser else user.teams.all()

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        configuration = self.configured(self.base)
        if configuration is not None:
            self.preset.configuration = configuration.to_json()
        return cleaned

    def store(self) -> bool:
        """Whether it was saved; otherwise the form says why not."""
        for name in ("name", "description", "team"):
            setattr(self.preset, name, self.cleaned_data[name])
        try:
            self.preset.store(self.user)
        except ValidationError as error:
            self.add_error(None, error)
            return False
        return True
