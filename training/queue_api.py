"""API: the training queue."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from .models import TrainingQueue, TrainingRun
from .waiting import overview

PRIORITIES = {priority.label.lower(): priority.value for priority in TrainingRun.Priority}


class EntrySerializer(serializers.Serializer):
    """A run in the queue. Of a run of another team only place, priority and why it waits are told."""

    run = serializers.IntegerField(allow_null=True)
    other_team = serializers.BooleanField()
    dataset = serializers.CharField(required=False)
    architecture = serializers.CharField(required=False)
    search = serializers.IntegerField(required=False, allow_null=True)
    started_by = serializers.CharField(required=False, allow_null=True)
    epoch = serializers.IntegerField(required=False)
    epochs = serializers.IntegerField(required=False)
    priority = serializers.CharField()
    place = serializers.IntegerField(allow_null=True)
    why = serializers.CharField()
    seconds = serializers.FloatField(allow_null=True, help_text="that it will still take")
    starts_in = serializers.FloatField(allow_null=True, help_text="seconds until it starts")


class QueueSerializer(serializers.Serializer):
    paused = serializers.BooleanField()
    reason = serializers.CharField()
    changed_by = serializers.CharField(allow_null=True)
    worker_alive = serializers.BooleanField()
    problem = serializers.CharField()
    running = EntrySerializer(many=True)
    waiting = EntrySerializer(many=True)
    held = EntrySerializer(many=True)


class PauseSerializer(serializers.Serializer):
    reason = serializers.CharField(max_length=300)


class PrioritySerializer(serializers.Serializer):
    priority = serializers.ChoiceField(choices=list(PRIORITIES))


class QueueViewSet(ViewSet):
    """What trains, what waits in which order and why; pause and open it."""

    permissions = {
        "list": "training.view_trainingqueue",
        "pause": "training.pause_trainingqueue",
        "open": "training.pause_trainingqueue",
    }

    @extend_schema(responses=QueueSerializer)
    def list(self, request: Request) -> Response:
        return Response(overview(request.user).to_json())

    @extend_schema(request=PauseSerializer, responses=QueueSerializer)
    @action(detail=False, methods=["post"])
    def pause(self, request: Request, **kwargs: Any) -> Response:
        """Let no waiting run start any more; what runs goes on."""
        given = PauseSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        TrainingQueue.pause(request.user, given.validated_data["reason"])
        return self.list(request)

    @extend_schema(request=None, responses=QueueSerializer)
    @action(detail=False, methods=["post"])
    def open(self, request: Request, **kwargs: Any) -> Response:
        """Let waiting runs start again."""
        TrainingQueue.open(request.user)
        return self.list(request)
