from django.contrib import admin

from xrayplatform.admin import ReadOnlyAdmin

from .models import Prediction


@admin.register(Prediction)
class PredictionAdmin(ReadOnlyAdmin):
    list_display = ["id", "version", "decision", "file_format", "latency_ms", "created_by", "created_at"]
    list_filter = ["version__condition", "file_format"]
    search_fields = ["image_digest", "study_uid", "request_id"]
    list_select_related = ["version__condition", "created_by"]
    date_hierarchy = "created_at"
