"""API: measure versions on other images, and the images behind an evaluation."""

from typing import Any

import django_filters
import numpy as np
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from datasets.models import COMMENT_LENGTH, Dataset, Preparation
from datasets.serializers import JOB_FIELDS
from registry.models import Evaluation, EvaluationUnusable, ModelVersion
from xrayplatform import audit
from xrayplatform.fields import OneOfField, RowField, StrictSerializer
from xrayplatform.http import MAX_ROW, Conflict, choice_filter, row_filter

from .looking import Inside, NoMap, Seen, draw_map
from .looking_views import IMAGES_ON_A_PAGE, KEPT_NOWHERE
from .models import EvaluationRun


class EvaluationRunSerializer(serializers.ModelSerializer):
    class Meta:
        model = EvaluationRun
        fields = [*JOB_FIELDS, "version", "dataset", "preparation", "part", "problems", "evaluation"]
        read_only_fields = fields


class StartEvaluationSerializer(StrictSerializer):
    """A version, and a part of a preparation or, without one, all images of a dataset."""

    version = RowField(queryset=ModelVersion.objects.none())
    dataset = RowField(queryset=Dataset.objects.none(), required=False, help_text="not needed with a preparation")
    preparation = RowField(queryset=Preparation.objects.none(), required=False, allow_null=True, default=None)
    part = OneOfField(
        choices=EvaluationRun.Part.values,
        required=False,
        help_text="default: test with a preparation, all without; validation: only of the version's own division",
    )

    def get_fields(self) -> dict[str, serializers.Field]:
        fields = super().get_fields()
        request = self.context.get("request")
        if request is not None:
            versions = ModelVersion.objects.visible_to(request.user).select_related("condition__team")
            datasets = Dataset.objects.visible_to(request.user).select_related("condition__team")
            preparations = Preparation.objects.visible_to(request.user).select_related("dataset__condition__team")
            fields["version"].queryset, fields["dataset"].queryset = versions, datasets
            fields["preparation"].queryset = preparations
        return fields

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        preparation = data["preparation"]
        if preparation is not None:
            data.setdefault("dataset", preparation.dataset)
        if "dataset" not in data:
            raise serializers.ValidationError({"dataset": ["Name a dataset or a preparation."]})
        data.setdefault("part", "all" if preparation is None else "test")
        return data


class EvaluationRunFilter(django_filters.FilterSet):
    version = row_filter("version_id")
    dataset = row_filter("dataset_id")
    state = choice_filter(EvaluationRun.State.values)

    class Meta:
        model = EvaluationRun
        fields = ["version", "dataset", "state"]


class EvaluationRunViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Evaluations of versions on other images, as jobs; when one has finished, `evaluation` names the report."""

    queryset = EvaluationRun.objects.none()
    serializer_class = EvaluationRunSerializer
    filterset_class = EvaluationRunFilter
    permissions = {
        "list": "inference.view_evaluationrun",
        "retrieve": "inference.view_evaluationrun",
        "create": "inference.add_evaluationrun",
        "cancel": "inference.add_evaluationrun",
    }

    def get_queryset(self) -> QuerySet:
        return EvaluationRun.objects.visible_to(self.request.user)

    @extend_schema(request=StartEvaluationSerializer, responses={202: EvaluationRunSerializer})
    def create(self, request: Request) -> Response:
        wanted = StartEvaluationSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        values = wanted.validated_data
        with transaction.atomic():
            run = EvaluationRun.create(
                values["version"],
                values["dataset"],
                request.user,
                preparation=values["preparation"],
                part=values["part"],
            )
            run.enqueue()
        return Response(EvaluationRunSerializer(run).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses=EvaluationRunSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        run = self.get_object()
        run.request_cancel(request.user)
        return Response(EvaluationRunSerializer(run).data)


class SeenSerializer(serializers.Serializer):
    """One evaluated image. image: its number among the images, null where it cannot be shown; `problem` says why."""

    position = serializers.IntegerField(help_text="among the images of the evaluation")
    true = serializers.CharField()
    predicted = serializers.CharField()
    probabilities = serializers.SerializerMethodField(help_text="after the temperature, by class")
    digest = serializers.CharField()
    image = serializers.IntegerField(source="image.pk", allow_null=True, default=None)
    path = serializers.CharField(source="image.path", allow_null=True, default=None)
    label_now = serializers.CharField(help_text="where it is not the one that it was measured with")
    flag = serializers.CharField(source="flag.detail", allow_null=True, default=None, help_text="who calls it wrong")
    problem = serializers.CharField()

    def get_probabilities(self, seen: Seen) -> dict[str, float]:
        return dict(seen.ranked)


class LookSerializer(serializers.Serializer):
    evaluation = serializers.IntegerField()
    count = serializers.IntegerField(help_text="images of the cell, as in the confusion matrix")
    page = serializers.IntegerField()
    pages = serializers.IntegerField()
    problem = serializers.CharField(help_text="why images cannot be shown; empty when they can")
    images = SeenSerializer(many=True)


class FlagEvaluatedSerializer(StrictSerializer):
    """What speaks against the label of an evaluated image."""

    position = serializers.IntegerField(min_value=0, max_value=MAX_ROW)
    suggestion = serializers.CharField(
        max_length=200, required=False, allow_blank=True, default="", help_text="the right class; empty: just wrong"
    )
    comment = serializers.CharField(max_length=COMMENT_LENGTH, required=False, allow_blank=True, default="")


class PositionSerializer(serializers.Serializer):
    position = serializers.IntegerField(min_value=0, max_value=MAX_ROW)


def _of_class(name: str, words: str) -> OpenApiParameter:
    return OpenApiParameter(name, str, description=words)


class EvaluatedImagesViewSet(GenericViewSet):
    """The images behind an evaluation: what was said of each, its class activation map, and labels called wrong."""

    queryset = Evaluation.objects.none()
    serializer_class = LookSerializer
    permissions = {
        "retrieve": ("registry.view_evaluation", "datasets.view_datasetimage"),
        "map": ("registry.view_evaluation", "datasets.view_datasetimage"),
        "flag": ("registry.view_evaluation", "datasets.flag_datasetimage"),
    }

    def get_queryset(self) -> QuerySet:
        return Evaluation.objects.visible_to(self.request.user).select_related("version__condition")

    @extend_schema(
        parameters=[
            _of_class("true", "the true class; with `predicted` a cell of the confusion matrix, alone its errors"),
            _of_class("predicted", "the class that the version said"),
            OpenApiParameter("page", int),
        ],
        responses=LookSerializer,
    )
    def retrieve(self, request: Request, pk: Any = None) -> Response:
        """A page of the images of a cell, or of all errors; the most confident errors first."""
        inside = self._inside()
        chosen = {name: self._class(inside, name) for name in ("true", "predicted")}
        try:
            pages = Paginator(inside.positions(**chosen).tolist(), IMAGES_ON_A_PAGE)
        except EvaluationUnusable as error:
            raise Conflict(str(error)) from error
        page = pages.get_page(request.query_params.get("page"))
        audit.record(
            "evaluation.view_images", inside.evaluation, actor=request.user, after={**chosen, "page": page.number}
        )
        answer = {
            "evaluation": inside.evaluation.pk,
            "count": pages.count,
            "page": page.number,
            "pages": pages.num_pages,
            "problem": inside.source.problem,
            "images": inside.seen(np.asarray(page.object_list, np.int64)),
        }
        return Response(LookSerializer(answer).data, headers={"Cache-Control": KEPT_NOWHERE})

    @extend_schema(
        parameters=[OpenApiParameter("position", int, required=True), _of_class("class", "default: what was said")],
        responses={(200, "image/png"): OpenApiTypes.BINARY},
    )
    @action(detail=True, methods=["get"])
    def map(self, request: Request, pk: Any = None) -> HttpResponse:
        """The network's input with what speaks for a class laid over it, as a PNG."""
        inside = self._inside()
        asked = PositionSerializer(data=request.query_params)
        asked.is_valid(raise_exception=True)
        seen = self._seen(inside, asked.validated_data["position"])
        name = self._class(inside, "class") or seen.predicted
        after = {"position": seen.position, "class": name}
        audit.record("evaluation.view_images", inside.evaluation, actor=request.user, after=after)
        try:
            picture = draw_map(inside.evaluation.version, seen.image, list(inside.classes).index(name))
        except NoMap as error:
            raise NotFound(f"There is no map: {error}") from error
        return HttpResponse(picture, content_type="image/png", headers={"Cache-Control": "no-store"})

    @extend_schema(request=FlagEvaluatedSerializer, responses=SeenSerializer)
    @action(detail=True, methods=["post"])
    def flag(self, request: Request, pk: Any = None) -> Response:
        """Say that the label of an image is wrong, for a curator to judge; withdrawn under `images/{id}/flag`."""
        inside = self._inside()
        given = FlagEvaluatedSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        values = given.validated_data
        seen = self._seen(inside, values["position"])
        seen.image.flag_label(
            values["suggestion"],
            values["comment"],
            by=request.user,
            seen=f"{inside.evaluation.version} {seen.in_words}",
        )
        flagged = SeenSerializer(self._seen(inside, seen.position)).data
        return Response(flagged, headers={"Cache-Control": KEPT_NOWHERE})

    def _inside(self) -> Inside:
        return Inside(self.get_object(), self.request.user)

    def _class(self, inside: Inside, name: str) -> str:
        given = self.request.query_params.get(name, "")
        if given and given not in inside.classes:
            raise ValidationError({name: [f"There are {', '.join(inside.classes)}."]})
        return given

    def _seen(self, inside: Inside, position: int) -> Seen:
        try:
            seen = inside.one(position)
        except IndexError as error:
            raise NotFound("The evaluation has no image at this position.") from error
        except EvaluationUnusable as error:
            raise Conflict(str(error)) from error
        if seen.image is None:
            raise NotFound(seen.problem)
        return seen
