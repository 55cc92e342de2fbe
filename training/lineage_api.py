"""API: what came of a dataset."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from datasets.models import Dataset
from registry.lineage_api import MemberSerializer, StepSerializer

from .lineage import lineage_of


class TotalsSerializer(serializers.Serializer):
    version = serializers.IntegerField()
    evaluation = serializers.IntegerField()
    activation = serializers.IntegerField()
    predictions = serializers.IntegerField()


class DatasetLineageSerializer(serializers.Serializer):
    dataset = StepSerializer()
    preparations = StepSerializer(many=True)
    totals = TotalsSerializer(help_text="of what you may see")
    in_service = serializers.ListField(child=serializers.CharField(), help_text="versions that answer now")
    versions = MemberSerializer(many=True, help_text="that learned from it, also through a parent; the newest first")
    measured = StepSerializer(many=True, help_text="evaluations on its images of versions that did not learn from it")


class TrainedDatasetViewSet(GenericViewSet):
    """What came of datasets: beside the addresses of the datasets themselves, which know nothing of versions."""

    queryset = Dataset.objects.none()
    serializer_class = DatasetLineageSerializer
    permissions = {"lineage": ("datasets.view_dataset", "registry.view_modelversion")}

    def get_queryset(self) -> QuerySet:
        return Dataset.objects.visible_to(self.request.user)

    @extend_schema(responses=DatasetLineageSerializer)
    @action(detail=True, pagination_class=None, filter_backends=[])
    def lineage(self, request: Request, pk: Any = None) -> Response:
        """Every version that learned from it, also through a parent, with evaluations, activations and answers."""
        return Response(lineage_of(self.get_object(), request.user).to_json())
