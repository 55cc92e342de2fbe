"""API: analyse many radiographs as one job, and what became of each."""

from collections.abc import Iterable, Iterator
from typing import Any

import django_filters
from django.db import transaction
from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from datasets.api.receiving import ReceivingMixin
from datasets.models import Dataset
from datasets.receiving import require_room
from datasets.serializers import JOB_FIELDS
from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.fields import RowField
from xrayplatform.http import NewestFirstPagination, choice_filter
from xrayplatform.idempotency import PARAMETER, IdempotentMixin

from . import api_examples, batch_results
from .models import Batch, BatchItem


class BatchSerializer(serializers.ModelSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    waiting = serializers.IntegerField(read_only=True)
    answered = serializers.IntegerField(read_only=True)
    refused = serializers.IntegerField(read_only=True)
    warned = serializers.IntegerField(read_only=True, help_text="of those answered: the checks had something against")

    class Meta:
        model = Batch
        fields = [*JOB_FIELDS, "condition", "name", "items_count", "waiting", "answered", "refused", "warned"]
        read_only_fields = fields


class BatchDetailSerializer(BatchSerializer):
    decisions = serializers.SerializerMethodField(help_text="how many answers decided each class")

    class Meta(BatchSerializer.Meta):
        fields = [*BatchSerializer.Meta.fields, "decisions"]
        read_only_fields = fields

    def get_decisions(self, batch: Batch) -> dict[str, int]:
        return batch_results.decisions(batch)


class BatchCreateSerializer(serializers.Serializer):
    """Files, or the number of a dataset whose images are analysed where they lie."""

    condition = serializers.SlugRelatedField(slug_field="slug", queryset=Condition.objects.none())
    name = serializers.CharField(max_length=200, required=False, default="", allow_blank=True)
    files = serializers.ListField(
        child=serializers.FileField(allow_empty_file=True), required=False, help_text="images or zip archives"
    )
    dataset = RowField(queryset=Dataset.objects.none(), required=False, help_text="instead of files")
    folder = serializers.CharField(
        max_length=700, required=False, default="", allow_blank=True,
        help_text="of the dataset, such as test/NORMAL; empty: all of its images",
    )  # fmt: skip

    def get_fields(self) -> dict[str, serializers.Field]:
        fields: dict[str, Any] = super().get_fields()
        request = self.context.get("request")
        if request is not None:
            fields["condition"].queryset = Condition.objects.visible_to(request.user)
            fields["dataset"].queryset = Dataset.objects.visible_to(request.user).select_related("condition__team")
        return fields

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        if bool(data.get("files")) == ("dataset" in data):
            raise serializers.ValidationError("Send files, or name a dataset.")
        return data


class BatchItemSerializer(serializers.Serializer):
    """One file. Without an answer (prediction: null) `code`, `error` say why; else `code` is of the first warning."""

    position = serializers.IntegerField()
    name = serializers.CharField()
    state = serializers.CharField(help_text="waiting, answered or refused")
    prediction = serializers.UUIDField(allow_null=True)
    version = serializers.IntegerField(required=False)
    decision = serializers.CharField(required=False)
    probabilities = serializers.DictField(child=serializers.FloatField(), required=False)
    threshold = serializers.FloatField(required=False, allow_null=True)
    warnings = serializers.ListField(child=serializers.CharField(), required=False)
    code = serializers.CharField()
    error = serializers.CharField()

    def to_representation(self, item: BatchItem) -> dict[str, Any]:
        return batch_results.result_of(item)


class BatchResultsSerializer(serializers.Serializer):
    batch = serializers.IntegerField()
    name = serializers.CharField()
    condition = serializers.CharField()
    state = serializers.CharField()
    notice = serializers.CharField()
    results = BatchItemSerializer(many=True)


class BatchFilter(django_filters.FilterSet):
    state = choice_filter(Batch.State.values)

    class Meta:
        model = Batch
        fields = ["state"]


class ItemsInOrder(NewestFirstPagination):
    ordering = "position"


class CsvRenderer(JSONRenderer):
    """Makes `?format=csv` known; errors are JSON."""

    media_type, format = "text/csv", "csv"


class BatchViewSet(IdempotentMixin, ReceivingMixin, mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Many radiographs, analysed one after another as a job."""

    queryset = Batch.objects.none()
    serializer_class = BatchSerializer
    parser_classes = [MultiPartParser, FormParser, JSONParser]
    filterset_class = BatchFilter
    takes_archives = ("create",)
    permissions = {
        "list": "inference.view_batch",
        "retrieve": "inference.view_batch",
        "create": "inference.add_batch",
        "cancel": "inference.add_batch",
        "go_on": "inference.add_batch",
        "items": ("inference.view_batch", "inference.view_prediction"),
        "results": ("inference.view_batch", "inference.view_prediction"),
    }

    def get_queryset(self) -> QuerySet:
        return Batch.objects.visible_to(self.request.user).counted().select_related("condition")

    def sent_files(self, request: Request) -> Iterator[tuple[str, str, Iterable[bytes]]]:
        for name, path in self.inbox.files:
            with path.open("rb") as file:
                yield "files", name, iter(lambda file=file: file.read(2**20), b"")

    @extend_schema(
        parameters=[PARAMETER],
        request={"multipart/form-data": BatchCreateSerializer, "application/json": BatchCreateSerializer},
        responses={202: BatchDetailSerializer},
        examples=[api_examples.BATCH],
    )
    def create(self, request: Request) -> Response:
        """Send files or zip archives, or name a dataset. Follow the job, then read its `items` or `results`."""
        require_room(request._request)
        wanted = BatchCreateSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        given = wanted.validated_data
        condition, about = given["condition"], {"by": request.user, "name": given["name"]}
        with transaction.atomic():
            if "dataset" in given:
                batch = Batch.of_dataset(condition, given["dataset"], given["folder"], **about)
            else:
                batch = Batch.of_files(condition, self.inbox.seal(), **about)
            batch.enqueue()
        return Response(self._told(batch), status=status.HTTP_202_ACCEPTED)

    def _told(self, batch: Batch) -> Any:
        return BatchDetailSerializer(Batch.objects.counted().select_related("condition").get(pk=batch.pk)).data

    @extend_schema(responses=BatchDetailSerializer)
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return Response(BatchDetailSerializer(self.get_object()).data)

    @extend_schema(request=None, responses=BatchDetailSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        """Stop the batch. What was answered stays."""
        batch = self.get_object()
        batch.request_cancel(request.user)
        return Response(self._told(batch))

    @extend_schema(request=None, responses=BatchDetailSerializer)
    @action(detail=True, methods=["post"], url_path="go-on")
    def go_on(self, request: Request, pk: Any = None) -> Response:
        """Let a failed batch go on with the rest; for a day."""
        batch = self.get_object()
        batch.go_on(request.user)
        return Response(self._told(batch))

    @extend_schema(responses=BatchItemSerializer(many=True))
    @action(detail=True, filter_backends=[], pagination_class=ItemsInOrder)
    def items(self, request: Request, pk: Any = None) -> Response:
        """The files in their order, page by page, with their answers."""
        batch = self.get_object()
        page = self.paginate_queryset(batch_results.items_of(batch))
        audit.record("batch.view", batch, actor=request.user, after={"items": len(page)})
        return self.get_paginated_response(BatchItemSerializer(page, many=True).data)

    @extend_schema(
        parameters=[OpenApiParameter("format", str, enum=["json", "csv"], description="or the header Accept")],
        responses={(200, "application/json"): BatchResultsSerializer, (200, "text/csv"): OpenApiTypes.STR},
    )
    @action(detail=True, filter_backends=[], pagination_class=None, renderer_classes=[JSONRenderer, CsvRenderer])
    def results(self, request: Request, pk: Any = None) -> HttpResponseBase:
        """Everything at once, as JSON or CSV."""
        batch = self.get_object()
        if request.accepted_renderer.format == "csv":
            return batch_results.as_csv(batch, request.user)
        return Response(batch_results.as_json(batch, request.user), headers={"Cache-Control": "no-store"})
