"""Forms of the dataset pages."""

from django import forms

from .models import IMAGE_SIZES, MAX_SEED, Preparation


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
