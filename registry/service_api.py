"""API: what is in service, activation now or later, rollback, and the files of a version."""

from collections.abc import Callable
from typing import Any, TypeVar

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet, ReadOnlyModelViewSet

from xrayplatform.http import Conflict

from .backups import BackupError
from .models import ActivationError, Deployment, IntegrityCheck, ScheduledActivation, ThresholdSet
from .models.integrity import FOLDER_MISSING
from .outlook import outlook
from .serializers import DeploymentSerializer

SWITCH = "registry.activate_modelversion"
VIEW = "registry.view_modelversion"
Done = TypeVar("Done")


class SwitchSerializer(serializers.Serializer):
    reason = serializers.CharField(max_length=500, help_text="kept in the history")
    epoch = serializers.IntegerField(
        required=False,
        allow_null=True,
        default=None,
        min_value=0,
        help_text="`epoch` of the deployment you decided on, 0 without any; when it has moved on the answer is 409",
    )


class ActivateSerializer(SwitchSerializer):
    threshold_set = serializers.IntegerField(
        required=False,
        allow_null=True,
        default=None,
        min_value=1,
        help_text="number of a threshold set of this version; without it the threshold of its training decides",
    )


class ScheduleSerializer(ActivateSerializer):
    at = serializers.DateTimeField(help_text="in the future; without an offset in the time zone of the platform")


class IntegritySerializer(serializers.ModelSerializer):
    damaged = serializers.BooleanField(source="is_damaged", read_only=True)

    class Meta:
        model = IntegrityCheck
        fields = ["version", "damaged", "reason", "message", "checked_at", "since"]
        read_only_fields = fields


class ScheduledActivationSerializer(serializers.ModelSerializer):
    condition = serializers.CharField(source="version.condition.slug", read_only=True)
    by = serializers.CharField(source="by.username", read_only=True, allow_null=True, default=None)
    threshold_set = serializers.IntegerField(
        source="threshold_set.number", read_only=True, allow_null=True, default=None, help_text="null: as trained"
    )
    state = serializers.ChoiceField(choices=ScheduledActivation.State.values, read_only=True)

    class Meta:
        model = ScheduledActivation
        fields = ["id", "condition", "version", "threshold_set", "at", "reason", "by", "state", "message", "ended_at"]
        read_only_fields = fields


class ReplacementSerializer(serializers.Serializer):
    """The chosen version against the one in service; all empty where nothing would be replaced."""

    in_service = serializers.IntegerField(allow_null=True)
    chosen = serializers.IntegerField()
    basis = serializers.CharField(allow_blank=True)
    same_images = serializers.BooleanField()
    figures = serializers.ListField(child=serializers.DictField())
    warnings = serializers.ListField(child=serializers.CharField(), help_text="where the chosen one is worse")


class ServiceActions(GenericViewSet):
    """The actions of a version that concern its service and its files."""

    service_permissions = {
        "activate": SWITCH,
        "rollback": SWITCH,
        "schedule": SWITCH,
        "outlook": VIEW,
        "verify": SWITCH,
        "restore": SWITCH,
    }

    @extend_schema(request=ActivateSerializer, responses=DeploymentSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, pk: Any = None) -> Response:
        """Put this version in service for its condition; every process switches without a restart."""
        version = self.get_object()
        wish = _wish(ActivateSerializer, request, version)
        return Response(DeploymentSerializer(_conflicts(lambda: version.activate(**wish))).data)

    @extend_schema(request=SwitchSerializer, responses=DeploymentSerializer)
    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, pk: Any = None) -> Response:
        """Take this version out of service and put the one before it back, with the threshold it had."""
        version = self.get_object()
        wish = _wish(SwitchSerializer, request, version)
        return Response(DeploymentSerializer(_conflicts(lambda: version.roll_back(**wish))).data)

    @extend_schema(request=ScheduleSerializer, responses={201: ScheduledActivationSerializer})
    @action(detail=True, methods=["post"])
    def schedule(self, request: Request, pk: Any = None) -> Response:
        """Put this version in service at a time in the future, if nothing else was activated until then."""
        version = self.get_object()
        wish = _wish(ScheduleSerializer, request, version)
        planned = _conflicts(lambda: ScheduledActivation.objects.plan(version, **wish))
        return Response(ScheduledActivationSerializer(planned).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses=ReplacementSerializer)
    @action(detail=True, pagination_class=None, filter_backends=[])
    def outlook(self, request: Request, pk: Any = None) -> Response:
        """What activating this version would change, figure by figure, with warnings where it is worse."""
        version = self.get_object()
        deployment = Deployment.objects.filter(condition=version.condition_id).select_related("active__condition")
        current = deployment.first()
        found = outlook(current.active if current else None, version)
        nothing = {"in_service": None, "chosen": version.pk, "basis": "", "same_images": False}
        return Response(found.to_json() if found else {**nothing, "figures": [], "warnings": []})

    @extend_schema(request=None, responses=IntegritySerializer)
    @action(detail=True, methods=["post"])
    def verify(self, request: Request, pk: Any = None) -> Response:
        """Look at every file of the version now and say whether it is what was registered.

        409 when the files of all versions are gone, which says nothing about this one.
        """
        check = self.get_object().verify(by=request.user)
        if check.reason == FOLDER_MISSING:
            raise Conflict(check.verdict)
        return Response(IntegritySerializer(check).data)

    @extend_schema(request=None, responses=IntegritySerializer)
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, pk: Any = None) -> Response:
        """Put the files of a damaged version back from the backup that was made when it was in service."""
        version = self.get_object()
        return Response(IntegritySerializer(_conflicts(lambda: version.restore(by=request.user))).data)


class DeploymentViewSet(ReadOnlyModelViewSet):
    """What is in service for each condition. `epoch` rises with every change."""

    queryset = Deployment.objects.none()
    serializer_class = DeploymentSerializer
    lookup_field = "condition__slug"
    lookup_url_kwarg = "condition"
    permissions = {"list": "registry.view_deployment", "retrieve": "registry.view_deployment"}

    def get_queryset(self) -> QuerySet:
        deployments = Deployment.objects.visible_to(self.request.user)
        return deployments.select_related("condition", "active", "threshold_set")


class ScheduledActivationViewSet(ReadOnlyModelViewSet):
    """Planned activations, those that have ended as well."""

    queryset = ScheduledActivation.objects.none()
    serializer_class = ScheduledActivationSerializer
    permissions = {
        "list": "registry.view_scheduledactivation",
        "retrieve": "registry.view_scheduledactivation",
        "cancel": SWITCH,
    }

    def get_queryset(self) -> QuerySet:
        rows = ScheduledActivation.objects.visible_to(self.request.user)
        return rows.select_related("version__condition", "threshold_set", "by")

    @extend_schema(request=None, responses=ScheduledActivationSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        """Leave the version out of service at that time."""
        planned = self.get_object()
        _conflicts(lambda: planned.cancel(by=request.user))
        return Response(ScheduledActivationSerializer(planned).data)


def _wish(form: type[SwitchSerializer], request: Request, version: Any) -> dict[str, Any]:
    """The arguments of a change of what is in service."""
    asked = form(data=request.data)
    asked.is_valid(raise_exception=True)
    wish = {**asked.validated_data, "by": request.user}
    wish["seen_epoch"] = wish.pop("epoch")
    if "threshold_set" in wish:
        wish["threshold_set"] = _threshold_set(version, wish["threshold_set"])
    return wish


def _threshold_set(version: Any, number: int | None) -> ThresholdSet | None:
    try:
        return version.threshold_set_numbered(number)  # type: ignore[no-any-return]
    except ThresholdSet.DoesNotExist as error:
        raise ValidationError({"threshold_set": [str(error)]}) from error


def _conflicts(work: Callable[[], Done]) -> Done:
    try:
        return work()
    except (ActivationError, BackupError) as error:
        raise Conflict(str(error)) from error
