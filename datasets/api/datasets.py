"""API: datasets with scan, prepare, choices, quality and comparison; and scans."""

from dataclasses import asdict
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.jobs import JobError

from ..findings import report
from ..models import DECIDED_AT_ONCE, Dataset, Preparation, Scan
from ..serializers import (
    ChoicesSerializer,
    DatasetListSerializer,
    DatasetSerializer,
    DecideAllSerializer,
    PatternSerializer,
    PreparationSerializer,
    PrepareSerializer,
    ScanSerializer,
)
from ..versions import NOW, compare_versions, find_version, newest_version


class DatasetViewSet(ReadOnlyModelViewSet):
    """Datasets found below DATASET_ROOT."""

    queryset = Dataset.objects.none()
    serializer_class = DatasetSerializer
    filterset_fields = ["name", "condition__slug", "state"]
    permissions = {
        "list": "datasets.view_dataset",
        "retrieve": "datasets.view_dataset",
        "scan": "datasets.scan_dataset",
        "prepare": "datasets.prepare_dataset",
        "choices": "datasets.curate_dataset",
        "pattern": "datasets.curate_dataset",
        "quality": "datasets.view_finding",
        "decide": "datasets.curate_dataset",
        "compare": "datasets.view_preparation",
    }

    def get_queryset(self) -> QuerySet:
        return Dataset.objects.visible_to(self.request.user).for_pages()

    def get_serializer_class(self) -> type[DatasetSerializer]:
        return DatasetListSerializer if self.action == "list" else DatasetSerializer

    @extend_schema(request=None, responses={202: ScanSerializer})
    @action(detail=False, methods=["post"], filter_backends=[], pagination_class=None)
    def scan(self, request: Request) -> Response:
        """Start a scan of DATASET_ROOT; follow it under `scans/`."""
        with transaction.atomic():
            job = Scan.create(request.user)
            job.enqueue()
        return Response(ScanSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=PrepareSerializer, responses={202: PreparationSerializer})
    @action(detail=True, methods=["post"])
    def prepare(self, request: Request, pk: Any = None) -> Response:
        """Start a preparation of this dataset; follow it under `preparations/`."""
        dataset = self.get_object()
        options = PrepareSerializer(data=request.data)
        options.is_valid(raise_exception=True)
        with transaction.atomic():
            job = Preparation.create(dataset, request.user, **options.validated_data)
            job.enqueue()
        return Response(PreparationSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=ChoicesSerializer, responses=DatasetSerializer)
    @action(detail=True, methods=["patch"])
    def choices(self, request: Request, pk: Any = None) -> Response:
        """Say how the dataset is to be read: the answer to its question, classes, condition, patients in names.

        An answer, and an accepted loss of images, take effect with the next scan.
        """
        dataset = self.get_object()
        given = ChoicesSerializer(data=request.data, partial=True)
        given.is_valid(raise_exception=True)
        choices = dict(given.validated_data)
        if "condition" in choices:
            visible = Condition.objects.visible_to(request.user)
            choices["condition"] = get_object_or_404(visible, slug=choices["condition"])
        dataset.apply_choices(choices, by=request.user)
        return Response(DatasetSerializer(dataset).data)

    @extend_schema(request=PatternSerializer, responses=OpenApiTypes.OBJECT)
    @action(detail=True, methods=["post"])
    def pattern(self, request: Request, pk: Any = None) -> Response:
        """What a regular expression for the patient finds in the first file names; nothing is stored."""
        given = PatternSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        return Response(asdict(self.get_object().preview_pattern(given.validated_data["pattern"])))

    @extend_schema(responses=OpenApiTypes.OBJECT)
    @action(detail=True, methods=["get"])
    def quality(self, request: Request, pk: Any = None) -> Response:
        """The quality report: distributions, hints, findings by kind. The findings themselves are under `findings/`."""
        dataset = self.get_object()
        audit.record("dataset.view_quality", dataset, actor=request.user)
        return Response(report(dataset).to_json())

    @extend_schema(request=DecideAllSerializer, responses=OpenApiTypes.OBJECT)
    @action(detail=True, methods=["post"])
    def decide(self, request: Request, pk: Any = None) -> Response:
        """One decision about all images with a finding that nobody has judged yet; answers how many it was."""
        dataset = self.get_object()
        given = DecideAllSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        counts = dataset.decide_all(**given.validated_data, most=DECIDED_AT_ONCE, by=request.user)
        return Response(counts)

    @extend_schema(
        parameters=[
            OpenApiParameter("from", str, description="number of a preparation, or `now`"),
            OpenApiParameter("to", str, description="number of a preparation, or `now` (default)"),
        ],
        responses=OpenApiTypes.OBJECT,
    )
    @action(detail=True, methods=["get"], filter_backends=[])
    def compare(self, request: Request, pk: Any = None) -> Response:
        """What was added, removed, relabelled, moved or has other pixels between two versions of the dataset.

        `renamed`: classes that a choice of the team gave another name; their images are no relabelled ones.
        """
        dataset = self.get_object()
        old = request.query_params.get("from") or newest_version(dataset)
        new = request.query_params.get("to") or NOW
        try:
            versions = find_version(dataset, old), find_version(dataset, new)
        except JobError as error:
            raise NotFound(str(error)) from error
        return Response(compare_versions(*versions).to_json())


class ScanViewSet(ReadOnlyModelViewSet):
    """Scans of DATASET_ROOT."""

    queryset = Scan.objects.all()
    serializer_class = ScanSerializer
    permissions = {"list": "datasets.view_scan", "retrieve": "datasets.view_scan", "cancel": "datasets.scan_dataset"}

    @extend_schema(request=None, responses=ScanSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        job = self.get_object()
        job.request_cancel(request.user)
        return Response(ScanSerializer(job).data)
