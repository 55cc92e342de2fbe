"""API: a prediction as FHIR JSON, DICOM structured report and DICOM secondary capture."""

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.parsers import MultiPartParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from datasets.imaging import ImageError
from xrayplatform.fields import StrictSerializer
from xrayplatform.http import Conflict

from . import exporting, fhir
from .models import Prediction


class FhirRenderer(JSONRenderer):
    """For clients that accept nothing but FHIR; errors are JSON too."""

    media_type, format = fhir.MEDIA_TYPE, "fhir"


class DicomRenderer(JSONRenderer):
    """For clients that accept nothing but DICOM; errors are JSON all the same."""

    media_type, format = exporting.DICOM, "dicom"


class SourceSerializer(StrictSerializer):
    image = serializers.FileField(help_text="the DICOM file that was analysed; it is not stored")


class PredictionExportViewSet(GenericViewSet):
    """Predictions for other systems. DICOM results name the patient of their image, whose header is not kept."""

    queryset = Prediction.objects.none()
    serializer_class = SourceSerializer
    parser_classes = [MultiPartParser]
    renderer_classes = [JSONRenderer, FhirRenderer, DicomRenderer]
    pagination_class = None
    filter_backends: list[Any] = []
    permissions = dict.fromkeys(("fhir", "sr", "sc"), "inference.view_prediction")

    def get_queryset(self) -> QuerySet:
        rows = Prediction.objects.visible_to(self.request.user)
        return rows.select_related("version__condition", "received")

    @extend_schema(responses={(200, fhir.MEDIA_TYPE): OpenApiTypes.OBJECT})
    @action(detail=True)
    def fhir(self, request: Request, pk: str = "") -> HttpResponse:
        """A FHIR R4 DiagnosticReport with its Observation and Device."""
        prediction = self.get_object()
        url = request.build_absolute_uri(prediction.get_absolute_url())
        return as_response(exporting.take_fhir(prediction, by=request.user, url=url))

    @extend_schema(methods=["GET"], request=None, responses={(200, exporting.DICOM): OpenApiTypes.BINARY})
    @extend_schema(methods=["POST"], request=SourceSerializer, responses={(200, exporting.DICOM): OpenApiTypes.BINARY})
    @action(detail=True, methods=["get", "post"])
    def sr(self, request: Request, pk: str = "") -> HttpResponse:
        """A DICOM structured report (TID 1500). GET while the received image is kept, else POST the image again."""
        return self._dicom(request, exporting.take_report)

    @extend_schema(methods=["GET"], request=None, responses={(200, exporting.DICOM): OpenApiTypes.BINARY})
    @extend_schema(methods=["POST"], request=SourceSerializer, responses={(200, exporting.DICOM): OpenApiTypes.BINARY})
    @action(detail=True, methods=["get", "post"])
    def sc(self, request: Request, pk: str = "") -> HttpResponse:
        """A DICOM secondary capture: the radiograph with the map. GET and POST as for the report."""
        return self._dicom(request, exporting.take_capture)

    def _dicom(self, request: Request, take: Callable[..., exporting.File]) -> HttpResponse:
        prediction, given = self.get_object(), None
        if request.method == "POST":
            sent = SourceSerializer(data=request.data)
            sent.is_valid(raise_exception=True)
            given = sent.validated_data["image"].read()
        try:
            return as_response(take(prediction, by=request.user, given=given))
        except ImageError as error:
            raise serializers.ValidationError({"image": [str(error)]}, code=error.code) from error
        except exporting.REFUSALS as error:
            raise Conflict(str(error)) from error


def as_response(file: exporting.File) -> HttpResponse:
    """A download, which no cache keeps: DICOM files name patients."""
    response = HttpResponse(file.content, content_type=file.media_type)
    response["Content-Disposition"] = f'attachment; filename="{file.name}"'
    response["Cache-Control"] = "no-store"
    return response
