"""JSON forms of predictions."""

from rest_framework import serializers

from xrayplatform.conditions import Condition

from .models import Prediction


class PredictionSerializer(serializers.ModelSerializer):
    condition = serializers.CharField(source="version.condition.slug", read_only=True)
    version_number = serializers.IntegerField(source="version.number", read_only=True)
    intended_use = serializers.CharField(source="version.condition.intended_use", read_only=True)
    synthetic = serializers.BooleanField(source="version.synthetic", read_only=True)
    created_by = serializers.CharField(source="created_by.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = Prediction
        fields = [
            "id", "condition", "version", "version_number", "probabilities", "threshold", "decision", "intended_use",
            "synthetic", "file_digest", "image_digest", "file_format", "study_uid", "series_uid", "sop_uid",
            "latency_ms", "created_by", "created_at", "request_id",
        ]  # fmt: skip
        read_only_fields = fields


class AnalyseSerializer(serializers.Serializer):
    condition = serializers.SlugRelatedField(slug_field="slug", queryset=Condition.objects.none())
    image = serializers.FileField(help_text="one JPEG, PNG or DICOM file; it is not stored")

    def get_fields(self) -> dict[str, serializers.Field]:
        fields = super().get_fields()
        request = self.context.get("request")
        if request is not None:
            fields["condition"].queryset = Condition.objects.visible_to(request.user)
        return fields
