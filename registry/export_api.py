"""API: a whole condition as one file, made by the queue."""

from typing import Any

from django.db.models import QuerySet
from django.http import FileResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from .models import ConditionExport
from .package_api import JOB_FIELDS


class LeftOutSerializer(serializers.Serializer):
    number = serializers.IntegerField()
    problem = serializers.CharField()


class ConditionExportSerializer(serializers.ModelSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    left_out = LeftOutSerializer(many=True, read_only=True, help_text="versions that could not be exported, and why")

    class Meta:
        model = ConditionExport
        fields = [*JOB_FIELDS, "condition", "versions_count", "left_out", "size", "expires_at"]
        read_only_fields = fields


class ConditionExportViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Exports of whole conditions, as jobs; `conditions/{slug}/export/` starts one, `download/` gives its file."""

    queryset = ConditionExport.objects.none()
    serializer_class = ConditionExportSerializer
    permissions = dict.fromkeys(("list", "retrieve", "cancel", "download"), "registry.export_modelversion")

    def get_queryset(self) -> QuerySet:
        return ConditionExport.objects.visible_to(self.request.user).select_related("condition", "created_by")

    @extend_schema(request=None, responses=ConditionExportSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        job = self.get_object()
        job.request_cancel(request.user)
        return Response(ConditionExportSerializer(job).data)

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    @action(detail=True, pagination_class=None, filter_backends=[])
    def download(self, request: Request, pk: Any = None) -> FileResponse:
        """A zip of the signed packages of all versions, and `history.json`: what was in service, since when and why.

        It is there for a day after the end of the job.
        """
        job = self.get_object()
        return FileResponse(job.take_along(request.user), as_attachment=True, filename=job.file_name)
