"""API: the images of datasets with their pictures and decisions, and findings."""

from decimal import Decimal
from typing import Any

import django_filters
from django.db.models import QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from xrayplatform import audit
from xrayplatform.http import row_filter
from xrayplatform.teams import visible

from .. import rendering
from ..models import Dataset, DatasetImage, Finding
from ..names import MAX_IMAGE_PATH
from ..serializers import DecideSerializer, FindingSerializer, FlagSerializer, ImageDetailSerializer, ImageSerializer

LISTED_BY = ("dataset", "class_name", "source_split", "cluster", "finding", "excluded", "code", "cursor")


class ImageFilter(django_filters.FilterSet):
    """By number, not by a choice of rows: a choice would tell which numbers other teams have."""

    dataset = row_filter("dataset_id")
    finding = django_filters.CharFilter("findings__code")
    excluded = django_filters.BooleanFilter("excluded")

    class Meta:
        model = DatasetImage
        fields = ["dataset", "class_name", "source_split", "cluster", "finding", "excluded"]


class ImageViewSet(ReadOnlyModelViewSet):
    """The readable radiographs of datasets."""

    queryset = DatasetImage.objects.none()
    serializer_class = ImageSerializer
    filterset_class = ImageFilter
    permissions = {
        "list": "datasets.view_datasetimage",
        "retrieve": "datasets.view_datasetimage",
        "picture": "datasets.view_datasetimage",
        "decide": "datasets.curate_dataset",
        "flag": "datasets.flag_datasetimage",
        "withdraw_flag": "datasets.flag_datasetimage",
    }

    def get_queryset(self) -> QuerySet:
        images = DatasetImage.objects.visible_to(self.request.user).with_exclusion()
        return images.select_related("dataset").defer("fingerprint")

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return _recorded(super().list(request, *args, **kwargs), "dataset.view_images", request)

    def get_serializer_class(self) -> type[ImageSerializer]:
        return ImageSerializer if self.action == "list" else ImageDetailSerializer

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    @action(detail=True, methods=["get"], filter_backends=[])
    def picture(self, request: Request, pk: Any = None) -> HttpResponse:
        """The radiograph as a PNG of at most 1400 pixels a side."""
        image = self.get_object()
        audit.record("image.view", image, actor=request.user, after={"dataset": image.dataset.name})
        try:
            png = rendering.picture(image, rendering.PICTURE)
        except rendering.NotShown as error:
            raise NotFound(f"The image cannot be shown: {error}") from error
        return HttpResponse(png, content_type="image/png", headers={"Cache-Control": "no-store"})

    @extend_schema(request=DecideSerializer, responses=ImageDetailSerializer)
    @action(detail=True, methods=["post"])
    def decide(self, request: Request, pk: Any = None) -> Response:
        """Exclude the image, keep it in spite of a finding, or take a decision back. The next preparation obeys."""
        image = self.get_object()
        given = DecideSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        decision = given.validated_data
        if decision["action"] == "withdraw":
            image.withdraw(decision["code"], by=request.user)
        else:
            image.decide(decision["code"], decision["action"], decision["reason"], by=request.user)
        return Response(ImageDetailSerializer(self.get_object()).data)

    @extend_schema(request=FlagSerializer, responses=ImageDetailSerializer)
    @action(detail=True, methods=["post"])
    def flag(self, request: Request, pk: Any = None) -> Response:
        """Say that the label is wrong, for a curator to judge. Changes no label."""
        image = self.get_object()
        given = FlagSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        image.flag_label(**given.validated_data, by=request.user)
        return Response(ImageDetailSerializer(self.get_object()).data)

    @extend_schema(responses=ImageDetailSerializer)
    @flag.mapping.delete
    def withdraw_flag(self, request: Request, pk: Any = None) -> Response:
        """Take back that the label is wrong: who said so, or a curator."""
        self.get_object().withdraw_flag(by=request.user)
        return Response(ImageDetailSerializer(self.get_object()).data)


class FindingFilter(django_filters.FilterSet):
    dataset = row_filter("dataset_id")

    class Meta:
        model = Finding
        fields = ["dataset", "code"]


class FindingViewSet(ReadOnlyModelViewSet):
    """What is suspicious about images, with what people decided."""

    queryset = Finding.objects.none()
    serializer_class = FindingSerializer
    filterset_class = FindingFilter
    permissions = {"list": "datasets.view_finding", "retrieve": "datasets.view_finding"}

    def get_queryset(self) -> QuerySet:
        findings = Finding.objects.with_decision().select_related("image", "flagged_by").defer("image__fingerprint")
        return visible(findings, "dataset__condition__team", self.request.user)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return _recorded(super().list(request, *args, **kwargs), "dataset.view_quality", request)


def _recorded(response: Response, name: str, request: Request) -> Response:
    """The answer to a list, with an entry in the audit log: of which dataset, if it is one, and what was asked for."""
    asked = {key: value[:MAX_IMAGE_PATH] for key, value in request.query_params.items() if key in LISTED_BY}
    # The filter was applied before, so it is a number.
    number = int(Decimal(asked["dataset"])) if asked.get("dataset") else None
    dataset = Dataset.objects.visible_to(request.user).filter(pk=number).first()
    audit.record(name, dataset, actor=request.user, after=asked | {"rows": len(response.data["results"])})
    return response
