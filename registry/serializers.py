"""JSON forms of versions and what is in service."""

from rest_framework import serializers

from .models import Deployment, ModelVersion


class ModelVersionSerializer(serializers.ModelSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    created_by = serializers.CharField(source="created_by.username", read_only=True, allow_null=True, default=None)

    is_active = serializers.BooleanField(read_only=True, help_text="in service for its condition")

    class Meta:
        model = ModelVersion
        fields = [
            "id", "condition", "number", "architecture", "image_size", "classes", "positive_class", "preprocessing",
            "threshold", "temperature", "metrics", "validation_metrics", "configuration",
            "initial_weights", "environment", "sha256", "size",
            "parent",
            "dataset_name", "dataset_digest", "split_digest", "synthetic", "origin", "created_by",
            "created_at", "state", "is_active",
        ]  # fmt: skip
        read_only_fields = fields


class ActivateSerializer(serializers.Serializer):
    reason = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")


class EpochSerializer(serializers.Serializer):
    """The figures of one epoch; null where a figure is undefined or was not kept."""

    epoch = serializers.IntegerField()
    stage = serializers.CharField(required=False)
    loss = serializers.FloatField(allow_null=True)
    accuracy = serializers.FloatField(allow_null=True)
    auc = serializers.FloatField(allow_null=True, required=False)
    val_loss = serializers.FloatField(allow_null=True)
    val_accuracy = serializers.FloatField(allow_null=True)
    val_auc = serializers.FloatField(allow_null=True)
    learning_rate = serializers.FloatField(allow_null=True)
    seconds = serializers.FloatField(allow_null=True)


class DeploymentSerializer(serializers.ModelSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", read_only=True)

    class Meta:
        model = Deployment
        fields = ["condition", "active", "previous", "epoch"]
