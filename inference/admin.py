from django.contrib import admin
from django.http import HttpRequest

from xrayplatform import audit
from xrayplatform.admin import ReadOnlyAdmin

from .models import Prediction


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
