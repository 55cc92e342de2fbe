"""API: what surrounds a run: hints, notes, the checks and the estimate before it, speed tests."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from datasets.models import IMAGE_SIZES
from xrayplatform.fields import OneOfField
from xrayplatform.http import choice_filter, row_filter

from .configurations import OPTIONS
from .live import hints_of
from .ml.architectures import ARCHITECTURES
from .models import RunNote, SpeedTest
from .preflight import preflight
from .serializers import StartRunSerializer


class HintSerializer(serializers.Serializer):
    code = serializers.CharField()
    level = serializers.ChoiceField(["problem", "advice", "fine"])
    text = serializers.CharField()
    advice = serializers.CharField()


class NoteSerializer(serializers.ModelSerializer):
    author = serializers.CharField(source="author.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = RunNote
        fields = ["id", "author", "at", "text"]
        read_only_fields = ["id", "author", "at"]


class CheckSerializer(serializers.Serializer):
    name = serializers.CharField()
    level = serializers.ChoiceField(["ok", "warning", "problem"])
    text = serializers.CharField()
    advice = serializers.CharField()
    url = serializers.CharField()


class DurationSerializer(serializers.Serializer):
    """Seconds; `total` is when the training does not stop early."""

    start = serializers.FloatField()
    epoch = serializers.FloatField()
    evaluation = serializers.FloatField()
    total = serializers.FloatField()


class PreflightSerializer(serializers.Serializer):
    can_start = serializers.BooleanField()
    checks = CheckSerializer(many=True)
    seconds = DurationSerializer(allow_null=True)
    source = serializers.CharField(help_text="what the estimate rests on")
    exact = serializers.BooleanField(help_text="measured with this image and batch size")


class LiveActions(GenericViewSet):
    """Actions of the view set of runs."""

    live_permissions = {
        "hints": "training.view_trainingrun",
        "notes": "training.view_runnote",
        "add_note": "training.add_runnote",
        "estimate": "training.add_trainingrun",
    }

    @extend_schema(responses=HintSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def hints(self, request: Request, pk: Any = None) -> Response:
        """What the curves say in words, and what to do."""
        return Response([hint.to_json() for hint in hints_of(self.get_object())])

    @extend_schema(responses=NoteSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def notes(self, request: Request, pk: Any = None) -> Response:
        """What people noted about the run, oldest first."""
        return Response(NoteSerializer(self.get_object().notes.select_related("author"), many=True).data)

    @extend_schema(request=NoteSerializer, responses={201: NoteSerializer})
    @notes.mapping.post
    def add_note(self, request: Request, pk: Any = None) -> Response:
        """Add a note. It cannot be changed afterwards."""
        given = NoteSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        note = self.get_object().note(given.validated_data["text"], request.user)
        return Response(NoteSerializer(note).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=StartRunSerializer, responses=PreflightSerializer)
    @action(detail=False, methods=["post"], pagination_class=None, filter_backends=[])
    def estimate(self, request: Request) -> Response:
        """Whether such a training could start, what to think of first, and how long it would take. Starts nothing."""
        wanted = StartRunSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        values = wanted.validated_data
        found = preflight(
            values["dataset"],
            values["architecture"],
            values["configuration"],
            request.user,
            initial=values["initial"],
            version=values["initial_version"],
        )
        return Response(found.to_json())


class SpeedTestSerializer(serializers.ModelSerializer):
    disturbed = serializers.SerializerMethodField(help_text="a training ran on the same machine meanwhile")
    images_per_second = serializers.FloatField(read_only=True, allow_null=True)

    class Meta:
        model = SpeedTest
        fields = [
            "id", "state", "progress", "message", "error", "hint", "architecture", "image_size", "batch_size",
            "fine_tuning", "step_seconds", "prediction_seconds", "start_seconds", "images_per_second", "peak_memory",
            "disturbed", "created_at", "finished_at",
        ]  # fmt: skip
        read_only_fields = fields

    def get_disturbed(self, test: SpeedTest) -> bool:
        return test.disturbed if hasattr(test, "disturbed") else test.is_disturbed


class RequestSpeedTestSerializer(serializers.Serializer):
    architecture = OneOfField(choices=list(ARCHITECTURES))
    image_size = OneOfField(choices=list(IMAGE_SIZES), default=224)
    batch_size = serializers.IntegerField(
        min_value=1,
        max_value=int(OPTIONS["batch_size"].range.high),
        required=False,
        help_text="default: the architecture's own",
    )
    fine_tuning = serializers.BooleanField(default=False)


class SpeedTestFilter(django_filters.FilterSet):
    state = choice_filter(SpeedTest.State.values)
    architecture = choice_filter(ARCHITECTURES)
    image_size = choice_filter(IMAGE_SIZES, coerce=int)
    batch_size = row_filter("batch_size")

    class Meta:
        model = SpeedTest
        fields = ["state", "architecture", "image_size", "batch_size"]


class SpeedTestViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """How fast this machine trains: a few timed steps. The results belong to no team."""

    queryset = SpeedTest.objects.all()
    serializer_class = SpeedTestSerializer
    filterset_class = SpeedTestFilter
    permissions = {
        "list": "training.view_speedtest",
        "retrieve": "training.view_speedtest",
        "create": "training.add_speedtest",
    }

    def get_queryset(self) -> QuerySet:
        return SpeedTest.objects.with_disturbance()

    @extend_schema(request=RequestSpeedTestSerializer, responses={202: SpeedTestSerializer})
    def create(self, request: Request) -> Response:
        wanted = RequestSpeedTestSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        values = wanted.validated_data
        test = SpeedTest.request(
            values["architecture"],
            values["image_size"],
            values.get("batch_size") or ARCHITECTURES[values["architecture"]].batch_size,
            request.user,
            fine_tuning=values["fine_tuning"],
        )
        return Response(SpeedTestSerializer(test).data, status=status.HTTP_202_ACCEPTED)
