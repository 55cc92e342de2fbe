from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from xrayplatform.admin import ReadOnlyAdmin

from .models import Activation, Deployment, Evaluation, ModelVersion, ThresholdSet


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["id", "condition", "number", "architecture", "accuracy", "auc", "state", "created_by", "created_at"]
    list_filter = ["state", "architecture", "condition", "synthetic"]
    search_fields = ["condition__name", "architecture", "sha256", "dataset_name"]
    list_select_related = ["condition", "created_by"]


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["condition", "active", "previous", "epoch"]
    list_select_related = ["condition", "active__condition", "previous__condition"]


@admin.register(Activation)
class ActivationAdmin(ReadOnlyAdmin):
    team_path = "condition__team"
    list_display = ["at", "condition", "from_version", "to_version", "by", "reason"]
    list_filter = ["condition"]
    list_select_related = ["condition", "from_version__condition", "to_version__condition", "by"]


@admin.register(Evaluation)
class EvaluationAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = [
        "id",
        "version",
        "kind",
        "dataset_name",
        "images_count",
        "patients_count",
        "created_by",
        "created_at",
    ]
    list_filter = ["kind", "version__condition"]
    search_fields = ["dataset_name", "images_digest"]
    list_select_related = ["version__condition", "created_by"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        # A report with all its curves is large; the list shows none of it.
        return super().get_queryset(request).defer("report")


@admin.register(ThresholdSet)
class ThresholdSetAdmin(ReadOnlyAdmin):
    team_path = "version__condition__team"
    list_display = ["version", "number", "threshold", "criterion", "reason", "created_by", "created_at"]
    list_filter = ["criterion", "version__condition"]
    list_select_related = ["version__condition", "created_by"]
