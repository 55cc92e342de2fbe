from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from xrayplatform import audit
from xrayplatform.admin import ReadOnlyAdmin
from xrayplatform.teams import visible

from .models import EvaluationRun, Prediction


@admin.register(Prediction)
class PredictionAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["id", "version", "decision", "file_format", "latency_ms", "created_by", "created_at"]
    list_filter = ["version__condition", "file_format"]
    search_fields = ["image_digest", "study_uid", "request_id"]
    list_select_related = ["version__condition", "created_by"]
    date_hierarchy = "created_at"

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
