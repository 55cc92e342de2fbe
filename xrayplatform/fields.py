"""Fields and serializers of the API that take nothing but what was meant: where the usual ones guess, these refuse."""

import re
from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from .http import MAX_ROW

# Characters of a wrong value that its message repeats.
MAX_SHOWN = 40


def shown(value: Any) -> str:
    """A wrong value as messages repeat it."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


class RowField(serializers.PrimaryKeyRelatedField):
    """A row by its number: a whole number, also as text. What no number of a row can be is refused, not rounded."""

    default_error_messages = {"incorrect_type": "Must be the number of a row, a whole number, not {data_type}."}

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, str) and data.isascii() and data.isdecimal():
            # One digit more than MAX_ROW has is out of range, however many follow.
            data = int(data[:20])
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("incorrect_type", data_type=shown(data))
        if not 0 <= data <= MAX_ROW:
            self.fail("does_not_exist", pk_value=shown(data))
        return super().to_internal_value(data)


class NumberField(serializers.FloatField):
    """A number; true and false are none. A whole one stays as it is: it may be too large for a float."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool):
            self.fail("invalid")
        return data if isinstance(data, int) else super().to_internal_value(data)


class OneOfField(serializers.ChoiceField):
    """A choice whose refusal names the right ones."""

    default_error_messages = {"invalid_choice": "{input} is not a choice; there are {known}."}

    def to_internal_value(self, data: Any) -> Any:
        if data == "" and self.allow_blank:
            return ""
        if isinstance(data, bool) or str(data) not in self.choice_strings_to_values:
            self.fail("invalid_choice", input=shown(data), known=", ".join(self.choice_strings_to_values))
        return self.choice_strings_to_values[str(data)]


class StrictSerializer(serializers.Serializer):
    """Refuses, by name, a field that there is none of: mistyped, it would be left out without a word.

    Fields that are only read may be sent back as they came.
    """

    def to_internal_value(self, data: Any) -> Any:
        wrong = self._unknown(data)
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            raise serializers.ValidationError({**error.detail, **wrong}) from error
        if wrong:
            raise serializers.ValidationError(wrong)
        return values

    def _unknown(self, data: Any) -> dict[str, list[str]]:
        if not isinstance(data, Mapping):
            return {}
        known = ", ".join(name for name, field in self.fields.items() if not field.read_only)
        # In a form what is inside of a field bears its name: "configuration.epochs", "architectures[0]".
        names = [str(name) for name in data if re.split(r"[.\[]", str(name))[0] not in self.fields]
        return {shown(name): [f"There is no field {shown(name)}; there are {known}."] for name in names}
