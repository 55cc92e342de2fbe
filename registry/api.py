"""API: model versions and activation."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from xrayplatform.http import Conflict

from .filters import ModelVersionFilter
from .models import ActivationError, ModelVersion
from .serializers import ActivateSerializer, DeploymentSerializer, EpochSerializer, ModelVersionSerializer


class ModelVersionViewSet(ReadOnlyModelViewSet):
    """The versions of every condition; their content never changes."""

    queryset = ModelVersion.objects.none()
    serializer_class = ModelVersionSerializer
    filterset_class = ModelVersionFilter
    permissions = {
        "list": "registry.view_modelversion",
        "retrieve": "registry.view_modelversion",
        "history": "registry.view_modelversion",
        "activate": "registry.activate_modelversion",
    }

    def get_queryset(self) -> QuerySet:
        versions = ModelVersion.objects.visible_to(self.request.user)
        return versions.select_related("condition", "created_by").with_activity()

    @extend_schema(responses=EpochSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def history(self, request: Request, pk: Any = None) -> Response:
        """What each epoch of the training ended with; empty for versions whose training kept nothing."""
        return Response(self.get_object().history)

    @extend_schema(request=ActivateSerializer, responses=DeploymentSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, pk: Any = None) -> Response:
        """Put this version in service for its condition; every process switches without a restart."""
        version = self.get_object()
        options = ActivateSerializer(data=request.data)
        options.is_valid(raise_exception=True)
        try:
            deployment = version.activate(by=request.user, reason=options.validated_data["reason"])
        except ActivationError as error:
            raise Conflict(str(error)) from error
        return Response(DeploymentSerializer(deployment).data)
