"""The form of X-ray Analysis."""

from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import UploadedFile

from xrayplatform.conditions import Condition


class AnalysisForm(forms.Form):
    condition = forms.ModelChoiceField(Condition.objects.none(), to_field_name="slug", empty_label=None)
    image = forms.FileField(
        label="Radiograph",
        help_text="One JPEG, PNG or DICOM file. The image is not stored.",
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
