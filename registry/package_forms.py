"""Forms of the import: a file, then what becomes of it."""

from typing import Any

from django import forms

from xrayplatform.conditions import Condition
from xrayplatform.teams import Team

from .models import ReceivedPackage
from .signing import SignatureState

NEW = ""
YES = {
    SignatureState.UNSIGNED: "I know where this package comes from and answer for it, although nobody signed it",
    SignatureState.UNKNOWN_KEY: "I know whose key this is and answer for the package, although it is not trusted here",
}


class PackageForm(forms.Form):
    file = forms.FileField(
        label="Package",
        widget=forms.FileInput(attrs={"accept": ".zip"}),
        help_text="A file that the export of a version gave; its name ends in .xrpkg.zip.",
    )


class ImportForm(forms.Form):
    """Into which condition, and the yes to an origin that is not trusted."""

    condition = forms.ChoiceField(label="Into the condition", required=False)
    team = forms.ModelChoiceField(
        Team.objects.none(), required=False, help_text="Of a new condition: nobody else sees it and its versions."
    )
    accept = forms.BooleanField(
        error_messages={"required": "Without your yes the package is not imported: its origin is not trusted."}
    )

    def __init__(self, package: ReceivedPackage, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conditions = {one.slug: one for one in package.conditions_for(user)}
        self.state = package.signature_now
        told = package.description["condition"]
        may_create = user.has_perm("xrayplatform.add_condition")
        choices = [(slug, f"{one.name} ({slug})") for slug, one in self.conditions.items()]
        if may_create:
            choices.append((NEW, f"A new one: {told['name'] or told['slug']}"))
        field = self.fields["condition"]
        field.choices = choices
        field.required = not may_create
        field.initial = told["slug"] if told["slug"] in self.conditions else NEW
        self._choose_team(user, may_create)
        if self.state == SignatureState.TRUSTED:
            del self.fields["accept"]
        else:
            self.fields["accept"].label = YES[self.state]

    def _choose_team(self, user: Any, may_create: bool) -> None:
        teams = user.teams.all()
        if not may_create or not teams:
            del self.fields["team"]
            return
        field = self.fields["team"]
        field.queryset, field.initial, field.empty_label = teams, teams.first(), None
        # Somebody of a team must not make a version visible to all by leaving a field empty.
        field.required = True

    @property
    def answered_for(self) -> str:
        """What somebody said yes to; empty for nothing."""
        return self.state.value if self.data.get("accept") else ""

    @property
    def options(self) -> dict[str, Any]:
        """What `PackageImport.create` takes."""
        condition: Condition | None = self.conditions.get(self.cleaned_data["condition"])
        return {
            "condition": condition,
            "team": None if condition else self.cleaned_data.get("team"),
            "accepted": self.answered_for,
        }
