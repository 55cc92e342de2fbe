"""JSON forms of the dataset objects."""

from rest_framework import serializers

from .models import IMAGE_SIZES, MAX_SEED, Dataset, Preparation, Scan

JOB_FIELDS = [
    "id", "state", "progress", "message", "error", "hint", "attempt", "created_at", "started_at", "finished_at",
]  # fmt: skip


class ScanSerializer(serializers.ModelSerializer):
    class Meta:
        model = Scan
        fields = [*JOB_FIELDS, "images", "problems"]
        read_only_fields = fields


class DatasetSerializer(serializers.ModelSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    preparation = serializers.IntegerField(source="preparation.pk", read_only=True, allow_null=True, default=None)

    class Meta:
        model = Dataset
        fields = [
            "id", "name", "condition", "layout", "layout_label", "because", "classes", "positive_class", "ordinal",
            "synthetic", "counts", "images_count", "unreadable_count", "problems_count", "problems", "digest", "state",
            "scanned_at", "preparation",
        ]  # fmt: skip
        read_only_fields = fields


class DatasetListSerializer(DatasetSerializer):
    """Without the problems, of which there may be a thousand; the dataset itself has them."""

    class Meta(DatasetSerializer.Meta):
        fields = [name for name in DatasetSerializer.Meta.fields if name != "problems"]
        read_only_fields = fields


class PrepareSerializer(serializers.Serializer):
    seed = serializers.IntegerField(min_value=0, max_value=MAX_SEED, default=0)
    image_size = serializers.ChoiceField(choices=IMAGE_SIZES, default=224)
    fit = serializers.ChoiceField(choices=Preparation.Fit, default=Preparation.Fit.AUTO)


class PreparationSerializer(serializers.ModelSerializer):
    class Meta:
        model = Preparation
        fields = [
            *JOB_FIELDS, "dataset", "seed", "image_size", "fit", "pipeline", "classes", "positive_class", "group_key",
            "group_description", "counts", "class_weights", "warnings", "shared_patients", "excluded",
            "dataset_digest", "split_digest", "cache_digest",
        ]  # fmt: skip
        read_only_fields = fields
