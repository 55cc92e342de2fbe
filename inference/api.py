"""API: analyse a radiograph, read predictions."""

import base64
from typing import Any

import django_filters
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.parsers import MultiPartParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from datasets.imaging import ImageError
from xrayplatform import audit
from xrayplatform.http import Conflict, NewestFirstPagination, Unavailable, Unprocessable, row_filter
from xrayplatform.idempotency import PARAMETER, IdempotentMixin

from . import api_examples, viewing
from .analysing import GateRefused
from .audit_api import AuditActions
from .engine import EngineError
from .models import NoActiveModel, Prediction
from .parsers import RADIOGRAPHS
from .radiographs import NotKept
from .result_page import with_verdicts
from .result_views import record_pictures
from .serializers import AnalyseSerializer, AnswerSerializer, PredictionSerializer, RefusalSerializer
from .turns import Busy
from .verdict_api import VerdictActions


class NewestPredictionsFirst(NewestFirstPagination):
    """By time: the keys of predictions are random."""

    ordering = "-created_at"


FILTERS = ["version", "image_digest", "study_uid"]


class PredictionFilter(django_filters.FilterSet):
    version = row_filter("version_id")

    class Meta:
        model = Prediction
        fields = FILTERS


class PngRenderer(JSONRenderer):
    """For clients that accept nothing but PNG; errors are JSON all the same."""

    media_type, format = "image/png", "png"


DECIDED = "decision"
_RAW = dict.fromkeys((parser.media_type for parser in RADIOGRAPHS), OpenApiTypes.BINARY)
_CONDITION = OpenApiParameter("condition", str, description="slug; only where the body is the image itself")
_MAP = OpenApiParameter("map", str, description=f"a class, or `{DECIDED}`: its activation map comes with the answer")
_CLASS = OpenApiParameter("class", str, description="default: what was decided")


class PredictionViewSet(
    IdempotentMixin, AuditActions, VerdictActions, mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet
):
    """Answers of the versions in service. POST one radiograph to get one."""

    queryset = Prediction.objects.none()
    serializer_class = PredictionSerializer
    parser_classes = [MultiPartParser, *RADIOGRAPHS]
    pagination_class = NewestPredictionsFirst
    filterset_class = PredictionFilter
    permissions = {
        "list": "inference.view_prediction",
        "retrieve": "inference.view_prediction",
        "create": "inference.add_prediction",
        "map": "inference.view_prediction",
        **AuditActions.audit_permissions,
        **VerdictActions.verdict_permissions,
    }

    def get_queryset(self) -> QuerySet:
        rows = Prediction.objects.visible_to(self.request.user).select_related("version__condition", "created_by")
        # The activation is as large as all the rest together.
        return rows if self.action == "map" else with_verdicts(rows.defer("activation", "measures"))

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Newest first, page by page."""
        with transaction.atomic():
            asked = {name: request.query_params[name][:100] for name in FILTERS if name in request.query_params}
            audit.record("prediction.list", actor=request.user, after=asked)
        return super().list(request, *args, **kwargs)

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        prediction = self.get_object()
        with transaction.atomic():
            audit.record("prediction.view", prediction, actor=request.user)
        return Response(self.get_serializer(prediction).data)

    @extend_schema(
        parameters=[PARAMETER, _CONDITION, _MAP],
        request={"multipart/form-data": AnalyseSerializer, **_RAW},
        responses={201: AnswerSerializer, 422: RefusalSerializer},
        examples=[api_examples.ANSWER, api_examples.REFUSAL],
    )
    def create(self, request: Request) -> Response:
        """Analyse one radiograph, as a form or as the body itself. 503 with Retry-After when too many wait."""
        wanted = AnalyseSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        condition, image = wanted.validated_data["condition"], wanted.validated_data["image"]
        try:
            analysis = Prediction.objects.analyse(
                condition, image.read(), by=request.user, channel=Prediction.Channel.API
            )
        except GateRefused as error:
            verdicts = [verdict.to_json() for verdict in error.verdicts]
            raise Unprocessable(str(error), code=error.code, verdicts=verdicts) from error
        except ImageError as error:
            raise serializers.ValidationError({"image": [str(error)]}, code=error.code) from error
        except NoActiveModel as error:
            raise Conflict(str(error)) from error
        except Busy as error:
            raise Unavailable(str(error), retry_after=error.retry_after) from error
        except EngineError as error:
            raise Unavailable(str(error)) from error
        analysis.prediction.counting = []
        answer = PredictionSerializer(analysis.prediction, context={"request": request}).data
        if "map" in request.query_params:
            answer["map"] = _map(analysis.prediction, request.query_params["map"])
        return Response(answer, status=status.HTTP_201_CREATED)

    @extend_schema(parameters=[_CLASS], responses={(200, "image/png"): OpenApiTypes.BINARY})
    @action(detail=True, pagination_class=None, filter_backends=[], renderer_classes=[JSONRenderer, PngRenderer])
    def map(self, request: Request, pk: str = "") -> HttpResponse:
        """What speaks for a class, as a transparent PNG that covers the radiograph."""
        prediction = self.get_object()
        name = request.query_params.get("class", prediction.decision)
        record_pictures(request, prediction)
        try:
            picture = _drawn(prediction, name)
        except (viewing.NoMap, NotKept) as error:
            raise NotFound(f"There is no map. {error}") from error
        return HttpResponse(picture, content_type="image/png", headers={"Cache-Control": "no-store"})


def _drawn(prediction: Prediction, name: str) -> bytes:
    """Raises viewing.NoMap and NotKept."""
    classes = prediction.version.classes
    if name not in classes:
        raise viewing.NoMap(f"The version that answered has no such class, only {', '.join(classes)}.")
    return viewing.map_of(prediction, classes.index(name))


def _map(prediction: Prediction, asked: str) -> dict[str, Any]:
    """The map beside the answer; that there is none does not cost anybody the answer."""
    name = prediction.decision if asked == DECIDED else asked
    try:
        return {"of": name, "png": base64.b64encode(_drawn(prediction, name)).decode(), "problem": ""}
    except (viewing.NoMap, NotKept) as error:
        return {"of": name, "png": None, "problem": str(error)}
