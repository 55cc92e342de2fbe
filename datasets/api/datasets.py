"""API: datasets with scan and prepare, scans, preparations."""

from typing import Any

import django_filters
from django.db import transaction
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from .models import Dataset, Preparation, Scan
from .serializers import (
    DatasetListSerializer,
    DatasetSerializer,
    PreparationSerializer,
    PrepareSerializer,
    ScanSerializer,
)


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


class PreparationFilter(django_filters.FilterSet):
    """By number, not by a choice of rows: a choice would tell which numbers other teams have."""

    dataset = django_filters.NumberFilter("dataset_id")

    class Meta:
        model = Preparation
        fields = ["dataset", "state"]


class PreparationViewSet(ReadOnlyModelViewSet):
    """Frozen splits of datasets, with their decoded pixels."""

    queryset = Preparation.objects.none()
    serializer_class = PreparationSerializer
    filterset_class = PreparationFilter
    permissions = {
        "list": "datasets.view_preparation",
        "retrieve": "datasets.view_preparation",
        "cancel": "datasets.prepare_dataset",
    }

    def get_queryset(self) -> QuerySet:
        return Preparation.objects.visible_to(self.request.user).select_related("dataset")

    @extend_schema(request=None, responses=PreparationSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        job = self.get_object()
        job.request_cancel(request.user)
        return Response(PreparationSerializer(job).data)
