"""JSON forms of versions, what they were measured on, their operating points, and what is in service."""

from typing import Any

from rest_framework import serializers

from .comparing import METRICS
from .models import Deployment, Evaluation, ModelVersion, ThresholdSet
from .operating_points import COST, SENSITIVITY, SPECIFICITY
from .weighing import BY_HAND, Wish


class ModelVersionSerializer(serializers.ModelSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    created_by = serializers.CharField(source="created_by.username", read_only=True, allow_null=True, default=None)

    tags = serializers.SlugRelatedField(slug_field="name", many=True, read_only=True)
    is_active = serializers.BooleanField(read_only=True, help_text="in service for its condition")
    damaged = serializers.BooleanField(
        source="integrity.is_damaged",
        read_only=True,
        default=False,
        help_text="its files were found not to be what was registered; it is not used",
    )

    class Meta:
        model = ModelVersion
        fields = [
            "id", "condition", "number", "architecture", "image_size", "classes", "positive_class", "preprocessing",
            "threshold", "temperature", "metrics", "validation_metrics", "configuration",
            "initial_weights", "environment", "sha256", "size",
            "parent",
            "dataset_name", "dataset_digest", "split_digest", "synthetic", "origin", "created_by",
            "created_at", "state", "tags", "is_active", "damaged",
        ]  # fmt: skip
        read_only_fields = fields


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
    threshold = serializers.FloatField(read_only=True, allow_null=True, help_text="at which the version decides")
    threshold_set = serializers.IntegerField(
        source="threshold_set.number", read_only=True, allow_null=True, default=None, help_text="null: as trained"
    )

    class Meta:
        model = Deployment
        fields = ["condition", "active", "previous", "threshold", "threshold_set", "epoch"]


class FigureSerializer(serializers.Serializer):
    """A figure with its 95 % interval; all null where it is undefined, and why in words."""

    value = serializers.FloatField(allow_null=True)
    low = serializers.FloatField(allow_null=True)
    high = serializers.FloatField(allow_null=True)
    undefined = serializers.CharField(allow_blank=True)


class EvaluationListSerializer(serializers.ModelSerializer):
    metrics = serializers.DictField(source="figures", child=FigureSerializer(), read_only=True)
    created_by = serializers.CharField(source="created_by.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = Evaluation
        fields = [
            "id", "version", "kind", "dataset_name", "preparation", "dataset_digest", "split_digest", "images_digest",
            "images_count", "patients_count", "metrics", "created_by", "created_at",
        ]  # fmt: skip
        read_only_fields = fields


class CautionSerializer(serializers.Serializer):
    code = serializers.CharField()
    text = serializers.CharField()
    advice = serializers.CharField()


class EvaluationSerializer(EvaluationListSerializer):
    metrics = serializers.DictField(child=FigureSerializer(), read_only=True)
    cautions = CautionSerializer(many=True, read_only=True)
    versions_measured = serializers.IntegerField(read_only=True, help_text="how many versions used these images")
    drop = serializers.ListField(
        child=serializers.CharField(), read_only=True, help_text="other images against its own test part, in sentences"
    )
    drop_by_figure = serializers.DictField(
        child=serializers.FloatField(allow_null=True), read_only=True, help_text="the value here minus that on the test"
    )

    class Meta(EvaluationListSerializer.Meta):
        fields = [
            *EvaluationListSerializer.Meta.fields, "cautions", "versions_measured", "drop", "drop_by_figure", "report",
        ]  # fmt: skip
        read_only_fields = fields


class ThresholdSetSerializer(serializers.ModelSerializer):
    created_by = serializers.CharField(source="created_by.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = ThresholdSet
        fields = [
            "number", "threshold", "criterion", "target", "prevalence", "validation", "test", "reason", "created_by",
            "created_at",
        ]  # fmt: skip
        read_only_fields = fields


class OperatingPointsSerializer(serializers.Serializer):
    """Thresholds along the ROC curve of the validation part, each with what it does there and on the test part."""

    trained = serializers.FloatField(help_text="the threshold that the training chose")
    points = serializers.ListField(child=serializers.DictField(), help_text="from the lowest threshold to the highest")
    sets = ThresholdSetSerializer(many=True, help_text="the saved threshold sets, newest first")


class SaveOperatingPointSerializer(serializers.Serializer):
    """Shares are between 0 and 1."""

    criterion = serializers.ChoiceField(choices=ThresholdSet.Criterion)
    target = serializers.FloatField(
        required=False,
        allow_null=True,
        default=None,
        help_text="the sensitivity or specificity to reach, or for the cost how many false alarms a miss is worth",
    )
    prevalence = serializers.FloatField(required=False, allow_null=True, default=None, min_value=0, max_value=1)
    threshold = serializers.FloatField(
        required=False,
        allow_null=True,
        default=None,
        help_text="for `by hand`; with another criterion the one that it must find, or nothing is saved",
    )
    reason = serializers.CharField(max_length=500)

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        if data["criterion"] in (SENSITIVITY, SPECIFICITY, COST) and data["target"] is None:
            raise serializers.ValidationError({"target": "This criterion needs a target."})
        if data["criterion"] == BY_HAND and data["threshold"] is None:
            raise serializers.ValidationError({"threshold": "Give the threshold, a probability between 0 and 1."})
        return data

    @property
    def wish(self) -> Wish:
        asked = self.validated_data
        return Wish(asked["criterion"], asked["target"], asked["prevalence"], asked["threshold"])


class CompareSerializer(serializers.Serializer):
    """What to compare. Not every choice is known beforehand, so that what cannot be compared is said in words."""

    version = serializers.ListField(
        child=serializers.CharField(max_length=20), required=False, help_text="ids of two to ten versions; repeat it"
    )
    images = serializers.CharField(
        required=False, allow_blank=True, default="", help_text="value of one of `image_sets`; the own test parts"
    )
    metric = serializers.ChoiceField(choices=list(METRICS), required=False, default="auc", help_text="to rank by")

    def get_fields(self) -> dict[str, serializers.Field]:
        """`class` cannot be written as an attribute."""
        curve = serializers.CharField(required=False, allow_blank=True, help_text="whose curves; empty: the mean")
        return {**super().get_fields(), "class": curve}


class ComparisonSerializer(serializers.Serializer):
    """Versions side by side. A difference is the second version minus the first."""

    condition = serializers.CharField()
    versions = serializers.ListField(child=serializers.DictField())
    image_sets = serializers.ListField(child=serializers.DictField(), help_text="on which they can be compared")
    images = serializers.DictField(help_text="the set that they are compared on")
    evaluations = serializers.ListField(child=serializers.DictField())
    measured = serializers.ListField(child=serializers.DictField())
    metric = serializers.CharField()
    ranking = serializers.ListField(child=serializers.DictField(), help_text="by `metric`; ties share a place")
    rankings = serializers.DictField(child=serializers.ListField(child=serializers.DictField()))
    best = serializers.DictField(child=serializers.CharField(), help_text="by figure, where one alone is first")
    metrics = serializers.DictField(child=serializers.ListField(child=serializers.DictField()))
    same_images = serializers.BooleanField()
    obstacles = serializers.ListField(child=serializers.CharField(), help_text="what keeps versions apart")
    notes = serializers.ListField(child=serializers.CharField())
    pairs = serializers.ListField(child=serializers.DictField())
    classes = serializers.ListField(child=serializers.CharField(allow_blank=True), help_text="that have curves")
    curves = serializers.DictField()
    settings = serializers.ListField(child=serializers.DictField(), help_text="those that differ")
    histories = serializers.ListField(child=serializers.DictField())


class ModelCardSectionSerializer(serializers.Serializer):
    title = serializers.CharField()
    paragraphs = serializers.ListField(child=serializers.CharField())
    facts = serializers.ListField(child=serializers.ListField(child=serializers.CharField()))
    tables = serializers.ListField(child=serializers.DictField())


class ModelCardSerializer(serializers.Serializer):
    format = serializers.IntegerField()
    title = serializers.CharField()
    sections = ModelCardSectionSerializer(many=True)
