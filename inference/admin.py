from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from xrayplatform import audit
from xrayplatform.admin import ReadOnlyAdmin
from xrayplatform.teams import visible

from . import dicom_admin as dicom_admin
from .models import (
    Batch,
    EvaluationRun,
    Experiment,
    LowerPrecision,
    MonitoringAlert,
    Prediction,
    ServingPolicy,
    ServingProcess,
    ServingReference,
    Unanswered,
    Verdict,
)

# Names no conditions of other teams.
OF_CONDITION = ("condition", admin.RelatedOnlyFieldListFilter)


@admin.register(Prediction)
class PredictionAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["id", "version", "decision", "file_format", "latency_ms", "created_by", "created_at"]
    list_filter = [("version__condition", admin.RelatedOnlyFieldListFilter), "file_format"]
    search_fields = ["image_digest", "study_uid", "request_id"]
    list_select_related = ["version__condition", "created_by"]
    date_hierarchy = "created_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        """Nobody sees the answer of a shadow."""
        return super().get_queryset(request).filter(shown=True)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Prediction | None:
        prediction = super().get_object(request, object_id, from_field)
        if prediction is not None:
            audit.record("prediction.view", prediction, actor=request.user)
        return prediction


@admin.register(EvaluationRun)
class EvaluationRunAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["id", "version", "dataset", "part", "state", "created_by", "created_at"]
    list_filter = ["state", "part"]
    list_select_related = ["version__condition", "dataset", "created_by"]
    date_hierarchy = "created_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        """A run names a dataset too: only who may see both sees it."""
        return visible(super().get_queryset(request), "dataset__condition__team", request.user)


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    """Its files and their answers are on its page."""

    team_path = "condition__team"
    list_display = ["id", "name", "condition", "state", "items_count", "created_by", "created_at"]
    list_filter = ["state", OF_CONDITION]
    search_fields = ["name"]
    list_select_related = ["condition", "created_by"]
    date_hierarchy = "created_at"


@admin.register(ServingPolicy)
class ServingPolicyAdmin(ReadOnlyAdmin):
    """It is changed on its page, which sees that two people do not undo each other's work."""

    team_path = "condition__team"
    list_display = ["condition", "on_unlike", "on_body_part", "max_refusal_share", "max_error_share", "max_latency_ms"]
    list_select_related = ["condition"]


@admin.register(ServingReference)
class ServingReferenceAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["version", "images_count", "false_alarm_rate", "problem", "created_at"]
    list_select_related = ["version__condition"]


@admin.register(LowerPrecision)
class LowerPrecisionAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["version", "precision", "keeps_the_answers", "largest_difference", "changed_decisions", "problem"]
    list_filter = ["precision", "keeps_the_answers"]
    list_select_related = ["version__condition"]


@admin.register(ServingProcess)
class ServingProcessAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["host", "pid", "condition", "version", "epoch", "at"]
    list_select_related = ["condition", "version__condition"]


@admin.register(Unanswered)
class UnansweredAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["condition", "kind", "code", "channel", "text", "created_by", "created_at"]
    list_filter = ["kind", "channel", OF_CONDITION]
    search_fields = ["text", "file_digest", "request_id"]
    list_select_related = ["condition", "created_by"]
    date_hierarchy = "created_at"


@admin.register(Verdict)
class VerdictAdmin(ReadOnlyAdmin):
    team_path = "prediction__version__condition__team"
    list_display = ["at", "prediction", "agrees", "label", "by"]
    list_filter = ["agrees", ("prediction__version__condition", admin.RelatedOnlyFieldListFilter)]
    list_select_related = ["prediction__version__condition", "by"]
    date_hierarchy = "at"


@admin.register(Experiment)
class ExperimentAdmin(ReadOnlyAdmin):
    """Started, stopped and promoted on its page, where its report is."""

    team_path = "condition__team"
    list_display = ["id", "condition", "kind", "champion", "challenger", "share", "state", "created_by", "created_at"]
    list_filter = ["state", "kind", OF_CONDITION]
    list_select_related = ["condition", "champion__condition", "challenger__condition", "created_by"]
    date_hierarchy = "created_at"
    exclude = ["salt"]


@admin.register(MonitoringAlert)
class MonitoringAlertAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["week", "condition", "version", "measure", "value", "limit", "seen_by", "created_at"]
    list_filter = ["measure", OF_CONDITION]
    list_select_related = ["condition", "version__condition", "seen_by"]
    date_hierarchy = "created_at"
