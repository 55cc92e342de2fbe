"""The forms of batches: several files or archives, or a folder of a dataset."""

from typing import Any

from django import forms

from datasets.models import Dataset
from datasets.uploading import image_folders
from datasets.views.uploads import ImagesField, ImagesInput
from xrayplatform.conditions import Condition

MAX_FOLDERS = 500


class BatchForm(forms.Form):
    """What every batch has."""

    condition = forms.ModelChoiceField(Condition.objects.none(), to_field_name="slug", empty_label=None)
    name = forms.CharField(
        label="Name", required=False, max_length=200,
        help_text="To find it again, such as Night shift 12 March. Leave names of patients out.",
    )  # fmt: skip

    def __init__(self, *args: Any, user: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["condition"].queryset = Condition.objects.visible_to(user)


class FilesForm(BatchForm):
    files = ImagesField(
        label="Radiographs",
        allow_empty_file=True,
        help_text="JPEG, PNG or DICOM files, or zip archives of them.",
        widget=ImagesInput(attrs={"accept": ".jpg,.jpeg,.png,.dcm,.zip,application/dicom"}),
    )


class FolderForm(BatchForm):
    folder = forms.ChoiceField(required=False)

    def __init__(self, *args: Any, dataset: Dataset, **options: Any) -> None:
        # Both forms stand on one page.
        super().__init__(*args, auto_id="folder_%s", **options)
        folders = sorted(image_folders(dataset) - {""})[:MAX_FOLDERS]
        self.fields["folder"].choices = [("", "All folders"), *((folder, folder) for folder in folders)]
