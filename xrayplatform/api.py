"""The API's one router: it alone, with `urls.py`, sees every app."""

from typing import Any

import django_filters
from django.contrib.auth import authenticate
from django.db import transaction
from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from drf_spectacular.authentication import SessionScheme
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from knox.models import AuthToken
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.viewsets import GenericViewSet, ReadOnlyModelViewSet, ViewSet

from datasets.api import (
    DatasetViewSet,
    FindingViewSet,
    ImageViewSet,
    PreparationViewSet,
    ScanViewSet,
    UploadViewSet,
)
from inference import serving_status
from inference.api import PredictionViewSet
from inference.batch_api import BatchViewSet
from inference.evaluation_api import EvaluatedImagesViewSet, EvaluationRunViewSet
from inference.experiment_api import ExperimentViewSet
from inference.export_api import PredictionExportViewSet
from inference.monitoring_api import CorrectionViewSet, MonitoringAlertViewSet, MonitoringViewSet
from inference.policy_api import PolicyViewSet
from registry.api import EvaluationViewSet, ModelVersionViewSet
from registry.export_api import ConditionExportSerializer, ConditionExportViewSet
from registry.models import ConditionExport, IntegrityCheck, models_are_missing
from registry.package_api import PackageImportViewSet
from registry.service_api import DeploymentViewSet, ScheduledActivationViewSet
from training.api import ArchitectureViewSet, RunViewSet
from training.lineage_api import TrainedDatasetViewSet
from training.live_api import SpeedTestViewSet
from training.preset_api import PresetViewSet
from training.queue_api import QueueViewSet
from training.search_api import SearchViewSet

from . import audit, system
from .audit_export import FORMATS
from .audit_filters import AuditApiFilter, export_response
from .conditions import Condition
from .fields import StrictSerializer
from .http import MAX_ROW, FlagFilter
from .notifications import Notification, mark_read


class HeaderSessionScheme(SessionScheme):
    """The description of the session cookie, for the class that takes it here."""

    target_class = "xrayplatform.access.HeaderSessionAuthentication"


class ConditionSerializer(serializers.ModelSerializer):
    class Meta:
        model = Condition
        fields = ["id", "slug", "name", "body_part", "intended_use", "team"]
        read_only_fields = fields


class ConditionViewSet(ReadOnlyModelViewSet):
    """The clinical questions that models answer."""

    queryset = Condition.objects.none()
    serializer_class = ConditionSerializer
    lookup_field = "slug"
    permissions = {
        "list": "xrayplatform.view_condition",
        "retrieve": "xrayplatform.view_condition",
        "export": "registry.export_modelversion",
    }

    def get_queryset(self) -> QuerySet:
        return Condition.objects.visible_to(self.request.user)

    @extend_schema(request=None, responses={202: ConditionExportSerializer})
    @action(detail=True, methods=["post"])
    def export(self, request: Request, slug: str = "") -> Response:
        """Start to write all versions into one file; 202 with the job that does it, or does it already for you."""
        job = ConditionExport.start(self.get_object(), request.user)
        return Response(ConditionExportSerializer(job).data, status=status.HTTP_202_ACCEPTED)


class AuditEntrySerializer(serializers.ModelSerializer):
    class Meta:
        model = audit.AuditEntry
        fields = [
            "seq", "at", "actor_name", "role", "address", "channel", "request_id", "action", "object_type",
            "object_id", "object_label", "outcome", "before", "after", "number", "nonce", "key_id", "hmac",
            "prev_hash", "seal",
        ]  # fmt: skip
        read_only_fields = fields


class AuditEntryViewSet(ReadOnlyModelViewSet):
    """Who did what, newest first."""

    queryset = audit.AuditEntry.objects.all()
    serializer_class = AuditEntrySerializer
    filterset_class = AuditApiFilter
    permissions = dict.fromkeys(("list", "retrieve", "export"), "xrayplatform.view_auditentry")

    @extend_schema(
        parameters=[OpenApiParameter("as", str, enum=list(FORMATS), default="csv", description="the kind of file")],
        responses={(200, "text/csv"): OpenApiTypes.STR, (200, "application/json"): OpenApiTypes.OBJECT},
        filters=True,
    )
    @action(detail=False, pagination_class=None)
    def export(self, request: Request) -> HttpResponseBase:
        """The entries that the filters leave as a file, oldest first; its last line signs the rest (Ed25519)."""
        form = request.query_params.get("as", "csv")
        if form not in FORMATS:
            raise serializers.ValidationError({"as": [f"Choose one of these: {', '.join(FORMATS)}."]})
        entries = self.filter_queryset(self.get_queryset())
        asked = {name: text for name, text in request.query_params.items() if name in AuditApiFilter.base_filters}
        return export_response(entries, form, asked, by=request.user)


class SystemSerializer(serializers.Serializer):
    resources = serializers.DictField()
    queues = serializers.ListField(child=serializers.DictField())
    models_missing = serializers.BooleanField(
        help_text="there are versions, but the folder of their files is not there"
    )
    damaged_versions = serializers.ListField(child=serializers.DictField(), help_text="whose files are not whole")
    serving = serializers.DictField(help_text="processes and their versions, who waits, what is kept")


class SystemViewSet(ViewSet):
    """Disk, memory, CPU, GPU, the queues, and what serves models."""

    permissions = {"list": "xrayplatform.view_system"}

    @extend_schema(responses=SystemSerializer)
    def list(self, request: Request) -> Response:
        damaged = [
            {"version": check.version_id, "name": str(check.version), "message": check.message, "since": check.since}
            for check in IntegrityCheck.objects.visible_to(request.user).damaged()
        ]
        status = {"resources": system.resources().to_json(), "queues": system.queue_status()}
        serving = serving_status.status(request.user).to_json()
        missing = models_are_missing()
        return Response({**status, "models_missing": missing, "damaged_versions": damaged, "serving": serving})


class NotificationSerializer(serializers.ModelSerializer):
    class Meta:
        model = Notification
        fields = ["id", "at", "text", "url", "read_at"]
        read_only_fields = fields


class ReadSerializer(StrictSerializer):
    ids = serializers.ListField(
        child=serializers.IntegerField(min_value=0, max_value=MAX_ROW), max_length=1000, required=False
    )


class ReadCountSerializer(serializers.Serializer):
    read = serializers.IntegerField()


class NotificationFilter(django_filters.FilterSet):
    unread = FlagFilter("read_at", "isnull")

    class Meta:
        model = Notification
        fields: list[str] = []


class NotificationViewSet(mixins.ListModelMixin, GenericViewSet):
    """The user's own messages, newest first."""

    queryset = Notification.objects.none()
    serializer_class = NotificationSerializer
    filterset_class = NotificationFilter
    # Everybody has messages, whatever their role; nobody sees those of others.
    permission_classes = [IsAuthenticated]
    permissions = {"list": "", "read": ""}

    def get_queryset(self) -> QuerySet:
        return Notification.objects.of(self.request.user)

    @extend_schema(request=ReadSerializer, responses=ReadCountSerializer)
    @action(detail=False, methods=["post"], filter_backends=[], pagination_class=None)
    def read(self, request: Request) -> Response:
        """Mark these messages as read, or without `ids` all."""
        given = ReadSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        return Response({"read": mark_read(request.user, given.validated_data.get("ids"))})


class LoginSerializer(serializers.Serializer):
    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=500, trim_whitespace=False)


class TokenSerializer(serializers.Serializer):
    token = serializers.CharField()
    expiry = serializers.DateTimeField()


class TokenViewSet(ViewSet):
    """Exchange a user name and password for a token; send it as `Authorization: Token ...`."""

    authentication_classes: list[Any] = []
    permission_classes = [AllowAny]

    def get_authenticate_header(self, request: Request) -> str:
        """Named here because there is no authenticator to name it: without, a wrong password would be a 403."""
        return "Token"

    @extend_schema(request=LoginSerializer, responses={201: TokenSerializer}, auth=[])
    def create(self, request: Request) -> Response:
        given = LoginSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        user = authenticate(request, **given.validated_data)
        if user is None:
            refused = audit.AuditEntry.Outcome.REFUSED
            audit.record("token.create", actor_name=given.validated_data["username"], outcome=refused)
            raise AuthenticationFailed("The user name or the password is wrong.")
        with transaction.atomic():
            token, secret = AuthToken.objects.create(user)
            audit.record("token.create", user, actor=user, after={"token": token.token_key})
        return Response({"token": secret, "expiry": token.expiry}, status=status.HTTP_201_CREATED)


router = DefaultRouter()
router.include_root_view = False
# No second address (`runs.json`) for everything: actions do not know what to do with it.
router.include_format_suffixes = False
router.register("conditions", ConditionViewSet, "condition")
router.register("datasets", DatasetViewSet, "dataset")
router.register("datasets", TrainedDatasetViewSet, "traineddataset")
router.register("architectures", ArchitectureViewSet, "architecture")
router.register("scans", ScanViewSet, "scan")
router.register("images", ImageViewSet, "image")
router.register("findings", FindingViewSet, "finding")
router.register("preparations", PreparationViewSet, "preparation")
router.register("uploads", UploadViewSet, "upload")
router.register("runs", RunViewSet, "run")
router.register("queue", QueueViewSet, "queue")
router.register("searches", SearchViewSet, "search")
router.register("presets", PresetViewSet, "preset")
router.register("speed-tests", SpeedTestViewSet, "speedtest")
router.register("versions", ModelVersionViewSet, "version")
router.register("packages", PackageImportViewSet, "package")
router.register("condition-exports", ConditionExportViewSet, "conditionexport")
router.register("evaluations", EvaluationViewSet, "evaluation")
router.register("predictions", PredictionViewSet, "prediction")
router.register("predictions", PredictionExportViewSet, "predictionexport")
router.register("batches", BatchViewSet, "batch")
router.register("evaluation-runs", EvaluationRunViewSet, "evaluationrun")
router.register("evaluated-images", EvaluatedImagesViewSet, "evaluatedimages")
router.register("experiments", ExperimentViewSet, "experiment")
router.register("monitoring", MonitoringViewSet, "monitoring")
router.register("alerts", MonitoringAlertViewSet, "alert")
router.register("corrections", CorrectionViewSet, "correction")
router.register("policies", PolicyViewSet, "policy")
router.register("deployments", DeploymentViewSet, "deployment")
router.register("scheduled-activations", ScheduledActivationViewSet, "scheduledactivation")
router.register("system", SystemViewSet, "system")
router.register("notifications", NotificationViewSet, "notification")
router.register("audit", AuditEntryViewSet, "auditentry")
router.register("tokens", TokenViewSet, "token")
