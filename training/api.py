"""API: training runs."""

from typing import Any

import django_filters
from django.db import transaction
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from xrayplatform.http import choice_filter, row_filter

from .live_api import LiveActions
from .ml.architectures import ARCHITECTURES
from .models import TrainingRun
from .queue_api import PRIORITIES, PrioritySerializer
from .serializers import (
    ArchitectureSerializer,
    EpochMetricSerializer,
    RunLogSerializer,
    RunSerializer,
    StartRunSerializer,
)


class ArchitectureViewSet(ViewSet):
    """The architectures that can be trained, and whether their ImageNet weights are on this server."""

    permissions = {"list": "training.view_trainingrun"}

    @extend_schema(responses=ArchitectureSerializer(many=True))
    def list(self, request: Request) -> Response:
        return Response(ArchitectureSerializer(ARCHITECTURES.values(), many=True).data)


class RunFilter(django_filters.FilterSet):
    state = choice_filter(TrainingRun.State.values)
    architecture = choice_filter(ARCHITECTURES)
    preparation = row_filter("preparation_id")

    class Meta:
        model = TrainingRun
        fields = ["state", "architecture", "preparation"]


class RunViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, LiveActions):
    """Training runs: start, follow, cancel."""

    queryset = TrainingRun.objects.none()
    serializer_class = RunSerializer
    filterset_class = RunFilter
    permissions = {
        "list": "training.view_trainingrun",
        "retrieve": "training.view_trainingrun",
        "create": "training.add_trainingrun",
        "cancel": "training.cancel_trainingrun",
        "resume": "training.add_trainingrun",
        "prioritise": "training.prioritise_trainingrun",
        "metrics": "training.view_epochmetric",
        "log": "training.view_trainingrun",
        **LiveActions.live_permissions,
    }

    def get_queryset(self) -> QuerySet:
        runs = TrainingRun.objects.visible_to(self.request.user)
        return runs.select_related("preparation__dataset__condition", "version")

    @extend_schema(request=StartRunSerializer, responses={202: RunSerializer})
    def create(self, request: Request) -> Response:
        wanted = StartRunSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        values = wanted.validated_data
        with transaction.atomic():
            run = TrainingRun.create(
                values["dataset"],
                values["architecture"],
                values["configuration"],
                request.user,
                preset=values["preset"],
                initial=values["initial"],
                version=values["initial_version"],
            )
            run.enqueue()
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        """Ask the run to stop; it ends within 30 seconds."""
        run = self.get_object()
        run.request_cancel(request.user)
        return Response(RunSerializer(run).data)

    @extend_schema(request=None, responses={202: RunSerializer})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: Any = None) -> Response:
        """Let a failed run go on from its last checkpoint, as long as that is kept."""
        run = self.get_object()
        run.resume(request.user)
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=PrioritySerializer, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def prioritise(self, request: Request, pk: Any = None) -> Response:
        """Change the place of a waiting run in the queue."""
        wanted = PrioritySerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        run = self.get_object()
        run.prioritise(PRIORITIES[wanted.validated_data["priority"]], request.user)
        return Response(RunSerializer(run).data)

    @extend_schema(responses=EpochMetricSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def metrics(self, request: Request, pk: Any = None) -> Response:
        """What each finished epoch ended with."""
        return Response(EpochMetricSerializer(self.get_object().metrics.all(), many=True).data)

    @extend_schema(responses=RunLogSerializer)
    @action(detail=True)
    def log(self, request: Request, pk: Any = None) -> Response:
        """The last lines of the run's log."""
        return Response({"log": self.get_object().log_tail(200)})
