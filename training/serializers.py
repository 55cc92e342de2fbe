"""JSON forms of training runs."""

from typing import Any

from rest_framework import serializers

from datasets.models import Dataset

from .configurations import PRESETS, USER_OPTIONS, ConfigurationError
from .ml.architectures import ARCHITECTURES
from .models import EpochMetric, TrainingRun


class RunSerializer(serializers.ModelSerializer):
    dataset = serializers.IntegerField(source="preparation.dataset_id", read_only=True)
    condition = serializers.CharField(source="preparation.dataset.condition.slug", read_only=True)
    version_number = serializers.IntegerField(source="version.number", read_only=True, allow_null=True, default=None)

    class Meta:
        model = TrainingRun
        fields = [
            "id", "state", "progress", "phase", "message", "error", "hint", "attempt", "dataset", "preparation",
            "condition", "architecture", "preset", "configuration", "initial_weights", "epoch", "epochs",
            "peak_memory", "version", "version_number", "created_at", "started_at", "finished_at",
        ]  # fmt: skip
        read_only_fields = fields


class EpochMetricSerializer(serializers.ModelSerializer):
    class Meta:
        model = EpochMetric
        fields = ["epoch", *EpochMetric.QUANTITIES]


class RunLogSerializer(serializers.Serializer):
    log = serializers.CharField()


class StartRunSerializer(serializers.Serializer):
    """What starts a training. Options that are left out are those of the configuration."""

    dataset = serializers.PrimaryKeyRelatedField(queryset=Dataset.objects.none())
    architecture = serializers.ChoiceField(choices=list(ARCHITECTURES))
    configuration = serializers.ChoiceField(choices=list(PRESETS), default="quick")
    epochs = serializers.IntegerField(required=False)
    batch_size = serializers.IntegerField(required=False)
    learning_rate = serializers.FloatField(required=False)
    seed = serializers.IntegerField(required=False)

    def get_fields(self) -> dict[str, serializers.Field]:
        fields = super().get_fields()
        request = self.context.get("request")
        if request is not None:
            fields["dataset"].queryset = Dataset.objects.visible_to(request.user)
        return fields

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        options = {name: attrs.pop(name) for name in USER_OPTIONS if name in attrs}
        attrs["preset"] = attrs["configuration"]
        try:
            attrs["configuration"] = PRESETS[attrs["preset"]].configuration.with_options(**options)
        except ConfigurationError as error:
            raise serializers.ValidationError({error.field: str(error)}) from error
        return attrs
