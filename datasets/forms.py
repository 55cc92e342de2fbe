"""Forms of the dataset pages."""

from typing import Any

from django import forms

from xrayplatform.conditions import Condition

from .enhancement import EXCLUSIVE, STEPS
from .models import COMMENT_LENGTH, FIELD_LIMITS, IMAGE_SIZES, MAX_SEED, Dataset, Decision, Preparation

SHARE_LIMITS = FIELD_LIMITS["test_share"]


class PrepareForm(forms.Form):
    seed = forms.IntegerField(
        min_value=0, max_value=MAX_SEED, initial=0, help_text="The same seed gives the same split."
    )
    image_size = forms.TypedChoiceField(
        coerce=int,
        choices=[(size, f"{size} by {size} pixels") for size in IMAGE_SIZES],
        initial=224,
        help_text="224 is what the pretrained architectures were made for.",
    )
    fit = forms.ChoiceField(
        label="Shape",
        choices=Preparation.Fit,
        initial=Preparation.Fit.AUTO,
        help_text="How images become square. Automatic squeezes if the whole dataset is square already, and keeps the "
        "proportions, with black bars, if not. New radiographs are treated exactly like those of the training.",
    )
    steps = forms.MultipleChoiceField(
        label="Preprocessing",
        initial=[],
        required=False,
        choices=list(STEPS.items()),
        widget=forms.CheckboxSelectMultiple,
        help_text="Usually none. New radiographs are treated alike; training finds this preparation by them.",
    )
    test_share = forms.FloatField(
        label="Test share",
        min_value=SHARE_LIMITS[0],
        max_value=SHARE_LIMITS[1],
        initial=0.15,
        widget=forms.NumberInput(attrs={"step": "0.01"}),
        help_text="Share of the images that is locked away for the final test; 0.15 to 0.20 is usual.",
    )
    validation_share = forms.FloatField(
        label="Validation share",
        min_value=SHARE_LIMITS[0],
        max_value=SHARE_LIMITS[1],
        initial=0.15,
        widget=forms.NumberInput(attrs={"step": "0.01"}),
        help_text="Share of the images on which epochs and thresholds are chosen.",
    )
    source_splits = forms.ChoiceField(
        label="Train, validation and test folders",
        choices=Preparation.SourceSplits,
        initial=Preparation.SourceSplits.HONOUR,
        help_text="Where the folders bring a division, it is kept; patients and near-duplicates on both sides go into "
        "the training part. Without such folders this changes nothing.",
    )

    def clean_steps(self) -> list[str]:
        steps: list[str] = self.cleaned_data["steps"]
        if set(steps) >= EXCLUSIVE:
            raise forms.ValidationError("Preprocessing takes one kind of equalisation, not both.")
        return steps


class AnswerForm(forms.Form):
    """The question that a scan asked, with its possible answers."""

    answer = forms.ChoiceField(label="", widget=forms.RadioSelect)

    def __init__(self, *args: Any, dataset: Dataset, **options: Any) -> None:
        super().__init__(*args, **options)
        question = dataset.question or {"options": [], "suggested": ""}
        self.fields["answer"].choices = [(option["value"], option["label"]) for option in question["options"]]
        self.fields["answer"].initial = dataset.answer or question["suggested"]


class ClassesForm(forms.Form):
    """One name a class found: another name renames it, the same name merges two, no name drops the class."""

    def __init__(self, *args: Any, dataset: Dataset, **options: Any) -> None:
        super().__init__(*args, **options)
        self.dataset = dataset
        for number, name in enumerate(dataset.source_classes):
            self.fields[f"class_{number}"] = forms.CharField(
                label=name, required=False, max_length=200, initial=dataset.label_of(name)
            )
        self.fields["positive"] = forms.CharField(
            label="Positive class",
            required=False,
            max_length=200,
            initial=dataset.positive_class,
            help_text="Of two classes the one that means disease; sensitivity is about it.",
        )
        self.fields["ordinal"] = forms.BooleanField(
            label="The classes are grades that follow each other",
            required=False,
            initial=dataset.ordinal,
            help_text="Then a grade that is one off counts less than one that is four off.",
        )

    @property
    def class_fields(self) -> list[tuple[forms.BoundField, int]]:
        """The field of each class found, with its number of images."""
        counts = self.dataset.source_counts
        names = self.dataset.source_classes
        return [(self[f"class_{number}"], counts.get(name, 0)) for number, name in enumerate(names)]

    @property
    def choices(self) -> dict[str, str]:
        return {name: self.cleaned_data[f"class_{number}"] for number, name in enumerate(self.dataset.source_classes)}


class ConditionForm(forms.Form):
    condition = forms.ModelChoiceField(
        Condition.objects.none(),
        label="Condition",
        help_text="The clinical question that models trained on this dataset answer. It also says which team sees it.",
    )

    def __init__(self, *args: Any, dataset: Dataset, user: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["condition"].queryset = Condition.objects.visible_to(user)
        self.fields["condition"].initial = dataset.condition_id


class PatternForm(forms.Form):
    pattern = forms.CharField(
        required=False,
        max_length=200,
        strip=False,
        label="Regular expression",
        help_text="Searched in each file's name without its ending; its one group is the patient. "
        "For example (\\d+)_\\d+ or ^(?P<patient>[A-Z]+\\d+). Empty: the built-in patterns.",
    )


class DecideAllForm(forms.Form):
    """One decision about all images with a finding that nobody has judged yet."""

    code = forms.CharField(max_length=30, widget=forms.HiddenInput)
    action = forms.ChoiceField(choices=[*Decision.Action.choices, ("spare-one", "Keep one of each")])
    reason = forms.CharField(max_length=300)


class FlagForm(forms.Form):
    """Why a label is wrong, or that it is not after all."""

    action = forms.ChoiceField(choices=[("flag", "The label is wrong"), ("withdraw", "Take back")])
    suggestion = forms.CharField(max_length=200, required=False)
    comment = forms.CharField(max_length=COMMENT_LENGTH, required=False)


class DecisionForm(forms.Form):
    code = forms.ChoiceField(
        choices=[(code, code) for code in Decision.CODES], initial=Decision.BY_HAND, widget=forms.HiddenInput
    )
    action = forms.ChoiceField(choices=[*Decision.Action.choices, ("withdraw", "Take back")])
    reason = forms.CharField(max_length=300, required=False)
