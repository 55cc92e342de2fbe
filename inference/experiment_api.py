"""API: experiments with a version beside the one in service."""

from collections.abc import Callable
from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from registry.models import ActivationError, ModelVersion
from registry.serializers import DeploymentSerializer
from xrayplatform.fields import NumberField, RowField, StrictSerializer
from xrayplatform.http import Conflict, choice_filter, row_filter

from .experiment_results import report_of, state_of
from .models import Experiment


class ExperimentSerializer(serializers.ModelSerializer):
    condition = serializers.CharField(source="condition.slug", read_only=True)
    created_by = serializers.CharField(source="created_by.username", read_only=True, allow_null=True, default=None)
    ended_by = serializers.CharField(source="ended_by.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = Experiment
        fields = [
            "id", "condition", "kind", "champion", "challenger", "share", "epoch", "reason", "max_error_rate",
            "max_latency_ratio", "min_requests", "state", "created_by", "created_at", "ended_by", "ended_at",
            "ended_reason",
        ]  # fmt: skip
        read_only_fields = fields


class ExperimentReportSerializer(ExperimentSerializer):
    so_far = serializers.DictField(help_text="answers, failures and latency of both sides")
    report = serializers.DictField(help_text="figures against the readers' verdicts, with `conclusion` in words")

    class Meta(ExperimentSerializer.Meta):
        fields = [*ExperimentSerializer.Meta.fields, "so_far", "report"]
        read_only_fields = fields


class StartExperimentSerializer(StrictSerializer):
    challenger = RowField(queryset=ModelVersion.objects.none(), help_text="the version to try, in its own condition")
    kind = serializers.ChoiceField(choices=Experiment.Kind.choices)
    share = serializers.IntegerField(
        min_value=1, max_value=99, required=False, default=10, help_text="per cent of the studies; for A/B only"
    )
    reason = serializers.CharField(max_length=500, help_text="kept in the history")
    epoch = serializers.IntegerField(
        min_value=0,
        required=False,
        allow_null=True,
        default=None,
        help_text="`epoch` of the deployment you decided on; when it has moved on the answer is 409",
    )
    max_error_rate = NumberField(
        min_value=0, max_value=0.99, required=False, help_text="share of its requests that may fail; default 0.05"
    )
    max_latency_ratio = NumberField(
        min_value=1, required=False, help_text="its median latency by the champion's; default 3"
    )
    min_requests = serializers.IntegerField(
        min_value=1, max_value=100_000, required=False, help_text="before it may be stopped by itself; default 20"
    )

    def get_fields(self) -> dict[str, serializers.Field]:
        fields = super().get_fields()
        request = self.context.get("request")
        if request is not None:
            versions = ModelVersion.objects.visible_to(request.user).select_related("condition")
            fields["challenger"].queryset = versions
        return fields


class EndExperimentSerializer(StrictSerializer):
    reason = serializers.CharField(max_length=500, help_text="kept in the history")


class ExperimentFilter(django_filters.FilterSet):
    condition = django_filters.CharFilter("condition__slug")
    challenger = row_filter("challenger_id")
    state = choice_filter(Experiment.State.values)

    class Meta:
        model = Experiment
        fields = ["condition", "challenger", "state"]


class ExperimentViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """A version tried beside the one in service: unseen (shadow), or on a share of the studies (A/B)."""

    queryset = Experiment.objects.none()
    serializer_class = ExperimentSerializer
    filterset_class = ExperimentFilter
    permissions = {
        "list": "inference.view_experiment",
        "retrieve": "inference.view_experiment",
        "create": "inference.add_experiment",
        "stop": "inference.change_experiment",
        "promote": ("inference.change_experiment", "registry.activate_modelversion"),
    }

    def get_queryset(self) -> QuerySet:
        return Experiment.objects.visible_to(self.request.user).with_names()

    @extend_schema(responses=ExperimentReportSerializer)
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """With what it has shown so far."""
        return Response(document(self.get_object()))

    @extend_schema(request=StartExperimentSerializer, responses={201: ExperimentSerializer})
    def create(self, request: Request) -> Response:
        """Try a version beside the one in service; a condition has one experiment at a time."""
        asked = StartExperimentSerializer(data=request.data, context={"request": request})
        asked.is_valid(raise_exception=True)
        wish = dict(asked.validated_data)
        challenger, seen_epoch = wish.pop("challenger"), wish.pop("epoch")
        experiment = _conflicts(
            lambda: Experiment.objects.start(
                challenger.condition, challenger, by=request.user, seen_epoch=seen_epoch, **wish
            )
        )
        return Response(ExperimentSerializer(experiment).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=EndExperimentSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: Any = None) -> Response:
        """End it; the champion answers everything again."""
        experiment = self.get_object()
        reason = _reason(request)
        _conflicts(lambda: experiment.stop(by=request.user, reason=reason))
        return Response(ExperimentSerializer(experiment).data)

    @extend_schema(request=EndExperimentSerializer, responses=DeploymentSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: Any = None) -> Response:
        """Put the challenger in service, unless something else was since the experiment began."""
        experiment = self.get_object()
        reason = _reason(request)
        deployment = _conflicts(lambda: experiment.promote(by=request.user, reason=reason))
        return Response(DeploymentSerializer(deployment).data)


def document(experiment: Experiment) -> dict[str, Any]:
    """An experiment with what it has shown so far, ready for JSON."""
    return {
        **ExperimentSerializer(experiment).data,
        "so_far": state_of(experiment),
        "report": report_of(experiment),
    }


def _reason(request: Request) -> str:
    asked = EndExperimentSerializer(data=request.data)
    asked.is_valid(raise_exception=True)
    return str(asked.validated_data["reason"])


def _conflicts(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ActivationError as error:
        raise Conflict(str(error)) from error
