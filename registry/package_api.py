"""API: import packages of model versions, and follow that."""

from typing import Any

import django_filters
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied, ValidationError
from rest_framework.generics import get_object_or_404
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from xrayplatform.conditions import Condition
from xrayplatform.fields import OneOfField, StrictSerializer
from xrayplatform.http import choice_filter
from xrayplatform.teams import Team

from .models import PackageImport, ReceivedPackage
from .packages import PackageError
from .signing import SignatureState

JOB_FIELDS = [
    "id", "state", "progress", "message", "error", "hint", "attempt", "created_at", "started_at", "finished_at",
]  # fmt: skip


class PackageImportSerializer(serializers.ModelSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    package = serializers.CharField(source="package.sha256", read_only=True, help_text="digest of the package")
    origin = serializers.CharField(source="package.origin", read_only=True)
    number_there = serializers.IntegerField(source="package.description.version.number", read_only=True)
    signature = serializers.CharField(source="package.signature", read_only=True, help_text="when it was received")
    key_id = serializers.CharField(source="package.key_id", read_only=True)

    class Meta:
        model = PackageImport
        fields = [
            *JOB_FIELDS, "package", "origin", "number_there", "signature", "key_id", "accepted", "reason",
            "condition", "version", "documents",
        ]  # fmt: skip
        read_only_fields = fields


class SendPackageSerializer(StrictSerializer):
    """A package, where it goes, and the yes to an origin that is not trusted."""

    file = serializers.FileField(help_text="what the export of a version gave")
    condition = serializers.SlugField(
        max_length=100, required=False, help_text="default: the one that the package names if it fits, or a new one"
    )
    team = serializers.IntegerField(required=False, min_value=1, help_text="of a new condition, if you are in several")
    accept = OneOfField(
        choices=[SignatureState.UNSIGNED.value, SignatureState.UNKNOWN_KEY.value],
        required=False,
        allow_blank=True,
        help_text="you answer for a package without a signature, or of a key that is not trusted",
    )


class PackageImportFilter(django_filters.FilterSet):
    state = choice_filter(PackageImport.State.values)

    class Meta:
        model = PackageImport
        fields = ["state"]


class PackageImportViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Imports of packages, as jobs; when one has finished, `version` names what it made."""

    queryset = PackageImport.objects.none()
    serializer_class = PackageImportSerializer
    filterset_class = PackageImportFilter
    parser_classes = [MultiPartParser, FormParser, JSONParser]
    takes_archives = ("create",)
    permissions = {
        "list": "registry.view_packageimport",
        "retrieve": "registry.view_packageimport",
        "create": "registry.add_packageimport",
        "cancel": "registry.add_packageimport",
    }

    def get_queryset(self) -> QuerySet:
        return PackageImport.objects.visible_to(self.request.user).select_related("package", "condition")

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        request.upload_handlers = [TemporaryFileUploadHandler(request)]
        return super().dispatch(request, *args, **kwargs)

    @extend_schema(
        request={"multipart/form-data": SendPackageSerializer},
        responses={202: PackageImportSerializer, 200: PackageImportSerializer},
    )
    def create(self, request: Request) -> Response:
        """Send a package. 200 with the earlier import when this very package is a version here already."""
        given = SendPackageSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        values = given.validated_data
        try:
            package = ReceivedPackage.objects.receive(values["file"], by=request.user)
        except PackageError as error:
            raise ValidationError({"file": [str(error)], "reason": [error.reason]}) from error
        try:
            return self._import(package, values)
        except Exception:
            package.discard()
            raise

    def _import(self, package: ReceivedPackage, values: dict[str, Any]) -> Response:
        existing = package.known_to(self.request.user)
        if existing is not None:
            package.discard()
            return Response(PackageImportSerializer(existing.package_import).data)
        condition = self._condition(package, values.get("condition"))
        team = None if condition else self._team(values.get("team"))
        PackageImport.require_yes(package, values.get("accept", ""), by=self.request.user)
        with transaction.atomic():
            job = PackageImport.create(
                package, self.request.user, condition=condition, team=team, accepted=values.get("accept", "")
            )
            job.enqueue()
        return Response(PackageImportSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    def _condition(self, package: ReceivedPackage, slug: str | None) -> Condition | None:
        user = self.request.user
        if slug is not None:
            return get_object_or_404(Condition.objects.visible_to(user), slug=slug)
        fitting = {one.slug: one for one in package.conditions_for(user)}
        condition = fitting.get(package.description["condition"]["slug"])
        if condition is None and not user.has_perm("xrayplatform.add_condition"):
            raise PermissionDenied("Name a condition: your role does not allow new ones.")
        return condition

    def _team(self, pk: int | None) -> Team | None:
        teams = self.request.user.teams.all()
        if pk is not None:
            return get_object_or_404(teams, pk=pk)
        if len(teams) > 1:
            raise ValidationError({"team": ["You are in several teams: say which one the condition belongs to."]})
        return teams.first()

    @extend_schema(request=None, responses=PackageImportSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        job = self.get_object()
        job.request_cancel(request.user)
        return Response(PackageImportSerializer(job).data)
