"""API: searches."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from xrayplatform.fields import OneOfField
from xrayplatform.http import choice_filter

from .comparing import compare
from .configurations import ConfigurationError
from .live_api import CheckSerializer
from .ml.architectures import ARCHITECTURES
from .models import Search
from .search_preflight import outlook
from .searching import ETA, ETAS, plan
from .serializers import StartSerializer


class StandingSerializer(serializers.Serializer):
    """A run in the comparison. The place is by validation loss; test figures are there to report, not to choose by."""

    run = serializers.IntegerField()
    state = serializers.CharField()
    held = serializers.BooleanField(help_text="waits for the other runs")
    message = serializers.CharField()
    architecture = serializers.CharField()
    options = serializers.DictField(help_text="those that vary, with this run's values")
    epoch = serializers.IntegerField()
    epochs = serializers.IntegerField()
    epoch_limit = serializers.IntegerField(allow_null=True)
    place = serializers.IntegerField(allow_null=True)
    best = serializers.BooleanField()
    best_epoch = serializers.IntegerField(allow_null=True)
    validation_loss = serializers.FloatField(allow_null=True)
    validation_auc = serializers.FloatField(allow_null=True)
    version = serializers.IntegerField(allow_null=True)
    test = serializers.DictField(allow_null=True)


class SearchSerializer(serializers.ModelSerializer):
    dataset = serializers.IntegerField(source="preparation.dataset_id", read_only=True)
    active = serializers.BooleanField(source="is_active", read_only=True)

    class Meta:
        model = Search
        fields = ["id", "name", "mode", "active", "dataset", "preparation", "parameters", "created_at"]
        read_only_fields = fields


class SearchDetailSerializer(SearchSerializer):
    runs = serializers.SerializerMethodField()
    conclusion = serializers.SerializerMethodField()

    class Meta(SearchSerializer.Meta):
        fields = [*SearchSerializer.Meta.fields, "runs", "conclusion"]
        read_only_fields = fields

    def to_representation(self, search: Search) -> dict[str, Any]:
        self.comparison = compare(search)
        return super().to_representation(search)

    @extend_schema_field(StandingSerializer(many=True))
    def get_runs(self, search: Search) -> list[dict[str, Any]]:
        return [standing.to_json() for standing in self.comparison.standings]

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_conclusion(self, search: Search) -> list[str]:
        return self.comparison.conclusion


class OutlookSerializer(serializers.Serializer):
    """What a search would be. checks: what speaks against it; with a problem it is refused."""

    can_start = serializers.BooleanField()
    runs = serializers.IntegerField()
    rungs = serializers.ListField(
        child=serializers.IntegerField(), allow_null=True, help_text="epochs after which runs are compared; halving"
    )
    to_the_end = serializers.IntegerField(help_text="runs that train to the end, more with draws")
    epochs = serializers.IntegerField(help_text="trained in all when none stops early")
    seconds = serializers.FloatField(allow_null=True, help_text="on one worker; null while nothing was measured")
    checks = CheckSerializer(many=True)


class StartSearchSerializer(StartSerializer):
    """What starts a search: one run for every combination of architecture and values."""

    name = serializers.CharField(max_length=80, required=False, default="", allow_blank=True)
    architectures = serializers.ListField(child=OneOfField(choices=list(ARCHITECTURES)))
    configuration = serializers.CharField(
        max_length=80,
        default="standard",
        help_text='quick, standard, intensive, or "saved:" and a number',
    )
    values = serializers.DictField(
        child=serializers.ListField(),
        required=False,
        default=dict,
        help_text='values of each option that varies, such as {"learning_rate": [0.001, 0.0003]}',
    )
    mode = OneOfField(choices=Search.Mode, default=Search.Mode.GRID)
    eta = OneOfField(choices=list(ETAS), default=ETA, help_text="one run in so many goes on; halving only")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        eta = attrs["eta"] if attrs["mode"] == Search.Mode.HALVING else None
        try:
            preset = self.preset(attrs["configuration"])
            attrs["plan"] = plan(
                attrs["architectures"], preset.configuration, attrs["values"], preset=preset.recorded, eta=eta
            )
        except ConfigurationError as error:
            raise serializers.ValidationError({error.field: [str(error)]}) from error
        return attrs


class SearchFilter(django_filters.FilterSet):
    mode = choice_filter(Search.Mode.values)

    class Meta:
        model = Search
        fields = ["mode"]


class SearchViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Several trainings as one, compared at the end: start, follow, cancel."""

    queryset = Search.objects.none()
    serializer_class = SearchSerializer
    filterset_class = SearchFilter
    permissions = {
        "list": "training.view_search",
        "retrieve": "training.view_search",
        "create": "training.add_search",
        "estimate": "training.add_search",
        "cancel": "training.cancel_trainingrun",
    }

    def get_queryset(self) -> QuerySet:
        return Search.objects.visible_to(self.request.user).select_related("preparation__dataset")

    def get_serializer_class(self) -> type[SearchSerializer]:
        return SearchSerializer if self.action == "list" else SearchDetailSerializer

    @extend_schema(request=StartSearchSerializer, responses={202: SearchDetailSerializer})
    def create(self, request: Request) -> Response:
        values = self._wanted(request)
        search = Search.start(
            values["dataset"],
            values["plan"],
            request.user,
            name=values["name"],
            initial=values["initial"],
            version=values["initial_version"],
        )
        return Response(SearchDetailSerializer(search).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=StartSearchSerializer, responses=OutlookSerializer)
    @action(detail=False, methods=["post"], pagination_class=None, filter_backends=[])
    def estimate(self, request: Request) -> Response:
        """How many runs and epochs such a search is, how long it takes, and what speaks against it. Starts nothing."""
        values = self._wanted(request)
        found = outlook(
            values["dataset"],
            values["plan"],
            request.user,
            initial=values["initial"],
            version=values["initial_version"],
        )
        return Response(found.to_json())

    def _wanted(self, request: Request) -> dict[str, Any]:
        wanted = StartSearchSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        return wanted.validated_data

    @extend_schema(request=None, responses=SearchDetailSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        """Cancel every run that has not ended; versions of finished runs stay."""
        search = self.get_object()
        search.cancel(request.user)
        return Response(SearchDetailSerializer(search).data)
