"""API: upload images into a dataset or a new folder."""

from typing import Any

import django_filters
from django.db import transaction
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from xrayplatform.http import row_filter
from xrayplatform.teams import Team

from ..models import Dataset, Upload
from ..models.upload import why_closed
from ..receiving import require_room
from ..serializers import JOB_FIELDS
from .receiving import ReceivingMixin


class UploadSerializer(serializers.ModelSerializer):
    class Meta:
        model = Upload
        fields = [
            *JOB_FIELDS, "dataset", "name", "class_folder", "files", "size", "accepted", "refused", "refusals", "notes",
        ]  # fmt: skip
        read_only_fields = fields


class UploadCreateSerializer(serializers.Serializer):
    """Into a dataset, or into a new folder by its name."""

    dataset = serializers.IntegerField(required=False, help_text="number of the dataset")
    name = serializers.CharField(
        max_length=400, required=False, help_text="of a new folder below DATASET_ROOT, such as CHEST/new study"
    )
    team = serializers.IntegerField(required=False, help_text="of a new dataset; needed by members of several teams")
    class_folder = serializers.CharField(
        max_length=650, required=False, default="", allow_blank=True, help_text="empty: as the folders in the zip say"
    )
    files = serializers.ListField(
        child=serializers.FileField(allow_empty_file=True), allow_empty=False, help_text="images or zip archives"
    )

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        if ("dataset" in data) == ("name" in data):
            raise serializers.ValidationError("Give the number of a dataset or the name of a new one.")
        return data


class UploadFilter(django_filters.FilterSet):
    """By number, not by a choice of rows: a choice would tell which numbers other teams have."""

    dataset = row_filter("dataset_id")

    class Meta:
        model = Upload
        fields = ["dataset", "state"]


class UploadViewSet(ReceivingMixin, ReadOnlyModelViewSet):
    """Images sent for datasets."""

    queryset = Upload.objects.none()
    serializer_class = UploadSerializer
    parser_classes = [MultiPartParser, FormParser, JSONParser]
    filterset_class = UploadFilter
    takes_archives = ("create",)
    permissions = {
        "list": "datasets.view_upload",
        "retrieve": "datasets.view_upload",
        "create": "datasets.upload_dataset",
        "cancel": "datasets.upload_dataset",
    }

    def get_queryset(self) -> QuerySet:
        return Upload.objects.visible_to(self.request.user)

    @extend_schema(request={"multipart/form-data": UploadCreateSerializer}, responses={202: UploadSerializer})
    def create(self, request: Request) -> Response:
        """Send images, or zip archives of them. Each is checked; follow the job under `uploads/`."""
        require_room(request._request)
        given = UploadCreateSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        options = self._options(given.validated_data)
        with transaction.atomic():
            job = self.inbox.submit(request.user, **options)
            job.enqueue()
        return Response(UploadSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {"class_folder": given["class_folder"]}
        if "name" in given:
            return options | {"name": given["name"], "team": self._team(given.get("team"))}
        visible = Dataset.objects.visible_to(self.request.user).select_related("condition__team")
        dataset = get_object_or_404(visible, pk=given["dataset"])
        closed = why_closed(dataset)
        if closed:
            raise closed
        return options | {"dataset": dataset}

    def _team(self, pk: int | None) -> Team | None:
        teams = self.request.user.teams.all()
        if pk is not None:
            return get_object_or_404(teams, pk=pk)
        if len(teams) > 1:
            raise ValidationError({"team": ["You are in several teams: say which one the dataset belongs to."]})
        return teams.first()

    @extend_schema(request=None, responses=UploadSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        job = self.get_object()
        job.request_cancel(request.user)
        return Response(UploadSerializer(job).data)
