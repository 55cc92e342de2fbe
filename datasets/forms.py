"""Forms of the dataset pages."""

from django import forms


class PrepareForm(forms.Form):
    seed = forms.IntegerField(
        min_value=0, max_value=2**31 - 1, initial=0, help_text="The same seed gives the same split."
    )
    image_size = forms.TypedChoiceField(
        coerce=int,
        choices=[(size, f"{size} × {size} pixels") for size in (128, 224, 299)],
        initial=224,
        help_text="224 is what the pretrained architectures were made for.",
    )
