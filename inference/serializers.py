"""JSON forms of predictions."""

from typing import Any
from urllib.parse import urlencode

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from xrayplatform.conditions import Condition

from .batch_results import warnings_of
from .models import Prediction


class ReadersSerializer(serializers.Serializer):
    """How many readers agree and disagree; of each the newest verdict counts."""

    agree = serializers.IntegerField()
    disagree = serializers.IntegerField()


class GateVerdictSerializer(serializers.Serializer):
    """What one check before the model said."""

    check = serializers.CharField()
    outcome = serializers.CharField(help_text="pass, warn, fail or unknown")
    value = serializers.FloatField(allow_null=True)
    limit = serializers.FloatField(allow_null=True)
    text = serializers.CharField()


class PredictionSerializer(serializers.ModelSerializer):
    condition = serializers.CharField(source="version.condition.slug", read_only=True)
    version_number = serializers.IntegerField(source="version.number", read_only=True)
    intended_use = serializers.CharField(source="version.condition.intended_use", read_only=True)
    synthetic = serializers.BooleanField(source="version.synthetic", read_only=True)
    created_by = serializers.CharField(source="created_by.username", read_only=True, allow_null=True, default=None)
    gate = GateVerdictSerializer(many=True, read_only=True, help_text="what the checks before the model said")
    warnings = serializers.SerializerMethodField(help_text="what the checks had against the picture, in sentences")
    readers = serializers.SerializerMethodField(help_text="how many readers agree and disagree")
    maps = serializers.SerializerMethodField(help_text="by class: the address of its activation map (PNG)")

    class Meta:
        model = Prediction
        fields = [
            "id", "condition", "version", "version_number", "probabilities", "threshold", "decision", "intended_use",
            "synthetic", "gate", "warnings", "readers", "maps", "channel", "batch", "file_digest", "image_digest",
            "file_format", "width", "height", "modality", "body_part", "study_uid", "series_uid", "sop_uid",
            "latency_ms", "created_by", "created_at", "request_id",
        ]  # fmt: skip
        read_only_fields = fields

    def get_warnings(self, prediction: Prediction) -> list[str]:
        return warnings_of(prediction)

    @extend_schema_field(ReadersSerializer)
    def get_readers(self, prediction: Prediction) -> dict[str, int]:
        """Of rows that were read `with_verdicts`."""
        agree = sum(verdict.agrees for verdict in prediction.counting)
        return {"agree": agree, "disagree": len(prediction.counting) - agree}

    @extend_schema_field({"type": "object", "additionalProperties": {"type": "string", "format": "uri"}})
    def get_maps(self, prediction: Prediction) -> dict[str, str]:
        if not prediction.activation_frame:
            return {}
        address = reverse("api:prediction-map", args=[prediction.pk])
        request = self.context.get("request")
        absolute = request.build_absolute_uri(address) if request else address
        return {name: f"{absolute}?{urlencode({'class': name})}" for name in prediction.version.classes}


class MapSerializer(serializers.Serializer):
    """The activation map of one class, or why there is none."""

    of = serializers.CharField(help_text="the class")
    png = serializers.CharField(allow_null=True, help_text="base64; transparent, covers the radiograph")
    problem = serializers.CharField()


class AnswerSerializer(PredictionSerializer):
    """The answer to an image that was sent. map: only where it was asked for."""

    map = MapSerializer(required=False, read_only=True)

    class Meta(PredictionSerializer.Meta):
        fields = [*PredictionSerializer.Meta.fields, "map"]
        read_only_fields = fields


class RefusalSerializer(serializers.Serializer):
    """Problem details (RFC 9457) of a radiograph that is not fit for the model."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField()
    code = serializers.CharField(help_text="the check that refused")
    verdicts = GateVerdictSerializer(many=True, required=False)


class AnalyseSerializer(serializers.Serializer):
    condition = serializers.SlugRelatedField(slug_field="slug", queryset=Condition.objects.none())
    image = serializers.FileField(help_text="one JPEG, PNG or DICOM file")

    def get_fields(self) -> dict[str, serializers.Field]:
        fields: dict[str, Any] = super().get_fields()
        request = self.context.get("request")
        if request is not None:
            fields["condition"].queryset = Condition.objects.visible_to(request.user)
        return fields
