"""JSON forms of the dataset objects."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from .enhancement import EXCLUSIVE, STEPS
from .models import (
    COMMENT_LENGTH,
    FIELD_LIMITS,
    IMAGE_SIZES,
    MAX_SEED,
    Dataset,
    DatasetImage,
    Decision,
    Finding,
    Preparation,
    Scan,
)
from .names import shortened

JOB_FIELDS = [
    "id", "state", "progress", "message", "error", "hint", "attempt", "created_at", "started_at", "finished_at",
]  # fmt: skip
LOW, HIGH = FIELD_LIMITS["test_share"]


class ScanSerializer(serializers.ModelSerializer):
    class Meta:
        model = Scan
        fields = [*JOB_FIELDS, "images", "problems"]
        read_only_fields = fields


class DatasetSerializer(serializers.ModelSerializer):
    condition = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    preparation = serializers.IntegerField(source="preparation.pk", read_only=True, allow_null=True, default=None)
    problems = serializers.ListField(source="listed_problems", child=serializers.DictField(), read_only=True)
    vanished = serializers.ListField(
        child=serializers.DictField(), read_only=True, help_text="class, folder and number of images that are gone"
    )
    is_asking = serializers.BooleanField(read_only=True)
    is_read_only = serializers.BooleanField(read_only=True)

    class Meta:
        model = Dataset
        fields = [
            "id", "name", "condition", "layout", "layout_label", "because", "question", "answer", "is_asking",
            "source_classes", "source_counts", "class_choices", "classes", "positive_class", "ordinal",
            "unnamed_grades", "pattern", "synthetic", "counts", "images_count", "unreadable_count", "missing_count",
            "vanished", "problems_count", "problems", "digest", "state", "is_read_only", "scanned_at", "preparation",
        ]  # fmt: skip
        read_only_fields = fields


class DatasetListSerializer(DatasetSerializer):
    """Without the problems, of which there may be a thousand; the dataset itself has them."""

    class Meta(DatasetSerializer.Meta):
        fields = [name for name in DatasetSerializer.Meta.fields if name not in ("problems", "question")]
        read_only_fields = fields


class ChoicesSerializer(serializers.Serializer):
    """How a team wants a dataset to be read. What is not named stays as it is."""

    answer = serializers.CharField(max_length=400, required=False, help_text="an option's value of `question`")
    classes = serializers.DictField(
        child=serializers.CharField(max_length=200, allow_blank=True),
        required=False,
        help_text="class found: class used; the same name merges, an empty one drops",
    )
    positive_class = serializers.CharField(max_length=200, required=False, allow_blank=True)
    ordinal = serializers.BooleanField(required=False, allow_null=True)
    condition = serializers.SlugField(max_length=100, required=False)
    pattern = serializers.CharField(max_length=200, required=False, allow_blank=True, trim_whitespace=False)
    accept_missing = serializers.BooleanField(required=False, help_text="the missing images were removed on purpose")

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        # In a form, unlike in JSON, the members of `classes` are sent as `classes.NAME`.
        unknown = [name for name in self.initial_data if name.partition(".")[0] not in self.fields]
        if unknown:
            raise serializers.ValidationError({shortened(name): ["There is no such choice."] for name in unknown[:10]})
        return {name: value for name, value in data.items() if name != "classes" or value}


class PrepareSerializer(serializers.Serializer):
    seed = serializers.IntegerField(min_value=0, max_value=MAX_SEED, default=0)
    image_size = serializers.ChoiceField(choices=IMAGE_SIZES, default=224)
    fit = serializers.ChoiceField(choices=Preparation.Fit, default=Preparation.Fit.AUTO)
    steps = serializers.ListField(
        child=serializers.ChoiceField(choices=list(STEPS.items())), required=False, help_text="of the preprocessing"
    )
    validation_share = serializers.FloatField(min_value=LOW, max_value=HIGH, default=0.15)
    test_share = serializers.FloatField(min_value=LOW, max_value=HIGH, default=0.15)
    source_splits = serializers.ChoiceField(choices=Preparation.SourceSplits, default=Preparation.SourceSplits.HONOUR)

    def validate_steps(self, steps: list[str]) -> list[str]:
        if set(steps) >= EXCLUSIVE:
            raise serializers.ValidationError("Preprocessing takes clahe or equalise, not both.")
        return steps


class PreparationSerializer(serializers.ModelSerializer):
    class Meta:
        model = Preparation
        fields = [
            *JOB_FIELDS, "dataset", "seed", "image_size", "fit", "steps", "validation_share", "test_share",
            "source_splits", "pattern", "pipeline", "classes", "positive_class", "class_choices", "group_key",
            "group_description", "group_counts", "counts", "class_weights", "warnings", "shared_patients", "excluded",
            "left_out", "dataset_digest", "split_digest", "cache_digest", "cache_bytes", "removed_at",
        ]  # fmt: skip
        read_only_fields = fields


class DecisionSerializer(serializers.ModelSerializer):
    decided_by = serializers.CharField(source="decided_by.username", read_only=True, default=None)

    class Meta:
        model = Decision
        fields = ["code", "action", "reason", "decided_by", "decided_at"]
        read_only_fields = fields


class DecideSerializer(serializers.Serializer):
    code = serializers.ChoiceField(choices=Decision.CODES, default=Decision.BY_HAND, help_text="of the finding")
    action = serializers.ChoiceField(choices=[*Decision.Action.values, "withdraw"])
    reason = serializers.CharField(max_length=300, required=False, allow_blank=True, default="")

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        if data["action"] != "withdraw" and not data["reason"]:
            raise serializers.ValidationError({"reason": ["A decision needs a reason."]})
        return data


class DecideAllSerializer(serializers.Serializer):
    code = serializers.CharField(max_length=30, help_text="of the findings")
    action = serializers.ChoiceField(choices=Decision.Action.choices)
    reason = serializers.CharField(max_length=300)
    spare_one = serializers.BooleanField(default=False, help_text="of copies: keep the first, leave out the others")


class FlagSerializer(serializers.Serializer):
    """What speaks against a label."""

    suggestion = serializers.CharField(
        max_length=200, required=False, allow_blank=True, default="", help_text="the right class; empty: just wrong"
    )
    comment = serializers.CharField(max_length=COMMENT_LENGTH, required=False, allow_blank=True, default="")


class FindingSerializer(serializers.ModelSerializer):
    path = serializers.CharField(source="image.path", read_only=True)
    class_name = serializers.CharField(source="image.class_name", read_only=True)
    flagged_by = serializers.CharField(source="flagged_by.username", read_only=True, default=None)
    action = serializers.CharField(read_only=True, allow_null=True, default=None)
    reason = serializers.CharField(read_only=True, allow_null=True, default=None)

    class Meta:
        model = Finding
        fields = [
            "id", "image", "path", "class_name", "code", "value", "detail", "suggestion", "flagged_by", "flagged_at",
            "action", "reason",
        ]  # fmt: skip
        read_only_fields = fields


class ImageSerializer(serializers.ModelSerializer):
    """Without patient key: a pseudonym is of no use to a client."""

    label = serializers.CharField(read_only=True)
    excluded = serializers.BooleanField(read_only=True)
    attributes = serializers.DictField(
        child=serializers.CharField(),
        read_only=True,
        help_text="what a DICOM file says: sex (F, M, O), age (in bands of years), site (a pseudonym)",
    )

    class Meta:
        model = DatasetImage
        fields = [
            "id", "dataset", "path", "class_name", "label", "source_split", "size", "width", "height", "format",
            "digest", "cluster", "measures", "attributes", "excluded",
        ]  # fmt: skip
        read_only_fields = fields


class ImageDetailSerializer(ImageSerializer):
    findings = serializers.SerializerMethodField()
    decisions = DecisionSerializer(many=True, read_only=True)

    class Meta(ImageSerializer.Meta):
        fields = [*ImageSerializer.Meta.fields, "findings", "decisions"]
        read_only_fields = fields

    @extend_schema_field(FindingSerializer(many=True))
    def get_findings(self, image: DatasetImage) -> Any:
        return FindingSerializer(image.findings.with_decision().select_related("flagged_by"), many=True).data


class StorageSerializer(serializers.Serializer):
    finished = serializers.IntegerField(help_text="bytes")
    unfinished = serializers.IntegerField(help_text="bytes; a preparation with the same choices goes on with them")


class PruneSerializer(serializers.Serializer):
    days = serializers.IntegerField(min_value=0, max_value=36_500, default=30)


class PrunedSerializer(serializers.Serializer):
    preparations = serializers.IntegerField()
    bytes = serializers.IntegerField()


class PatternSerializer(serializers.Serializer):
    pattern = serializers.CharField(max_length=200, allow_blank=True, trim_whitespace=False)
