"""The forms of X-ray Analysis, of verdicts, and of the search in earlier analyses."""

from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import UploadedFile

from registry.models import ModelVersion
from xrayplatform.conditions import Condition

from .models import Prediction
from .models.verdict import LONGEST_COMMENT


class AnalysisForm(forms.Form):
    condition = forms.ModelChoiceField(Condition.objects.none(), to_field_name="slug", empty_label=None)
    image = forms.FileField(
        label="Radiograph",
        help_text="One JPEG, PNG or DICOM file.",
        widget=forms.ClearableFileInput(
            attrs={"accept": ".jpg,.jpeg,.png,.dcm,application/dicom,image/jpeg,image/png"}
        ),
    )

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["condition"].queryset = Condition.objects.visible_to(user)

    def clean_image(self) -> UploadedFile:
        image = self.cleaned_data["image"]
        if image.size > settings.MAX_UPLOAD_MB * 1024 * 1024:
            raise ValidationError(f"The file is larger than the limit of {settings.MAX_UPLOAD_MB} MB.")
        return image


class VerdictForm(forms.Form):
    """What a reader says; whether the label goes with it is for `Verdict.objects.give` to judge."""

    verdict = forms.ChoiceField(
        choices=[("agree", "Agree"), ("disagree", "Disagree")],
        error_messages={"required": "Say whether you agree or disagree."},
    )
    label = forms.CharField(required=False, max_length=200)
    comment = forms.CharField(required=False, max_length=LONGEST_COMMENT)

    def __init__(self, *args: Any, prediction: Prediction, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prediction = prediction

    @property
    def messages(self) -> list[str]:
        """Every error in words."""
        return [message for field in self.errors.values() for message in field]


class HistoryForm(forms.Form):
    """Which earlier analyses are listed. A field that is left empty leaves nothing out."""

    VERDICTS = (
        ("", "Any"),
        ("given", "Given"),
        ("none", "None yet"),
        ("not mine", "None of mine yet"),
        ("disagreed", "Somebody disagreed"),
    )

    condition = forms.ModelChoiceField(
        Condition.objects.none(), to_field_name="slug", empty_label="Any", required=False
    )
    version = forms.ModelChoiceField(ModelVersion.objects.none(), empty_label="Any", required=False)
    decision = forms.ChoiceField(required=False)
    verdict = forms.ChoiceField(choices=VERDICTS, required=False)
    since = forms.DateField(label="From", required=False, widget=forms.DateInput(attrs={"type": "date"}))
    until = forms.DateField(label="To", required=False, widget=forms.DateInput(attrs={"type": "date"}))
    who = forms.CharField(
        label="Analysed by", required=False, max_length=150, widget=forms.TextInput(attrs={"autocomplete": "off"})
    )
    channel = forms.ChoiceField(label="Way", choices=[("", "Any"), *Prediction.Channel.choices], required=False)

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        versions = ModelVersion.objects.visible_to(user)
        self.fields["condition"].queryset = Condition.objects.visible_to(user)
        self.fields["version"].queryset = versions.select_related("condition").only("number", "condition__slug")
        names = sorted({name for classes in versions.values_list("classes", flat=True) for name in classes})
        self.fields["decision"].choices = [("", "Any"), *((name, name) for name in names)]
        for field in self.fields.values():
            is_choice = isinstance(field, forms.ChoiceField)
            field.widget.attrs["class"] = "form-select" if is_choice else "form-control"

    @property
    def chosen(self) -> dict[str, Any]:
        """What was asked for and is right."""
        return {name: value for name, value in self.cleaned_data.items() if value} if self.is_valid() else {}
