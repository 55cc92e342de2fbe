"""API: analyse a radiograph, read predictions."""

from typing import Any

import django_filters
from django.db import transaction
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from datasets.imaging import ImageError
from xrayplatform import audit
from xrayplatform.http import Conflict, NewestFirstPagination, Unavailable, row_filter

from .engine import EngineError
from .models import NoActiveModel, Prediction
from .serializers import AnalyseSerializer, PredictionSerializer


class NewestPredictionsFirst(NewestFirstPagination):
    """By time: the keys of predictions are random."""

    ordering = "-created_at"


class PredictionFilter(django_filters.FilterSet):
    version = row_filter("version_id")

    class Meta:
        model = Prediction
        fields = ["version", "image_digest", "study_uid"]


class PredictionViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Answers of the versions in service. POST one radiograph to get one."""

    queryset = Prediction.objects.none()
    serializer_class = PredictionSerializer
    parser_classes = [MultiPartParser]
    pagination_class = NewestPredictionsFirst
    filterset_class = PredictionFilter
    permissions = {
        "list": "inference.view_prediction",
        "retrieve": "inference.view_prediction",
        "create": "inference.add_prediction",
    }

    def get_queryset(self) -> QuerySet:
        return Prediction.objects.visible_to(self.request.user).select_related("version__condition", "created_by")

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        prediction = self.get_object()
        with transaction.atomic():
            audit.record("prediction.view", prediction, actor=request.user)
        return Response(PredictionSerializer(prediction).data)

    @extend_schema(request=AnalyseSerializer, responses={201: PredictionSerializer})
    def create(self, request: Request) -> Response:
        wanted = AnalyseSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        condition, image = wanted.validated_data["condition"], wanted.validated_data["image"]
        try:
            analysis = Prediction.objects.analyse(condition, image.read(), by=request.user)
        except ImageError as error:
            raise serializers.ValidationError({"image": [str(error)]}, code=error.code) from error
        except NoActiveModel as error:
            raise Conflict(str(error)) from error
        except EngineError as error:
            raise Unavailable(str(error)) from error
        return Response(PredictionSerializer(analysis.prediction).data, status=status.HTTP_201_CREATED)
