"""API: model versions, their evaluations and operating points."""

from typing import Any

from django.db.models import QuerySet
from django.http import FileResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from xrayplatform import audit
from xrayplatform.http import Conflict
from xrayplatform.paging import SortedPagination

from .cards import card_of
from .exporting import FORMS, REFUSALS, take_along
from .filters import EvaluationFilter, ModelVersionFilter
from .image_sets import ComparisonError, chosen_versions
from .lineage_api import LineageActions
from .models import Evaluation, ModelVersion, ThresholdSet
from .models.threshold_set import ThresholdError
from .serializers import (
    CompareSerializer,
    ComparisonSerializer,
    EpochSerializer,
    EvaluationListSerializer,
    EvaluationSerializer,
    ModelCardSerializer,
    ModelVersionSerializer,
    OperatingPointsSerializer,
    SaveOperatingPointSerializer,
    ThresholdSetSerializer,
)
from .service_api import ServiceActions
from .side_by_side import side_by_side
from .state_api import StateActions
from .storage_api import StorageActions
from .weighing import CriterionError, Weighing


class ModelVersionViewSet(ServiceActions, StateActions, LineageActions, StorageActions, ReadOnlyModelViewSet):
    """The versions of every condition; their content never changes."""

    queryset = ModelVersion.objects.none()
    serializer_class = ModelVersionSerializer
    filterset_class = ModelVersionFilter
    pagination_class = SortedPagination
    permissions = {
        "list": "registry.view_modelversion",
        "retrieve": "registry.view_modelversion",
        "history": "registry.view_modelversion",
        "compare": "registry.view_modelversion",
        "card": "registry.view_modelversion",
        "export": "registry.export_modelversion",
        "operating_points": "registry.view_thresholdset",
        "save_operating_point": "registry.add_thresholdset",
        **ServiceActions.service_permissions,
        **StateActions.state_permissions,
        **LineageActions.lineage_permissions,
        **StorageActions.storage_permissions,
    }

    def get_queryset(self) -> QuerySet:
        versions = ModelVersion.objects.visible_to(self.request.user)
        if self.action == "list":
            return versions.for_list()
        return versions.select_related("condition", "created_by", "integrity").prefetch_related("tags").with_activity()

    @extend_schema(responses=EpochSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def history(self, request: Request, pk: Any = None) -> Response:
        """What each epoch of the training ended with; empty for versions whose training kept nothing."""
        return Response(self.get_object().history)

    @extend_schema(parameters=[CompareSerializer], responses=ComparisonSerializer)
    @action(detail=False, pagination_class=None, filter_backends=[])
    def compare(self, request: Request) -> Response:
        """Two to ten versions of one condition side by side: figures with intervals, every pair tested, a ranking."""
        asked = CompareSerializer(data=request.query_params)
        asked.is_valid(raise_exception=True)
        try:
            versions = chosen_versions(
                ModelVersion.objects.visible_to(request.user), request.query_params.getlist("version")
            )
            options = asked.validated_data
            compared = side_by_side(
                versions, images=options["images"], metric=options["metric"], name=options.get("class")
            )
        except ModelVersion.DoesNotExist as error:
            raise NotFound from error
        except ComparisonError as error:
            raise ValidationError([str(error)]) from error
        return Response(compared)

    @extend_schema(responses=ModelCardSerializer)
    @action(detail=True, pagination_class=None, filter_backends=[])
    def card(self, request: Request, pk: Any = None) -> Response:
        """The model card: purpose, counts of the data, training, figures with intervals, limits, who approved."""
        versions = self.get_queryset().select_related("condition", "created_by", "parent__condition")
        version = get_object_or_404(versions, pk=pk)
        audit.record("version.card", version, actor=request.user, after={"format": "json"})
        return Response(card_of(version))

    @extend_schema(
        parameters=[OpenApiParameter("as", str, enum=list(FORMS), description="default: package")],
        responses={(200, "application/zip"): OpenApiTypes.BINARY},
    )
    @action(detail=True, pagination_class=None, filter_backends=[])
    def export(self, request: Request, pk: Any = None) -> FileResponse:
        """The version as a signed package, or as a file for other tools, verified against its golden outputs."""
        version = get_object_or_404(self.get_queryset().select_related("parent"), pk=pk)
        form = request.query_params.get("as", "package")
        if form not in FORMS:
            raise ValidationError({"as": [f"There are {', '.join(FORMS)}."]})
        try:
            file = take_along(version, form, by=request.user)
        except REFUSALS as error:
            raise Conflict(str(error)) from error
        return FileResponse(file, as_attachment=True, filename=FORMS[form].file_name(version))

    @extend_schema(responses=OperatingPointsSerializer)
    @action(detail=True, url_path="operating-points", pagination_class=None, filter_backends=[])
    def operating_points(self, request: Request, pk: Any = None) -> Response:
        """What each threshold does on the validation and the test part, and the saved threshold sets."""
        version = self.get_object()
        weighing = _weighing(version)
        try:
            thresholds = weighing.thresholds()
        except CriterionError as error:
            raise Conflict(str(error)) from error
        sets = ThresholdSet.objects.filter(version=version).select_related("created_by")
        return Response(
            {
                "trained": weighing.trained,
                "points": [{"threshold": value, **weighing.figures(value)} for value in thresholds],
                "sets": ThresholdSetSerializer(sets, many=True).data,
            }
        )

    @extend_schema(request=SaveOperatingPointSerializer, responses={201: ThresholdSetSerializer})
    @operating_points.mapping.post
    def save_operating_point(self, request: Request, pk: Any = None) -> Response:
        """Save a threshold set, chosen by a criterion on validation or by hand; nothing in service changes."""
        weighing = _weighing(self.get_object())
        asked = SaveOperatingPointSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        try:
            point = weighing.save(asked.wish, reason=asked.validated_data["reason"], by=request.user)
        except ThresholdError as error:
            raise ValidationError({"threshold": [str(error)]}) from error
        return Response(ThresholdSetSerializer(point).data, status=status.HTTP_201_CREATED)


class EvaluationViewSet(ReadOnlyModelViewSet):
    """What versions were measured on, with figures and 95 % intervals; a single one comes with its whole report."""

    queryset = Evaluation.objects.none()
    serializer_class = EvaluationSerializer
    filterset_class = EvaluationFilter
    permissions = {"list": "registry.view_evaluation", "retrieve": "registry.view_evaluation"}

    def get_queryset(self) -> QuerySet:
        evaluations = Evaluation.objects.visible_to(self.request.user).select_related("created_by")
        return evaluations.with_figures() if self.action == "list" else evaluations.select_related("version")

    def get_serializer_class(self) -> type[EvaluationListSerializer]:
        return EvaluationListSerializer if self.action == "list" else EvaluationSerializer


def _weighing(version: ModelVersion) -> Weighing:
    try:
        return Weighing.of(version)
    except ThresholdError as error:
        raise Conflict(str(error)) from error
