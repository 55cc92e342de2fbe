"""Forms of the page about the space of versions: since when something is old, and why it is to go."""

from typing import Any

from django import forms
from django.http import QueryDict

from xrayplatform.conditions import Condition

from .models.state_change import LONGEST_REASON
from .space import DAYS, MAX_DAYS


class StorageForm(forms.Form):
    """Which condition, and from which age on versions are proposed; what cannot be used is as if it were not there."""

    condition = forms.ModelChoiceField(
        Condition.objects.none(), to_field_name="slug", required=False, empty_label="All conditions"
    )
    days = forms.IntegerField(label="Older than, in days", min_value=0, max_value=MAX_DAYS, required=False)

    def __init__(self, user: Any, given: QueryDict) -> None:
        super().__init__({"days": DAYS, **given.dict()})
        self.fields["condition"].queryset = Condition.objects.visible_to(user)

    @property
    def only(self) -> Condition | None:
        return self.cleaned_data.get("condition") if self.is_valid() else None

    @property
    def age(self) -> int:
        days = self.cleaned_data.get("days") if self.is_valid() else None
        return DAYS if days is None else days


class ReasonForm(forms.Form):
    reason = forms.CharField(
        max_length=LONGEST_REASON,
        help_text="Why; it is kept.",
        error_messages={
            "required": "Give the reason; it is kept.",
            "max_length": f"The reason is too long; {LONGEST_REASON} characters at most.",
        },
    )
