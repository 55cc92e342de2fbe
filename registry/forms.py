"""Forms of Model Management."""

from django import forms


class ActivateForm(forms.Form):
    reason = forms.CharField(
        max_length=500, required=False, help_text="Why this version goes into service; it is kept in the history."
    )
