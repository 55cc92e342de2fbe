"""Search and filter of model versions, the same for the page and the API."""

from typing import Any

import django_filters
from django.db.models import Q, QuerySet

from xrayplatform.conditions import Condition
from xrayplatform.http import choice_filter, row_filter

from .models import Evaluation, ModelVersion


class ModelVersionFilter(django_filters.FilterSet):
    q = django_filters.CharFilter(method="search", label="Search")
    condition = django_filters.ModelChoiceFilter(
        queryset=lambda request: Condition.objects.visible_to(request.user),
        to_field_name="slug",
        empty_label="All",
    )
    architecture = django_filters.ChoiceFilter(empty_label="All")
    state = django_filters.ChoiceFilter(choices=ModelVersion.State, empty_label="All")
    min_auc = django_filters.NumberFilter("auc", "gte", label="AUC at least")

    class Meta:
        model = ModelVersion
        fields = ["q", "condition", "architecture", "state", "min_auc"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the versions that this user may see, not of all there are.
        names = self.queryset.order_by("architecture").values_list("architecture", flat=True).distinct()
        self.filters["architecture"].extra["choices"] = [(name, name) for name in names]

    def search(self, queryset: QuerySet, name: str, value: str) -> QuerySet:
        words = Q(condition__name__icontains=value) | Q(condition__slug__icontains=value)
        words |= Q(architecture__icontains=value) | Q(dataset_name__icontains=value) | Q(sha256__startswith=value)
        return queryset.filter(words)


class EvaluationFilter(django_filters.FilterSet):
    version = row_filter("version")
    kind = choice_filter(Evaluation.Kind.values)

    class Meta:
        model = Evaluation
        fields = ["version", "kind", "images_digest"]
