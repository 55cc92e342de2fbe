"""API: preparations, and the space that they take."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from xrayplatform.http import row_filter

from .. import storage
from ..models import Preparation
from ..serializers import PreparationSerializer, PrunedSerializer, PruneSerializer, StorageSerializer


class PreparationFilter(django_filters.FilterSet):
    """By number, not by a choice of rows: a choice would tell which numbers other teams have."""

    dataset = row_filter("dataset_id")

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
        "remove_pixels": "datasets.remove_pixels",
        "storage": "datasets.view_preparation",
        "prune": "datasets.remove_pixels",
    }

    def get_queryset(self) -> QuerySet:
        return Preparation.objects.visible_to(self.request.user).select_related("dataset")

    @extend_schema(request=None, responses=PreparationSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        job = self.get_object()
        job.request_cancel(request.user)
        return Response(PreparationSerializer(job).data)

    @extend_schema(request=None, responses=PreparationSerializer)
    @action(detail=True, methods=["post"], url_path="remove-pixels")
    def remove_pixels(self, request: Request, pk: Any = None) -> Response:
        """Delete the decoded pixels to free space; the split and its proof stay."""
        preparation = self.get_object()
        preparation.remove_pixels(by=request.user)
        return Response(PreparationSerializer(preparation).data)

    @extend_schema(responses=StorageSerializer, filters=False)
    @action(detail=False, methods=["get"], filter_backends=[], pagination_class=None)
    def storage(self, request: Request) -> Response:
        """Bytes that decoded pixels take, finished and unfinished ones."""
        return Response(storage.use())

    @extend_schema(request=PruneSerializer, responses=PrunedSerializer, filters=False)
    @action(detail=False, methods=["post"], filter_backends=[], pagination_class=None)
    def prune(self, request: Request) -> Response:
        """Remove decoded pixels older than so many days, but the newest of each dataset and what a job uses."""
        given = PruneSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        return Response(storage.prune_older(given.validated_data["days"], by=request.user))
