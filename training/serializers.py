"""JSON forms of training runs."""

from typing import Any, Literal

from rest_framework import serializers

from datasets.models import Dataset
from registry.models import ModelVersion
from xrayplatform.fields import NumberField, OneOfField, RowField, StrictSerializer

from .advice import warnings_of
from .configurations import OPTIONS, PREPROCESSING, ConfigurationError, Option, Preset, complaints
from .ml.architectures import ARCHITECTURES, PublishedWeights
from .models import EpochMetric, SavedPreset, TrainingRun
from .pretrained import pretrained_folder


class RunSerializer(serializers.ModelSerializer):
    dataset = serializers.IntegerField(source="preparation.dataset_id", read_only=True)
    condition = serializers.CharField(source="preparation.dataset.condition.slug", read_only=True)
    version_number = serializers.IntegerField(source="version.number", read_only=True, allow_null=True, default=None)
    eta_seconds = serializers.FloatField(
        read_only=True, allow_null=True, help_text="left without early stopping, while it runs"
    )
    warnings = serializers.SerializerMethodField(help_text="what to think of before the result is believed")

    class Meta:
        model = TrainingRun
        fields = [
            "id", "state", "progress", "phase", "message", "error", "hint", "attempt", "dataset", "preparation",
            "condition", "architecture", "preset", "configuration", "initial", "initial_version",
            "initial_weights", "epoch", "epochs", "search", "priority", "held", "epoch_limit",
            "batch_size", "images_per_second", "interruptions",
            "peak_memory", "version", "version_number", "warnings", "created_at", "started_at", "finished_at",
            "eta_seconds",
        ]  # fmt: skip
        read_only_fields = fields

    def get_warnings(self, run: TrainingRun) -> list[str]:
        return warnings_of(run.configuration, run.preparation.dataset.condition)


class PublishedWeightsSerializer(serializers.Serializer):
    """The file with ImageNet weights that Keras publishes. state: of the file on this server."""

    file_name = serializers.CharField()
    algorithm = serializers.ChoiceField(["md5", "sha256"])
    digest = serializers.CharField()
    url = serializers.URLField()
    state = serializers.SerializerMethodField()

    def get_state(self, published: PublishedWeights) -> Literal["installed", "damaged", "absent"]:
        return published.state(pretrained_folder())


class ArchitectureSerializer(serializers.Serializer):
    """One architecture that can be trained. pretrained: null when it only learns from scratch."""

    id = serializers.CharField()
    name = serializers.CharField()
    description = serializers.CharField()
    parameters = serializers.IntegerField()
    memory = serializers.CharField()
    speed = serializers.CharField()
    batch_size = serializers.IntegerField()
    learning_rate = serializers.FloatField(help_text="from scratch")
    pretrained_learning_rate = serializers.FloatField(help_text="of a new head on pretrained weights")
    pretrained = PublishedWeightsSerializer(allow_null=True)


class EpochMetricSerializer(serializers.ModelSerializer):
    class Meta:
        model = EpochMetric
        fields = ["epoch", "stage", *EpochMetric.QUANTITIES]


class RunLogSerializer(serializers.Serializer):
    log = serializers.CharField()


class OptionsSerializer(StrictSerializer):
    """Every training option, none of them required."""

    def get_fields(self) -> dict[str, serializers.Field]:
        return super().get_fields() | {name: option_field(option) for name, option in OPTIONS.items()}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Without what was left out; every option that is wrong is named."""
        chosen = {name: attrs[name] for name in OPTIONS if attrs.get(name) is not None}
        wrong = complaints(chosen)
        if wrong:
            raise serializers.ValidationError({name: [complaint] for name, complaint in wrong.items()})
        return {name: value for name, value in attrs.items() if name not in OPTIONS} | chosen


def option_field(option: Option) -> serializers.Field:
    """The range is checked by the configuration, whose message names the field."""
    words = {"help_text": option.help, "required": False, "allow_null": True}
    if option.name == "preprocessing":
        return serializers.ListField(child=OneOfField(choices=PREPROCESSING), **words)
    if option.range is not None:
        words["help_text"] = f"{option.help} Must be {option.range}."
        kind = serializers.IntegerField if option.range.kind is int else NumberField
        return kind(**words)
    if option.choices:
        # As the other image sizes of the API have none, a number needs no words.
        numbers = isinstance(next(iter(option.choices)), int)
        return OneOfField(choices=list(option.choices if numbers else option.choices.items()), **words)
    return serializers.BooleanField(**words)


class StartSerializer(StrictSerializer):
    """What the start of one training and that of several have in common."""

    dataset = RowField(queryset=Dataset.objects.none())
    initial = OneOfField(
        choices=TrainingRun.Initial.choices, default=TrainingRun.Initial.AUTO, help_text="what to start from"
    )
    initial_version = RowField(
        queryset=ModelVersion.objects.none(), required=False, allow_null=True, default=None,
        help_text='whose weights to start from, when `initial` is "version"',
    )  # fmt: skip

    def get_fields(self) -> dict[str, serializers.Field]:
        fields = super().get_fields()
        request = self.context.get("request")
        if request is not None:
            fields["dataset"].queryset = Dataset.objects.visible_to(request.user)
            fields["initial_version"].queryset = ModelVersion.objects.to_start_from(request.user)
        return fields

    def preset(self, key: str) -> Preset:
        """The configuration that was chosen, if the user may choose it. Raises ConfigurationError."""
        return SavedPreset.objects.chosen(key, self.context["request"].user)


class StartRunSerializer(StartSerializer, OptionsSerializer):
    """What starts a training. Options that are left out, or null, are those of the configuration."""

    architecture = OneOfField(choices=list(ARCHITECTURES))
    configuration = serializers.CharField(
        max_length=80, default="quick", help_text='quick, standard, intensive, or "saved:" and the number of a preset'
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        options = {name: attrs.pop(name) for name in OPTIONS if name in attrs}
        try:
            preset = self.preset(attrs["configuration"])
        except ConfigurationError as error:
            raise serializers.ValidationError({error.field: [str(error)]}) from error
        attrs["preset"] = preset.recorded
        attrs["configuration"] = preset.configuration.with_options(**options)
        return attrs
