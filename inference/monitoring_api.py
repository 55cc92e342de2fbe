"""API: figures in use by week, alerts, and datasets made of what readers corrected."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_serializer
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet, ViewSet

from registry.models import ModelVersion
from xrayplatform.conditions import Condition
from xrayplatform.fields import StrictSerializer
from xrayplatform.http import Conflict, FlagFilter

from . import corrections
from .models import MonitoringAlert
from .monitoring import MOST_WEEKS, WEEKS, figures


class MonitoringQuerySerializer(serializers.Serializer):
    condition = serializers.SlugRelatedField(slug_field="slug", queryset=Condition.objects.none())
    weeks = serializers.IntegerField(min_value=1, max_value=MOST_WEEKS, default=WEEKS)

    def get_fields(self) -> dict[str, Any]:
        return _with_conditions(super().get_fields(), self.context)


@extend_schema_serializer(many=False)
class MonitoringSerializer(serializers.Serializer):
    condition = serializers.CharField()
    weeks = serializers.ListField(
        child=serializers.DictField(), help_text="one object for each version in each week with requests, newest first"
    )


_CONDITION = OpenApiParameter("condition", OpenApiTypes.STR, required=True, description="slug of the condition")
_WEEKS = OpenApiParameter("weeks", OpenApiTypes.INT, description=f"1 to {MOST_WEEKS}, {WEEKS} without")
_VERSION = OpenApiParameter("version", OpenApiTypes.INT, description="number; the version in service without")


class MonitoringViewSet(ViewSet):
    """How the versions of a condition do in use: load, refusals, drift against validation, agreement of readers."""

    permissions = {"list": ("inference.view_monitoringalert", "inference.view_prediction")}

    @extend_schema(parameters=[_CONDITION, _WEEKS], responses=MonitoringSerializer)
    def list(self, request: Request) -> Response:
        asked = MonitoringQuerySerializer(data=request.query_params, context={"request": request})
        asked.is_valid(raise_exception=True)
        condition = asked.validated_data["condition"]
        found = figures(condition, weeks=asked.validated_data["weeks"])
        return Response({"condition": condition.slug, "weeks": [week.to_json() for week in found]})


class MonitoringAlertSerializer(serializers.ModelSerializer):
    condition = serializers.CharField(source="condition.slug", read_only=True)
    seen_by = serializers.CharField(source="seen_by.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = MonitoringAlert
        fields = [
            "id", "condition", "version", "week", "measure", "value", "limit", "text", "created_at", "seen_by",
            "seen_at", "comment",
        ]  # fmt: skip
        read_only_fields = fields


class AcknowledgeSerializer(StrictSerializer):
    comment = serializers.CharField(max_length=500, help_text="what was found or done")


class MonitoringAlertFilter(django_filters.FilterSet):
    condition = django_filters.CharFilter("condition__slug")
    unseen = FlagFilter("seen_at", "isnull")

    class Meta:
        model = MonitoringAlert
        fields: list[str] = []


class MonitoringAlertViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Figures of a week in use that went beyond what their condition allows, newest first."""

    queryset = MonitoringAlert.objects.none()
    serializer_class = MonitoringAlertSerializer
    filterset_class = MonitoringAlertFilter
    permissions = {
        "list": "inference.view_monitoringalert",
        "retrieve": "inference.view_monitoringalert",
        "acknowledge": "inference.change_monitoringalert",
    }

    def get_queryset(self) -> QuerySet:
        return MonitoringAlert.objects.visible_to(self.request.user).select_related("condition", "seen_by")

    @extend_schema(request=AcknowledgeSerializer, responses=MonitoringAlertSerializer)
    @action(detail=True, methods=["post"])
    def acknowledge(self, request: Request, pk: Any = None) -> Response:
        """Say what was found or done. An alert is acknowledged once."""
        alert = self.get_object()
        given = AcknowledgeSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        if not alert.acknowledge(given.validated_data["comment"], by=request.user):
            raise Conflict("Somebody has acknowledged this alert before; their comment stays.")
        return Response(MonitoringAlertSerializer(alert).data)


class CorrectionsQuerySerializer(StrictSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", queryset=Condition.objects.none())
    version = serializers.IntegerField(
        required=False, allow_null=True, default=None, min_value=1, help_text="number of the version to train on from"
    )

    def get_fields(self) -> dict[str, Any]:
        return _with_conditions(super().get_fields(), self.context)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        condition, number = attrs["condition"], attrs["version"]
        if number is None:
            return {**attrs, "version": corrections.base_of(condition)}
        versions = ModelVersion.objects.select_related("condition").filter(condition=condition)
        version = versions.filter(number=number).first()
        if version is None:
            raise serializers.ValidationError({"version": ["The condition has no version of this number."]})
        return {**attrs, "version": version}


@extend_schema_serializer(many=False)
class CorrectionsSerializer(serializers.Serializer):
    version = serializers.IntegerField()
    images = serializers.IntegerField()
    by_class = serializers.DictField(child=serializers.IntegerField())
    corrected = serializers.IntegerField(help_text="where the reader's label is not what was answered")
    patients = serializers.IntegerField()
    left_out = serializers.ListField(child=serializers.DictField())
    conflicts = serializers.ListField(child=serializers.DictField())
    known_patients = serializers.IntegerField()
    unchecked = serializers.ListField(child=serializers.CharField())
    obstacle = serializers.CharField(allow_blank=True)
    note = serializers.CharField()


class MadeCorrectionsSerializer(CorrectionsSerializer):
    dataset = serializers.DictField()
    scan = serializers.IntegerField(allow_null=True)
    text = serializers.CharField()


class CorrectionViewSet(ViewSet):
    """A new dataset of the kept radiographs that readers judged. GET says what it would hold, POST makes it."""

    permissions = dict.fromkeys(["list", "create"], ("datasets.upload_dataset", "inference.view_verdict"))

    @extend_schema(parameters=[_CONDITION, _VERSION], responses=CorrectionsSerializer)
    def list(self, request: Request) -> Response:
        asked = self._asked(request, request.query_params)
        return Response(corrections.plan(asked["condition"], asked["version"]).to_json())

    @extend_schema(request=CorrectionsQuerySerializer, responses={201: MadeCorrectionsSerializer})
    def create(self, request: Request) -> Response:
        asked = self._asked(request, request.data)
        made = corrections.make(asked["condition"], asked["version"], by=request.user)
        return Response(made.to_json(), status=status.HTTP_201_CREATED)

    def _asked(self, request: Request, data: Any) -> dict[str, Any]:
        asked = CorrectionsQuerySerializer(data=data, context={"request": request})
        asked.is_valid(raise_exception=True)
        return dict(asked.validated_data)


def _with_conditions(fields: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """Only what the user sees can be named."""
    if "request" in context:
        fields["condition"].queryset = Condition.objects.visible_to(context["request"].user)
    return fields
