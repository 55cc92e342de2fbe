"""Search and filter of model versions, the same for the page and the API."""

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import django_filters
from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Count, Q, QuerySet
from django.utils import timezone

from xrayplatform.conditions import Condition
from xrayplatform.http import FlagFilter, choice_filter, row_filter

from .models import Deployment, Evaluation, IntegrityCheck, ModelVersion, VersionNote, VersionTag
from .models.label import LONGEST_TAG
from .sorting import METRICS, NEWEST_FIRST, ORDERINGS, Metric, in_order

LONGEST_SEARCH: Final = 200
MOST_WORDS: Final = 8
LONGEST_USERNAME: Final = 150
ALL_STATES: Final = "all"
# Shorter ones are parts of words more often than of digests.
_DIGEST = re.compile(r"[0-9a-f]{4,64}", re.IGNORECASE)
_NUMBER = re.compile(r"v([0-9]{1,9})", re.IGNORECASE)
# A figure is a share or a correlation; the number of test images alone may be large.
_LARGEST: Final = Decimal(10**9)
_FIRST_DAY: Final = date(1900, 1, 1)
_LAST_DAY: Final = date(9000, 1, 1)


def _share(value: Decimal) -> None:
    if not 0 <= value <= 1:
        raise ValidationError("It must be between 0 and 1: write 0.9 for 90 percent.")


def _plausible(value: Decimal) -> None:
    if abs(value) > _LARGEST:
        raise ValidationError("No figure is that far from 0. Write 0.9 for 90 percent.")


def _few_words(value: str) -> None:
    if len(value.split()) > MOST_WORDS:
        raise ValidationError(f"Search for at most {MOST_WORDS} words.")


class _Number(forms.DecimalField):
    """Limits are told in words by the validators, and not by the browser, which would keep the form back unsaid."""

    widget = forms.NumberInput(attrs={"step": "any"})


class _FigureFilter(django_filters.NumberFilter):
    field_class = _Number

    def get_max_validator(self) -> None:
        return None


def _yes_or_no(label: str, **how: Any) -> FlagFilter:
    choices = [("", "All"), ("true", "Yes"), ("false", "No")]
    return FlagFilter(label=label, widget=forms.Select(choices=choices), **how)


def _date(label: str, method: str) -> django_filters.DateFilter:
    widget = forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")
    return django_filters.DateFilter(method=method, label=label, widget=widget)


def _start_of(day: date) -> datetime:
    """Its midnight here; the ends of the calendar have none everywhere."""
    return timezone.make_aware(datetime.combine(min(max(day, _FIRST_DAY), _LAST_DAY), time.min))


def _state_filter(empty_label: str) -> django_filters.ChoiceFilter:
    choices = [(ALL_STATES, "All, also archived"), *ModelVersion.State.choices]
    return django_filters.ChoiceFilter(method="by_state", choices=choices, empty_label=empty_label, label="State")


class ModelVersionFilterForm(forms.Form):
    """Limits that go together."""

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        least, most = values.get("at_least"), values.get("at_most")
        if (least is not None or most is not None) and not values.get("metric") and "metric" not in self.errors:
            self.add_error("metric", "Choose the figure that the limits are for.")
        if least is not None and most is not None and least > most:
            self.add_error("at_most", "It must not be less than “at least”.")
        first, last = values.get("made_from"), values.get("made_until")
        if first and last and first > last:
            self.add_error("made_until", "It must not be before “made from”.")
        return values


class ModelVersionFilter(django_filters.FilterSet):
    q = django_filters.CharFilter(method="search", label="Search", max_length=LONGEST_SEARCH, validators=[_few_words])
    condition = django_filters.ModelChoiceFilter(
        queryset=lambda request: Condition.objects.visible_to(request.user),
        to_field_name="slug",
        empty_label="All",
    )
    architecture = django_filters.ChoiceFilter(empty_label="All")
    state = _state_filter("All")
    tag = django_filters.CharFilter(method="by_tag", label="Tag", max_length=LONGEST_TAG)
    author = django_filters.CharFilter(
        "created_by__username", "iexact", label="Author (user name)", max_length=LONGEST_USERNAME
    )
    made_from = _date("Made from", "by_first_day")
    made_until = _date("Made until", "by_last_day")
    in_service = _yes_or_no("In service", method="by_service")
    damaged = _yes_or_no("Damaged", method="by_damage")
    min_accuracy = _FigureFilter("accuracy", "gte", label="Accuracy at least", validators=[_share])
    min_auc = _FigureFilter("auc", "gte", label="AUC at least", validators=[_share])
    metric = django_filters.ChoiceFilter(
        method="by_metric", choices=list(METRICS.items()), empty_label="Any", label="Figure"
    )
    at_least = _FigureFilter(method="by_least", label="Figure at least", validators=[_plausible])
    at_most = _FigureFilter(method="by_most", label="Figure at most", validators=[_plausible])
    ordering = django_filters.ChoiceFilter(
        method="by_ordering",
        label="Order; - reverses it, newest first without one",
        choices=[(name, name) for name in ORDERINGS],
        widget=forms.HiddenInput,
        error_messages={"invalid_choice": f"%(value)s is not a choice; there are {', '.join(ORDERINGS)}."},
    )

    class Meta:
        model = ModelVersion
        form = ModelVersionFilterForm
        fields: list[str] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the versions that this user may see, not of all there are.
        names = self.queryset.order_by("architecture").values_list("architecture", flat=True).distinct()
        self.filters["architecture"].extra["choices"] = [(name, name) for name in names]

    @property
    def order(self) -> str:
        """By what the versions are ordered, also where nothing was said."""
        return str(self.form.cleaned_data.get("ordering") or NEWEST_FIRST)

    def search(self, queryset: QuerySet, name: str, value: str) -> QuerySet:
        """Versions that fit every word, each in any of its places."""
        for word in value.split():
            queryset = queryset.filter(_places(word))
        return queryset

    def by_state(self, queryset: QuerySet, name: str, value: str) -> QuerySet:
        return queryset if value == ALL_STATES else queryset.filter(state=value)

    def by_tag(self, queryset: QuerySet, name: str, value: str) -> QuerySet:
        return queryset.filter(pk__in=VersionTag.objects.filter(name=value.lower()).values("version"))

    def by_first_day(self, queryset: QuerySet, name: str, value: date) -> QuerySet:
        return queryset.filter(created_at__gte=_start_of(value))

    def by_last_day(self, queryset: QuerySet, name: str, value: date) -> QuerySet:
        return queryset.filter(created_at__lt=_start_of(min(value, _LAST_DAY) + timedelta(days=1)))

    def by_service(self, queryset: QuerySet, name: str, value: bool) -> QuerySet:
        served = Q(pk__in=Deployment.objects.filter(active__isnull=False).values("active"))
        return queryset.filter(served if value else ~served)

    def by_damage(self, queryset: QuerySet, name: str, value: bool) -> QuerySet:
        # A version that nobody has looked at yet is not known to be damaged.
        damaged = Q(pk__in=IntegrityCheck.objects.exclude(reason="").values("version"))
        return queryset.filter(damaged if value else ~damaged)

    def by_metric(self, queryset: QuerySet, name: str, value: str) -> QuerySet:
        queryset = queryset.alias(metric=Metric(value))
        limits = [self.form.cleaned_data[limit] for limit in ("at_least", "at_most")]
        # A limit keeps out what has no such figure; reading it once more would take as long again.
        return queryset.filter(metric__isnull=False) if limits == [None, None] else queryset

    def by_least(self, queryset: QuerySet, name: str, value: Decimal) -> QuerySet:
        return queryset.filter(metric__gte=value)

    def by_most(self, queryset: QuerySet, name: str, value: Decimal) -> QuerySet:
        return queryset.filter(metric__lte=value)

    def by_ordering(self, queryset: QuerySet, name: str, value: str) -> QuerySet:
        return in_order(queryset, value)


class VersionPageFilter(ModelVersionFilter):
    """On the page archived versions are shown only to who asks for them by their state."""

    FIRST = ("q", "condition", "architecture", "state")

    state = _state_filter("Not archived")

    @property
    def first_fields(self) -> list[forms.BoundField]:
        return [self.form[name] for name in self.FIRST]

    @property
    def more_fields(self) -> list[forms.BoundField]:
        return [field for field in self.form.visible_fields() if field.name not in self.FIRST]

    @property
    def uses_more(self) -> bool:
        return any(field.value() for field in self.more_fields)

    def counts(self) -> tuple[int, int]:
        """How many versions are listed, and how many archived ones fit otherwise and are hidden."""
        archived = Q(state=ModelVersion.State.ARCHIVED)
        found = self.qs.order_by().aggregate(all=Count("pk"), archived=Count("pk", filter=archived))
        hidden = 0 if self.form.cleaned_data["state"] else found["archived"]
        return found["all"] - hidden, hidden

    def listed(self) -> QuerySet:
        if self.form.cleaned_data["state"]:
            return self.qs
        return self.qs.exclude(state=ModelVersion.State.ARCHIVED)


def _places(word: str) -> Q:
    """Where a word is looked for: the condition, the architecture, the dataset, tags, notes, the number, the digest."""
    places = Q(condition__name__icontains=word) | Q(condition__slug__icontains=word)
    places |= Q(architecture__icontains=word) | Q(dataset_name__icontains=word)
    for labels in (VersionTag.objects.filter(name__icontains=word), VersionNote.objects.filter(text__icontains=word)):
        places |= Q(pk__in=labels.values("version"))
    if number := _NUMBER.fullmatch(word):
        places |= Q(number=int(number[1]))
    if _DIGEST.fullmatch(word):
        places |= Q(sha256__startswith=word.lower())
    return places


class EvaluationFilter(django_filters.FilterSet):
    version = row_filter("version")
    kind = choice_filter(Evaluation.Kind.values)

    class Meta:
        model = Evaluation
        fields = ["version", "kind", "images_digest"]
