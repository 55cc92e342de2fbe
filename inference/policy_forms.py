"""The form of a condition's serving policy."""

from typing import Any

from django import forms
from django.core import signing

from .models import Response, ServingPolicy
from .policies import CHECK_FIELDS, EXPLANATIONS, LIMITS, problems_of, values_of

_SALT = "serving-policy"
NOT_SEEN = "The form does not say what the policy was when you looked at it. Load the page again."


class PolicyForm(forms.Form):
    """What each check does when it fails, and the limits of a week; `seen` holds the values that were shown."""

    seen = forms.CharField(widget=forms.HiddenInput, error_messages={"required": NOT_SEEN})

    def __init__(self, policy: ServingPolicy, *args: Any, **kwargs: Any) -> None:
        values = values_of(policy)
        super().__init__(*args, initial=values | {"seen": signing.dumps(values, salt=_SALT)}, **kwargs)
        for name in CHECK_FIELDS:
            label = ServingPolicy._meta.get_field(name).verbose_name
            self.fields[name] = forms.ChoiceField(choices=Response.choices, label=label)
            self.fields[name].widget.attrs = {"class": "form-select", "aria-describedby": f"id_{name}_help"}
        for name, limit in LIMITS.items():
            self.fields[name] = forms.FloatField(
                label=limit.label, min_value=limit.lowest, max_value=limit.highest, widget=forms.NumberInput
            )
            describedby = f"id_{name}_help"
            self.fields[name].widget.attrs |= {"class": "form-control", "step": "any", "aria-describedby": describedby}

    def clean_seen(self) -> dict[str, Any]:
        try:
            return dict(signing.loads(self.cleaned_data["seen"], salt=_SALT))
        except signing.BadSignature as error:
            raise forms.ValidationError(NOT_SEEN) from error

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        known = {name: given[name] for name in (*CHECK_FIELDS, *LIMITS) if name in given}
        for name, problem in problems_of(known).items():
            self.add_error(name, problem)
        return given

    @property
    def changes(self) -> dict[str, Any]:
        return {name: value for name, value in self.cleaned_data.items() if name != "seen"}

    # -- For the page

    @property
    def checks(self) -> list[dict[str, Any]]:
        return [{"field": self[name], "text": EXPLANATIONS[check]} for name, check in CHECK_FIELDS.items()]

    @property
    def limits(self) -> list[dict[str, Any]]:
        return [{"field": self[name], "limit": limit} for name, limit in LIMITS.items()]
